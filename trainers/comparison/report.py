"""The report of several runs side by side: table, findings, curves."""

import numpy as np
from scipy import stats

from bayesnorm import plots
from bayesnorm.storage import write_atomically
from trainers.evaluation.records import to_json
from trainers.report.section import Section, save_plots, write_page
from trainers.report.tables import number, table
from trainers.sections.perturbations import KINDS

_SIGMA_S, _SIGMA_U = ("posterior", "relative_stddev"), ("noise", "scale_stddev")
_ONE_SEARCH = (
    " A learning rate that is searched for, and a noise that is measured, are those of "
    "the first seed: the seeds do not tell how far a difference between methods is one "
    "between their rates."
)
# Of every binary: title, where it is found, and how it is written.
_COLUMNS = [
    ("IoU of the best threshold, %", ("baseline", "iou", "threshold"), ".1f"),
    ("validation NLL", ("validation", "nll"), ".3f"),
    ("training NLL", ("train", "nll"), ".3f"),
    ("learning rate", ("train", "first_learning_rate"), ".4f"),
    ("s / epoch", ("seconds", "epoch"), ".1f"),
]


def write(folder, plan, outcomes, columns, seeds, command, shared):
    """Writes `report.md`, `metrics.json` and the plots into `folder`.

    Args:
        folder: `pathlib.Path`.
        plan: The `plan.Plan`.
        outcomes: Title of a run -> an `execution.Outcome` for each seed.
        columns: List of `(title, figure, format)` for the table: figures of the test
            part, each of every method that a run has.
        seeds: The seeds, as text.
        command: The command line.
        shared: Whether seeds take anything from the first one.

    Returns:
        The content of `metrics.json`: `runs`, title -> content of the records of each
        seed (empty for a run that failed), and `findings`, text -> differences and
        verdict.

    Raises:
        ValueError: If every run failed.
    """
    everything = [o for of_seeds in outcomes.values() for o in of_seeds]
    done = [outcome.records for outcome in everything if not outcome.failure]
    if not done:
        raise ValueError(f"All runs failed, the first of them: {everything[0].failure}")
    findings = {f.text: judge(f, outcomes) for f in plan.findings}
    sections = [
        *_findings(findings, shared and len(seeds) > 1),
        *_histories(plan, outcomes),
        *_layers(outcomes, done),
        *_accuracies(outcomes),
    ]
    save_plots(folder, sections)
    results = {
        "runs": {
            name: [{} if o.failure else o.records.content() for o in of_seeds]
            for name, of_seeds in outcomes.items()
        },
        "findings": findings,
    }
    write_atomically(folder / "metrics.json", to_json(results))
    head = _head(plan, outcomes, columns, done, seeds, command)
    write_page(folder / "report.md", head, sections)
    return results


