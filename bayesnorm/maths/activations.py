"""Mean and variance of activations of a Gaussian input.

Each function takes `mean` and `variance` of `X ~ N(mean, variance)`, tensors of
one shape with `variance >= 0`, and returns the mean and variance of `f(X)`, element
by element. At variance 0 the result is `(f(mean), 0)` and gradients are finite.
"""

import math

from keras import ops

from bayesnorm import backend
from bayesnorm.maths.gaussian import cdf, hermite_nodes, legendre_nodes, pdf

# Beyond this many standard deviations the density is 0 in the dtype.
_HORIZON = 40.0

# Klambauer et al., 2017, "Self-Normalizing Neural Networks".
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
SELU_LIMIT = -SELU_SCALE * SELU_ALPHA  # Where it goes to at minus infinity.


def safe_sqrt(x):
    """`sqrt(x)` of `x >= 0` with derivative 0, not infinity, at 0."""
    positive = x > 0
    return ops.where(positive, ops.sqrt(ops.where(positive, x, 1.0)), 0.0)


def standardize(mean, variance):
    """Returns `(z, stddev)` with `z = mean / stddev` clipped to +-40.

    The stddev is raised where z would pass the horizon (so also at variance 0),
    which keeps both finite and differentiable.
    """
    floor = ops.square(mean) * _HORIZON**-2
    stddev = ops.sqrt(ops.maximum(ops.maximum(variance, floor), 1e-30))
    return mean / stddev, stddev


def relu_moments(mean, variance):
    """Moments of `max(X, 0)`."""
    return leaky_relu_moments(mean, variance, 0.0)


def leaky_relu_moments(mean, variance, slope=0.2, with_gain=False):
    """Moments of the leaky ReLU, `X` above 0 and `slope X` below.

    With `z = m / s`, the tail side `t = |z|`, `Q = Phi(-t)` and
    `e = phi(z) - t Q`, the ReLU has the mean `max(m, 0) + s e` and the variance
    `v ([z > 0] (1 - 2 Q) + Q - t e - e^2)`; nothing cancels but inside e.

    Args:
        mean: tensor.
        variance: tensor like `mean`.
        slope: number or tensor that broadcasts against `mean`.
        with_gain: whether to return the mean slope at X as well.

    Returns:
        `(mean, variance)`, or `(mean, variance, gain)` with
        `gain = Cov(f(X), X) / v`.
    """
    z, stddev = standardize(mean, variance)
    # One branch at 0, also for the derivatives: abs, sign and relu would each
    # give 0 there, and a mean of exactly 0 is what a normalization gives.
    positive = z >= 0
    t = ops.where(positive, z, -z)
    tail = cdf(-t)
    excess = ops.maximum(pdf(z) - t * tail, 0.0)
    spread = ops.maximum(tail - excess * (t + excess), 0.0)
    spread = spread + ops.where(positive, 1.0 - 2.0 * tail, 0.0)
    above = ops.where(positive, 1.0 - tail, tail)
    first = ops.where(positive, mean, 0.0) + stddev * excess
    rest = 1.0 - slope
    if isinstance(slope, float) and slope == 0.0:
        moments = first, variance * spread
    else:
        spread = slope**2 + rest**2 * spread + (2.0 * slope * rest) * above
        moments = slope * mean + rest * first, variance * spread
    return (*moments, slope + rest * above) if with_gain else moments


def leaky_relu_map_moments(mean, variance, slope=0.2):
    """`leaky_relu_moments(..., with_gain=True)` in half the passes over memory.

    For the full maps of examples. With `E = erf(z / sqrt 2)` and
    `W = (1 - slope) (m E / 2 + s phi(z))`: mean `(1 + slope) m / 2 + W`, variance
    `v (1 + slope^2 + (1 - slope^2) E) / 2 + (1 - slope)^2 m^2 / 4 - W^2`. The error
    is that of one rounding of 1, relative to s; in the far tail of the ReLU
    (slope 0) nothing of a relative accuracy is left.

    Args:
        mean: tensor.
        variance: tensor like `mean`.
        slope: number or tensor that broadcasts against `mean`.

    Returns:
        `(mean, variance, gain)`.
    """
    half = 0.5 * (1.0 - slope)
    scaled = half * mean
    # 1 / s with s bounded from 0 so that its derivative is finite.
    rate = ops.rsqrt(variance + 1e-20)
    x = mean * (math.sqrt(0.5) * rate)
    error = backend.erf(x)
    density = ops.exp(x * -x) * (2.0 * half / math.sqrt(2.0 * math.pi))
    excess = scaled * error + variance * rate * density
    gain = 0.5 * (1.0 + slope) + half * error
    spread = variance * (0.5 * (1.0 + slope**2) + 0.5 * (1.0 - slope**2) * error)
    spread = spread + (scaled - excess) * (scaled + excess)
    # At most the variance of the steepest line: rounding cannot make noise of none.
    steepest = ops.maximum(ops.square(ops.convert_to_tensor(slope, mean.dtype)), 1.0)
    spread = ops.clip(spread, 0.0, variance * steepest)
    return 0.5 * (1.0 + slope) * mean + excess, spread, gain


