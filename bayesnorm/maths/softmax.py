"""Mean and variance of the softmax of independent Gaussian logits."""

import math

import keras
import numpy as np
from keras import ops

from bayesnorm import backend
from bayesnorm.maths.activations import elementwise_moments

METHODS = ("auto", "exact", "lognormal", "probit")

_STEP = 0.35  # of the outer trapezoid, in nats
_OUTER = 224
_INNER = 64
_REACH = 6.5  # standard deviations covered by the inner trapezoid
_WIDE = 5.0  # standard deviation above which the inner integral has a closed form
# Mean and variance of the logarithm of an Exponential(1) variable.
_LOG_EXPONENTIAL = -0.5772156649015329, math.pi**2 / 6.0


def softmax_moments(mean, variance, method="auto"):
    """Moments of `softmax(X)` over the last axis, `X_k ~ N(mean_k, variance_k)`.

    Args:
        mean: tensor `[..., K]`, logits.
        variance: tensor `[..., K]`.
        method: "exact", one-dimensional integrals; "lognormal", the sum of the other
            classes' exponentials as a log-normal variable (mean total-variation
            error of the mean 0.015 at variance 1 and 10 classes, and much
            growing above); "auto", log-normal where all variances of an example
            are at most 1 and exact elsewhere; "probit", `softmax(m / sqrt(1 + pi v /
            8))`, which is worse than ignoring the variance for many classes, and
            has no variance.

    Returns:
        `(mean, variance)`, each `[..., K]`; the variance is None for "probit".

    Raises:
        ValueError: If `method` is unknown.

    Reference:
        Fenton, 1960, "The sum of log-normal probability distributions"; MacKay,
        1992, "The evidence framework applied to classification networks".
    """
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {METHODS}. Received: {method!r}")
    if method == "probit":
        scaled = mean / ops.sqrt(1.0 + (math.pi / 8.0) * variance)
        return ops.softmax(scaled, -1), None
    if method == "exact":
        return _exact(mean, variance)
    if method == "lognormal":
        return _lognormal(mean, variance)
    narrow = ops.max(variance, -1, keepdims=True) <= 1.0
    # Each branch sees only variances that it can take: the other's gradient is 0,
    # not 0 * infinity.
    cheap = _lognormal(mean, ops.minimum(variance, 1.0))
    exact = _exact(mean, variance)
    return tuple(ops.where(narrow, a, b) for a, b in zip(cheap, exact, strict=True))


def log_softmax_moments(mean, variance):
    """Moments of `log_softmax(X)` over the last axis.

    `log p_k = -softplus(log A_k - X_k)`, where `A_k`, the sum of the other classes'
    exponentials, is taken as a log-normal variable independent of `X_k`.

    Args:
        mean: tensor `[..., K]`.
        variance: tensor `[..., K]`.

    Returns:
        `(mean, variance)`, each `[..., K]`.
    """
    margin, spread = _margins(mean, variance)
    mean, variance = elementwise_moments(ops.softplus, -margin, spread)
    return -mean, variance


def _margins(mean, variance):
    """Mean and variance of `X_k - log sum_{j != k} exp(X_j)`, log-normal sum."""
    classes = mean.shape[-1]
    if classes < 2:
        raise ValueError(f"A softmax needs two classes or more. Received: {classes}")
    dtype = keras.backend.standardize_dtype(mean.dtype)
    # Past 30 the log-normal sum says nothing any more, and would overflow.
    bounded = ops.minimum(variance, 30.0)
    log_mean = mean + 0.5 * bounded
    growth = ops.expm1(bounded)
    # Exponentials relative to the largest class; for that class itself the sum of
    # the others may then underflow, so it gets the second largest as its unit.
    fixed = ops.stop_gradient(log_mean)
    largest, places = ops.top_k(fixed, 2)
    is_largest = ops.one_hot(places[..., 0], classes, dtype=dtype) > 0
    top, second = largest[..., :1], largest[..., 1:]
    others = ops.convert_to_tensor(1.0 - np.eye(classes), dtype)
    weight = ops.exp(log_mean - top)
    rest = ops.where(is_largest, 0.0, ops.exp(ops.minimum(log_mean - second, 0.0)))

    def sum_of_others(power, factor):
        return ops.where(
            is_largest,
            ops.sum(rest**power * factor, -1, keepdims=True),
            ops.matmul(weight**power * factor, others),
        )

    sums = sum_of_others(1, ops.ones_like(growth))
    spread = ops.log1p(sum_of_others(2, growth) / ops.square(sums))
    log_sum = ops.where(is_largest, second, top) + ops.log(sums) - 0.5 * spread
    return mean - log_sum, variance + spread


