"""The page of the plan: what there is so far."""

import numpy as np

from bayesnorm import backend
from bayesnorm.storage import write_atomically
from benchmarks.accelerator.ledger import DONE, FAILED
from trainers.progress import duration


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
    lines = [
        "| piece | | took | left, estimated | sum |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    total = 0.0
    for piece in pieces:
        state = context.ledger.state(piece.name)
        took = context.ledger.seconds(piece.name)
        left = 0.0 if state == DONE else piece.seconds
        total += left
        said = state or ""
        if state == FAILED:
            said = f"failed: {context.ledger.result(piece.name)['error']}"
        lines.append(
            f"| {piece.title} | {said} | {duration(took) if took else ''} "
            f"| {duration(left) if left else ''} | {duration(total) if left else ''} |"
        )
    return "\n".join(lines)


def _speeds(ledger):
    found = ledger.results("speed/")
    rows = [row for row in found.values() if "kind" in row]
    if not rows:
        return []
    ceiling = found.get("ceiling", {}).get("flops_per_second")
    lines = [
        "| | batch | at once | steps/s | network steps/s | ms a step | compiling, s "
        "| share of the ceiling, % |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in sorted(rows, key=lambda r: (r["kind"], r["batch"], r["at_once"])):
        share = f"{row['flop_share']:.1f}" if "flop_share" in row else ""
        lines.append(
            f"| {row['kind']} | {row['batch']} | {row['at_once']} "
            f"| {row['steps_per_second']:.1f} "
            f"| {row['network_steps_per_second']:.1f} | {row['ms']:.2f} "
            f"| {row['compile_s']:.1f} | {share} |"
        )
    text = "Training, augmentation included. The share counts three forward passes."
    if ceiling:
        text += (
            f" The ceiling is what large matrix products reach: {ceiling / 1e12:.2f} "
            "TFLOP/s."
        )
    return ["## Speed", "\n".join(lines), text]


def _precisions(ledger):
    found = ledger.results("precision/")
    if not found:
        return []
    lines = [
        "| | s / epoch | training NLL by epoch | validation NLL |",
        "| --- | ---: | --- | ---: |",
    ]
    for name, row in found.items():
        losses = ", ".join(f"{np.mean(values):.4f}" for values in row["train_nll"])
        spread = f"{np.mean(row['validation_nll']):.4f}"
        spread += f" ± {np.std(row['validation_nll'], ddof=1):.4f}"
        lines.append(
            f"| {name} | {row['seconds_per_epoch']:.2f} | {losses} | {spread} |"
        )
    text = (
        "All-CNN with analytic normalization and a posterior, the same seeds in each; "
        "mean (± standard deviation) over the seeds, all at once."
    )
    return ["## Precision", "\n".join(lines), text]


def _experiments(context, experiments):
    lines = []
    for experiment in experiments:
        for name, row in context.ledger.results(f"{experiment.name}/").items():
            if "seconds_per_epoch" not in row:
                continue
            share = f"{row['flop_share']:.1f}" if "flop_share" in row else ""
            lines.append(
                f"| {experiment.name} | {name} | {row['networks_at_once']} "
                f"| {row['seconds_per_epoch']:.2f} | {share} |"
            )
    reports = [
        f"- [{experiment.name}]({experiment.name}/report.md)"
        for experiment in experiments
        if (experiment.folder / "report.md").is_file()
    ]
    sections = []
    if reports:
        sections += ["## Tables", "\n".join(reports)]
    if lines:
        head = [
            "| table | networks | at once | s / epoch of all "
            "| share of the ceiling, % |",
            "| --- | --- | ---: | ---: | ---: |",
        ]
        sections += ["## Epochs", "\n".join(head + lines)]
    return sections
