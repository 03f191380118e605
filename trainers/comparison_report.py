"""The report of several runs side by side: table, findings, curves."""

import functools
import json
import pathlib

import numpy as np
from scipy import stats

from bayesnorm import plots
from bayesnorm.storage import write_atomically
from trainers import comparison
from trainers import flags as trainer_flags
from trainers.report import Section, rendered
from trainers.sections import perturbations

_NOISE = "posterior/relative_stddev/"
_MEASURED = "noise/scale_stddev/"
_ONE_SEARCH = (
    " A learning rate that is searched for, and a noise that is measured, are those of "
    "the first seed: the seeds do not tell how far a difference between methods is one "
    "between their rates."
)


def main(binary, flags, columns):
    """Runs what `--runs` lists and reports; returns the content of `metrics.json`.

    Args:
        binary: Name of the module of the binary, such as `"trainers.all_cnn"`.
        flags: The flags of the comparison.
        columns: List of `(title, key in metrics.json, format)` of the table.

    Raises:
        ValueError: If the folder is of a single run or of another comparison, or if a
            run failed; the others are in the report.
    """
    if len(set(flags.seeds)) < len(flags.seeds):
        raise ValueError(f"--seeds must differ. Received: {flags.seeds}")
    if flags["seed"].present:
        raise ValueError("--seed is of one run: with --runs give --seeds.")
    plan = comparison.read_plan(flags.runs, flags)
    name = pathlib.Path(flags.runs).stem
    program = binary.removeprefix("trainers.")
    folder = flags.workdir or f"runs/{program}-{flags.dataset}-{name}"
    folder = pathlib.Path(folder)
    _claim(folder, name)
    outcomes = comparison.execute(binary, flags, plan, folder)
    results = write(folder, flags, plan, outcomes, columns)
    print(f"wrote {folder / 'report.md'}")
    failed = [o for of_seeds in outcomes.values() for o in of_seeds if o.failure]
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(outcomes) * len(flags.seeds)} runs failed; the "
            "report names them, and the same command tries them again."
        )
    return results


