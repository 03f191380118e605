"""What a flag is, and what can be asked of the flags of a run."""

import dataclasses
import os
import pathlib
import shlex
import sys
from collections.abc import Callable
from typing import Any

from absl import flags as absl_flags


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of a program, with all that is to be known of it.

    Attributes:
        name: Its name.
        kind: `"string"`, `"integer"`, `"float"`, `"bool"`, `"list"`, or the tuple of
            the texts to choose from.
        help: What it means.
        default: Its default; None also for that of the program, or of the data set.
        valid: Function of the value that says whether it may be; None for any.
        expected: What is said of other values: "must be ...".
        figures: Whether figures depend on it, or a function of the flags that says so.
            A run is known by these flags; it goes on with other values of the rest.
        of_runs: Whether each run of a comparison gets it; else it is of the whole.
        stated: What reports have in place of its value, as of a folder of this machine:
            a text, empty to leave the flag out; None for the value.
    """

    name: str
    kind: str | tuple
    help: str
    default: Any = None
    valid: Callable | None = None
    expected: str = ""
    figures: bool | Callable = True
    of_runs: bool = True
    stated: str | None = None

    def define(self, flags):
        """Makes it one of `flags`, an absl `FlagValues`."""
        kind, choices = self.kind, ()
        if isinstance(kind, tuple):
            kind, choices = "enum", (kind,)
        define = getattr(absl_flags, f"DEFINE_{kind}")
        define(self.name, self.default, *choices, self.help, flag_values=flags)
        flags[self.name].about = self
        if self.valid is not None:
            absl_flags.register_validator(
                self.name, self.valid, self.expected, flag_values=flags
            )


def define(*groups):
    """Returns the flags of groups, an absl `FlagValues` that is not parsed yet.

    Args:
        *groups: Tuples of `Flag`s; one that is in several is defined once.
    """
    flags = absl_flags.FlagValues()
    for flag in {flag.name: flag for group in groups for flag in group}.values():
        flag.define(flags)
    return flags


def parse(flags, argv):
    """Parses a command line, and the file of flags that `--config` names.

    Args:
        flags: An absl `FlagValues`.
        argv: The words, the first of them the program.

    Returns:
        The words that are no flags.

    Raises:
        absl.flags.Error: If a flag is unknown or has a wrong value.
    """
    config = None
    for i, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            config = value if equals else (argv[i + 1 : i + 2] or [""])[0]
    if config is not None:
        _check_config(config)
        argv = [argv[0], f"--flagfile={config}", *argv[1:]]
    return flags(argv)


def _check_config(path):
    said = f"flag --config={path}: "
    try:
        pathlib.Path(path).read_text("utf-8")
    except FileNotFoundError:
        why = "there is no such file"
    except IsADirectoryError:
        why = "a directory; give the flags.txt in it"
    except (OSError, UnicodeDecodeError) as error:
        why = str(error)
    else:
        return
    raise absl_flags.IllegalFlagValueError(said + why)


def text(value):
    """Returns a flag's value as the command line has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, list) else str(value)


def words(values):
    """Returns the words of a command line for values by name, None for no word."""
    return [f"--{k}={text(v)}" for k, v in values.items() if v is not None]


def texts(flags):
    """Returns the flags that have a value, text by name."""
    values = {name: flags[name].value for name in flags}
    return {name: text(v) for name, v in values.items() if v is not None}


def given(flags):
    """Returns those that the command line, or its file of flags, has, text by name."""
    return {k: v for k, v in texts(flags).items() if flags[k].present}


def given_to_runs(flags):
    """Returns those that are given and that each run of a comparison gets, likewise."""
    return {k: v for k, v in given(flags).items() if flags[k].about.of_runs}


def defining(flags):
    """Returns those that figures depend on, text by name."""

    def counts(name):
        figures = flags[name].about.figures
        return figures(flags) if callable(figures) else figures

    return {name: value for name, value in texts(flags).items() if counts(name)}


def command(flags=None):
    """Returns the command line of this process.

    Args:
        flags: Its flags, of which some are stated otherwise; None for its words.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    # Without a spec it is a program of its own, as pip installs it.
    line = [os.path.basename(sys.argv[0])]
    if spec:
        line = ["python", "-m", spec.name.removesuffix(".__main__")]
    if flags is None:
        return shlex.join(line + sys.argv[1:])
    for name, value in given(flags).items():
        stated = flags[name].about.stated
        if stated != "":
            line.append(f"--{name}={value if stated is None else stated}")
    return shlex.join(line)
