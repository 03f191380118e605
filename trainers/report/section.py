"""The sections of a page, and what becomes of them."""

import dataclasses
from typing import Any

from bayesnorm.storage import write_atomically


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page, as a function of an `Evaluation` returns it.

    Attributes:
        name: That of its plot's file, without the ending.
        heading: Its heading.
        text: What it says, Markdown.
        figure: Its plot, a figure of Matplotlib, or None.
        records: What it measured, an iterable of `Record`.
    """

    name: str
    heading: str
    text: str
    figure: Any = None
    records: tuple = ()


def collect(evaluation, functions):
    """Returns the sections that there are, and adds what they measured.

    Args:
        evaluation: The `Evaluation`, whose records grow.
        functions: Functions `(evaluation)` that return a `Section`, or None where it
            would say nothing.
    """
    found = []
    for function in functions:
        section = function(evaluation)
        if section is not None:
            evaluation.records.add(section.records)
            found.append(section)
    return found


def save_plots(folder, sections):
    """Writes the plots as PNG; returns how many there are."""
    drawn = [section for section in sections if section.figure is not None]
    for section in drawn:
        section.figure.savefig(folder / f"{section.name}.png")
    return len(drawn)


def write_page(path, head, sections):
    """Writes a page: its head, and the sections with their plots beside it."""
    parts = [head]
    for section in sections:
        parts += [f"## {section.heading}", section.text]
        if section.figure is not None:
            parts.append(f"![{section.heading}]({section.name}.png)")
    write_atomically(path, "\n\n".join(parts) + "\n")
