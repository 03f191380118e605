"""Structured Bayesian pruning: what it keeps, while training and after."""

import dataclasses
import math
import time
from typing import Any

import numpy as np
from keras import ops

from bayesnorm.layers import StructuredBayesianPruning, posterior_layers
from trainers.report.section import Section
from trainers.report.tables import table

# Prefix of the figures of an epoch: how many channels a layer keeps.
_KEPT = "kept_"


def layers(model):
    """Returns the pruning layers of a network, in order."""
    found = posterior_layers(model)
    return [layer for layer in found if isinstance(layer, StructuredBayesianPruning)]


def name_of(layer):
    """Returns the name that reports have for a pruning layer."""
    return layer.name.removesuffix("_pruning")


def figures(model):
    """Returns the figures of an epoch: `kept_LAYER`, a number of channels.

    NaN where the posterior left the finite range, as the loop wants it.
    """
    found = {}
    for layer in layers(model):
        snr, _ = layer.posterior_summary()["snr"]
        kept = float((snr >= layer.threshold).sum())
        found[_KEPT + name_of(layer)] = math.nan if np.isnan(snr).any() else kept
    return found


def kept_of(row):
    """Returns the channels that each layer keeps, by name, of the row of an epoch."""
    return {
        key.removeprefix(_KEPT): int(value)
        for key, value in row.items()
        if key.startswith(_KEPT)
    }


def widths(kept):
    """Returns the kept channels as papers have them: "3-18-284-283"."""
    return "-".join(map(str, kept.values()))


def detail(row):
    """Returns what the line of an epoch says of the kept channels."""
    kept = kept_of(row)
    return f"kept {widths(kept)}  " if kept else ""


def remove(*args): ...
