"""Work on streams of images that are made as they are read, and its peak of memory.

`python -m benchmarks.stream_jobs KIND:STEPS` prints the peak of one job in MB.
"""

import pathlib
import re
import subprocess
import sys

import keras
import numpy as np

import bayesnorm
from bayesnorm.datasets import Split
from bayesnorm.training.loop import Config, Loop
from bayesnorm.training.optimization import make_optimizer
from bayesnorm.training.sources import OnDevice
from bayesnorm.training.stream import Stream

_SHAPE, _CLASSES, BATCH, _CALL = (128, 128, 3), 10, 32, 10
_PIXELS = int(np.prod(_SHAPE))
STEP_BYTES = BATCH * _PIXELS
_POOL = np.random.default_rng(0).integers(0, 256, 2 * _PIXELS).astype("uint8")


def example(i):
    """Returns image and label of an index."""
    start = i * 7919 % _PIXELS
    return _POOL[start : start + _PIXELS].reshape(_SHAPE), i % _CLASSES


def batch(i):
    """Returns images and labels of a batch."""
    images, labels = zip(*map(example, range(i * BATCH, (i + 1) * BATCH)), strict=True)
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
        numbers = i * BATCH + tf.range(BATCH, dtype="int64")
        starts = tf.unstack(numbers * 7919 % _PIXELS)
        images = tf.stack([pool[start : start + _PIXELS] for start in starts])
        return tf.reshape(images, (BATCH, *_SHAPE)), numbers % _CLASSES

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
    config = Config(1, BATCH, steps_per_call=_CALL)
    validation = OnDevice(Split(*batch(0)), 1 / 255)
    data = {"train": train, "validation": validation}
    return Loop(model, make_optimizer("sgd"), data, config)


def source_of(kind, steps):
    """Returns a source of so many steps."""
    if kind == "on the device":
        parts = zip(*map(batch, range(steps)), strict=True)
        return OnDevice(Split(*map(np.concatenate, parts)), 1 / 255)
    return Stream(data_of(kind, steps), _CLASSES, steps * BATCH)


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
    if len(found.probs) != steps * BATCH:
        raise RuntimeError(f"{len(found.probs)} predictions of {steps * BATCH} images")


def calibrate(steps):
    """Calibrates stochastic batch normalization on a stream."""
    model = bayesnorm.to_stochastic(network())
    images = (batch(i)[0] / np.float32(255) for i in range(steps))
    bayesnorm.calibrate(model, images)


def evaluate(steps):
    """Evaluates the network of a loop on a stream."""
    loop = loop_on(source_of("PyDataset", steps))
    loop.evaluate("train")


JOBS = {"predict": predict, "calibrate": calibrate, "evaluate": evaluate}


def peak(kind, steps):
    """Returns the peak of the resident memory of a job in a process of its own, MB."""
    arguments = [sys.executable, "-m", "benchmarks.stream_jobs", f"{kind}:{steps}"]
    said = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
    return float(said.stdout.splitlines()[-1])


def main(job):
    """Does a job, KIND:STEPS, and prints the peak."""
    kind, _, steps = job.partition(":")
    if kind in JOBS:
        JOBS[kind](int(steps))
    else:
        loop_on(source_of(kind, int(steps))).train_epoch(0)
    # Of this program: `ru_maxrss` has that of the one that started it as well.
    status = pathlib.Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)


if __name__ == "__main__":
    main(sys.argv[1])
