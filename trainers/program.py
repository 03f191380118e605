"""What a binary is, and how one starts."""

import dataclasses
import logging as stdlib_logging
import sys
from collections.abc import Callable

import keras
from absl import app, logging
from absl import flags as absl_flags

from bayesnorm.backend import EXIT_WORKER_LOST, WorkerLostError
from bayesnorm.training.loop import DivergenceError
from trainers import data_parallel
from trainers import flags as trainer_flags
from trainers.flags import Flag
from trainers.workdir import workdir_path

_COMMON = {"batch_size": 32, "schedule": "exponential", "kl_factor": 1.0}


@dataclasses.dataclass(frozen=True)
class Program:
    """A training binary.

    Attributes:
        name: Name of its module in `trainers`.
        groups: Tuple of groups of flags, as in `trainers.groups`.
        common: Default values of flags, by name.
        by_dataset: Data set -> further ones; the first is the default set.
        main: Function of the flags that trains and reports.
    """

    name: str
    groups: tuple
    common: dict
    by_dataset: dict
    main: Callable

    @property
    def module(self):
        """The full name of its module."""
        return f"trainers.{self.name}"

    @property
    def all_groups(self):
        """Its groups, and the flag of its data sets."""
        said = "Data set; npz and image_folder are your own images."
        sets = tuple(self.by_dataset)
        return (*self.groups, (Flag("dataset", sets, said, sets[0]),))

    def flags(self, values=()):
        """Returns the flags of a run, an absl `FlagValues`.

        Args:
            values: Dict of what a command line would have, by name.

        Raises:
            absl.flags.Error: If the program has no such flag, or a value is wrong.
        """
        flags = trainer_flags.define(*self.all_groups)
        trainer_flags.parse(flags, [self.name, *trainer_flags.words(dict(values))])
        return self._with_defaults(flags)

    def _with_defaults(self, flags):
        """Gives the flags that were not given the defaults of the data set."""
        defaults = _COMMON | self.common | self.by_dataset[flags.dataset]
        for name, value in defaults.items():
            if name in flags:
                flags.set_default(name, value)
        return flags

    def run(self):
        """Runs it as the program of this process."""

        def main(flags):
            flags = self._with_defaults(flags)
            prepare(flags)
            with data_parallel.of(flags, workdir_path(flags, self.name)):
                self.main(flags)

        start(main, trainer_flags.define(*self.all_groups), self.module)


def prepare(flags):
    """Sets what holds for all of a process that runs a program."""
    keras.config.set_dtype_policy(flags.precision)


def start(main, flags, module):
    """Runs a program: parses its flags, calls `main`, and says what went wrong.

    What a user can mend (a flag, a folder, data, a run that diverged) is said in plain
    words and ends with exit code 1; `--verbosity=1` shows where it was raised.

    Args:
        main: Function of the flags; what it returns is dropped.
        flags: An absl `FlagValues`, not yet parsed.
        module: Name of the module whose docstring `--help` shows.
    """
    process, own = sys.modules["__main__"], absl_flags.FLAGS
    # Run with `python -m` the module is known by that name alone.
    process.__doc__ = sys.modules.get(module, process).__doc__

    def parsed(argv):
        try:
            rest = trainer_flags.parse(own, argv)
        except absl_flags.Error as error:
            said = "Pass --help for the flags and what they mean."
            sys.exit(f"error: {error}\n{said}")
        flags.mark_as_parsed()
        return rest

    def guarded(argv):
        if len(argv) > 1:
            raise app.UsageError(f"Flags begin with --. Received: {argv[1:]}")
        if not own["verbosity"].present:
            # At absl's own default TensorFlow says much that is of no use here.
            logging.set_verbosity(logging.WARNING)
            stdlib_logging.getLogger("tensorflow").setLevel("WARNING")
        try:
            main(flags)
        except (ValueError, OSError, ImportError, DivergenceError) as error:
            logging.debug("%s", error, exc_info=True)
            sys.exit(f"error: {error}")
        except WorkerLostError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(EXIT_WORKER_LOST)
        except KeyboardInterrupt:
            print("\nstopped: the same command goes on from the last checkpoint")
            sys.exit(130)

    # Beside absl's own, so that one parser knows all of them, and `--help` too.
    own.append_flag_values(flags)
    for name in flags:
        own.register_key_flag_for_module(sys.argv[0], own[name])
    try:
        app.run(guarded, flags_parser=parsed)
    finally:
        own.remove_flag_values(flags)