def elementwise_moments(fn, mean, variance, points=32, kink=None):
    """Moments of `fn(X)` by Gaussian quadrature.

    Args:
        fn: element-wise function on tensors.
        mean: tensor.
        variance: tensor like `mean`.
        points: int, nodes of the Gauss-Hermite rule. For `fn` analytic in the strip
            `|Im x| < d` (tanh: pi/2; sigmoid, softplus, SiLU: pi) the error is at
            most `12 exp(d^2 / (2 v) - 2 d sqrt(points / v))`.
        kink: number where `fn` is not smooth, a tuple of such numbers, or None. The
            range is then cut there and each part gets a Gauss-Legendre rule of
            `points` nodes, over nine standard deviations to either side.

    Returns:
        `(mean, variance)`.
    """
    centre = fn(mean)
    first = second = 0.0
    for rule, place in _rules(mean, variance, points, kink):

        def terms(node, weight, place=place):
            x, weight = place(node, weight)
            # About fn(mean): no cancellation where the variance is small.
            difference = fn(x) - centre
            return weight, (difference, ops.square(difference))

        sums = backend.total(terms, centre, *rule)
        first, second = first + sums[0], second + sums[1]
    return centre + first, ops.maximum(second - ops.square(first), 0.0)


def _rules(mean, variance, points, kink):
    """Yields rules `(nodes, weights)` of E f(X), each with what places a node of it."""
    stddev = safe_sqrt(variance)
    if kink is None:
        yield hermite_nodes(points), lambda x, weight: (mean + x * stddev, weight)
        return
    reach = 9.0
    kinks = sorted(kink) if isinstance(kink, tuple) else (kink,)
    cuts = [ops.clip(-standardize(mean - k, variance)[0], -reach, reach) for k in kinks]
    for low, high in zip((-reach, *cuts), (*cuts, reach), strict=True):

        def place(node, weight, low=low, width=high - low):
            t = low + node * width
            return mean + t * stddev, weight * width * pdf(t)

        yield legendre_nodes(points), place


def elu_moments(mean, variance, alpha=1.0):
    """Moments of the ELU, `X` above 0 and `alpha (exp(X) - 1)` below."""

    def elu(x):
        return ops.relu(x) + alpha * ops.expm1(ops.minimum(x, 0.0))

    return elementwise_moments(elu, mean, variance, kink=0.0)


def selu_moments(mean, variance):
    """Moments of the SELU; `(0, 1)` is its fixed point."""
    scale, alpha = SELU_SCALE, SELU_ALPHA
    mean, variance = elu_moments(mean, variance, alpha)
    return scale * mean, scale**2 * variance


def gelu_moments(mean, variance):
    """Moments of the exact GELU, `X Phi(X)`.

    The mean is exact, `m Phi(m/q) + v/q phi(m/q)` with `q = sqrt(1 + v)`; the
    variance is Gauss-Hermite's.
    """
    _, second = elementwise_moments(lambda x: x * cdf(x), mean, variance)
    q = ops.sqrt(1.0 + variance)
    return mean * cdf(mean / q) + variance / q * pdf(mean / q), second


def sigmoid_moments(mean, variance):
    """Moments of the logistic sigmoid, by Gauss-Hermite."""
    return elementwise_moments(ops.sigmoid, mean, variance)


def tanh_moments(mean, variance):
    """Moments of tanh, by Gauss-Hermite."""
    return elementwise_moments(ops.tanh, mean, variance)


def softplus_moments(mean, variance):
    """Moments of `log(1 + exp(X))`, by Gauss-Hermite."""
    return elementwise_moments(ops.softplus, mean, variance)


def silu_moments(mean, variance):
    """Moments of `X sigmoid(X)`, by Gauss-Hermite."""
    return elementwise_moments(ops.silu, mean, variance)
