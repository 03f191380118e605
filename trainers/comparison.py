"""Several runs of a binary side by side, as a file lists them.

The file is an INI file. A section is a run: its title, and its flags. Of the keys two
are not flags: `noise_of` names a run with batch normalization, whose measured noise a
run with `scale = noisy` takes, and `paper` is a text for the table, of which the key
`paper` of `[table]` says what it is. `[common]` holds flags of all runs; those of the
command line win over it, those of a run over both.
`[figure: NAME]` draws the curves of `runs`, separated by semicolons. `[finding: TEXT]`
states that in `metrics.json` the figure `lower = RUN : KEY` is below
`higher = RUN : KEY`.

Each run with each seed is a process with a folder of its own: a comparison that was
stopped goes on, and one with more seeds runs only those.
"""

import configparser
import csv
import dataclasses
import importlib.resources
import json
import os
import pathlib
import re
import subprocess
import sys
import time

from trainers import command, jobs
from trainers.checkpoints import read_flags
from trainers.flags import FLAGS

# What the comparison itself takes; the runs get everything else.
_OWN = {"runs", "seeds", "share_learning_rate", "workdir", "jobs", "parallel", "seed"}


@dataclasses.dataclass(frozen=True)
class Run:
    """A run: its flags as text by name, the command line's too, and what is no flag."""

    flags: dict
    noise_of: str | None = None
    paper: str = ""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of the file: curves of some runs."""

    title: str
    runs: tuple


@dataclasses.dataclass(frozen=True)
class Finding:
    """A statement of the file: `lower` is below `higher`, each `(run, key)`."""

    text: str
    lower: tuple
    higher: tuple


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a file says."""

    runs: dict
    figures: dict
    findings: list
    paper: str = "paper"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run with a seed left.

    Attributes:
        figures: The content of `metrics.json`, empty if the run failed.
        history: Column -> numbers by epoch.
        failure: Why it failed, or None.
    """

    figures: dict
    history: dict
    failure: str | None = None


def read_plan(source):
    """Reads a file of runs.

    Args:
        source: Path, or the name of a file that comes with the package.

    Returns:
        The `Plan`.

    Raises:
        ValueError: If there is no such file, or it is not as above.
    """
    parser = configparser.ConfigParser(
        interpolation=None, default_section=None, delimiters=("=",)
    )
    try:
        parser.read_string(_text_of(source), source=str(source))
    except configparser.Error as error:
        raise ValueError(f"--runs={source}: {error}") from error
    sections = {name: dict(parser[name]) for name in parser.sections()}
    common = sections.pop("common", {})
    table = sections.pop("table", {})
    given = {
        name: command.text(flag.value)
        for name, flag in command.given().items()
        if name not in _OWN
    }
    runs, figures, findings = {}, {}, []
    try:
        for name, keys in sections.items():
            kind, _, rest = name.partition(":")
            if kind == "figure":
                titles = tuple(run.strip() for run in keys["runs"].split(";"))
                figures[rest.strip()] = Figure(keys["title"], titles)
            elif kind == "finding":
                pairs = (_run_and_key(keys[side]) for side in ("lower", "higher"))
                findings.append(Finding(rest.strip(), *pairs))
            else:
                extra = {
                    "noise_of": keys.pop("noise_of", None),
                    "paper": keys.pop("paper", ""),
                }
                runs[name] = Run(common | given | keys, **extra)
    except KeyError as error:
        raise ValueError(f"--runs={source}: section [{name}] needs {error}") from error
    plan = Plan(runs, figures, findings, table.get("paper", "paper"))
    _check(source, plan)
    return plan


def _text_of(source):
    path = pathlib.Path(source)
    if not path.suffix:
        path = importlib.resources.files("trainers") / "configs" / f"{source}.ini"
    try:
        return path.read_text("utf-8")
    except OSError as error:
        names = sorted(
            item.name.removesuffix(".ini")
            for item in (importlib.resources.files("trainers") / "configs").iterdir()
        )
        raise ValueError(
            f"--runs={source}: expected a file, or one of {names}. {error}"
        ) from error


def _run_and_key(text):
    run, _, key = text.rpartition(" : ")
    return run.strip(), key.strip()


def _check(source, plan):
    if not plan.runs:
        raise ValueError(f"--runs={source}: there is no section of a run")
    known = {flag for flag in FLAGS if flag not in _OWN}
    named = [run.noise_of for run in plan.runs.values() if run.noise_of]
    named += [run for figure in plan.figures.values() for run in figure.runs]
    named += [side[0] for f in plan.findings for side in (f.lower, f.higher)]
    for run in named:
        if run not in plan.runs:
            raise ValueError(
                f"--runs={source}: there is no run {run!r}, only {list(plan.runs)}"
            )
    for name, run in plan.runs.items():
        for flag in run.flags:
            if flag not in known:
                raise ValueError(
                    f"--runs={source}: run {name!r} has the flag {flag!r}, which there "
                    "is not, or which is for the whole comparison"
                )


def execute(binary, plan, folder):
    """Runs what has not been run.

    Args:
        binary: Name of the module, such as `"trainers.all_cnn"`.
        plan: The `Plan`.
        folder: `pathlib.Path` of the comparison.

    Returns:
        Title of a run -> an `Outcome` for each of `--seeds`.
    """
    seeds = [int(seed) for seed in FLAGS.seeds]
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    first, outcomes = {}, {}

    def run(names, of_seeds):
        tasks = [
            (binary, name, seed, str(folder), _flags_of(plan, name, seed, first))
            + (_environment(),)
            for name in names
            for seed in of_seeds
        ]
        return jobs.parallel(_run, tasks, waits=True)

    free = [name for name, run in plan.runs.items() if run.noise_of is None]
    bound = [name for name in plan.runs if name not in free]
    for names in (free, bound):
        first |= dict(zip(names, run(names, seeds[:1]), strict=True))
    rest = run(plan.runs, seeds[1:])
    for i, name in enumerate(plan.runs):
        share = len(seeds) - 1
        outcomes[name] = [first[name], *rest[i * share : (i + 1) * share]]
    return outcomes


def _flags_of(plan, name, seed, first):
    """Returns the flags of a run with a seed, given the outcomes of the first seed."""
    run = plan.runs[name]
    values = run.flags | {"seed": str(seed)}
    if run.noise_of is not None:
        figures = first[run.noise_of].figures
        for key in ("scale_stddev", "shift_stddev"):
            measured = [v for k, v in figures.items() if k.startswith(f"noise/{key}/")]
            values[key] = ",".join(f"{value:.5g}" for value in measured)
    if name in first and FLAGS.share_learning_rate and first[name].history:
        # Where it was given it is this one as well.
        values["learning_rate"] = repr(first[name].history["learning_rate"][0])
    return values


def _run(binary, name, seed, folder, values, environment):
    """Runs the binary if it has not run; returns the `Outcome`."""
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    path = pathlib.Path(folder) / f"{slug}-{seed}"
    if not _is_done(path, values):
        print(f"started: {name}, seed {seed}", flush=True)
        start = time.monotonic()
        words = [sys.executable, "-m", binary, f"--workdir={path}"]
        words += [f"--{key}={value}" for key, value in values.items()]
        log = pathlib.Path(folder) / "logs" / f"{path.name}.txt"
        with open(log, "w") as output:
            code = subprocess.run(
                words, stdout=output, stderr=subprocess.STDOUT, env=environment
            ).returncode
        minutes = (time.monotonic() - start) / 60
        if code:
            why = _last_line(log)
            print(f"FAILED: {name}, seed {seed}: {why} ({log})", flush=True)
            return Outcome({}, {}, why)
        print(f"finished: {name}, seed {seed}, {minutes:.1f} min", flush=True)
    figures = json.loads((path / "metrics.json").read_text("utf-8"))
    with open(path / "history.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    history = {key: [float(row[key]) for row in rows] for key in rows[0]}
    return Outcome(figures, history)


def _is_done(path, values):
    """Whether the run has ended, with these flags as far as they are given here."""
    if not (path / "metrics.json").exists():
        return False
    there = read_flags(path / "flags.txt")
    return all(
        there.get(f"--{key}", value) == value
        for key, value in values.items()
        if key != "learning_rate" or value != "auto"
    )


def _environment():
    if FLAGS.jobs == 1:
        return None
    # Runs side by side with a thread for every core each would wait for one another.
    threads = str(max(1, (os.cpu_count() or 1) // FLAGS.jobs))
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    return {**dict.fromkeys(names, threads), **os.environ}


def _last_line(log):
    lines = [line for line in log.read_text("utf-8").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it wrote nothing"])[-1]
