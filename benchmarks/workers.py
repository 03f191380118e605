"""One network trained by one process, on two devices, and by two processes.

```
python -m benchmarks.workers --output=benchmarks/results/workers
KERAS_BACKEND=jax python -m benchmarks.workers --output=benchmarks/results/workers
```

On the digits, for each seed: a network in which nothing is random and nothing depends
on a batch, of which all figures must be those of one process to rounding; and the
networks of batch, and of analytic normalization with a stochastic scale, which on
several devices have other batch statistics and other noise, so that their figures must
agree within the spread over the seeds. The last kind of run has two processes of which
the second is killed (SIGKILL) at a random moment, and which begin again by themselves.
Without accelerators the devices are parts of the CPU: that the figures are right is
measured, not that it is faster.
"""

import os
import pathlib
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
from absl import app, flags

from bayesnorm.storage import write_atomically
from trainers.comparison import execution
from trainers.flags import command
from trainers.report.tables import table

_EPOCHS = flags.DEFINE_integer("epochs", 20, "Epochs of a run.", 2)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the table.")

_NETWORKS = {
    "no randomness": "--norm=weight --scale=plain --noprojection --optimizer=sgd "
    "--learning_rate=0.002",
    "batch normalization": "--norm=batch --scale=plain",
    "analytic normalization, stochastic scale": "",
}
_LAUNCH = ["trainers.launch", "--workers=2", "--restarts=3", "--"]
# Title -> what comes before the binary, and behind its flags.
_PLACES = {
    "one process": ([], []),
    "two devices": ([], ["--data_parallel=devices", "--replicas=2"]),
    "two processes": (_LAUNCH, []),
    "two processes, one killed": (_LAUNCH, []),
}
_FIGURES = {"nll": "test NLL, nats", "error": "test error, %"}
_POLL_SECONDS = 0.2


def _children(parent):
    """Returns the ids of the processes that a process began, the oldest first."""
    path = pathlib.Path(f"/proc/{parent}/task/{parent}/children")
    return sorted(map(int, path.read_text("utf-8").split()))


def _kill_one(process, folder, epochs):
    """Kills the youngest worker once the run has come so far; returns the epoch."""
    while process.poll() is None:
        if (done := _epochs(folder)) >= epochs:
            os.kill(_children(process.pid)[-1], signal.SIGKILL)
            return done
        time.sleep(_POLL_SECONDS)
    raise RuntimeError("The run ended before it could be killed.")


def run(words, place, seed, folder, rng):
    """Runs a network in a place; returns a dict of its figures."""
    before, behind = _PLACES[place]
    words = [
        *before,
        "trainers.all_cnn",
        *words.split(),
        *behind,
        f"--epochs={_EPOCHS.value}",
        f"--seed={seed}",
        "--width=0.125",
        "--samples=10",
        f"--workdir={folder}",
    ]
    start, killed = time.monotonic(), None
    with open(folder.with_suffix(".txt"), "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *words], stdout=log, stderr=subprocess.STDOUT
        )
        if place.endswith("killed"):
            killed = _kill_one(process, folder, int(rng.integers(1, _EPOCHS.value - 1)))
        if process.wait():
            raise RuntimeError(folder.with_suffix(".txt").read_text("utf-8")[-2000:])
    return {
        "seconds": time.monotonic() - start,
        "killed": killed,
        **_figures(folder),
    }


def _epochs(folder):
    """Returns how many epochs of a run have ended."""
    path = folder / "history.csv"
    return len(path.read_text("utf-8").splitlines()) - 1 if path.exists() else 0


def _figures(folder):
    ended = execution.read_outcome(folder)
    found = {name: ended.records.value("test", name, "one_pass") for name in _FIGURES}
    return {"losses": ended.history["loss"], **found}


def _row(name, place, runs, alone):
    """The row of a network in a place: mean and deviation over the seeds."""
    apart = np.abs(
        [
            np.divide(r["losses"], a["losses"]) - 1
            for r, a in zip(runs, alone, strict=True)
        ]
    )
    cells = []
    for key, form in (("nll", ".4f"), ("error", ".2f")):
        values = [r[key] for r in runs]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        cells.append(f"{statistics.mean(values):{form}} ± {spread:{form}}")
    killed = ", ".join(str(r["killed"]) for r in runs if r["killed"] is not None)
    return [
        name,
        place,
        *cells,
        f"{apart[:, 0].max():.0e}",
        f"{apart.max():.0e}",
        killed or "-",
    ]


def main(argv):
    """Runs, compares, prints and writes."""
    del argv
    rng, rows = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, words) in enumerate(_NETWORKS.items()):
            found = {}
            for j, place in enumerate(_PLACES):
                found[place] = [
                    run(words, place, s, pathlib.Path(folder, f"{i}-{j}-{s}"), rng)
                    for s in _SEEDS.value
                ]
                alone = found["one process"]
                rows.append(_row(name, place, found[place], alone))
                print(*rows[-1], sep=" | ", flush=True)
    titles = [
        "",
        "",
        *_FIGURES.values(),
        "first loss apart",
        "most",
        "killed after epoch",
    ]
    backend = keras.backend.backend()
    text = f"""# One network on several devices, {backend}

`{command()}`; digits, {_EPOCHS.value} epochs, seeds {", ".join(_SEEDS.value)}; \
{os.cpu_count()} cores, {platform.machine()}, devices are parts of the CPU; Keras \
{keras.__version__} on {backend}.

{table(titles, rows)}

Test figures of one pass, mean and standard deviation over the seeds; the relative \
difference of the training loss to that of one process with the same seed, in the \
first epoch and the largest: training amplifies rounding from epoch to epoch.
"""
    print(text)
    if _OUTPUT.value:
        write_atomically(pathlib.Path(_OUTPUT.value) / f"{backend}.md", text)


if __name__ == "__main__":
    app.run(main)
