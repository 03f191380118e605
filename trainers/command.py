"""The command of a run, as reports and results state it."""

import shlex
import sys

from absl import flags

# Folders of one machine, and what no figure depends on.
_STAND_INS = {"data_dir": "DIR", "output": "DIR", "ood_file": "FILE"}
_LEFT_OUT = ("workdir", "jobs", "parallel")


def given():
    """Returns the flags of this project that the command line has, by name."""
    found = {}
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith(("trainers.", "benchmarks.")) or module == sys.argv[0]:
            found |= {flag.name: flag for flag in defined if flag.present}
    return found


def text(value):
    """Returns a flag's value as the command line has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, list) else str(value)


def as_given():
    """Returns the command line of this program, without this machine's folders."""
    main = sys.modules["__main__"]
    program = main.__spec__.name if getattr(main, "__spec__", None) else sys.argv[0]
    words = ["python", "-m", program]
    for name, flag in given().items():
        if name not in _LEFT_OUT:
            words.append(f"--{name}={_STAND_INS.get(name, text(flag.value))}")
    return shlex.join(words)
