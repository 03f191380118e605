"""The report of a run: figures, plots, models, and a page that shows them."""

import json
import math
import os
import platform
import shutil
import sys

import keras
import numpy as np

from bayesnorm import __version__, backend, metrics, plots
from bayesnorm.layers import StochasticScaleNorm
from bayesnorm.tools.export import export
from bayesnorm.tools.predict import predict
from trainers.checkpoints import write_atomically

_TITLES = {
    "digits": "scikit-learn digits",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
}

_HEADINGS = {
    "training": "Training",
    "reliability": "Reliability",
    "error_coverage": "Rejecting uncertain examples",
    "entropy_cdf": "Entropy in and out of the domain",
    "scale_uncertainty": "Learned noise",
    "examples": "Examples",
}


# The methods of prediction, as keys in metrics.json.
_ONE_PASS, _AVERAGED, _MOMENTS = "one_pass", "averaged", "moments"


def write(
    workdir,
    model,
    splits,
    history,
    description,
    samples=30,
    seed=0,
    title=None,
    note=print,
):
    """Writes the report of a trained classifier.

    Evaluates on the test part and on the out-of-distribution part, by one pass (the
    posterior's means), by the average over sampled networks, and by propagated
    moments where the network has a posterior. The folder gets `metrics.json`,
    `report.md`, the plots as PNG, `model.keras` and, with TensorFlow,
    `saved_model/1/`.

    Args:
        workdir: The `trainers.checkpoints.Workdir`.
        model: The model, scaled images to logits.
        splits: The `Splits`.
        history: The history of `trainers.loop.fit`.
        description: What was trained, for the report: a noun phrase.
        samples: Number of sampled networks.
        seed: Seed of the samples.
        title: Name of the data in the report; None for the set's usual one.
        note: Function that is given a line of text for each part that is done.

    Returns:
        The content of `metrics.json`. NLL, entropy and KL in nats, seconds in seconds,
        accuracies, errors and areas in per cent.
    """
    title = title or _TITLES.get(splits.name, splits.name)
    predictions = _predict(model, splits, samples, seed)
    figures = _figures(model, splits, history, predictions, samples)
    figures |= {"dataset": title, "hardware": _hardware(), "versions": _versions()}
    text = json.dumps(figures, indent=2, default=float)
    write_atomically(workdir / "metrics.json", text + "\n")
    note("wrote metrics.json")
    names = _method_names(samples)
    sections = _plots(model, splits, history, predictions, names)
    for name, (figure, _) in sections.items():
        figure.savefig(workdir / f"{name}.png")
    model.save(workdir / "model.keras")
    note(f"wrote {len(sections)} plots and model.keras")
    serving = _export(workdir, model, samples, note)
    page = _page(title, description, figures, sections, names, serving)
    write_atomically(workdir / "report.md", page)
    note(f"wrote {workdir / 'report.md'}")
    return figures


def _predict(model, splits, samples, seed):
    """Returns part -> method -> `Prediction`."""
    methods = {_ONE_PASS: {"method": "mean"}}
    if _posteriors(model):
        methods[_AVERAGED] = {
            "method": "sample",
            "samples": samples,
            "seed": seed,
            "keep_samples": True,
        }
        methods[_MOMENTS] = {"method": "moments"}
    parts = {
        part: splits.inputs(getattr(splits, part).images)
        for part in ("test", "ood")
        if getattr(splits, part) is not None
    }
    return {
        part: {
            name: predict(model, images, from_logits=True, **arguments)
            for name, arguments in methods.items()
        }
        for part, images in parts.items()
    }


def _posteriors(model):
    layers = model._flatten_layers()
    return [layer for layer in layers if isinstance(layer, StochasticScaleNorm)]


def _relative_stddevs(model):
    """Layer -> `stddev / |scale|` of the posteriors of its channels."""
    return {
        layer.name.removesuffix("_scale"): np.asarray(
            keras.ops.convert_to_numpy(layer.stddev), "float64"
        )
        / np.maximum(np.abs(keras.ops.convert_to_numpy(layer.scale)), 1e-12)
        for layer in _posteriors(model)
    }


