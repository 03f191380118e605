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

from bayesnorm.storage import write_atomically
from trainers import flags as trainer_flags
from trainers import groups, jobs
from trainers.workdir import read_flags

_NOISE = tuple(flag.name for flag in groups.NOISE)


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


def read_plan(source, flags):
    """Reads a file of runs.

    Args:
        source: Path, or the name of a file that comes with the package.
        flags: The flags of the comparison: its runs get those that are given and of
            runs.

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
    given = trainer_flags.given(flags)
    given = {name: value for name, value in given.items() if _is_of_runs(flags, name)}
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
    _check(source, plan, flags)
    return plan


def _text_of(source):
    path = pathlib.Path(source)
    if not path.suffix:
        path = importlib.resources.files("trainers") / "configs" / f"{source}.ini"
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ValueError(
            f"--runs={source}: expected a file, or one of {_packaged()}. {error}"
        ) from error


def _packaged():
    configs = importlib.resources.files("trainers") / "configs"
    if not configs.is_dir():
        return []
    return sorted(item.name.removesuffix(".ini") for item in configs.iterdir())


def _run_and_key(text):
    run, _, key = text.rpartition(" : ")
    return run.strip(), key.strip()


def _is_of_runs(flags, name):
    return flags[name].about.of_runs


def _check(source, plan, flags):
    if not plan.runs:
        raise ValueError(f"--runs={source}: there is no section of a run")
    known = {name for name in flags if _is_of_runs(flags, name)}
    named = [run.noise_of for run in plan.runs.values() if run.noise_of]
    named += [run for figure in plan.figures.values() for run in figure.runs]
    named += [side[0] for f in plan.findings for side in (f.lower, f.higher)]
    for run in named:
        if run not in plan.runs:
            raise ValueError(
                f"--runs={source}: there is no run {run!r}, only {list(plan.runs)}"
            )
    for name, run in plan.runs.items():
        noisy = plan.runs.get(run.noise_of)
        if noisy is not None and noisy.flags.get("norm") != "batch":
            raise ValueError(
                f"--runs={source}: run {name!r} takes the noise of {run.noise_of!r}, "
                "which must have norm = batch"
            )
        same = [other for other in plan.runs if slug(other) == slug(name)]
        if not slug(name) or len(same) > 1:
            raise ValueError(
                f"--runs={source}: the letters a to z and the digits of a title name "
                f"a folder and must differ. Received: {same}"
            )
        for flag in run.flags:
            if flag not in known:
                raise ValueError(
                    f"--runs={source}: run {name!r} has the flag {flag!r}, which there "
                    "is not, or which is for the whole comparison"
                )


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


def slug(name):
    """Returns a run's title as a part of a path."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


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
        noise = {key: began[key] for key in _NOISE if key in began}
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
    for key in _NOISE:
        prefix = f"noise/{key}/"
        values = [v for k, v in outcome.figures.items() if k.startswith(prefix)]
        if not values:
            return outcome.failure or "its report has no noise"
        found[key] = ",".join(f"{value:.5g}" for value in values)
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
        return Outcome({}, {}, values)
    if not ended.is_file() or json.loads(ended.read_text("utf-8")) != values:
        _say(f"started: {name}, seed {seed}")
        start = time.monotonic()
        values_and_place = {"workdir": str(path)} | values
        words = [sys.executable, "-m", binary, *trainer_flags.words(values_and_place)]
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
            return Outcome({}, {}, why)
        write_atomically(ended, json.dumps(values, indent=1) + "\n")
        _say(f"finished: {name}, seed {seed}, {minutes:.1f} min")
    return read_outcome(path)


def read_outcome(path):
    """Returns the `Outcome` of a run that ended, from its folder."""
    figures = json.loads((path / "metrics.json").read_text("utf-8"))
    with open(path / "history.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    history = {key: [float(row[key]) for row in rows] for key in rows[0]}
    return Outcome(figures, history)


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
