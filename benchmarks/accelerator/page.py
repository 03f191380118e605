"""The page of the plan: what there is so far."""

import numpy as np

from bayesnorm import backend
from bayesnorm.storage import write_atomically
from bayesnorm.training.progress import duration
from benchmarks.accelerator.ledger import DONE, FAILED
from trainers.report import tables


def write(context, pieces, experiments):
    """Writes `report.md`.

    Args:
        context: The `Context`.
        pieces: All pieces of the plan.
        experiments: The experiments, which have folders of their own.
    """
    ledger = context.ledger
    sections = [
        "# The plan",
        f"{', '.join(sorted(set(backend.devices())))}, precision {context.precision}; "
        f"{duration(ledger.total_seconds())} so far. Command:",
        f"```\n{context.command}\n```",
        *_speeds(ledger),
        *_precisions(ledger),
        *_experiments(context, experiments),
        "## Pieces",
        table(context, pieces),
    ]
    write_atomically(context.out / "report.md", "\n\n".join(sections) + "\n")


def table(context, pieces):
    """Returns the pieces with what they took and should take, as Markdown.

    Args:
        context: The `Context`.
        pieces: The pieces, in order.
    """
    rows, total = [], 0.0
    for piece in pieces:
        state = context.ledger.state(piece.name)
        took = context.ledger.seconds(piece.name)
        left = 0.0 if state == DONE else piece.seconds
        total += left
        said = state or ""
        if state == FAILED:
            said = f"failed: {context.ledger.result(piece.name)['error']}"
        times = (took, left, left and total)
        rows.append([piece.title, said, *(duration(t) if t else "" for t in times)])
    head = ["piece", "", "took", "left, estimated", "sum"]
    return tables.table(head, rows, left=(0, 1))


def _speeds(ledger):
    found = ledger.results("speed/")
    rows = [row for row in found.values() if "kind" in row]
    if not rows:
        return []
    ceiling = found.get("ceiling", {}).get("flops_per_second")
    head = ["", "batch", "at once", "steps/s", "network steps/s", "ms a step"]
    head += ["compiling, s", "share of the ceiling, %"]
    cells = [
        [
            row["kind"],
            f"{row['batch']}",
            f"{row['at_once']}",
            f"{row['steps_per_second']:.1f}",
            f"{row['network_steps_per_second']:.1f}",
            f"{row['ms']:.2f}",
            f"{row['compile_s']:.1f}",
            _share(row),
        ]
        for row in sorted(rows, key=lambda r: (r["kind"], r["batch"], r["at_once"]))
    ]
    text = "Training, augmentation included. The share counts three forward passes."
    if ceiling:
        text += (
            f" The ceiling is what large matrix products reach: {ceiling / 1e12:.2f} "
            "TFLOP/s."
        )
    return ["## Speed", tables.table(head, cells), text]


def _share(row):
    return tables.number(row.get("flop_share"), ".1f", none="")


def _precisions(ledger):
    found = ledger.results("precision/")
    if not found:
        return []
    rows = []
    for name, row in found.items():
        losses = ", ".join(f"{np.mean(values):.4f}" for values in row["train_nll"])
        last = row["validation_nll"]
        spread = tables.number(np.mean(last), ".4f", np.std(last, ddof=1))
        rows.append([name, f"{row['seconds_per_epoch']:.2f}", losses, spread])
    head = ["", "s / epoch", "training NLL by epoch", "validation NLL"]
    text = (
        "All-CNN with analytic normalization and a posterior, the same seeds in each; "
        "mean (± standard deviation) over the seeds, all at once."
    )
    return ["## Precision", tables.table(head, rows, left=(0, 2)), text]


def _experiments(context, experiments):
    rows = [
        [
            experiment.name,
            name,
            f"{row['networks_at_once']}",
            f"{row['seconds_per_epoch']:.2f}",
            _share(row),
        ]
        for experiment in experiments
        for name, row in context.ledger.results(f"{experiment.name}/").items()
        if "seconds_per_epoch" in row
    ]
    reports = [
        f"- [{experiment.name}]({experiment.name}/report.md)"
        for experiment in experiments
        if (experiment.folder / "report.md").is_file()
    ]
    sections = []
    if reports:
        sections += ["## Tables", "\n".join(reports)]
    if rows:
        head = ["table", "networks", "at once", "s / epoch of all"]
        head.append("share of the ceiling, %")
        sections += ["## Epochs", tables.table(head, rows, left=(0, 1))]
    return sections
