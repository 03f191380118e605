"""The command of a benchmark, as its results state it."""

import shlex
import sys

from absl import flags

# Folders of one machine, and what no figure depends on.
_STAND_INS = {"data_dir": "DIR", "output": "DIR"}
_LEFT_OUT = ("workdir", "jobs")


def as_given():
    """Returns the command line of this program, without this machine's folders."""
    main = sys.modules["__main__"]
    words = ["python", "-m", main.__spec__.name if main.__spec__ else sys.argv[0]]
    for flag in flags.FLAGS.get_flags_for_module(sys.argv[0]):
        if flag.present and flag.name not in _LEFT_OUT:
            value = _STAND_INS.get(flag.name, flag.value)
            text = ",".join(value) if isinstance(value, list) else str(value)
            words.append(f"--{flag.name}={text}")
    return shlex.join(words)
