"""Markdown tables and their cells."""


def table(head, rows, left=(0,)):
    """Returns a Markdown table.

    Args:
        head: Titles of the columns.
        rows: Lists of texts, one for each column.
        left: Indices of the columns of words; those of numbers are set to the right.

    Raises:
        ValueError: If a row has more cells or fewer than there are columns.
    """
    lines = []
    for row in (head, ["---" + ":" * (i not in left) for i in range(len(head))], *rows):
        if len(row) != len(head):
            raise ValueError(
                f"A row needs a cell for each of the columns {head}. Received: {row}"
            )
        cells = (cell.replace("|", "\\|").replace("\n", " ") for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def number(value, form, stddev=None, none="-"):
    """Returns a number as text, `none` for None, with its deviation if there is one."""
    if value is None:
        return none
    text = format(value, form)
    return text if stddev is None else f"{text} ± {format(stddev, form)}"


def cells(records, columns, methods):
    """Returns the figures `(part, figure, format)` of each method, as texts."""
    return [
        number(record.value, form, record.stddev)
        for part, figure, form in columns
        for record in (records.find(part, figure, method) for method in methods)
    ]
