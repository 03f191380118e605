"""Every binary in half precision, and compiled by XLA: figures and time.

```
python -m benchmarks.precision --output=benchmarks/results/precision
KERAS_BACKEND=jax python -m benchmarks.precision --output=benchmarks/results/precision
```

Small runs on the data that each binary has by default, one after the other: test NLL
and error of one pass, in which half precision may change the last digits, and the
fastest epoch beside that of float32. On a CPU half precision is emulated, and XLA runs
the convolutions inside of a loop on one thread: what they are for is an accelerator.
"""

import os
import pathlib
import platform
import shlex
import subprocess
import sys
import tempfile

import keras
from absl import app, flags

from bayesnorm.storage import write_atomically
from benchmarks.small_runs import BINARIES
from trainers.comparison import execution
from trainers.flags import command
from trainers.report.tables import table

_BINARIES = flags.DEFINE_list("binaries", list(BINARIES), "Names of binaries.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the table.")

# Title -> flags.
_WAYS = {
    "float32": [],
    "mixed_bfloat16": ["--precision=mixed_bfloat16"],
    "mixed_float16": ["--precision=mixed_float16"],
    "XLA": ["--xla"],
}


def run(words, folder):
    """Runs a binary; returns `(NLL, error, seconds)`, or why it failed, a text."""
    words = [sys.executable, "-m", *shlex.split(words[0]), *words[1:]]
    done = subprocess.run(
        [*words, f"--workdir={folder}"], capture_output=True, text=True
    )
    if done.returncode:
        return (done.stderr or done.stdout).strip().splitlines()[-1]
    ended = execution.read_outcome(folder)
    found = {
        r.figure: r.value for r in reversed(list(ended.records)) if r.part == "test"
    }
    return found["nll"], found["error"], min(ended.history["seconds"])


def main(argv):
    """Runs, prints and writes."""
    del argv
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in _BINARIES.value:
            base = None
            for way, words in _WAYS.items():
                if way == "XLA" and keras.backend.backend() == "jax":
                    continue  # It is in all of them.
                found = run(
                    [BINARIES[name], *words], pathlib.Path(folder, f"{name}-{way}")
                )
                if isinstance(found, str):
                    cells = [f"FAILED: {found}", "", ""]
                else:
                    nll, error, seconds = found
                    base = base or seconds
                    cells = [f"{nll:.4f}", f"{error:.2f}", f"{seconds / base:.2f}"]
                rows.append([name, way, *cells])
                print(*rows[-1], sep=" | ", flush=True)
    titles = ["", "", "test NLL, nats", "error, %", "fastest epoch, ratio"]
    backend = keras.backend.backend()
    commands = "\n".join(f"python -m {BINARIES[name]}" for name in _BINARIES.value)
    text = f"""# Half precision and XLA, {backend}

`{command()}`; {os.cpu_count()} cores, {platform.machine()}; Keras {keras.__version__} \
on {backend}.

{table(titles, rows)}

The commands, with `--precision` or `--xla`:

```
{commands}
```
"""
    print(text)
    if _OUTPUT.value:
        write_atomically(pathlib.Path(_OUTPUT.value) / f"{backend}.md", text)
    if any(cell.startswith("FAILED") for row in rows for cell in row):
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
