"""Checks of arguments."""

from __future__ import annotations

import math
import operator
import secrets
from collections.abc import Collection
from typing import Any

import keras


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
