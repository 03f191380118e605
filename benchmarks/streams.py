"""Training, prediction and calibration from a stream: memory, and steps per second.

```
python -m benchmarks.streams --output=benchmarks/results/streams
KERAS_BACKEND=jax python -m benchmarks.streams --output=benchmarks/results/streams
```

Images are made from their index as they are read, from `tf.data`, Grain and a
`keras.utils.PyDataset`; `predict`, `calibrate` and an evaluation read a generator. The
peak of the resident memory is taken in a process of its own, of a short run and of one
ten times longer: it must not grow with the stream, but by what a prediction holds of
each example. Steps per second are of training epochs that take turns with those of data
that lie on the device.
"""

import importlib.util
import json
import pathlib

import keras
from absl import app, flags

from benchmarks import timing
from benchmarks.stream_jobs import (
    BATCH,
    JOBS,
    STEP_BYTES,
    loop_on,
    peak,
    source_of,
)
from trainers.flags import command
from trainers.report import tables

_STEPS = flags.DEFINE_integer("steps", 100, "Steps of the short run.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.", 1)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the table.")

# Steps of a turn, which is one epoch.
_TURN = 20
_MODULES = {"tf.data": "tensorflow", "Grain": "grain", "PyDataset": "keras"}


def main(argv):
    """Measures, prints and writes."""
    del argv
    kinds = [kind for kind, name in _MODULES.items() if importlib.util.find_spec(name)]
    loops = {
        kind: loop_on(source_of(kind, _TURN)) for kind in ("on the device", *kinds)
    }
    turns = {
        kind: lambda loop=loop: loop.train_epoch(0, 1e-4)
        for kind, loop in loops.items()
    }
    seconds = timing.take_turns(turns, _ROUNDS.value)
    summary = timing.summarize(
        f"A training step, {BATCH} images of {STEP_BYTES // BATCH} bytes",
        seconds,
        "on the device",
        per=_TURN,
    )
    short, long = _STEPS.value, 10 * _STEPS.value
    read = [n * STEP_BYTES / 2**20 for n in (short, long)]
    summary["peaks"] = {
        kind: [peak(kind, n) for n in (short, long)] for kind in (*kinds, *JOBS)
    }
    peaks = {f"peak memory, {kind}": found for kind, found in summary["peaks"].items()}
    rows = {"read": read} | peaks
    memory = tables.table(
        ["stream", f"{short} steps, MB", f"{long} steps, MB"],
        [[name, *(f"{x:.0f}" for x in values)] for name, values in rows.items()],
    )
    text = "\n".join([timing.table(summary), memory, "", "```", command(), "```", ""])
    print(text)
    if _OUTPUT.value:
        folder = pathlib.Path(_OUTPUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        name = keras.backend.backend()
        (folder / f"{name}.md").write_text(text)
        (folder / f"{name}.json").write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
