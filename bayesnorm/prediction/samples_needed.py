"""How many samples a prediction needs, and what more of them would buy."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import special, stats

from bayesnorm.arguments import positive_integer
from bayesnorm.prediction.settling import (
    check_error_rate,
    check_tolerance,
    influence,
)

if TYPE_CHECKING:
    from bayesnorm.prediction.prediction import Prediction


_MOST = 2**40  # Beyond it nothing is to be had by sampling.


@dataclasses.dataclass(frozen=True, eq=False)
class SamplesNeeded:
    """What averages over more and more samples would give.

    Attributes:
        samples: The fewest samples whose prediction is that of infinitely many but for
            the error rate; None where no number is enough (classes that tie).
        pilot: The number of samples that this is estimated from.
        tolerance: As given.
        error_rate: As given.
        counts: `[m]` numbers of samples, from 1.
        other_class: `[m]`, the expected share of examples (of labels and of dense
            predictions: positions), in [0, 1], whose class with so many samples is not
            that of infinitely many; None for a regression.
        deviation: `[m]`, the root mean square over the examples of the error of the
            entropy, nats, or of a regression's mean, in its units.
    """

    samples: int | None
    pilot: int
    tolerance: str | float
    error_rate: float
    counts: np.ndarray
    other_class: np.ndarray | None
    deviation: np.ndarray


def samples_needed(
    prediction: Prediction,
    tolerance: float | Literal["class"] = "class",
    error_rate: float = 0.01,
    members: int = 1,
) -> SamplesNeeded:
    """Tells from a few samples how many a prediction needs.

    The average over N samples is taken as normal about that over infinitely many. Of
    the gap `d = p_a - p_b` between the most probable class and another, mean g and
    standard deviation s over the n pilot samples, and a flat prior of the true gap, the
    average over N new samples has the other sign than the true gap with probability

        2 T(g / (s sqrt(1 / n + 1 / N)), sqrt(n / N)),

    T Owen's function; summed over the other classes. The error of the entropy has the
    variance `v / N`, v that of a sample's influence (the delta method), and the bias
    `-sum_k var(p_k) / p_k / (2 N)`. Where few pilot samples agree by chance, it is too
    hopeful: take 30 or more.

    `predict(tolerance=)` draws for each example what it needs; this says what a fixed
    number is worth. `bayesnorm.plots.samples_needed` draws it.

    Args:
        prediction: A `Prediction` of `predict(samples=..., keep_samples=True)`, of
            examples like those to come.
        tolerance: `"class"`, or a number above 0: of the entropy in nats, of a
            regression in its units.
        error_rate: The share of examples, in (0, 1), that may have another class than
            infinitely many samples give, or lie further off than the tolerance.
        members: Number of members of the ensemble, of which `prediction.samples` come
            one after the other; a sample is then one of each.

    Returns:
        A `SamplesNeeded`.

    Raises:
        ValueError: If an argument is not as above, or there are fewer than 4 samples.

    Reference:
        Owen, 1956, "Tables for computing bivariate normal probabilities".
    """
    check_tolerance(tolerance)
    check_error_rate(error_rate)
    values = _values(prediction, members)
    pilot, regression = len(values), prediction.probs is None
    if regression and tolerance == "class":
        raise ValueError(
            "tolerance='class', but the prediction is a regression, which has no "
            "classes. Pass a number, in the units of its outputs."
        )
    mean = values.mean(0)
    variance, bias, gaps = values.var(0, ddof=1), np.zeros(()), None
    if not regression:
        gaps = _gaps(values, mean)
        tiny = np.finfo("float32").tiny
        bias = -0.5 * (variance / np.maximum(mean, tiny)).sum(-1)
        variance = influence(values, mean).var(0, ddof=1)

    def other_class(count):
        return float(_other_sign(*gaps, pilot, count).mean())

    def outside(count):
        with np.errstate(divide="ignore", invalid="ignore"):
            scale, shift = np.sqrt(variance / count), bias / count
            chance = stats.norm.sf((tolerance - shift) / scale)
            chance += stats.norm.sf((tolerance + shift) / scale)
        return float(np.where(variance > 0, chance, 0.0).mean())

    samples = _fewest(other_class if tolerance == "class" else outside, error_rate)
    last = max(4 * pilot, 2 * min(samples or 0, 10**6))
    counts = np.unique(np.geomspace(1, last, 60).round().astype("int64"))
    squares = variance.mean() / counts + np.square(bias).mean() / counts**2
    return SamplesNeeded(
        samples,
        pilot,
        tolerance,
        error_rate,
        counts,
        None if regression else np.array([other_class(n) for n in counts]),
        np.sqrt(squares),
    )


def _values(prediction, members):
    """The samples `[samples, ...]`, float64, of labels with "no" and "yes"."""
    members = positive_integer("members", members)
    values = getattr(prediction, "samples", None)
    if values is None:
        raise ValueError(
            "Expected a Prediction with its samples: predict(..., keep_samples=True)."
        )
    if len(values) % members or len(values) // members < 4:
        raise ValueError(
            "Expected 4 samples or more of each member, 30 for figures to rely on. "
            f"Received: {len(values)} samples of members={members}"
        )
    if not np.isfinite(values).all():
        raise ValueError("`prediction.samples` must be finite.")
    values = np.asarray(values, "float64")
    values = values.reshape(members, -1, *values.shape[1:]).mean(0)
    labels = prediction.probs is not None and (
        prediction.entropy.ndim == prediction.probs.ndim
    )
    return np.stack([1 - values, values], -1) if labels else values


def _gaps(values, mean):
    """The mean and the variance of the gaps to the other classes, `[..., K - 1]`."""
    order = np.argsort(-mean, axis=-1, kind="stable")
    values = np.take_along_axis(values, order[None], -1)
    gaps = values[..., :1] - values[..., 1:]
    return gaps.mean(0), gaps.var(0, ddof=1)


def _other_sign(gap, variance, pilot, count):
    """The probability that another class is the first, `[...]`."""
    scale = np.sqrt(variance * (1 / pilot + 1 / count))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = gap / scale
    chance = 2 * special.owens_t(np.where(scale > 0, z, np.inf), np.sqrt(pilot / count))
    return np.minimum(chance.sum(-1), 1.0)


def _fewest(share, error_rate):
    """The fewest samples whose share of errors is no more than the rate, or None."""
    low, high = 0, 1
    while share(high) > error_rate:
        low, high = high, 2 * high
        if high > _MOST:
            return None
    while high - low > max(1, math.floor(high * 1e-3)):
        middle = (low + high) // 2
        low, high = (middle, high) if share(middle) > error_rate else (low, middle)
    return high
