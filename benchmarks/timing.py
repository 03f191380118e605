"""Timing side by side: candidates take turns, ratios are taken turn by turn.

`python -m benchmarks.timing FILE...` prints the tables of what `--output` wrote.
"""

import json
import os
import pathlib
import platform
import sys
import time

import keras
import numpy as np

from trainers.report import tables


def take_turns(candidates, rounds, warmup=1):
    """Times functions in turns.

    Args:
        candidates: Dict from a name to a function of no arguments, which returns
            when its work is done.
        rounds: Turns of each.
        warmup: Turns before these (the first one compiles).

    Returns:
        Dict from the name to the seconds of its turns, a list.
    """
    seconds = {name: [] for name in candidates}
    for turn in range(-warmup, rounds):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summarize(title, seconds, reference, per=1):
    """Summarizes turns as ratios to a reference.

    Args:
        title: What was timed.
        seconds: What `take_turns` returned.
        reference: The candidate to compare with.
        per: Units of work in a turn.

    Returns:
        Dict of `title`, `reference`, `backend`, `hardware` and `rows`: for each
        candidate the median time of a unit (`ms`) and the median, minimum and
        maximum of the ratios to the reference's turn beside it.
    """
    base = np.array(seconds[reference])
    rows = {}
    for name, values in seconds.items():
        ratios = np.array(values) / base
        rows[name] = {
            "ms": float(np.median(values) / per * 1e3),
            "ratio": float(np.median(ratios)),
            "ratio_min": float(ratios.min()),
            "ratio_max": float(ratios.max()),
        }
    return {
        "title": title,
        "reference": reference,
        "backend": keras.backend.backend(),
        "hardware": hardware(),
        "rows": rows,
    }


def hardware():
    """Returns the processor and its cores, in words."""
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def table(summary):
    """Returns a summary as a Markdown table."""
    head = ["", "ms", f"ratio to {summary['reference']}", "min - max"]
    rows = [
        [
            name,
            f"{row['ms']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['ratio_min']:.2f} - {row['ratio_max']:.2f}",
        ]
        for name, row in summary["rows"].items()
    ]
    title = f"### {summary['title']} ({summary['backend']}, {summary['hardware']})"
    return f"{title}\n\n{tables.table(head, rows)}\n"


def write(path, results):
    """Writes summaries as JSON, if there is a path."""
    if path:
        with open(path, "w") as file:
            json.dump(results, file, indent=2)


def write_report(folder, page, results):
    """Writes `report.md` and `metrics.json`, if there is a folder.

    Args:
        folder: Path of the folder, made if missing; None for nothing.
        page: The text of the one.
        results: What JSON takes, of the other.
    """
    if folder:
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.md").write_text(page)
        (folder / "metrics.json").write_text(json.dumps(results, indent=1) + "\n")


def main(paths):
    """Prints the tables of files that `write` wrote."""
    for path in paths:
        with open(path) as file:
            for summary in json.load(file):
                print(table(summary))


if __name__ == "__main__":
    main(sys.argv[1:])