def _figures(model, splits, history, predictions, samples):
    last = history[-1]
    figures = {}
    for method, prediction in predictions["test"].items():
        summary = metrics.classification_summary(
            prediction.probs, splits.test.labels, prediction.samples
        )
        figures |= {f"test/{name}_{method}": v for name, v in summary.items()}
    for method, prediction in predictions.get("ood", {}).items():
        inside = predictions["test"][method].entropy
        summary = metrics.ood_summary(inside, prediction.entropy)
        figures |= {f"ood/{name}_{method}": v for name, v in summary.items()}
    for name in ("nll", "kl", "learning_rate", "kl_weight"):
        figures[f"train/{name}"] = last[name]
    best = min(history, key=lambda row: row["val_nll"])
    figures |= {
        "train/accuracy": 100 * last["accuracy"],
        "validation/nll": last["val_nll"],
        "validation/accuracy": 100 * last["val_accuracy"],
        "validation/best_nll": best["val_nll"],
        "validation/best_epoch": best["epoch"],
        "epochs": last["epoch"],
        "parameters": sum(math.prod(w.shape) for w in model.trainable_weights),
        "samples": samples,
        "seconds/training": sum(row["seconds"] for row in history),
        "seconds/epoch": _seconds_per_epoch(history),
    }
    for name, ratios in _relative_stddevs(model).items():
        figures[f"posterior/relative_stddev/{name}"] = float(np.median(ratios))
    # JSON has no infinity: an NLL of probability 0 is no number there.
    return {
        name: None if isinstance(v, float) and not np.isfinite(v) else v
        for name, v in figures.items()
    }


def _seconds_per_epoch(history):
    """Median, without the first epoch, which compiles, where there are others."""
    seconds = [row["seconds"] for row in history]
    return float(np.median(seconds[1:] or seconds))


def _method_names(samples):
    return {
        _ONE_PASS: "one pass",
        _AVERAGED: f"average of {samples} samples",
        _MOMENTS: "propagated moments",
    }


def _hardware():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "machine": platform.machine(),
        "cores": cores or os.cpu_count(),
        "devices": backend.devices(),
    }


def _versions():
    versions = {
        "bayesnorm": __version__,
        "python": platform.python_version(),
        "keras": keras.__version__,
        "numpy": np.__version__,
        "backend": keras.backend.backend(),
    }
    # The backend's own version, without importing the other one.
    module = sys.modules.get(keras.backend.backend())
    return versions | {keras.backend.backend(): module.__version__}


def _plots(model, splits, history, predictions, names):
    """Returns name -> (figure, what is seen in it), in the order of the page."""
    test = predictions["test"]
    shown = _AVERAGED if _AVERAGED in test else _ONE_PASS
    probs, labels = test[shown].probs, splits.test.labels
    columns = {
        "epoch": [row["epoch"] for row in history],
        "train": [row["nll"] for row in history],
        "validation": [row["val_nll"] for row in history],
    }
    if _posteriors(model):
        columns["kl"] = [row["kl"] for row in history]
    first, last = history[0], history[-1]
    best = min(history, key=lambda row: row["val_nll"])
    sections = {
        "training": (
            plots.training_curves(columns),
            f"In {_epochs(last['epoch'])} the training NLL went from "
            f"{first['nll']:.4f} to {last['nll']:.4f} nats, that of validation from "
            f"{first['val_nll']:.4f} to {last['val_nll']:.4f}; it was lowest, "
            f"{best['val_nll']:.4f}, after epoch {best['epoch']}.",
        )
    }
    bins = metrics.reliability_bins(probs, labels)
    sections["reliability"] = (
        plots.reliability_diagram(probs, labels),
        f"The prediction ({names[shown]}) is right as often as it says to within "
        f"{100 * bins.calibration_error:.2f} % on average; {bins.count[-1]} of "
        f"{bins.count.sum()} test predictions lie in the bin of highest confidence.",
    )
    curves = {
        names[method]: (p.entropy, p.classes != labels) for method, p in test.items()
    }
    uncertainty, wrong = curves[names[shown]]
    coverage, risk = metrics.error_coverage(uncertainty, wrong)
    kept = int(np.searchsorted(coverage, 0.9))
    sections["error_coverage"] = (
        plots.error_coverage(curves),
        f"Of all test examples {100 * risk[-1]:.2f} % are wrong ({names[shown]}); "
        f"without the tenth of highest entropy, {100 * risk[kept]:.2f} %.",
    )
    entropies = {"test": test[shown].entropy}
    seen = f"Mean entropy {entropies['test'].mean():.3f} nats on the test part"
    if "ood" in predictions:
        outside = predictions["ood"][shown].entropy
        entropies["held-out classes"] = outside
        found = metrics.ood_summary(entropies["test"], outside)
        seen += (
            f", {outside.mean():.3f} on held-out classes "
            f"({', '.join(splits.ood_class_names)}): an AUROC of {found['auroc']:.1f} %"
        )
    sections["entropy_cdf"] = (
        plots.entropy_cdf(entropies, splits.num_classes),
        f"{seen}.",
    )
    ratios = _relative_stddevs(model)
    if ratios:
        medians = {name: float(np.median(ratio)) for name, ratio in ratios.items()}
        noisiest = max(medians, key=medians.get)
        sections["scale_uncertainty"] = (
            plots.scale_uncertainty(ratios),
            "The median over the channels of stddev / |scale| is highest in "
            f"{noisiest} ({medians[noisiest]:.2f}) and lowest in "
            f"{min(medians, key=medians.get)} ({min(medians.values()):.2f}).",
        )
    sections["examples"] = (
        plots.example_grid(splits.test.images, probs, labels, splits.class_names),
        "Test images by entropy, with what the network says of them.",
    )
    return sections


