r"""Prediction of trained networks, here and by torch-uncertainty, in turns.

```
python -m benchmarks.peers --peer_python=/path/to/python --output=DIR
python -m benchmarks.peers --peer_python=/path/to/python --dataset=cifar10 \
    --data_dir=DIR --train_examples=3000 --epochs=6 --width=0.5
```

An All-CNN with batch normalization and dropout is trained, as often as the
ensemble has members; the weights go to PyTorch (the other interpreter needs `torch` and
`torch-uncertainty` with what this imports: lightning, rich, scikit-learn and a matching
torchvision). Both sides predict the same images in the same batches with as many
threads; each of several turns has every method once, and a ratio is taken within its
turn. One pass is a plain loop: of PyTorch over the module, of Keras over `predict_step`
compiled by `model.predict`. MCBN gathers its batches within the time on both sides.
"""

import dataclasses
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
from absl import app, flags

import bayesnorm
from bayesnorm import datasets
from bayesnorm.training import Config, Loop, fit
from benchmarks import timing
from benchmarks.peers import torch_side
from benchmarks.peers.description import describe
from trainers.flags import command
from trainers.report import tables

_PEER_PYTHON = flags.DEFINE_string("peer_python", sys.executable, "Their interpreter.")
_DATASET = flags.DEFINE_string("dataset", "digits", "Of `bayesnorm.datasets`.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where it lies.")
_TITLE = flags.DEFINE_string("dataset_title", None, "Its name in the report.")
_TRAIN = flags.DEFINE_integer("train_examples", None, "Only the first so many.")
_TEST = flags.DEFINE_integer("test_examples", 2000, "Of the test part, likewise.")
_WIDTH = flags.DEFINE_float("width", 0.25, "Width factor.", 0.01)
_EPOCHS = flags.DEFINE_integer("epochs", 20, "Epochs of a network.", 1)
_MEMBERS = flags.DEFINE_integer("members", 4, "Networks of the ensemble.", 2)
_SAMPLES = flags.DEFINE_integer("samples", 30, "Sampled networks.", 2)
_BATCH = flags.DEFINE_integer("batch_size", 100, "Examples at a time.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.", 1)
_THREADS = flags.DEFINE_integer("threads", 1, "Threads of either side.", 1)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the table.")

_TRAIN_BATCH = 32
_LAYERS = (
    # Filters, kernel, stride, dropout behind: of the All-CNN, with its dropout.
    (96, 3, 1, 0.0),
    (96, 3, 1, 0.0),
    (96, 3, 2, 0.3),
    (192, 3, 1, 0.0),
    (192, 3, 1, 0.0),
    (192, 3, 2, 0.3),
    (192, 3, 1, 0.0),
    (192, 1, 1, 0.0),
)


def network(shape, classes, seed):
    """Returns an All-CNN with batch normalization, images to logits."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    x = inputs = keras.Input(shape)
    for filters, kernel, stride, rate in _LAYERS:
        size = max(1, round(_WIDTH.value * filters))
        x = layers.Conv2D(size, kernel, stride, "same", use_bias=False)(x)
        x = layers.LeakyReLU(0.01)(layers.BatchNormalization(momentum=0.9)(x))
        x = layers.Dropout(rate)(x) if rate else x
    x = layers.Conv2D(classes, 1, use_bias=False)(x)
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x))


def trained(splits, seed):
    """Returns a network, trained."""
    model = network(splits.image_shape, splits.num_classes, seed)
    config = Config(
        epochs=_EPOCHS.value,
        batch_size=_TRAIN_BATCH,
        learning_rate=2e-3,
        schedule="cosine",
        augment_validation=False,
        seed=seed,
    )
    history = fit(Loop(model, keras.optimizers.Adam(), splits, config))
    print(f"seed {seed}: validation NLL {history[-1]['val_nll']:.3f}", flush=True)
    return model


class Ours:
    """What is timed of this package.

    Args:
        models: The members.
        x: Test inputs.
        train: Training inputs.
    """

    def __init__(self, models, x, train):
        self._models, self._x, self._train = models, x, train
        self._sbn = bayesnorm.calibrate(
            bayesnorm.to_stochastic(models[0]),
            train,
            batch_size=_TRAIN_BATCH,
            verbose=False,
        )
        self._dropout = bayesnorm.to_stochastic(models[0], noise=None, dropout=True)

    def keras_one_pass(self):
        """Keras's own prediction."""
        logits = self._models[0].predict(self._x, _BATCH.value, verbose=0)
        return keras.ops.convert_to_numpy(keras.ops.softmax(logits))

    def one_pass(self):
        """The network as it is."""
        return self._predict(self._models[0], method="mean")

    def mcbn(self):
        """Statistics of training batches."""
        return self._predict(
            self._sbn,
            method="minibatch",
            train_data=self._train,
            train_batch_size=_TRAIN_BATCH,
        )

    def sbn(self):
        """Statistics drawn from their law."""
        return self._predict(self._sbn)

    def sbn_moments(self):
        """Their law in one pass."""
        return self._predict(self._sbn, method="moments")

    def dropout(self):
        """Dropout at prediction."""
        return self._predict(self._dropout)

    def ensemble(self):
        """All members."""
        return self._predict(self._models, method="mean")

    def _predict(self, model, **arguments):
        found = bayesnorm.predict(
            model,
            self._x,
            samples=_SAMPLES.value,
            batch_size=_BATCH.value,
            seed=0,
            from_logits=True,
            verbose=False,
            **arguments,
        )
        return found.probs


