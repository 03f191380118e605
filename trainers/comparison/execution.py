"""Runs what a plan lists.

Each run with each seed is a process with a folder of its own: a comparison that was
stopped goes on, and one with more seeds runs only those.
"""

import csv
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

from bayesnorm.storage import write_atomically
from trainers import flags as trainer_flags
from trainers import jobs
from trainers.comparison.plan import slug
from trainers.evaluation.records import Records
from trainers.groups import NOISE_FLAGS
from trainers.workdir import read_flags


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run with a seed left.

    Attributes:
        records: Its `Records`, empty if it failed.
        history: Column -> numbers by epoch.
        failure: Why it failed, or None.
    """

    records: Records
    history: dict
    failure: str | None = None


def execute(binary, flags, plan, folder):
    """Runs what has not been run.

    Args:
        binary: Name of the module, such as `"trainers.all_cnn"`.
        flags: The flags of the comparison.
        plan: The `Plan`.
        folder: `pathlib.Path` of the comparison.

    Returns:
        Title of a run -> an `Outcome` for each of `--seeds`.
    """
    seeds = [int(seed) for seed in flags.seeds]
    folder = folder.absolute()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    tasks = [(name, seed) for name in plan.runs for seed in seeds]
    first, outcomes, threads = {}, {}, _threads(flags.jobs)
    for stage in range(3):
        now = [
            (name, seed)
            for name, seed in tasks
            if _stage(flags, plan.runs[name], seed == seeds[0]) == stage
        ]
        arguments = [
            (
                binary,
                name,
                seed,
                str(folder),
                _flags_of(flags, plan, folder, name, seed, first),
                threads,
            )
            for name, seed in now
        ]
        ended = jobs.parallel(flags, _run, arguments, waits=True)
        outcomes |= dict(zip(now, ended, strict=True))
        first = {n: outcome for (n, s), outcome in outcomes.items() if s == seeds[0]}
    return {name: [outcomes[name, seed] for seed in seeds] for name in plan.runs}


def _stage(flags, run, is_first):
    """When a run can begin: 0 at once, 1 with the noise, 2 with the learning rates."""
    if shares_first_seed(flags, run) and not is_first:
        return 2
    return 0 if run.noise_of is None else 1


def shares_first_seed(flags, run):
    """Whether the learning rate that the first seed finds is that of all seeds."""
    searched = run.flags.get("learning_rate", "auto") == "auto"
    return flags.share_learning_rate and searched


def is_shared(flags, plan):
    """Whether seeds take anything from the first one: a learning rate, or a noise."""
    runs = plan.runs.values()
    return any(shares_first_seed(flags, run) or run.noise_of for run in runs)


def folder_of(folder, name, seed):
    """Returns the folder of a run with a seed in that of the comparison."""
    return pathlib.Path(folder) / f"{slug(name)}-{seed}"


def ended_file(path):
    """Returns the file with the flags of a run in the folder `path`, if it ended."""
    return path.parent / "logs" / f"{path.name}.json"


def _flags_of(flags, plan, folder, name, seed, first):
    """Returns the flags of a run with a seed, given the outcomes of the first seed.

    Or the reason why it cannot run, a text.
    """
    run = plan.runs[name]
    values = run.flags | {"seed": str(seed)}
    # A run goes on as it began, whichever seed is the first now.
    began = _began(folder_of(folder, name, seed))
    if run.noise_of is not None:
        noise = {key: began[key] for key in NOISE_FLAGS if key in began}
        noise = noise or measured_noise(first[run.noise_of])
        if isinstance(noise, str):
            return f"the noise of {run.noise_of!r} was not measured: {noise}"
        values |= noise
    if shares_first_seed(flags, run):
        if began:
            values |= {k: v for k, v in began.items() if k == "learning_rate"}
        elif name in first and first[name].history:
            # Where it was given it is this one as well.
            values["learning_rate"] = repr(first[name].history["learning_rate"][0])
    return values


def _began(path):
    """The flags that a run began with, empty if it has not begun."""
    if ended_file(path).is_file():
        return json.loads(ended_file(path).read_text("utf-8"))
    if (path / "flags.txt").is_file():
        began = read_flags(path / "flags.txt")
        return {key.removeprefix("--"): value for key, value in began.items()}
    return {}


def measured_noise(outcome):
    """Returns the flags of the noise that an outcome has, or why not, a text."""
    found = {}
    for key in NOISE_FLAGS:
        measured = outcome.records.along(part="noise", figure=key)
        if not measured:
            return outcome.failure or "its report has no noise"
        found[key] = ",".join(f"{value:.5g}" for value in measured.values())
    return found


def _say(line):
    # In one piece: `print` writes the end of a line apart, and threads come between.
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _run(binary, name, seed, folder, values, threads):
    """Runs the binary if it has not run; returns the `Outcome`."""
    path = folder_of(folder, name, seed)
    ended = ended_file(path)
    if isinstance(values, str):
        _say(f"FAILED: {name}, seed {seed}: {values}")
        return Outcome(Records(), {}, values)
    if not ended.is_file() or json.loads(ended.read_text("utf-8")) != values:
        _say(f"started: {name}, seed {seed}")
        start = time.monotonic()
        words = trainer_flags.words({"workdir": path} | values)
        words = [sys.executable, "-m", binary, *words]
        ended.parent.mkdir(parents=True, exist_ok=True)
        log = ended.with_suffix(".txt")
        with open(log, "w") as output:
            code = subprocess.run(
                words,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=threads | dict(os.environ),
            ).returncode
        minutes = (time.monotonic() - start) / 60
        if code:
            why = f"killed by signal {-code}" if code < 0 else _error(log)
            _say(f"FAILED: {name}, seed {seed}: {why} ({log})")
            return Outcome(Records(), {}, why)
        write_atomically(ended, json.dumps(values, indent=1) + "\n")
        _say(f"finished: {name}, seed {seed}, {minutes:.1f} min")
    return read_outcome(path)


def read_outcome(path):
    """Returns the `Outcome` of a run that ended, from its folder."""
    records = Records.read(path / "metrics.json")
    with open(path / "history.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    history = {key: [float(row[key]) for row in rows] for key in rows[0]}
    return Outcome(records, history)


def _threads(jobs):
    """Variables of the environment for runs side by side, where it has none."""
    if jobs == 1:
        return {}
    # With a thread for every core each would wait for the others, and the first would
    # take all of an accelerator's memory.
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    return dict.fromkeys(names, threads) | {
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }


def _error(log):
    """What a run says of its failure: from `error: ` on, else its last line."""
    text = log.read_text("utf-8").strip()
    _, found, said = text.rpartition("error: ")
    if found:
        return said
    return text.splitlines()[-1] if text else "it wrote nothing"
