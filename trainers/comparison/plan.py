"""The plan of a comparison: runs of a binary, as a file lists them.

The file is an INI file. A section is a run: its title, and its flags. Of the keys two
are not flags: `noise_of` names a run with batch normalization, whose measured noise a
run with `scale = noisy` takes, and `paper` is a text for the table, of which the key
`paper` of `[table]` says what it is. `[common]` holds flags of all runs; those of the
command line win over it, those of a run over both.
`[figure: NAME]` draws the curves of `runs`, separated by semicolons. `[finding: TEXT]`
states that in `metrics.json` the figure `lower = RUN : KEY` is below
`higher = RUN : KEY`.
"""

import configparser
import dataclasses
import importlib.resources
import pathlib
import re

from trainers import flags as trainer_flags


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
    given = trainer_flags.given_to_runs(flags)
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


def _check(source, plan, flags):
    if not plan.runs:
        raise ValueError(f"--runs={source}: there is no section of a run")
    known = {name for name in flags if flags[name].about.of_runs}
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


def slug(name):
    """Returns a run's title as a part of a path."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