class Peer:
    """The process of the other side.

    Args:
        path: Archive of the task and its arrays.
    """

    def __init__(self, path):
        program = pathlib.Path(torch_side.__file__)
        self._process = subprocess.Popen(
            [_PEER_PYTHON.value, str(program), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.versions = self._answer()

    def ask(self, method):
        """Returns `(seconds, probabilities)` of a method."""
        self._process.stdin.write(f"{method}\n")
        self._process.stdin.flush()
        seconds, probs = self._answer()
        return seconds, np.array(probs)

    def close(self):
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()

    def _answer(self):
        while line := self._process.stdout.readline():
            # Libraries greet on the same stream.
            if line[0] in "[{":
                return json.loads(line)
        code = self._process.wait()
        raise RuntimeError(
            f"{_PEER_PYTHON.value} ended with exit code {code}. Expected: an "
            "interpreter with torch and torch-uncertainty, given by --peer_python."
            if code == torch_side.ABSENT
            else f"{_PEER_PYTHON.value} ended with exit code {code}."
        )


# Title -> (method here, method there), compared with the first of a group.
_GROUPS = {
    "one pass": [
        ("PyTorch, a loop", None, "one_pass"),
        ("Keras, model.predict", "keras_one_pass", None),
        ("bayesnorm, mean", "one_pass", None),
    ],
    "statistics of batches": [
        ("torch-uncertainty, MCBN", None, "mcbn"),
        ("bayesnorm, MCBN", "mcbn", None),
        ("bayesnorm, SBN", "sbn", None),
        ("bayesnorm, SBN, moments", "sbn_moments", None),
    ],
    "dropout": [
        ("torch-uncertainty, MC dropout", None, "dropout"),
        ("bayesnorm, MC dropout", "dropout", None),
    ],
    "ensemble": [
        ("torch-uncertainty, deep ensemble", None, "ensemble"),
        ("bayesnorm, ensemble", "ensemble", None),
    ],
}


def archive(path, models, x, train):
    """Writes what the other side needs."""
    networks, arrays = zip(*map(describe, models), strict=True)
    task = {
        "networks": networks,
        "samples": _SAMPLES.value,
        "batch_size": _BATCH.value,
        "train_batch_size": _TRAIN_BATCH,
        "threads": _THREADS.value,
    }
    images = {"x": x, "train": train}
    found = {
        f"images:{k}": np.ascontiguousarray(np.transpose(v, (0, 3, 1, 2)))
        for k, v in images.items()
    }
    for i, weights in enumerate(arrays):
        found |= {f"weights/{i}:{k}": v for k, v in weights.items()}
    np.savez(path, task=json.dumps(task), **found)


def turns(ours, peer):
    """Returns seconds and probabilities by title, of all turns."""
    seconds, probs = {}, {}
    for turn in range(-1, _ROUNDS.value):
        for title, own, other in itertools.chain(*_GROUPS.values()):
            if own:
                start = time.perf_counter()
                found = getattr(ours, own)()
                took = time.perf_counter() - start
            else:
                took, found = peer.ask(other)
            probs[title] = found
            if turn >= 0:
                seconds.setdefault(title, []).append(took)
        print(f"turn {turn + 1} of {_ROUNDS.value}", flush=True)
    return seconds, probs


def main(argv):
    """Trains, predicts, prints and writes."""
    del argv
    keras.config.disable_interactive_logging()
    splits = datasets.load(_DATASET.value, _DATA_DIR.value)
    counts = {"train": _TRAIN.value, "test": _TEST.value}
    parts = {k: getattr(splits, k).first(n) for k, n in counts.items() if n}
    splits = dataclasses.replace(splits, **parts)
    models = [trained(splits, seed) for seed in range(_MEMBERS.value)]
    x, train = (splits.inputs(part.images) for part in (splits.test, splits.train))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "task.npz")
        archive(path, models, x, train)
        peer = Peer(path)
        seconds, probs = turns(Ours(models, x, train), peer)
        peer.close()
    apart = float(
        np.abs(probs["PyTorch, a loop"] - probs["Keras, model.predict"]).max()
    )
    if apart > 1e-3:
        raise RuntimeError(f"One pass of both sides is {apart:.2g} apart.")
    labels, rows, results = splits.test.labels, [], {}
    for candidates in _GROUPS.values():
        first = candidates[0][0]
        chosen = {title: seconds[title] for title, _, _ in candidates}
        summary = timing.summarize(first, chosen, first)
        for title, row in summary["rows"].items():
            nll = bayesnorm.metrics.nll(probs[title], labels)
            error = 100 * bayesnorm.metrics.error(probs[title], labels)
            results[title] = row | {"nll": nll, "error": error}
            rows.append(
                [
                    title,
                    f"{row['ms'] / 1e3:.2f}",
                    f"{row['ratio']:.2f}",
                    f"{row['ratio_min']:.2f} - {row['ratio_max']:.2f}",
                    f"{nll:.4f}",
                    f"{error:.2f}",
                ]
            )
    head = ["", "s", "ratio", "min - max", "test NLL, nats", "error, %"]
    versions = {"keras": keras.__version__} | peer.versions
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    page = "\n".join(
        [
            f"# Prediction beside torch-uncertainty, {keras.backend.backend()}",
            "",
            f"`{command()}`; {_TITLE.value or splits.name}, {len(train)} training and "
            f"{len(x)} test images, {_EPOCHS.value} epochs, All-CNN of "
            f"{_WIDTH.value:g} times the width, {_SAMPLES.value} samples, "
            f"{_MEMBERS.value} members; "
            f"{_THREADS.value} thread(s) each; {timing.hardware()}; {said}.",
            "",
            tables.table(head, rows),
            "",
            "Medians over the turns; a ratio is to the first of its group in the same "
            "turn: below 1 is faster. One pass of both sides differs by "
            f"{apart:.0e} at most.",
            "",
        ]
    )
    print(page)
    timing.write_report(_OUTPUT.value, page, results)


if __name__ == "__main__":
    app.run(main)
