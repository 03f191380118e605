"""The command of a run, as reports and results state it."""

import os
import shlex
import sys

from absl import flags

# Folders of one machine, and what no figure depends on.
_STAND_INS = {
    "data_dir": "DIR",
    "output": "DIR",
    "ood_file": "FILE",
    "data": "DATA",
    "out": "DIR",
}
_LEFT_OUT = ("workdir", "jobs", "parallel")


def defined(*packages):
    """Returns the flags that modules of `packages` and the main module define."""
    prefixes = tuple(f"{package}." for package in packages)
    return [
        flag
        for module, of_module in flags.FLAGS.flags_by_module_dict().items()
        if module.startswith(prefixes) or module == sys.argv[0]
        for flag in of_module
    ]


def given():
    """Returns the flags of this project that the command line has, by name."""
    return {f.name: f for f in defined("trainers", "benchmarks") if f.present}


def text(value):
    """Returns a flag's value as the command line has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, list) else str(value)


def as_given():
    """Returns the command line of this program, without this machine's folders."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    # Without a spec it is a program of its own, as pip installs it.
    words = [os.path.basename(sys.argv[0])]
    if spec:
        words = ["python", "-m", spec.name.removesuffix(".__main__")]
    for name, flag in given().items():
        if name not in _LEFT_OUT:
            words.append(f"--{name}={_STAND_INS.get(name, text(flag.value))}")
    return shlex.join(words)
