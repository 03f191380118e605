"""Checks of arguments."""

from __future__ import annotations

import math
import operator
import secrets
from collections.abc import Collection
from typing import Any

import keras
import numpy as np

from bayesnorm.types import ArrayLike

# A softmax in half precision misses 1 by about 1e-3.
_SUM_TOLERANCE = 5e-3


def check_model(model: Any) -> None:
    """Raises a TypeError if `model` is not a Keras model."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`model` must be a keras.Model. Received: {type(model).__name__}"
        )


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raises a ValueError if `value` is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}. Received: {value!r}")


def check_both_or_neither(**values: Any) -> None:
    """Raises a ValueError if one of two values is None and the other is not."""
    if len({value is None for value in values.values()}) > 1:
        names = " and ".join(f"`{name}`" for name in values)
        received = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise ValueError(
            f"{names} go together: give both or neither. Received: {received}"
        )


def check_number(name: str, value: Any, positive: bool = False) -> None:
    """Raises a ValueError if `value` is not a finite number from (or above) 0."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf or (positive and number == 0):
        least = "above 0" if positive else "from 0"
        raise ValueError(
            f"`{name}` must be a finite number {least}. Received: {name}={value!r}"
        )


def positive_integer(name: str, value: Any) -> int:
    """Returns an integer from 1, or raises a ValueError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"`{name}` must be an integer from 1. Received: {value!r}")
    return number


def seed_integer(seed: Any, bits: int = 63) -> int:
    """Returns an integer seed, a random one for None, or raises a ValueError."""
    if seed is None:
        return secrets.randbits(bits - 1)
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**bits:
        raise ValueError(
            f"`seed` must be None or an integer from 0 to 2**{bits} - 1. Received: "
            f"seed={seed!r}"
        )
    return number


def finite_values(name: str, values: ArrayLike) -> np.ndarray:
    """Returns finite values as a float64 array, or raises a ValueError."""
    values = np.asarray(values, np.float64)
    if values.size == 0:
        raise ValueError(f"`{name}` is empty, at least one value is needed.")
    if not np.isfinite(values).all():
        raise ValueError(
            f"`{name}` must be finite, but {(~np.isfinite(values)).sum()} of "
            f"{values.size} values are NaN or infinite."
        )
    return values


def probabilities(name: str, probs: ArrayLike, rank: int) -> np.ndarray:
    """Returns probabilities `[n, ..., K]` (`[S, n, ..., K]`) as float64, or raises."""
    probs = finite_values(name, probs)
    if probs.ndim < rank or probs.shape[-1] < 2:
        expected = "[S, n, ..., K]" if rank == 3 else "[n, ..., K]"
        raise ValueError(
            f"`{name}` must be {expected} with at least 2 classes, got shape "
            f"{probs.shape}. A probability p of one class of two is [1 - p, p]."
        )
    if probs.min() < 0:
        raise ValueError(
            f"`{name}` must not be negative, but the lowest is {probs.min():.6g}. "
            "Apply softmax to logits."
        )
    off = np.abs(probs.sum(-1) - 1).max()
    if off > _SUM_TOLERANCE:
        raise ValueError(
            f"`{name}` must sum to 1 over the last axis, but a sum misses it by "
            f"{off:.3g}. Apply softmax to logits; classes come last."
        )
    return probs


def logits_array(logits: ArrayLike) -> np.ndarray:
    """Returns logits `[n, ..., K]` as float64, or raises a ValueError."""
    logits = np.asarray(logits, np.float64)
    if logits.ndim < 2 or logits.shape[-1] < 2 or logits.size == 0:
        raise ValueError(
            f"`logits` must be [n, ..., K] with at least 2 classes, got shape "
            f"{logits.shape}."
        )
    if not np.isfinite(logits.max(-1)).all():
        raise ValueError(
            "`logits` must hold no NaN or +infinity, and in each example a finite "
            "number (-infinity is probability 0)."
        )
    return logits


def class_labels(labels: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """Returns labels of predictions of a shape `[n, ..., K]`, flat, or raises."""
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"`labels` must be integers, got {labels.dtype}. Take the argmax of "
            "one-hot labels."
        )
    if labels.shape != shape[:-1]:
        raise ValueError(
            f"`labels` must have the shape of the predictions without classes, "
            f"{shape[:-1]}, got {labels.shape}."
        )
    if labels.min() < 0 or labels.max() >= shape[-1]:
        raise ValueError(
            f"`labels` must lie in 0..{shape[-1] - 1}, got {labels.min()} to "
            f"{labels.max()}."
        )
    return labels.ravel()
