"""Checks of arguments."""

import operator
import secrets


def check_choice(name, value, choices):
    """Raises a ValueError if `value` is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}. Received: {value!r}")


def positive_integer(name, value):
    """Returns an integer from 1, or raises a ValueError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"`{name}` must be an integer from 1. Received: {value!r}")
    return number


def seed_integer(seed):
    """Returns an integer seed, a random one for None, or raises a ValueError."""
    if seed is None:
        return secrets.randbits(62)
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise ValueError(
            f"`seed` must be None or an integer from 0 to 2**63 - 1. Received: {seed!r}"
        )
    return number
