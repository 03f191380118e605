"""Runs of the binaries that are killed, and go on: are the figures the same?

```
python -m benchmarks.kills --kills=20 --output=benchmarks/results/kills
```

Each binary, and a comparison of several runs, is run once without a break. Then the
same command is begun in another folder and killed with all its processes (SIGKILL,
which no program can answer) at a moment drawn evenly from the time that it took, again
and again (in a new folder, where it had ended before), and at last left to end. All of
`metrics.json` and of `history.csv` but the seconds must be equal to the last digit; the
command ends with exit code 1 if anything differs.
"""

import csv
import json
import os
import pathlib
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
from absl import app, flags

from bayesnorm.storage import write_atomically
from benchmarks.small_runs import BINARIES, SMALL
from trainers import flags as trainer_flags
from trainers.report.tables import table

_KILLS = flags.DEFINE_integer("kills", 20, "Kills in all.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the table.")

_RUNS = """
[BN]
norm = batch
scale = plain
[AN]
norm = analytic
"""
_COMMANDS = BINARIES | {
    "comparison": f"trainers.all_cnn --runs={{runs}} --epochs=3 {SMALL}",
}


def _started(command, folder, log):
    words = [sys.executable, "-m", *shlex.split(command), f"--workdir={folder}"]
    return subprocess.Popen(
        words, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )


def _ended(command, folder, log):
    """Runs a command to its end; returns the seconds that it took."""
    start = time.monotonic()
    if _started(command, folder, log).wait():
        raise RuntimeError(f"{command} failed: see {log.name}")
    return time.monotonic() - start


def _killed(command, folder, log, seconds):
    """Runs a command for some seconds; returns whether it had not ended before."""
    process = _started(command, folder, log)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        # The runs of a comparison too.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def _without_seconds(content):
    if isinstance(content, list):
        return [_without_seconds(item) for item in content]
    if not isinstance(content, dict):
        return content
    kept = {k: v for k, v in content.items() if not k.startswith("seconds")}
    return {key: _without_seconds(value) for key, value in kept.items()}


def figures_of(folder):
    """Returns all figures in a folder but the seconds: path -> content."""
    found = {}
    for path in sorted(folder.rglob("metrics.json")):
        content = json.loads(path.read_text("utf-8"))
        found[str(path.relative_to(folder))] = _without_seconds(content)
    for path in sorted(folder.rglob("history.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            rows = [_without_seconds(row) for row in csv.DictReader(file)]
        found[str(path.relative_to(folder))] = rows
    return found


def _drafts(folder):
    """What a write that was killed left in a folder."""
    return [str(path) for path in folder.rglob(".*") if path.is_file()]


def survive(name, command, kills, rng, folder):
    """Returns the row of a command: what came of it when it was killed.

    Args:
        name: Its name.
        command: The command, without a folder.
        kills: How often to kill it.
        rng: A NumPy generator, for the moments.
        folder: `pathlib.Path` for its folders and its log.
    """
    with open(folder / f"{name}.txt", "w", encoding="utf-8") as log:
        took = _ended(command, folder / f"{name}-unbroken", log)
        broken, killed = [folder / f"{name}-0"], []
        while len(killed) < kills:
            seconds = took * rng.uniform()
            if _killed(command, broken[-1], log, seconds):
                killed.append(seconds)
                print(f"{name}: killed after {seconds:.1f} of {took:.1f} s")
            else:
                broken.append(folder / f"{name}-{len(broken)}")
        _ended(command, broken[-1], log)
    expected = figures_of(folder / f"{name}-unbroken")
    found = [figures_of(path) for path in broken]
    return {
        "name": name,
        "command": command,
        "seconds": took,
        "killed": killed,
        "files": len(expected),
        "equal": bool(expected) and all(figures == expected for figures in found),
        "left": [draft for path in broken for draft in _drafts(path)],
    }


def _page(rows):
    rendered = table(
        [
            "",
            "kills",
            "seconds unbroken",
            "killed after, s",
            "files",
            "figures",
            "left",
        ],
        [
            [
                row["name"],
                str(len(row["killed"])),
                f"{row['seconds']:.0f}",
                ", ".join(f"{seconds:.1f}" for seconds in row["killed"]),
                str(row["files"]),
                "equal" if row["equal"] else "DIFFERENT",
                str(len(row["left"])),
            ]
            for row in rows
        ],
    )
    commands = "\n".join(f"python -m {row['command']}" for row in rows)
    return f"""# Runs that were killed

`{trainer_flags.command()}`; {os.cpu_count()} cores, {platform.machine()}; \
Keras {keras.__version__} on {keras.backend.backend()}.

{rendered}

SIGKILL to all processes of a run, and the same command again; figures are all of every
`metrics.json` and `history.csv` but the seconds, to the last digit; left are the drafts
of files of which the writing was killed, which a later run removes. The commands:

```
{commands}
```
"""


def main(argv):
    """Kills, compares, prints and writes."""
    del argv
    rng = np.random.default_rng(_SEED.value)
    kills = [len(part) for part in np.array_split(range(_KILLS.value), len(_COMMANDS))]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "runs.ini").write_text(_RUNS, "utf-8")
        rows = [
            survive(name, command.format(runs=folder / "runs.ini"), number, rng, folder)
            for (name, command), number in zip(_COMMANDS.items(), kills, strict=True)
        ]
        text = _page(rows).replace(str(folder), "DIR")
    print(text)
    if _OUTPUT.value:
        write_atomically(pathlib.Path(_OUTPUT.value) / "report.md", text)
    if not all(row["equal"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
