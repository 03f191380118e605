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
import re
import subprocess
import sys

import keras
import numpy as np
from absl import app, flags

import bayesnorm
from bayesnorm.datasets import Split
from bayesnorm.training.loop import Config, Loop
from bayesnorm.training.optimization import make_optimizer
from bayesnorm.training.sources import OnDevice
from bayesnorm.training.stream import Stream
from benchmarks import timing
from trainers.flags import command
from trainers.report import tables

_STEPS = flags.DEFINE_integer("steps", 100, "Steps of the short run.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.", 1)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the table.")
_PEAK = flags.DEFINE_string(
    "peak", None, "Only the memory of a run, as KIND:STEPS or JOB:STEPS."
)

_SHAPE, _CLASSES, _BATCH, _CALL, _TURN = (128, 128, 3), 10, 32, 10, 20
_PIXELS = int(np.prod(_SHAPE))
STEP_BYTES = _BATCH * _PIXELS
_POOL = np.random.default_rng(0).integers(0, 256, 2 * _PIXELS).astype("uint8")
_MODULES = {"tf.data": "tensorflow", "Grain": "grain", "PyDataset": "keras"}


def example(i):
    """Returns image and label of an index."""
    start = i * 7919 % _PIXELS
    return _POOL[start : start + _PIXELS].reshape(_SHAPE), i % _CLASSES


def batch(i):
    """Returns images and labels of a batch."""
    images, labels = zip(
        *map(example, range(i * _BATCH, (i + 1) * _BATCH)), strict=True
    )
    return np.stack(images), np.array(labels)


class Batches(keras.utils.PyDataset):
    """So many batches."""

    def __init__(self, length):
        super().__init__()
        self._length = length

    def __len__(self):
        return self._length

    def __getitem__(self, i):
        return batch(i)


def data_of(kind, steps):
    """Returns data of so many batches."""
    if kind == "PyDataset":
        return Batches(steps)
    if kind == "Grain":
        import grain

        return grain.MapDataset.range(steps).map(batch)
    import tensorflow as tf

    pool = tf.constant(_POOL)

    def read(i):
        numbers = i * _BATCH + tf.range(_BATCH, dtype="int64")
        starts = tf.unstack(numbers * 7919 % _PIXELS)
        images = tf.stack([pool[start : start + _PIXELS] for start in starts])
        return tf.reshape(images, (_BATCH, *_SHAPE)), numbers % _CLASSES

    return lambda epoch: tf.data.Dataset.range(steps).shuffle(steps, epoch).map(read)


def loop_on(train):
    """Returns a loop on a source."""
    model = keras.Sequential(
        [
            keras.Input(_SHAPE),
            keras.layers.Conv2D(16, 16, strides=16, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(_CLASSES),
        ]
    )
    config = Config(1, _BATCH, steps_per_call=_CALL)
    validation = OnDevice(Split(*batch(0)), 1 / 255)
    data = {"train": train, "validation": validation}
    return Loop(model, make_optimizer("sgd"), data, config)


def source_of(kind, steps):
    """Returns a source of so many steps."""
    if kind == "on the device":
        parts = zip(*map(batch, range(steps)), strict=True)
        return OnDevice(Split(*map(np.concatenate, parts)), 1 / 255)
    return Stream(data_of(kind, steps), _CLASSES, steps * _BATCH)


def network():
    """Returns a network with batch normalization, images to logits."""
    return keras.Sequential(
        [
            keras.Input(_SHAPE),
            keras.layers.Conv2D(16, 16, strides=16),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(_CLASSES),
        ]
    )


def predict(steps):
    """Predicts a stream by two samples of stochastic batch normalization."""
    model = bayesnorm.to_stochastic(network())
    images = (batch(i)[0] / np.float32(255) for i in range(8))
    bayesnorm.calibrate(model, images)
    images = (batch(i)[0] / np.float32(255) for i in range(steps))
    found = bayesnorm.predict(model, images, samples=2, from_logits=True)
    if len(found.probs) != steps * _BATCH:
        raise RuntimeError(f"{len(found.probs)} predictions of {steps * _BATCH} images")


def calibrate(steps):
    """Calibrates stochastic batch normalization on a stream."""
    model = bayesnorm.to_stochastic(network())
    images = (batch(i)[0] / np.float32(255) for i in range(steps))
    bayesnorm.calibrate(model, images)


def evaluate(steps):
    """Evaluates the network of a loop on a stream."""
    loop = loop_on(source_of("PyDataset", steps))
    loop.evaluate("train")


_JOBS = {"predict": predict, "calibrate": calibrate, "evaluate": evaluate}


def peak(kind, steps):
    """Returns the peak of the resident memory of a run in a process of its own, MB."""
    arguments = [sys.executable, "-m", "benchmarks.streams", f"--peak={kind}:{steps}"]
    said = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
    return float(said.stdout.splitlines()[-1])


def main(argv):
    """Measures, prints and writes."""
    del argv
    if _PEAK.value:
        kind, _, steps = _PEAK.value.partition(":")
        if kind in _JOBS:
            _JOBS[kind](int(steps))
        else:
            loop_on(source_of(kind, int(steps))).train_epoch(0)
        # Of this program: `ru_maxrss` has that of the one that started it as well.
        status = pathlib.Path("/proc/self/status").read_text()
        print(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)
        return
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
        f"A training step, {_BATCH} images of {_PIXELS} bytes",
        seconds,
        "on the device",
        per=_TURN,
    )
    short, long = _STEPS.value, 10 * _STEPS.value
    read = [n * STEP_BYTES / 2**20 for n in (short, long)]
    summary["peaks"] = {
        kind: [peak(kind, n) for n in (short, long)] for kind in (*kinds, *_JOBS)
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
