"""The report of a run: figures, plots, models, and a page that shows them."""

import dataclasses
import json
import math
import os
import platform
import shutil
import sys
from typing import Any

import keras
import numpy as np

from bayesnorm import __version__, backend, metrics, plots
from bayesnorm.layers import StochasticScaleNorm, posterior_layers
from bayesnorm.layers.noise import stochastic_layers
from bayesnorm.prediction.predict import predict
from bayesnorm.serving.export import export
from bayesnorm.storage import write_atomically

_TITLES = {
    "digits": "scikit-learn digits",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "cells": "synthetic cells",
    "dic_hela": "DIC-C2DH-HeLa",
    "npz": "an archive of images",
    "image_folder": "a folder of images",
}
# Shares of the test examples, in per cent, of which `metrics.json` has the error.
_COVERAGES = (50, 60, 70, 80, 90)


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to predict.

    Attributes:
        title: What the report calls it.
        runs: Models, or lists of models for ensembles: one for each repetition, such as
            with another seed. Figures are means over them, plots show the first.
        arguments: Those of `bayesnorm.predict`.
    """

    title: str
    runs: list
    arguments: dict


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page: a figure or None, and what it shows."""

    heading: str
    figure: Any
    text: str


def chunk_size(splits):
    """Returns how many images go through a network at a time.

    1024 of CIFAR-10's size, and of larger ones as many as have so many pixels: hidden
    activations are of the size of the images.
    """
    height, width, _ = splits.image_shape
    return max(1, min(1024, 1024 * 32 * 32 // (height * width)))


def posterior_methods(model, samples, seed, chunk_size=None, batch_size=None):
    """Returns the methods for a network that may have a posterior.

    By one pass (the posterior's means), and if there is a posterior also by the
    average over sampled networks and by propagated moments.

    Args:
        model: The model.
        samples: Number of sampled networks.
        seed: Seed of the samples.
        chunk_size: Rows of a pass; None for the default of `bayesnorm.predict`.
        batch_size: Examples at a time; None for the default of `bayesnorm.predict`.
    """
    common = {"chunk_size": chunk_size, "batch_size": batch_size}
    common = {key: value for key, value in common.items() if value is not None}
    one_pass = common | {"method": "mean"}
    methods = {"one_pass": Method("one pass", [model], one_pass)}
    if stochastic_layers(model):
        # The paper's columns are of 10 and of 30 samples.
        counts = {"averaged_10": 10} if samples > 10 else {}
        for key, count in (counts | {"averaged": samples}).items():
            sampling = common | {"method": "sample", "samples": count, "seed": seed}
            methods[key] = Method(f"average of {count} samples", [model], sampling)
        moments = common | {"method": "moments"}
        methods["moments"] = Method("propagated moments", [model], moments)
    return methods


def evaluate(model, splits, history, methods, samples=30, title=None, note=print):
    """Evaluates all methods on the test part and on the out-of-distribution part.

    Args:
        model: As for `write`, as are the others.
        splits: The `Splits`.
        history: The history.
        methods: The methods.
        samples: Number of samples.
        title: Name of the data.
        note: Function of a line of text.

    Returns:
        `(figures, predictions)`: the figures of `write` but for those of its sections,
        and part -> method -> a `Prediction` of each run.
    """
    predictions = _predict(methods, splits, note)
    figures = _figures(model, splits, history, predictions, samples)
    title = title or _TITLES.get(splits.name, splits.name)
    figures |= {"dataset": title, "hardware": _hardware(), "versions": _versions()}
    return figures, predictions


def write_figures(path, figures):
    """Writes figures as JSON, with null for what is no finite number."""
    # JSON has no infinity: an NLL of probability 0 is no number there.
    figures = {
        name: None if isinstance(v, float) and not np.isfinite(v) else v
        for name, v in figures.items()
    }
    write_atomically(path, json.dumps(figures, indent=2, default=float) + "\n")
    return figures


def write(
    workdir,
    model,
    splits,
    history,
    description,
    methods,
    shown,
    samples=30,
    title=None,
    sections=None,
    note=print,
):
    """Writes the report of a trained classifier.

    Evaluates all methods on the test part and on the out-of-distribution part. The
    folder gets `metrics.json`, `report.md`, the plots as PNG, `model.keras` and, with
    TensorFlow, `saved_model/1/`.

    Args:
        workdir: The `trainers.checkpoints.Workdir`.
        model: The model to save and to serve, scaled images to logits.
        splits: The `Splits`.
        history: The history of `trainers.loop.fit`.
        description: What was trained, for the report: a noun phrase.
        methods: Dict from a key, a part of the names in `metrics.json`, to `Method`.
        shown: The key of the method that the plots of one method show.
        samples: Number of networks that the exported model samples.
        title: Name of the data in the report; None for the set's usual one.
        sections: Function `(figures, predictions) -> {name: Section}` for more
            sections, or None; it may add to the figures.
        note: Function that is given a line of text for each part that is done.

    Returns:
        The content of `metrics.json`: `part/figure_method`, and for several runs of a
        method the standard deviation over them as `part/figure_method_std`. NLL,
        entropy and KL in nats, seconds in seconds, accuracies, errors, areas and
        intersection over union in per cent; for a segmentation per pixel.
    """
    figures, predictions = evaluate(
        model, splits, history, methods, samples, title, note
    )
    page = _plots(model, splits, history, predictions, methods, shown)
    if sections is not None:
        page |= sections(figures, predictions)
    figures = write_figures(workdir / "metrics.json", figures)
    note("wrote metrics.json")
    drawn = {name: s.figure for name, s in page.items() if s.figure is not None}
    for name, figure in drawn.items():
        figure.savefig(workdir / f"{name}.png")
    model.save(workdir / "model.keras")
    note(f"wrote {len(drawn)} plots and model.keras")
    serving = _export(workdir, model, samples, chunk_size(splits), note)
    text = _page(figures["dataset"], description, figures, page, methods, serving)
    write_atomically(workdir / "report.md", text)
    note(f"wrote {workdir / 'report.md'}")
    return figures


def _predict(methods, splits, note):
    """Returns part -> method -> a `Prediction` of each run."""
    parts = {
        part: splits.inputs(getattr(splits, part).images)
        for part in ("test", "ood")
        if getattr(splits, part) is not None
    }
    predictions = {part: {} for part in parts}
    for name, method in methods.items():
        for part, images in parts.items():
            predictions[part][name] = [
                predict(model, images, from_logits=True, **method.arguments)
                for model in method.runs
            ]
        note(f"evaluated: {method.title}")
    return predictions


def _relative_stddevs(model):
    """Layer -> `stddev / |scale|` of its channels, where the posterior is of scales."""
    return {
        layer.name.removesuffix("_scale"): np.asarray(
            keras.ops.convert_to_numpy(layer.stddev), "float64"
        )
        / np.maximum(np.abs(keras.ops.convert_to_numpy(layer.scale)), 1e-12)
        for layer in posterior_layers(model)
        if isinstance(layer, StochasticScaleNorm)
    }


def _figures(model, splits, history, predictions, samples):
    last = history[-1]
    figures = {}
    for method, runs in predictions["test"].items():
        summaries = [_summary(run, splits.test.labels) for run in runs]
        figures |= _over_runs("test", method, summaries)
    for method, runs in predictions.get("ood", {}).items():
        pairs = zip(predictions["test"][method], runs, strict=True)
        summaries = [metrics.ood_summary(a.entropy, b.entropy) for a, b in pairs]
        figures |= _over_runs("ood", method, summaries)
    for name in ("nll", "kl", "learning_rate", "kl_weight"):
        figures[f"train/{name}"] = last[name]
    best = min(history, key=lambda row: row["val_nll"])
    figures |= {
        "train/first_learning_rate": history[0]["learning_rate"],
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
    return figures


def _summary(prediction, labels):
    summary = metrics.classification_summary(prediction.probs, labels)
    summary["mutual_information"] = float(prediction.mutual_information.mean())
    if labels.ndim > 1:
        # Class 0 is the background.
        found = metrics.intersection_over_union(prediction.probs, labels)[1:]
        summary["iou"] = 100 * float(np.nanmean(found))
    wrong = prediction.classes != labels
    coverage, risk = metrics.error_coverage(prediction.entropy, wrong)
    for kept in _COVERAGES:
        value = np.interp(kept / 100, coverage, risk)
        summary[f"error_at_coverage_{kept}"] = 100 * float(value)
    return summary


def _over_runs(part, method, summaries):
    """Means over runs, and their standard deviations if there are several."""
    figures = {}
    for name, value in summaries[0].items():
        key = f"{part}/{name}_{method}"
        values = [summary[name] for summary in summaries]
        if len(values) == 1 or name.startswith("examples"):
            figures[key] = value
        else:
            figures[key] = float(np.mean(values))
            figures[f"{key}_std"] = float(np.std(values, ddof=1))
    return figures


def _seconds_per_epoch(history):
    """Median, without the first epoch, which compiles, where there are others."""
    seconds = [row["seconds"] for row in history]
    return float(np.median(seconds[1:] or seconds))


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


def _plots(model, splits, history, predictions, methods, shown):
    """Returns name -> `Section`, in the order of the page."""
    test = {method: runs[0] for method, runs in predictions["test"].items()}
    name = methods[shown].title
    probs, labels = test[shown].probs, splits.test.labels
    unit = "pixel" if splits.dense else "example"
    columns = {
        "epoch": [row["epoch"] for row in history],
        "train": [row["nll"] for row in history],
        "validation": [row["val_nll"] for row in history],
    }
    if posterior_layers(model):
        columns["kl"] = [row["kl"] for row in history]
    first, last = history[0], history[-1]
    best = min(history, key=lambda row: row["val_nll"])
    sections = {
        "training": Section(
            "Training",
            plots.training_curves(columns),
            f"In {_epochs(last['epoch'])} the training NLL went from "
            f"{first['nll']:.4f} to {last['nll']:.4f} nats, that of validation from "
            f"{first['val_nll']:.4f} to {last['val_nll']:.4f}; it was lowest, "
            f"{best['val_nll']:.4f}, after epoch {best['epoch']}.",
        )
    }
    bins = metrics.reliability_bins(probs, labels)
    sections["reliability"] = Section(
        "Reliability",
        plots.reliability_diagram(probs, labels),
        f"The prediction ({name}) is right as often as it says to within "
        f"{100 * bins.calibration_error:.2f} % on average; {bins.count[-1]} of "
        f"{bins.count.sum()} test predictions lie in the bin of highest confidence.",
    )
    curves = {
        methods[method].title: (p.entropy, p.classes != labels)
        for method, p in test.items()
    }
    uncertainty, wrong = curves[name]
    coverage, risk = metrics.error_coverage(uncertainty, wrong)
    kept = int(np.searchsorted(coverage, 0.9))
    sections["error_coverage"] = Section(
        f"Rejecting uncertain {unit}s",
        plots.error_coverage(curves),
        f"Of all test {unit}s {100 * risk[-1]:.2f} % are wrong ({name}); "
        f"without the tenth of highest entropy, {100 * risk[kept]:.2f} %.",
    )
    entropies = {"test": test[shown].entropy}
    seen = f"Mean entropy {entropies['test'].mean():.3f} nats on the test part"
    if "ood" in predictions:
        outside = predictions["ood"][shown][0].entropy
        entropies["out of distribution"] = outside
        found = metrics.ood_summary(entropies["test"], outside)
        seen += (
            f", {outside.mean():.3f} out of distribution "
            f"({', '.join(splits.ood_class_names)}): an AUROC of {found['auroc']:.1f} %"
        )
    sections["entropy_cdf"] = Section(
        "Entropy in and out of the domain",
        plots.entropy_cdf(entropies, splits.num_classes),
        f"{seen}.",
    )
    ratios = _relative_stddevs(model)
    if ratios:
        medians = {name: float(np.median(ratio)) for name, ratio in ratios.items()}
        noisiest = max(medians, key=medians.get)
        sections["scale_uncertainty"] = Section(
            "Learned noise",
            plots.scale_uncertainty(ratios),
            "The median over the channels of stddev / |scale| is highest in "
            f"{noisiest} ({medians[noisiest]:.2f}) and lowest in "
            f"{min(medians, key=medians.get)} ({min(medians.values()):.2f}).",
        )
    if splits.dense:
        one_network = methods[shown].arguments.get("method") == "mean"
        sections["uncertainty_maps"] = Section(
            "Uncertainty maps",
            plots.segmentation_grid(
                splits.test.images,
                labels,
                probs,
                test[shown].entropy,
                # Of a single network it is rounding.
                None if one_network else test[shown].mutual_information,
                splits.class_names,
            ),
            f"The first test images ({name}).",
        )
    else:
        sections["examples"] = Section(
            "Examples",
            plots.example_grid(splits.test.images, probs, labels, splits.class_names),
            "Test images by entropy, with what the network says of them.",
        )
    return sections


def _export(workdir, model, samples, chunk_size, note):
    """Exports for a model server; returns the sentence on it."""
    if keras.backend.backend() != "tensorflow":
        said = "No SavedModel: it is exported with the TensorFlow backend only."
    else:
        path = workdir / "saved_model" / "1"
        # Of a run of these flags that was stopped, or has been reported before.
        shutil.rmtree(path, ignore_errors=True)
        export(model, path, samples=samples, from_logits=True, chunk_size=chunk_size)
        said = "`saved_model/1/` is for a model server, `model.keras` for Keras."
    note(said)
    return said


def _epochs(count):
    return "1 epoch" if count == 1 else f"{count} epochs"


def cell(figures, key, form):
    """Returns a figure, and its standard deviation over runs if there is one."""
    if figures.get(key) is None:
        return "-"
    spread = figures.get(f"{key}_std")
    text = format(figures[key], form)
    return text if spread is None else f"{text} ± {format(spread, form)}"


def rendered(sections):
    """Returns the Markdown of sections, name -> `Section`, plots by name beside it."""
    return "\n\n".join(
        f"## {section.heading}\n\n{section.text}"
        + ("" if section.figure is None else f"\n\n![{section.heading}]({name}.png)")
        for name, section in sections.items()
    )


def _page(title, description, figures, sections, methods, serving):
    dense = f"test/iou_{next(iter(methods))}" in figures
    columns = {
        **({"IoU (%)": ("test/iou", ".1f")} if dense else {}),
        "NLL (nats)": ("test/nll", ".4f"),
        "error (%)": ("test/error", ".2f"),
        "Brier": ("test/brier", ".4f"),
        "ECE (%)": ("test/ece_equal_width", ".2f"),
        "AURC (%)": ("test/aurc", ".3f"),
    }
    outside = any(name.startswith("ood/") for name in figures)
    if outside:
        columns["OOD AUROC (%)"] = ("ood/auroc", ".1f")
    auroc = (
        "; the AUROC is that of the predictive entropy, out-of-distribution data "
        "against the test part"
        if outside
        else ""
    )
    rows = [["test", *columns], ["---"] + ["---:"] * len(columns)]
    for key, method in methods.items():
        cells = [
            cell(figures, f"{name}_{key}", form) for name, form in columns.values()
        ]
        rows.append([method.title, *cells])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    shown = rendered(sections)
    examples = figures[f"test/examples_{next(iter(methods))}"]
    hardware = figures["hardware"]
    versions = ", ".join(f"{k} {v}" for k, v in figures["versions"].items())
    unit = "pixels" if dense else "examples"
    return f"""# {title}

{description}: {figures["parameters"]:,} trained parameters, \
{_epochs(figures["epochs"])} in \
{figures["seconds/training"]:.0f} s ({figures["seconds/epoch"]:.2f} s an epoch) on \
{hardware["cores"]} cores and {", ".join(hardware["devices"])}; {versions}.

The flags are in `flags.txt`, all figures in `metrics.json`, every epoch in \
`history.csv`. {serving}

{table}

Of {examples} test {unit}. NLL in nats, errors in per cent; \
ECE over 15 bins of equal width; AURC is the area under the error-coverage curve{auroc}.

{shown}
"""
