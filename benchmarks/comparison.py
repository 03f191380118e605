"""The All-CNN with each normalization, side by side, at a scale that you choose.

```
python -m benchmarks.comparison --dataset=cifar10 --data_dir=DIR \
    --width=0.25 --epochs=5 --seeds=0,1 --output=benchmarks/results/cifar10
```

Each run is a `trainers.all_cnn` of its own in a folder of its own: a comparison
that was stopped goes on, and one with more seeds runs only those. With
`--learning_rate=auto` it is searched for with the first seed of a method and used
for its other seeds.

Reference:
    Shekhovtsov & Flach, 2018, "Stochastic Normalizations as Bayesian Learning",
    table 1.
"""

import csv
import json
import pathlib
import subprocess
import sys

import joblib
import numpy as np
from absl import app, flags

from benchmarks import command
from trainers.checkpoints import read_flags

_DATASET = flags.DEFINE_string("dataset", "digits", "Data set.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TensorFlow Datasets directory.")
_TITLE = flags.DEFINE_string("dataset_title", None, "Name of the data in the table.")
_WIDTH = flags.DEFINE_float("width", 0.25, "Width factor of the All-CNN.")
_EPOCHS = flags.DEFINE_integer("epochs", 5, "Epochs of a run.", 1)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "Seeds.")
_RATE = flags.DEFINE_string("learning_rate", "auto", "A number, or auto.")
_SEARCH_EPOCHS = flags.DEFINE_integer("search_epochs", 1, "Epochs of a search step.")
_SEARCH_STEPS = flags.DEFINE_integer("search_evaluations", 5, "Steps of a search.")
_METHODS = flags.DEFINE_list("methods", None, "Methods, all by default.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at a time.", 1)
_WORKDIR = flags.DEFINE_string("workdir", "runs/comparison", "Folder of the runs.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the table and the figures.")

# name -> flags of `trainers.all_cnn`, in the order of the paper's table
METHODS = {
    "none": ("none", "plain", False),
    "BN": ("batch", "plain", False),
    "BN + projection": ("batch", "plain", True),
    "WN": ("weight", "plain", True),
    "AN": ("analytic", "plain", True),
    "WN + stochastic": ("weight", "stochastic", True),
    "AN + stochastic": ("analytic", "stochastic", True),
}

_FIRST_RATE = "train/first_learning_rate"

# title of a column, key in metrics.json, decimals
COLUMNS = (
    ("error, one pass, %", "test/error_one_pass", 2),
    ("error, 30 samples, %", "test/error_averaged", 2),
    ("NLL, one pass", "test/nll_one_pass", 3),
    ("NLL, 30 samples", "test/nll_averaged", 3),
    ("ECE, one pass, %", "test/ece_equal_width_one_pass", 2),
    ("OOD AUROC, one pass, %", "ood/auroc_one_pass", 1),
    ("OOD AUROC, 30 samples, %", "ood/auroc_averaged", 1),
    ("training NLL", "train/nll", 3),
    ("learning rate", _FIRST_RATE, 4),
    ("s / epoch", "seconds/epoch", 1),
)


def workdir(method, seed):
    """Returns the folder of a run."""
    name = method.lower().replace(" + ", "_")
    return pathlib.Path(_WORKDIR.value) / f"{name}-{seed}"


def run(method, seed, rate):
    """Runs the trainer, if it has not run; returns its figures."""
    folder = workdir(method, seed)
    norm, scale, projection = METHODS[method]
    arguments = {
        "dataset": _DATASET.value,
        "norm": norm,
        "scale": scale,
        "projection": str(projection).lower(),
        "width": _WIDTH.value,
        "epochs": _EPOCHS.value,
        "seed": seed,
        "learning_rate": rate,
        "search_epochs": _SEARCH_EPOCHS.value,
        "search_evaluations": _SEARCH_STEPS.value,
    }
    arguments = {f"--{name}": str(value) for name, value in arguments.items()}
    # Of a finished run only the figures are wanted, if it is the one asked for.
    done = (folder / "metrics.json").exists()
    there = read_flags(folder / "flags.txt") if done else {}
    if not done or any(there.get(k, v) != v for k, v in arguments.items()):
        folders = {
            "--workdir": folder,
            "--data_dir": _DATA_DIR.value,
            "--dataset_title": _TITLE.value,
        }
        arguments |= {k: v for k, v in folders.items() if v is not None}
        subprocess.run(
            [sys.executable, "-m", "trainers.all_cnn"]
            + [f"{name}={value}" for name, value in arguments.items()],
            check=True,
        )
    figures = json.loads((folder / "metrics.json").read_text())
    with open(folder / "history.csv") as history:
        first = next(csv.DictReader(history))
    return figures | {_FIRST_RATE: float(first["learning_rate"])}


def run_seeds(method, seeds):
    """Runs a method with all seeds; returns the figures of each."""
    results = [run(method, seeds[0], _RATE.value)]
    rate = results[0][_FIRST_RATE]
    return results + [run(method, seed, rate) for seed in seeds[1:]]


def table(results):
    """Returns `method -> figures of its seeds` as a Markdown table."""
    known = {key for runs in results.values() for figures in runs for key in figures}
    columns = [column for column in COLUMNS if column[1] in known]
    lines = [
        "| | " + " | ".join(title for title, _, _ in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for method, runs in results.items():
        cells = []
        for _, key, decimals in columns:
            values = [figures[key] for figures in runs if figures.get(key) is not None]
            cells.append(_cell(values, decimals))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values, decimals):
    if not values:
        return ""
    mean = f"{np.mean(values):.{decimals}f}"
    spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{mean} ± {spread:.{decimals}f}" if spread else mean


def main(argv):
    """Runs the comparison and writes its table."""
    del argv
    methods = _METHODS.value or list(METHODS)
    unknown = set(methods) - set(METHODS)
    if unknown:
        raise app.UsageError(
            f"--methods: expected some of {list(METHODS)}. Received: {sorted(unknown)}"
        )
    seeds = [int(seed) for seed in _SEEDS.value]
    runs = joblib.Parallel(n_jobs=_JOBS.value)(
        joblib.delayed(run_seeds)(method, seeds) for method in methods
    )
    results = dict(zip(methods, runs, strict=True))
    any_run = runs[0][0]
    text = "\n".join(
        [
            f"# All-CNN on {any_run['dataset']}",
            "",
            f"Width {_WIDTH.value:g}, {_EPOCHS.value} epochs, seeds "
            f"{', '.join(_SEEDS.value)} (mean ± standard deviation over them), "
            f"{any_run['hardware']['cores']} cores, "
            f"{', '.join(any_run['hardware']['devices'])}. NLL in nats per example. "
            "Command:",
            "",
            "```",
            command.as_given(),
            "```",
            "",
            table(results),
            "",
        ]
    )
    print(text)
    if _OUTPUT.value:
        output = pathlib.Path(_OUTPUT.value)
        output.mkdir(parents=True, exist_ok=True)
        (output / "README.md").write_text(text)
        figures = json.dumps(results, indent=1)
        (output / "metrics.json").write_text(figures + "\n")


if __name__ == "__main__":
    app.run(main)