def _lognormal(mean, variance):
    margin, spread = _margins(mean, variance)
    mean, variance = elementwise_moments(ops.sigmoid, margin, spread)
    total = ops.sum(mean, -1, keepdims=True)
    return mean / total, variance / ops.square(total)


def _exact(mean, variance):
    """Integrals over y of `r_k = exp(X_k + y)`.

    `E p_k = int E[r_k exp(-r_k)] prod_{j != k} E[exp(-r_j)] dy`, and `r_k^2` in the
    place of `r_k` gives `E p_k^2`. Trapezoids inside and outside: the integrands
    are analytic and vanish at both ends. Above a standard deviation of 5 the inner
    one is as that of a Normal variable: `E[exp(-r_k)] = P(X_k + y < G)`, G the
    logarithm of an Exponential(1) variable, of which only mean and variance count then
    (error below 0.3 %).
    """
    if mean.shape[-1] == 2:
        # The difference of two logits is Normal, and one integral does. Cut at 0 it
        # holds for wide ones too.
        margin = mean - ops.flip(mean, -1)
        spread = ops.sum(variance, -1, keepdims=True) + ops.zeros_like(mean)
        return elementwise_moments(ops.sigmoid, margin, spread, kink=0.0)
    # One axis of examples: some runtimes take no tensors of many axes.
    shape = ops.shape(mean)
    flat = (ops.reshape(x, (-1, shape[-1])) for x in (mean, variance))
    return tuple(ops.reshape(x, shape) for x in _integrals(*flat))


def _integrals(mean, variance):
    """`_exact` of tensors `[examples, K]`."""
    dtype = keras.backend.standardize_dtype(mean.dtype)
    tiny = 1e-37 if dtype == "float32" else 1e-300
    # Where the integrand lives: y from well below -max X (it falls like e^y) to
    # where the largest class is surely above e^0.
    stddev = ops.sqrt(ops.maximum(variance, 1e-30))
    tail = 20.0 if dtype == "float32" else 30.0
    low = -ops.max(mean + 6.0 * stddev, -1, keepdims=True) - tail
    high = -ops.max(mean - 6.0 * stddev, -1, keepdims=True) + 4.5
    low, high = ops.stop_gradient(low), ops.stop_gradient(high)
    step = ops.maximum((high - low) / (_OUTER - 1), 0.0)
    grid = ops.convert_to_tensor(np.arange(_OUTER), dtype)
    y = ops.expand_dims(low + step * grid, -2)
    centre = ops.expand_dims(mean, -1) + y
    # A step that wide logits make long would pass by a narrow one's integrand: that is
    # widened to what the step resolves, little beside the others' width.
    resolved = ops.square(0.6 * step) - _LOG_EXPONENTIAL[1]
    stddev = ops.sqrt(ops.maximum(ops.square(stddev), resolved))
    wide = ops.expand_dims(stddev > _WIDE, -1)
    wide_terms = _wide_terms(centre, ops.expand_dims(stddev, -1))
    stddev = ops.minimum(stddev, _WIDE)
    nodes = np.linspace(-_REACH, _REACH, _INNER)
    weights = np.exp(-0.5 * nodes**2)
    weights /= weights.sum()

    stddev = ops.expand_dims(stddev, -1)

    def terms(node, weight):
        r = ops.exp(ops.minimum(centre + stddev * node, 7.0))
        none = ops.exp(-r)
        some = none * r
        return weight, (none, some, some * r)

    sums = backend.total(terms, centre, nodes, weights)
    zero, one, two = (
        ops.where(wide, a, b) for a, b in zip(wide_terms, sums, strict=True)
    )
    log_zero = ops.log(ops.maximum(zero, tiny))
    others = ops.sum(log_zero, -2, keepdims=True) - log_zero
    others = ops.exp(others) * ops.expand_dims(step, -1)
    first = ops.sum(one * others, -1)
    second = ops.sum(two * others, -1)
    # The approximation of wide logits leaves a sum near 1 only.
    approximate = ops.any(wide, axis=-2)
    total = ops.where(approximate, ops.sum(first, -1, keepdims=True), 1.0)
    first, second = first / total, second / total
    return first, ops.maximum(second - ops.square(first), 0.0)


def _wide_terms(centre, stddev):
    """`E[e^-r]`, `E[r e^-r]` and `E[r^2 e^-r]`, `log r` Normal and wide."""
    mean, variance = _LOG_EXPONENTIAL
    width = ops.sqrt(ops.square(stddev) + variance)
    z = (centre - mean) / width
    density = ops.exp(-0.5 * ops.square(z)) / (math.sqrt(2.0 * math.pi) * width)
    # The second and third are derivatives of the first along the centre.
    third = density * ops.maximum(1.0 + z / width, 0.0)
    return 0.5 * backend.erfc(z / math.sqrt(2.0)), density, third