def _export(workdir, model, samples, note):
    """Exports for a model server; returns the sentence on it."""
    if keras.backend.backend() != "tensorflow":
        said = "No SavedModel: it is exported with the TensorFlow backend only."
    else:
        path = workdir / "saved_model" / "1"
        # Of a run of these flags that was stopped, or has been reported before.
        shutil.rmtree(path, ignore_errors=True)
        export(model, path, samples=samples, from_logits=True)
        said = "`saved_model/1/` is for a model server, `model.keras` for Keras."
    note(said)
    return said


def _epochs(count):
    return "1 epoch" if count == 1 else f"{count} epochs"


def _page(title, description, figures, sections, names, serving):
    columns = {
        "NLL (nats)": ("test/nll", ".4f"),
        "error (%)": ("test/error", ".2f"),
        "Brier": ("test/brier", ".4f"),
        "ECE (%)": ("test/ece_equal_width", ".2f"),
        "AURC (%)": ("test/aurc", ".3f"),
    }
    outside = f"ood/auroc_{_ONE_PASS}" in figures
    if outside:
        columns["OOD AUROC (%)"] = ("ood/auroc", ".1f")
    auroc = (
        "; the AUROC is that of the predictive entropy, held-out classes against the "
        "test part"
        if outside
        else ""
    )
    rows = [["test", *columns], ["---"] + ["---:"] * len(columns)]
    for method, name in names.items():
        values = {
            label: figures.get(f"{k}_{method}") for label, (k, _) in columns.items()
        }
        if any(value is not None for value in values.values()):
            rows.append(
                [name]
                + [
                    "-" if value is None else format(value, columns[label][1])
                    for label, value in values.items()
                ]
            )
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    shown = "\n\n".join(
        f"## {_HEADINGS[name]}\n\n{text}\n\n![{_HEADINGS[name]}]({name}.png)"
        for name, (_, text) in sections.items()
    )
    hardware = figures["hardware"]
    versions = ", ".join(f"{k} {v}" for k, v in figures["versions"].items())
    return f"""# {title}

{description}: {figures["parameters"]:,} trained parameters, \
{_epochs(figures["epochs"])} in \
{figures["seconds/training"]:.0f} s ({figures["seconds/epoch"]:.2f} s an epoch) on \
{hardware["cores"]} cores and {", ".join(hardware["devices"])}; {versions}.

The flags are in `flags.txt`, all figures in `metrics.json`, every epoch in \
`history.csv`. {serving}

{table}

Of {figures["test/examples_one_pass"]} test examples. NLL in nats, errors in per cent; \
ECE over 15 bins of equal width; AURC is the area under the error-coverage curve{auroc}.

{shown}
"""
