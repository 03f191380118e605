"""What all pieces are given: data, flags, time, and where the results go."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable

import keras
from absl.testing import flagsaver

from benchmarks.accelerator.clock import Clock
from benchmarks.accelerator.ledger import Ledger
from trainers import all_cnn, command, sbn, session
from trainers.flags import FLAGS
from trainers.progress import Progress

# The papers' protocols, whatever the defaults for the data are.
_ALL_CNN = {
    "width": "1",
    "optimizer": "sgd",
    "learning_rate": "auto",
    "initial_stddev": "0.1",
    "augment": "true",
}
_SBN = {"width": "1", "epochs": "200", "members": "6", "augment": "true"}
# All of an epoch in one call: no figure depends on it.
_COMMON = {"steps_per_call": "1000000"}
# Flags that say which images there are.
_DATA = (
    "dataset",
    "data_dir",
    "split_seed",
    "held_out",
    "train_examples",
    "validation_examples",
    "resize",
    "channels",
)


class Data:
    """The images of the plan.

    Args:
        path: A NumPy archive, a folder of images by class, or None for what the flags
            of the trainers say.

    Attributes:
        flags: Dict of the flags that name them, as text.
    """

    def __init__(self, path):
        self.flags = {}
        if path is not None:
            kind = "image_folder" if pathlib.Path(path).is_dir() else "npz"
            self.flags = {"dataset": kind, "data_dir": str(path)}
        self._loaded = {}

    def splits(self):
        """Returns the `Splits` that the flags name, loaded once."""
        key = tuple(command.text(FLAGS[name].value) for name in _DATA)
        if key not in self._loaded:
            self._loaded[key] = session.load_data()
        return self._loaded[key]


@dataclasses.dataclass
class Context:
    """What a piece may use.

    Attributes:
        out: Folder of the plan.
        data: The `Data`.
        ledger: The `Ledger`.
        clock: The `Clock`.
        progress: A `Progress`.
        given: Names of the flags of the command line.
        seeds: Seeds of every run of a table.
        precision: One of `device.PRECISIONS`.
        at_once: Networks to train at once; None for what the speeds say.
        checkpoint_s: Seconds between checkpoints.
        evaluation_s: Seconds that the evaluation of a network takes: a guess, until
            there was one.
    """

    out: pathlib.Path
    data: Data
    ledger: Ledger
    clock: Clock
    progress: Progress
    given: frozenset
    seeds: list
    precision: str
    at_once: int | None = None
    checkpoint_s: float = 60.0
    evaluation_s: float = 20.0

    def flags(self, program, **defaults):
        """Returns the flags of an experiment: the data's, and the paper's protocol.

        Args:
            program: As for `held`.
            **defaults: Further values, as text; the command line wins over all.
        """
        protocol = _SBN if program is sbn else _ALL_CNN
        defaults = _COMMON | self.data.flags | protocol | defaults
        return {k: v for k, v in defaults.items() if k not in self.given}


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece of the plan.

    Attributes:
        name: Its name, a path without an ending.
        title: What it is, for people.
        seconds: An estimate of what is left of it, in seconds.
        least: Seconds below which it is of no use to begin.
        run: Function without arguments that returns the result, a dict for JSON. It may
            raise `OutOfTimeError`; called again it goes on.
    """

    name: str
    title: str
    seconds: float
    least: float
    run: Callable


@contextlib.contextmanager
def held(program, values):
    """Holds the flags at values, as on the command line of a program.

    Args:
        program: `all_cnn.BINARY` or the module `sbn`: whose defaults hold for the rest.
        values: Dict of values as text by name.
    """
    with flagsaver.flagsaver():
        # A program refuses `--seeds`, which is the plan's.
        FLAGS["seeds"].present = 0
        FLAGS([sys.argv[0], *(f"--{name}={text}" for name, text in values.items())])
        program.set_defaults()
        yield


def all_cnn_loop(splits, data=None):
    """Returns the `Loop` of `trainers.all_cnn` with the present flags."""
    keras.utils.set_random_seed(FLAGS.seed)
    return session.make_loop(all_cnn.BINARY.network_of(splits), splits, data=data)


def sbn_loop(splits, family, number, data=None):
    """Returns the `Loop` of a member of `trainers.sbn` with the present flags."""
    return session.make_loop(
        sbn.build(splits, family, number),
        splits,
        sbn.member_seed(family, number),
        sbn.augmentation(splits),
        data,
    )


def networks(make, arguments):
    """Returns loops that have their data in common.

    Args:
        make: Function `(argument, data)` that returns a `Loop`.
        arguments: An argument for each.
    """
    loops = []
    for argument in arguments:
        loops.append(make(argument, loops[0].data if loops else None))
    return loops
