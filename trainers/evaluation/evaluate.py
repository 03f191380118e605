"""Predicts by all methods, and measures."""

import dataclasses
import math
import os
import platform
import sys
from typing import Any

import keras
import numpy as np

from bayesnorm import __version__, backend, metrics
from bayesnorm.layers import posterior_layers
from bayesnorm.prediction.predict import predict
from trainers.evaluation.records import Record, Records

_TITLES = {
    "digits": "scikit-learn digits",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "imagenet2012": "ImageNet",
    "cells": "synthetic cells",
    "dic_hela": "DIC-C2DH-HeLa",
    "npz": "an archive of images",
    "image_folder": "a folder of images",
}
# Shares of the test examples, in per cent, of which `metrics.json` has the error.
_COVERAGES = (50, 60, 70, 80, 90)
# Of figures that are not in per cent.
_UNITS = dict.fromkeys(("nll", "entropy", "mutual_information"), "nats")
_UNITS |= dict.fromkeys(("entropy_in", "entropy_out"), "nats")
_UNITS |= dict.fromkeys(("brier", "examples", "examples_in", "examples_out"), "1")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A trained network, and what is known of it: what sections are made of.

    Attributes:
        flags: The flags of the run.
        splits: The `Splits`.
        model: The model to save and to serve, scaled images to logits.
        history: The history of `bayesnorm.training.loop.fit`.
        methods: Key, a part of the names in `metrics.json`, -> `Method`.
        shown: The key of the method that the plots of one method show.
        predictions: Part ("test", "ood" where there is one) -> method -> a `Prediction`
            of each run.
        posterior: What the posteriors' layers say of them, by figure, by layer:
            `(values, unit)` as of `VariationalLayer.posterior_summary`.
        records: The `Records` so far. NLL, entropy and KL in nats, accuracies, errors,
            areas and intersection over union in per cent; for a segmentation per pixel.
    """

    flags: Any
    splits: Any
    model: Any
    history: list
    methods: dict
    shown: str
    predictions: dict
    posterior: dict
    records: Records


def evaluate(flags, splits, model, history, methods, shown, note=print):
    """Evaluates all methods on the test part and on the out-of-distribution part.

    Takes what an `Evaluation` has, and a function that is given a line of text for each
    method. Returns the `Evaluation`, whose records are yet without those of sections.
    """
    predictions = _predict(methods, splits, note)
    posterior = _posterior(model)
    records = Records(
        [
            *_test(predictions["test"], splits.test.labels),
            *_outside(predictions),
            *_training(history, model, flags.samples),
            *(
                Record("posterior", figure, np.median(x), unit, axis="layer", at=layer)
                for figure, by_layer in posterior.items()
                for layer, (x, unit) in by_layer.items()
            ),
        ],
        dataset=flags.dataset_title or _TITLES.get(splits.name, splits.name),
        hardware=_hardware(),
        versions=_versions(),
        methods={key: method.short or method.title for key, method in methods.items()},
        shown=shown,
    )
    return Evaluation(
        flags, splits, model, history, methods, shown, predictions, posterior, records
    )


def _predict(methods, splits, note):
    parts = [part for part in ("test", "ood") if getattr(splits, part) is not None]
    predictions = {part: {} for part in parts}
    for name, method in methods.items():
        for part in parts:
            predictions[part][name] = [
                predict(
                    model,
                    splits.part_inputs(part),
                    from_logits=True,
                    **method.arguments,
                )
                for model in method.runs
            ]
        note(f"evaluated: {method.title}")
    return predictions


def _posterior(model):
    found = {}
    for layer in posterior_layers(model):
        name = layer.name.removesuffix("_scale").removesuffix("_pruning")
        for figure, summary in layer.posterior_summary().items():
            found.setdefault(figure, {})[name] = summary
    return found


def _test(predictions, labels):
    for method, runs in predictions.items():
        yield from _over_runs("test", method, [_summary(run, labels) for run in runs])


def _outside(predictions):
    for method, runs in predictions.get("ood", {}).items():
        pairs = zip(predictions["test"][method], runs, strict=True)
        found = [metrics.ood_summary(a.entropy, b.entropy) for a, b in pairs]
        summaries = [{(name, None): v for name, v in each.items()} for each in found]
        yield from _over_runs("ood", method, summaries)


def _summary(prediction, labels):
    """`(figure, share kept in per cent or None)` -> value."""
    summary = metrics.classification_summary(prediction.probs, labels)
    summary["mutual_information"] = float(prediction.mutual_information.mean())
    if labels.ndim > 1:
        # Class 0 is the background.
        found = metrics.intersection_over_union(prediction.probs, labels)[1:]
        summary["iou"] = 100 * float(np.nanmean(found))
    wrong = prediction.classes != labels
    coverage, risk = metrics.error_coverage(prediction.entropy, wrong)
    kept = 100 * np.interp(np.array(_COVERAGES) / 100, coverage, risk)
    at_coverage = {
        ("error_at_coverage", share): value
        for share, value in zip(_COVERAGES, kept, strict=True)
    }
    return {(name, None): value for name, value in summary.items()} | at_coverage


def _over_runs(part, method, summaries):
    """Means over runs, and their standard deviations if there are several."""
    for (name, at), value in summaries[0].items():
        values, spread = [summary[name, at] for summary in summaries], None
        if len(values) > 1 and not name.startswith("examples"):
            value, spread = np.mean(values), np.std(values, ddof=1)
        axis = None if at is None else "coverage"
        unit = _UNITS.get(name, "%")
        yield Record(part, name, value, unit, method, axis=axis, at=at, stddev=spread)


def _training(history, model, samples):
    first, last = history[0], history[-1]
    best = min(history, key=lambda row: row["val_nll"])
    seconds = [row["seconds"] for row in history]
    parameters = sum(math.prod(w.shape) for w in model.trainable_weights)
    return [
        Record("train", "nll", last["nll"], "nats"),
        Record("train", "kl", last["kl"], "nats"),
        Record("train", "learning_rate", last["learning_rate"], "1"),
        Record("train", "kl_weight", last["kl_weight"], "1"),
        Record("train", "first_learning_rate", first["learning_rate"], "1"),
        Record("train", "accuracy", 100 * last["accuracy"], "%"),
        Record("validation", "nll", last["val_nll"], "nats"),
        Record("validation", "accuracy", 100 * last["val_accuracy"], "%"),
        Record("validation", "best_nll", best["val_nll"], "nats"),
        Record("validation", "best_epoch", best["epoch"], "1"),
        Record(None, "epochs", last["epoch"], "1"),
        Record(None, "parameters", parameters, "1"),
        Record(None, "samples", samples, "1"),
        Record("seconds", "training", sum(seconds), "s"),
        # Without the first, which compiles, where there are others.
        Record("seconds", "epoch", np.median(seconds[1:] or seconds), "s"),
    ]


def _hardware():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "machine": platform.machine(),
        "cores": cores or os.cpu_count(),
        "devices": backend.devices(),
    }


def _versions():
    name = keras.backend.backend()
    return {
        "bayesnorm": __version__,
        "python": platform.python_version(),
        "keras": keras.__version__,
        "numpy": np.__version__,
        "backend": name,
        # Its own version, without importing the other one.
        name: sys.modules[name].__version__,
    }