def _claim(folder, name):
    """Makes the folder that of the comparison `name`, or checks that it is."""
    if (folder / "flags.txt").exists():
        raise ValueError(
            f"--workdir={folder} is the folder of a single run (there is a flags.txt), "
            "whose report that of --runs would replace: give another --workdir."
        )
    note = folder / "runs.txt"
    there = note.read_text("utf-8").strip() if note.exists() else name
    if there != name:
        raise ValueError(
            f"--workdir={folder} is of --runs={there}, not of {name!r}: give another "
            f"--workdir, or remove {note} if the file was renamed."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(note, f"{name}\n")


def write(folder, flags, plan, outcomes, columns):
    """Writes `report.md`, `metrics.json` and the plots into `folder`.

    Args:
        folder: `pathlib.Path`.
        flags: The flags of the comparison.
        plan: The `comparison.Plan`.
        outcomes: Title of a run -> an `Outcome` for each seed.
        columns: As for `main`.

    Returns:
        The content of `metrics.json`: `runs`, title -> figures of each seed (empty for
        a run that failed), and `findings`, text -> differences and verdict.

    Raises:
        ValueError: If every run failed.
    """
    done = [o.figures for runs in outcomes.values() for o in runs if not o.failure]
    if not done:
        why = next(iter(outcomes.values()))[0].failure
        raise ValueError(f"All runs failed, the first of them: {why}")
    findings = {f.text: judge(f, outcomes) for f in plan.findings}
    sections = _sections(flags, plan, outcomes, findings)
    for name, section in sections.items():
        if section.figure is not None:
            section.figure.savefig(folder / f"{name}.png")
    results = {
        "runs": {name: [o.figures for o in runs] for name, runs in outcomes.items()},
        "findings": findings,
    }
    write_atomically(folder / "metrics.json", json.dumps(results, indent=1) + "\n")
    write_atomically(
        folder / "report.md", _page(flags, plan, outcomes, columns, done[0], sections)
    )
    return results


def judge(finding, outcomes):
    """Compares two runs seed by seed.

    Args:
        finding: A `comparison.Finding`.
        outcomes: Title of a run -> an `Outcome` for each seed.

    Returns:
        Dict of `differences` (lower minus higher, of the seeds that have both), their
        `mean`, its `standard_error` (None for one seed), and the `verdict`:
        "confirmed" or "refuted" if a t-test at 5 % (two-sided) tells the mean from 0,
        else "open"; "not measured" if a run that has ended lacks the figure (an NLL
        may be infinite), or no seed has both.
    """
    (low, low_key), (high, high_key) = finding.lower, finding.higher
    pairs = [
        (a.figures.get(low_key), b.figures.get(high_key))
        for a, b in zip(outcomes[low], outcomes[high], strict=True)
        if not a.failure and not b.failure
    ]
    found = {"differences": [], "mean": None, "standard_error": None}
    if not pairs or any(None in pair for pair in pairs):
        return found | {"verdict": "not measured"}
    differences = [a - b for a, b in pairs]
    found |= {"differences": differences, "mean": float(np.mean(differences))}
    verdict, count = "open", len(differences)
    if count > 1:
        error = float(np.std(differences, ddof=1) / np.sqrt(count))
        found["standard_error"] = error
        if abs(found["mean"]) > stats.t.ppf(0.975, count - 1) * error:
            verdict = "confirmed" if found["mean"] < 0 else "refuted"
    return found | {"verdict": verdict}


def _sections(flags, plan, outcomes, findings):
    sections = {}
    if findings:
        conditional = any(
            comparison.shares_first_seed(flags, run) or run.noise_of
            for run in plan.runs.values()
        )
        text = _findings(findings, conditional and len(flags.seeds) > 1)
        sections["findings"] = Section("Findings", None, text)
    for name, figure in plan.figures.items():
        drawn = [run for run in figure.runs if any(o.history for o in outcomes[run])]
        if not drawn:
            continue
        panels = {
            title: {run: _histories(outcomes[run], key) for run in drawn}
            for title, key in (("training", "nll"), ("validation", "val_nll"))
        }
        sections[f"curves_{name}"] = Section(
            figure.title,
            plots.run_curves(panels, "NLL, nats"),
            "Training with the noise that a method has, validation by one pass "
            "without; means over the seeds, bands from the lowest to the highest.",
        )
    series = {}
    for symbol, prefix in (("sigma_S / s", _NOISE), ("sigma_U", _MEASURED)):
        for run, of_seeds in outcomes.items():
            values = _by_layer(of_seeds, prefix)
            if values:
                series[f"{run}, {symbol}"] = values
    if series:
        sections["layer_noise"] = Section(
            "Noise of the layers",
            plots.layer_noise(series),
            _layer_table(series),
        )
    for kind, (title, unit) in perturbations.KINDS.items():
        curves = _curves(outcomes, functools.partial(_perturbed, kind=kind))
        if curves:
            sections[f"perturbation_{kind}"] = Section(
                title,
                plots.perturbation_curves(curves, unit),
                "Test accuracy; samples are averaged where there is a posterior.",
            )
    coverage = _curves(outcomes, _coverage)
    if coverage:
        sections["error_coverage"] = Section(
            "Rejecting what is uncertain",
            plots.coverage_curves(coverage),
            "What has the highest predictive entropy is rejected; samples are averaged "
            "where there is a posterior.",
        )
    return sections


def _findings(findings, conditional):
    lines = [
        "Differences seed by seed, mean ± standard error. Confirmed or refuted: a "
        "two-sided t-test at 5 % tells the mean from 0; where there is no difference "
        "one in twenty such tests does so too." + (_ONE_SEARCH if conditional else ""),
        "",
        "| finding | difference | seeds that agree | |",
        "| --- | ---: | ---: | --- |",
    ]
    for text, found in findings.items():
        differences = found["differences"]
        agree = sum(d < 0 for d in differences)
        spread = (
            ""
            if found["standard_error"] is None
            else (f" ± {found['standard_error']:.4f}")
        )
        mean = "-" if found["mean"] is None else f"{found['mean']:+.4f}{spread}"
        lines.append(
            f"| {text} | {mean} | {agree} of {len(differences)} | {found['verdict']} |"
        )
    return "\n".join(lines)


def _histories(outcomes, key):
    """Array `[seeds, epochs]`, NaN where a run has none."""
    rows = [o.history.get(key, []) for o in outcomes]
    longest = max(map(len, rows))
    padded = [[*row, *[np.nan] * (longest - len(row))] for row in rows]
    return np.asarray(padded, "float64").reshape(len(rows), longest)


def _by_layer(outcomes, prefix):
    """Layer -> median over the seeds."""
    found = {}
    for outcome in outcomes:
        for key, value in outcome.figures.items():
            if key.startswith(prefix):
                found.setdefault(key.removeprefix(prefix), []).append(value)
    return {layer: float(np.median(values)) for layer, values in found.items()}


def _layer_table(series):
    layers = list(next(iter(series.values())))
    lines = [
        "Learned deviation of the scale over its mean (median over channels), and the "
        "deviation of the scale that batch normalization has in training.",
        "",
        "| | " + " | ".join(layers) + " |",
        "| --- |" + " ---: |" * len(layers),
    ]
    for name, values in series.items():
        cells = [f"{values[k]:.3f}" if k in values else "" for k in layers]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _best_method(figures):
    return "averaged" if "test/nll_averaged" in figures else "one_pass"


def _numbered(figures, prefix, ending):
    """Number in the middle of a key -> figure."""
    middles = {
        key.removeprefix(prefix).removesuffix(ending): value
        for key, value in figures.items()
        if key.startswith(prefix) and key.endswith(ending)
    }
    # `averaged` ends the names of other methods too.
    return {float(k): v for k, v in middles.items() if k.replace(".", "", 1).isdigit()}


def _curves(outcomes, row_of):
    """Run -> `(places, values [seeds, places])`, a row of figures for each seed."""
    curves = {}
    for run, of_seeds in outcomes.items():
        rows = [row_of(o.figures) for o in of_seeds if o.figures]
        rows = [row for row in rows if row]
        if rows:
            places = sorted(rows[0])
            curves[run] = (places, np.array([[r[p] for p in places] for r in rows]))
    return curves


def _perturbed(figures, kind):
    """Size of the perturbation -> accuracy."""
    ending = f"/accuracy_{_best_method(figures)}"
    return _numbered(figures, f"perturbation/{kind}/", ending)


def _coverage(figures):
    """Share kept -> error, both in per cent."""
    method = _best_method(figures)
    row = _numbered(figures, "test/error_at_coverage_", f"_{method}")
    return row | {100.0: figures[f"test/error_{method}"]}


def _cell(outcomes, key, form):
    known = [o.figures[key] for o in outcomes if key in o.figures]
    values = [value for value in known if value is not None]
    if len(values) < len(known):
        return f"not finite in {len(known) - len(values)} of {len(known)}"
    if not values:
        return ""
    mean = format(np.mean(values), form)
    if len(values) == 1:
        return mean
    return f"{mean} ± {format(np.std(values, ddof=1), form)}"


def _page(flags, plan, outcomes, columns, figures, sections):
    everything = [o.figures for of_seeds in outcomes.values() for o in of_seeds]
    columns = [c for c in columns if any(f.get(c[1]) is not None for f in everything)]
    titles = [title for title, _, _ in columns]
    papers = any(run.paper for run in plan.runs.values())
    rows = [["", *titles, *([plan.paper] if papers else [])]]
    rows.append(["---"] + ["---:"] * len(titles) + (["---"] if papers else []))
    for name, of_seeds in outcomes.items():
        cells = [_cell(of_seeds, key, form) for _, key, form in columns]
        rows.append([name, *cells, *([plan.runs[name].paper] if papers else [])])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    failed = [
        f"- {name}, seed {seed}: {outcome.failure}"
        for name, of_seeds in outcomes.items()
        for seed, outcome in zip(flags.seeds, of_seeds, strict=True)
        if outcome.failure
    ]
    failures = ""
    if failed:
        failures = "These runs are in no figure:\n\n" + "\n".join(failed)
        failures += "\n\n"
    shown = rendered(sections)
    hardware = figures["hardware"]
    devices = ", ".join(hardware["devices"])
    versions = ", ".join(f"{k} {v}" for k, v in figures["versions"].items())
    epochs = sorted({f["epochs"] for f in everything if f})
    epochs = " or ".join(map(str, epochs))
    seeds = "seeds" if len(flags.seeds) > 1 else "seed"
    return f"""# {figures["dataset"]}

{epochs} epochs, {seeds} {", ".join(flags.seeds)}; \
{hardware["cores"]} cores, {devices}; {versions}. Command:

```
{trainer_flags.command(flags)}
```

{table}

Mean ± standard deviation over the seeds. NLL in nats.

{failures}{shown}
"""
