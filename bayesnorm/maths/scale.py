"""A Gaussian scale: its parametrization, its priors, its moments."""

import math

import numpy as np
from keras import ops

from bayesnorm import backend
from bayesnorm.maths.gaussian import legendre_nodes

# Where the integral of the Dawson function passes from quadrature to its series.
_CUT = 8.0
_NODES = 40


def stddev_of_rho(rho):
    """`exp(rho)` below 0 and `rho + 1` above; derivative in (0, 1]."""
    return ops.exp(ops.minimum(rho, 0.0)) + ops.maximum(rho, 0.0)


def rho_of_stddev(stddev):
    """Inverse of `stddev_of_rho`.

    Args:
        stddev: positive number or NumPy array.

    Returns:
        float64, `log(stddev)` below 1 and `stddev - 1` above.
    """
    stddev = np.asarray(stddev, "float64")
    return np.where(stddev < 1, np.log(np.minimum(stddev, 1)), stddev - 1)[()]


def kl_to_normal(mean, stddev, prior_scale=10.0):
    """KL of `Normal(mean, stddev^2)` to the prior `Normal(1, prior_scale^2)`.

    Args:
        mean: tensor.
        stddev: tensor, positive.
        prior_scale: number, the prior's standard deviation.

    Returns:
        Tensor like `mean`, in nats.

    Reference:
        Shekhovtsov & Flach, 2018, "Stochastic Normalizations as Bayesian
        Learning", section 3 (where twice this is printed).
    """
    normal = backend.distributions().Normal
    one = ops.ones_like(mean)
    return normal(mean, stddev).kl_divergence(normal(one, prior_scale * one))


def kl_to_log_uniform(mean, stddev):
    """KL of `Normal(mean, stddev^2)` to the prior `p(S) ~ 1/|S|`.

    Up to the prior's infinite constant, chosen so that it is 0 at mean 0:
    `sqrt(2) int_0^r Dawson(t / sqrt 2) dt`, `r = |mean| / stddev`, which tends to
    `log r + (Euler's gamma + log 2) / 2`.

    Args:
        mean: tensor.
        stddev: tensor, positive.

    Returns:
        Tensor like `mean`, in nats.

    Reference:
        Molchanov et al., 2017, arXiv:1701.05369, the prior; the closed form is
        exact here, not their fit.
    """
    ratio = mean / stddev
    squared = ops.square(ratio)
    near = ops.minimum(squared, _CUT**2)
    # With Dawson(x) = x int_0^1 exp(x^2 (u^2 - 1)) du the integral over t is
    # 1/2 int_0^1 (1 - exp(-r^2 (1 - u^2) / 2)) / (1 - u^2) 2 du; u = sin(a) leaves
    # int_0^{pi/2} (1 - exp(-r^2 cos(a)^2 / 2)) / cos(a) da, smooth at both ends.
    angle, weight = legendre_nodes(_NODES)
    cosine = np.cos(0.5 * math.pi * angle)
    total = 0.0
    for c, w in zip(cosine, weight * 0.5 * math.pi, strict=True):
        total = total - (w / c) * ops.expm1(near * (-0.5 * c**2))
    far = ops.maximum(squared, _CUT**2)
    constant = 0.5 * (np.euler_gamma + math.log(2.0))
    series = 0.5 * ops.log(far) + constant
    # -sum_k (2k-1)!! / (2k r^2k), from Dawson's asymptotic series.
    term = 1.0
    for k in range(1, 7):
        term = term * (2 * k - 1) / far
        series = series - term / (2 * k)
    return ops.where(squared < _CUT**2, total, series)


def scaled_moments(mean, variance, scale, scale_variance, bias=0.0):
    """Moments of `(x + bias) S`, `S ~ (scale, scale_variance)` independent of x.

    Args:
        mean: tensor, mean of x.
        variance: tensor, variance of x.
        scale: tensor, mean of S.
        scale_variance: tensor, variance of S.
        bias: tensor or number.

    Returns:
        `(mean, variance)`: `(m + b) s` and `v (s^2 + q) + (m + b)^2 q`.
    """
    mean = mean + bias
    spread = ops.square(scale) + scale_variance
    return mean * scale, variance * spread + ops.square(mean) * scale_variance
