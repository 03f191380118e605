"""Damaged files, wrong arrays and strange flags, each made from its number alone."""

import collections
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import pickle
import traceback
import warnings
import zipfile

import keras
import numpy as np
from absl.flags import Error as FlagsError
from PIL import Image

import bayesnorm
import trainers
from bayesnorm import datasets
from bayesnorm.prediction.weight_sets import WeightSets
from bayesnorm.samplers import PosteriorSamples
from bayesnorm.training.checkpoints import Checkpoints
from trainers import all_cnn, session
from trainers.workdir import Workdir

ANSWER, REFUSAL, PASSED_ON, FAULT = "right answer", "refused", "passed on", "FAULT"
_OURS = tuple(str(pathlib.Path(m.__file__).parent) for m in (bayesnorm, trainers))
_DOCUMENTED = (ValueError, TypeError, OSError, FlagsError)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How an input ended: one of the ways above, and what was said."""

    way: str
    said: str = ""


def ended(call):
    """Calls a function that returns whether its answer is right.

    Returns:
        An `Ended`.
    """
    try:
        right = call()
    except Exception as error:  # Whatever comes is what is looked for.
        said = f"{type(error).__name__}: {error}"
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        if isinstance(error, FlagsError) or (
            isinstance(error, _DOCUMENTED) and last.startswith(_OURS)
        ):
            return Ended(REFUSAL if len(str(error)) > 20 else FAULT, said)
        return Ended(PASSED_ON, said)
    return Ended(ANSWER) if right else Ended(FAULT, "a wrong answer")


class Payload:
    """What runs when it is unpickled: it leaves a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        """Makes pickle call `os.mkdir`."""
        return os.mkdir, (self.path,)