def judge(finding, outcomes):
    """Compares two runs seed by seed.

    Args:
        finding: A `plan.Finding`.
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
        (a.records.values.get(low_key), b.records.values.get(high_key))
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


def _findings(findings, conditional):
    if not findings:
        return
    rows = []
    for text, found in findings.items():
        differences = found["differences"]
        agree = f"{sum(d < 0 for d in differences)} of {len(differences)}"
        mean = number(found["mean"], "+.4f")
        if found["standard_error"] is not None:
            mean += f" ± {found['standard_error']:.4f}"
        rows.append([text, mean, agree, found["verdict"]])
    text = (
        "Differences seed by seed, mean ± standard error. Confirmed or refuted: a "
        "two-sided t-test at 5 % tells the mean from 0; where there is no difference "
        "one in twenty such tests does so too." + (_ONE_SEARCH if conditional else "")
    )
    head = ["finding", "difference", "seeds that agree", ""]
    text += f"\n\n{table(head, rows, left=(0, 3))}"
    yield Section("findings", "Findings", text)


def _histories(plan, outcomes):
    for name, figure in plan.figures.items():
        drawn = [run for run in figure.runs if any(o.history for o in outcomes[run])]
        if not drawn:
            continue
        panels = {
            title: {run: _by_epoch(outcomes[run], key) for run in drawn}
            for title, key in (("training", "nll"), ("validation", "val_nll"))
        }
        yield Section(
            f"curves_{name}",
            figure.title,
            "Training with the noise that a method has, validation by one pass "
            "without; means over the seeds, bands from the lowest to the highest.",
            plots.run_curves(panels, "NLL, nats"),
        )


def _by_epoch(outcomes, key):
    """Array `[seeds, epochs]`, NaN where a run has none."""
    rows = [o.history.get(key, []) for o in outcomes]
    longest = max(map(len, rows))
    padded = [[*row, *[np.nan] * (longest - len(row))] for row in rows]
    return np.asarray(padded, "float64").reshape(len(rows), longest)


def _layers(outcomes, done):
    """What posteriors say of themselves, and the noise of batch normalization."""
    noise = {
        f"{run}, {symbol}": values
        for symbol, name in (("sigma_S / s", _SIGMA_S), ("sigma_U", _SIGMA_U))
        for run, values in _by_layer(outcomes, *name).items()
    }
    if noise:
        text = (
            "Learned deviation of the scale over its mean (median over channels), and "
            "the deviation of the scale that batch normalization has in training."
        )
        text += f"\n\n{_layer_table(noise, '.3f')}"
        yield Section(
            "layer_noise", "Noise of the layers", text, plots.layer_noise(noise)
        )
    others = {r.figure: r.unit for x in done for r in x.select(part="posterior")}
    others.pop(_SIGMA_S[1], None)
    for figure, unit in others.items():
        series = _layer_table(_by_layer(outcomes, "posterior", figure), ".4g")
        text = f"Median over the seeds, unit {unit}.\n\n{series}"
        yield Section(f"posterior_{figure}", f"Posteriors: {figure}", text)


def _by_layer(outcomes, part, figure):
    """Run -> layer -> median over the seeds."""
    found = {}
    for run, of_seeds in outcomes.items():
        rows = [o.records.along(part=part, figure=figure) for o in of_seeds]
        for layer in _layers_of(rows):
            values = [row[layer] for row in rows if layer in row]
            found.setdefault(run, {})[layer] = float(np.median(values))
    return found


def _layers_of(rows):
    return list(dict.fromkeys(layer for row in rows for layer in row))


def _layer_table(series, form):
    layers = _layers_of(series.values())
    rows = [
        [name, *(number(values.get(k), form, none="") for k in layers)]
        for name, values in series.items()
    ]
    return table(["", *layers], rows)


def _accuracies(outcomes):
    """Accuracy of perturbed inputs, and error of what is kept."""
    for kind, (title, unit) in KINDS.items():
        curves = _curves(outcomes, kind, "accuracy")
        if curves:
            yield Section(
                kind.replace("/", "_"),
                title,
                "Test accuracy; samples are averaged where there is a posterior.",
                plots.perturbation_curves(curves, unit),
            )
    coverage = _curves(outcomes, "test", "error_at_coverage", {100.0: "error"})
    if coverage:
        yield Section(
            "error_coverage",
            "Rejecting what is uncertain",
            "What has the highest predictive entropy is rejected; samples are averaged "
            "where there is a posterior.",
            plots.coverage_curves(coverage),
        )


def _curves(outcomes, part, figure, ends=None):
    """Run -> `(places, values [seeds, places])`, of the method that stands for it.

    `ends` has further places, and the figures there.
    """
    curves = {}
    for run, of_seeds in outcomes.items():
        rows = []
        for records in (outcome.records for outcome in of_seeds if outcome.records):
            shown = records.about["shown"]
            row = records.along(part=part, figure=figure, method=shown)
            for at, name in (ends or {}).items():
                row[at] = records.value(part, name, shown)
            rows += [row] if row else []
        if rows:
            places = sorted(rows[0])
            curves[run] = (places, np.array([[r[p] for p in places] for r in rows]))
    return curves


def _cell(outcomes, where, form):
    found = [outcome.records.find(*where) for outcome in outcomes]
    known = [record.value for record in found if record is not None]
    values = [value for value in known if value is not None]
    if len(values) < len(known):
        return f"not finite in {len(known) - len(values)} of {len(known)}"
    if not values:
        return ""
    spread = np.std(values, ddof=1) if len(values) > 1 else None
    return number(np.mean(values), form, spread)


def _head(plan, outcomes, columns, done, seeds, command):
    """The page above its sections."""
    methods = {}
    for records in done:
        methods |= records.about["methods"]
    columns = [
        (f"test {title}, {name}", ("test", figure, key), form)
        for title, figure, form in columns
        for key, name in methods.items()
    ] + _COLUMNS
    columns = [c for c in columns if any(x.value(*c[1]) is not None for x in done)]
    rows = [
        [name, *(_cell(of_seeds, where, form) for _, where, form in columns)]
        for name, of_seeds in outcomes.items()
    ]
    head, left = ["", *(title for title, _, _ in columns)], [0]
    papers = [run.paper for run in plan.runs.values()]
    if any(papers):
        rows = [[*row, paper] for row, paper in zip(rows, papers, strict=True)]
        head, left = [*head, plan.paper], [0, len(head)]
    failed = [
        f"- {name}, seed {seed}: {outcome.failure}"
        for name, of_seeds in outcomes.items()
        for seed, outcome in zip(seeds, of_seeds, strict=True)
        if outcome.failure
    ]
    failures = ""
    if failed:
        failures = "\n\nThese runs are in no figure:\n\n" + "\n".join(failed)
    about = done[0].about
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    epochs = sorted({records.value(None, "epochs") for records in done})
    return f"""# {about["dataset"]}

{" or ".join(map(str, epochs))} epochs, {"seeds" if len(seeds) > 1 else "seed"} \
{", ".join(seeds)}; {about["hardware"]["cores"]} cores, \
{", ".join(about["hardware"]["devices"])}; {versions}. Command:

```
{command}
```

{table(head, rows, left)}

Mean ± standard deviation over the seeds. NLL in nats.{failures}"""
