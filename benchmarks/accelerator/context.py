"""What all pieces are given: data, flags, time, and where the results go."""

import dataclasses
import pathlib
from collections.abc import Callable

import keras

from bayesnorm.training.progress import Progress
from benchmarks.accelerator.clock import Clock
from benchmarks.accelerator.ledger import Ledger
from trainers import all_cnn, sbn, session
from trainers import flags as trainer_flags

# The papers' protocols, whatever the defaults for the data are.
_ALL_CNN = {
    "width": "1",
    "optimizer": "sgd",
    "learning_rate": "auto",
    "initial_stddev": "0.1",
    "augment": "true",
}
_SBN = {"width": "1", "epochs": "200", "members": "6", "augment": "true"}
# Not of the paper, whose 1000 epochs of 56 layers are some hours: a size that fits.
_ATMC = {
    "network": "resnet_plus_plus",
    "depth": "20",
    "width": "1",
    "epochs": "200",
    "batch_size": "128",
    "rms_step": "0.0003",
    "thermostat_mass": "0.01",
    "momentum": "0.9",
    "augment": "true",
}
_PROTOCOLS = {"all_cnn": _ALL_CNN, "sbn": _SBN, "atmc": _ATMC}
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

    def splits(self, flags):
        """Returns the `Splits` that the flags of a run name, loaded once."""
        key = tuple(trainer_flags.text(flags[name].value) for name in _DATA)
        if key not in self._loaded:
            self._loaded[key] = session.load_data(flags)
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
        given: The flags of the command line that runs get, text by name.
        command: The command line.
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
    given: dict
    command: str
    seeds: list
    precision: str
    at_once: int | None = None
    checkpoint_s: float = 60.0
    evaluation_s: float = 20.0

    def values(self, program, **defaults):
        """Returns flags of an experiment, text by name: the data's, and the protocol's.

        Args:
            program: The `Program` of its networks.
            **defaults: Further values, as text; the command line wins over all.
        """
        defaults = _COMMON | self.data.flags | _PROTOCOLS[program.name] | defaults
        return defaults | self.given_to(program)

    def given_to(self, program):
        """Returns those of the command line that a `Program` has, text by name."""
        known = {flag.name for group in program.all_groups for flag in group}
        return {name: value for name, value in self.given.items() if name in known}


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


def all_cnn_loop(flags, splits, data=None):
    """Returns the `Loop` of `trainers.all_cnn`."""
    keras.utils.set_random_seed(flags.seed)
    return session.make_loop(
        flags, all_cnn.NETWORK.build(flags, splits), splits, data=data
    )


def sbn_loop(flags, splits, family, number, data=None):
    """Returns the `Loop` of a member of `trainers.sbn`."""
    return session.make_loop(
        flags,
        sbn.build(flags, splits, family, number),
        splits,
        sbn.member_seed(flags, family, number),
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