def damaged(data, rng, payload):
    """Returns bytes with something done to them."""
    data, kind = bytearray(data), rng.integers(8)
    if not data:
        return bytes(data)
    place = int(rng.integers(len(data)))
    size = int(rng.integers(1, 64))
    if kind == 0:
        data[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del data[place:]
    elif kind == 2:
        data[place : place + size] = bytes(size)
    elif kind == 3:
        data[place : place + size] = rng.bytes(size)
    elif kind == 4:
        data[place:place] = rng.bytes(size)
    elif kind == 5:
        del data[place : place + size]
    elif kind == 6:
        data = bytearray(rng.bytes(len(data)) if rng.integers(2) else b"")
    else:
        data = bytearray(pickle.dumps(Payload(payload)))
    return bytes(data)


def _rezipped(data, rng, payload):
    """Returns an archive with another member in place of one of its own."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = sorted(members)[int(rng.integers(len(members)))]
    kind = rng.integers(4)
    if kind == 0:
        del members[name]
    elif kind == 1:
        members[name] = damaged(members[name], rng, payload)
    elif kind == 2 and name.endswith(".npy"):
        strange = np.array([Payload(payload)], dtype=object)
        members[name] = _npy(strange)
    elif name.endswith(".npy"):
        members[name] = _npy(_strange_array(rng))
    else:
        members[name] = b"{}"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return out.getvalue()


def _npy(array):
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def _strange_array(rng):
    return [
        np.zeros(0),
        np.float64(3.0),
        np.array(["text"]),
        np.full((2, 3), np.nan),
        np.zeros((1, 2, 3, 4, 5, 6), "complex64"),
        np.array([2**63], "uint64"),
        np.array(json.dumps({"backend": 1, "history": "no"})),
        np.array("{"),
    ][rng.integers(8)]


def _spoiled(data, rng, payload):
    spoil = _rezipped if rng.integers(2) else damaged
    return spoil(data, rng, payload)


class Attack:
    """The inputs, with what they need made once.

    Args:
        folder: `pathlib.Path` for files.
    """

    def __init__(self, folder):
        self._folder = folder
        self._payload = folder / "ran"
        keras.utils.set_random_seed(0)
        self._model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(3, 3),
                keras.layers.BatchNormalization(),
                bayesnorm.StochasticScaleNorm(seed=0),
                keras.layers.ReLU(),
                keras.layers.Flatten(),
                keras.layers.Dense(3),
            ]
        )
        self._weights = [w.numpy() for w in self._model.weights]
        self._x = np.random.default_rng(0).random((6, 8, 8, 1), "float32")
        self._sampled = bayesnorm.to_stochastic(self._model)
        self._files = self._written()

    def _written(self):
        """The files that are damaged, whole: name -> bytes."""
        self._model.save(self._folder / "model.keras")
        sets = WeightSets.of([self._model])
        sets.save(self._folder / "sample-0001.npz")
        Checkpoints(self._folder / "checkpoints").save(self._weights, [{"nll": 1.0}])
        labels = np.arange(6) % 3
        np.savez(self._folder / "own.npz", train_images=self._x, train_labels=labels)
        found = {
            "model": self._folder / "model.keras",
            "sample": self._folder / "sample-0001.npz",
            "checkpoint": self._folder / "checkpoints" / "epoch-000001.npz",
            "own": self._folder / "own.npz",
        }
        return {name: path.read_bytes() for name, path in found.items()}

    def kinds(self):
        """Returns the kinds of input: title -> function of a generator to a call."""
        return {
            "checkpoint": self.checkpoint,
            "posterior sample": self.sample,
            "model file": self.model,
            "NumPy archive of images": self.archive,
            "folder of pictures": self.pictures,
            "inputs of predict": self.inputs,
            "data of calibrate": self.calibration,
            "flags": self.flags,
            "working directory": self.workdir,
        }

    def ran(self):
        """Whether code in a file ran."""
        return self._payload.exists()

    def checkpoint(self, rng):
        """A damaged checkpoint, of which nothing but what was saved may come."""
        folder = self._new("run", rng)
        path = folder / "epoch-000001.npz"
        path.write_bytes(_spoiled(self._files["checkpoint"], rng, self._payload))

        def call():
            saved = Checkpoints(folder).latest()
            return _equal(saved.values, self._weights) and saved.history == [
                {"nll": 1.0}
            ]

        return call

    def sample(self, rng):
        """A damaged sample of the posterior beside a whole one."""
        folder = self._new("samples", rng)
        (folder / "sample-0001.npz").write_bytes(self._files["sample"])
        path = folder / "sample-0002.npz"
        path.write_bytes(_spoiled(self._files["sample"], rng, self._payload))

        def call():
            found = PosteriorSamples.load(folder, self._model)
            return all(_equal(values, self._weights) for values in found)

        return call

    def model(self, rng):
        """A damaged model file, or one with code in it."""
        path = self._new("models", rng) / "model.keras"
        if rng.integers(8) == 0:
            code = keras.layers.Lambda(lambda x: x + 1)
            keras.Sequential([keras.Input((3,)), code]).save(path)
        else:
            path.write_bytes(_spoiled(self._files["model"], rng, self._payload))

        def call():
            found = session.load_network(path)
            return [tuple(w.shape) for w in found.weights] == [
                w.shape for w in self._weights
            ]

        return call

    def archive(self, rng):
        """A data set of one's own, damaged, or of arrays that are none."""
        path = self._new("own", rng) / "own.npz"
        if rng.integers(2):
            arrays = {"train_images": self._x, "train_labels": np.arange(6) % 3}
            name = list(arrays)[rng.integers(2)]
            arrays[name] = _strange_array(rng)
            np.savez(path, **arrays)
        else:
            path.write_bytes(_spoiled(self._files["own"], rng, self._payload))

        def call():
            splits = datasets.load("npz", path)
            return bool(np.isfinite(splits.inputs(splits.train.images)).all())

        return call

    def pictures(self, rng):
        """A folder of pictures of which one is damaged."""
        root = self._new("pictures", rng)
        ending = [".png", ".jpg", ".bmp"][rng.integers(3)]
        for name in ("cats", "dogs"):
            (root / name).mkdir()
            for i in range(5):
                pixels = rng.integers(0, 256, (8, 8), "uint8")
                Image.fromarray(pixels).save(root / name / f"ü {i}{ending}")
        path = root / "cats" / f"ü 0{ending}"
        path.write_bytes(damaged(path.read_bytes(), rng, self._payload))

        def call():
            splits = datasets.load("image_folder", root)
            # Damaged, it may be one in colours.
            return splits.image_shape[:2] == (8, 8)

        return call

    def inputs(self, rng):
        """What is given to `predict` as images."""
        x = self._x
        strange = [
            x[:0],
            x[0],
            x[..., 0],
            np.repeat(x, 2, axis=-1),
            x.astype(object),
            x.astype("complex64"),
            x.astype("U8"),
            np.where(rng.random(x.shape) < 0.01, np.nan, x),
            np.where(rng.random(x.shape) < 0.01, np.inf, x),
            x.astype("int64"),
            x > 0.5,
            x.astype("float16"),
            x.tolist(),
            [x, x],
            {"images": x},
            None,
            3,
            "images",
            iter(()),
            iter([x, x[..., 0]]),
            iter([x[:2], None]),
            (x[i : i + 1] for i in range(6)),
            np.float32(1e38) * x,
        ][rng.integers(23)]
        samples = [2, 1, 0, -1, 2.5, "3", None, True][rng.choice(8, p=_OFTEN)]

        def call():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = bayesnorm.predict(
                    self._model, strange, samples=samples, from_logits=True
                )
            rows = found.probs.reshape(-1, 3)
            sums = rows.sum(axis=-1)
            # What is not finite goes in, and comes out, where it is.
            return bool(np.all(np.isnan(sums) | (np.abs(sums - 1) < 1e-4)))

        return call

    def calibration(self, rng):
        """What is given to `calibrate` as training data."""
        x = self._x
        strange = [
            x[:0],
            x[:1],
            x[..., 0],
            np.full_like(x, np.nan),
            np.where(rng.random(x.shape) < 0.01, np.inf, x),
            np.full_like(x, 1e38),
            np.zeros_like(x),
            x.astype("U8"),
            iter(()),
            iter([x, x[..., 0]]),
            None,
            x,
        ][rng.integers(12)]
        size = [2, 3, 0, -1, 10**9, "2", 1.5][rng.integers(7)]
        rank = [None, 1, 0, 10**6, "4"][rng.choice(5, p=[0.6, 0.1, 0.1, 0.1, 0.1])]

        def call():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                bayesnorm.calibrate(
                    self._sampled, strange, batch_size=size, rank=rank, verbose=0
                )
            return all(np.isfinite(w.numpy()).all() for w in self._sampled.weights)

        return call

    def flags(self, rng):
        """A flag of a binary with a value that is out of all bounds."""
        names = sorted(all_cnn.PROGRAM.flags())
        name = names[rng.integers(len(names))]
        value = ["-1", "0", "1e999", "nan", "9" * 40, "", "ä ö", "\0", "None", "1,2"][
            rng.integers(10)
        ]

        def call():
            # Of what a flag takes there is no wrong value here.
            return all_cnn.PROGRAM.flags({name: value}) is not None

        return call

    def workdir(self, rng):
        """A working directory of a strange name, or where there can be none."""
        base = self._new("places", rng)
        (base / "file").write_text("x")
        name = [
            "a b",
            "ünïcödé/深い",
            "quote'\"$(id)",
            "x" * 300,
            "file",
            "file/below",
            "new\nline",
            "-",
            "a/../b",
            "\0",
        ][rng.integers(10)]

        def call():
            made = Workdir(os.path.join(base, name), "all_cnn", {"epochs": "1"})
            again = Workdir(made.path, "all_cnn", {"epochs": "1"})
            return (again / "flags.txt").is_file()

        return call

    def _new(self, name, rng):
        path = self._folder / f"{name} {rng.integers(2**60)}"
        path.mkdir()
        return path


# A right number of samples more often than not.
_OFTEN = [0.65] + [0.05] * 7


def _equal(values, expected):
    return len(values) == len(expected) and all(
        np.array_equal(a, b) for a, b in zip(values, expected, strict=True)
    )


def attacked(inputs, folder):
    """Runs the attack.

    Args:
        inputs: How many inputs, over all kinds.
        folder: `pathlib.Path` for files.

    Returns:
        Title of a kind -> list of the `Ended` of its inputs.
    """
    attack = Attack(folder)
    found = collections.defaultdict(list)
    kinds = list(attack.kinds().items())
    for number in range(inputs):
        title, make = kinds[number % len(kinds)]
        call = make(np.random.default_rng(number))
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            end = ended(call)
        if attack.ran():
            end = Ended(FAULT, "code in a file ran")
        if end.way in (FAULT, PASSED_ON):
            print(f"{number}, {title}: {end.way}: {end.said[:300]}", flush=True)
        found[title].append(end)
    return dict(found)
