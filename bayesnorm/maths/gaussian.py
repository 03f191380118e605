"""The standard normal distribution on tensors: density, tails, quadrature nodes."""

import math

import keras
import numpy as np
from keras import ops

# (switch, depth): below `switch` Mills ratios come from `erfc`, above it from their
# continued fraction cut at `depth`; both are exact to the dtype's rounding there.
_MILLS = {"float64": (2.5, 44), "float32": (2.0, 24)}


def pdf(z):
    """Density of N(0, 1) at `z`."""
    return ops.exp(-0.5 * ops.square(z)) * (1.0 / math.sqrt(2.0 * math.pi))


def cdf(z):
    """Distribution function of N(0, 1) at `z`, accurate in both tails."""
    return 0.5 * ops.erfc(z * -math.sqrt(0.5))


def mills(z, order=0):
    """Mills ratios of the standard normal distribution.

    `R_k(z) = int_0^inf t^k exp(-z t - t^2 / 2) dt`, so that `R_0` is the upper tail
    probability over the density.

    Args:
        z: tensor, `z >= 0` element by element.
        order: int, the largest `k`.

    Returns:
        List of `order + 1` tensors like `z`: `R_0, ..., R_order`.
    """
    z = ops.convert_to_tensor(z)
    switch, depth = _MILLS[keras.backend.standardize_dtype(z.dtype)]
    near = ops.minimum(z, switch)
    ratio = ops.exp(0.5 * ops.square(near)) * ops.erfc(near * math.sqrt(0.5))
    small = [math.sqrt(0.5 * math.pi) * ratio]
    if order:
        small.append(1.0 - near * small[0])
    for k in range(2, order + 1):
        small.append((k - 1) * small[k - 2] - near * small[k - 1])
    far = ops.maximum(z, switch)
    # r_k = R_k / R_{k-1} obeys r_k = k / (z + r_{k+1}).
    ratio, ratios = ops.zeros_like(far), []
    for k in range(depth + order, 0, -1):
        ratio = k / (far + ratio)
        if k <= order + 1:
            ratios.append(ratio)
    ratios.reverse()
    large = [ratios[0]]
    for k in range(1, order + 1):
        large.append(large[-1] * ratios[k - 1])
    # R_0 = 1 / (z + r_1) while ratios[0] = r_1 = 1 / (z + r_2).
    scale = 1.0 / ((far + ratios[0]) * ratios[0])
    large = [r * scale for r in large]
    return [ops.where(z < switch, a, b) for a, b in zip(small, large, strict=True)]


def hermite_nodes(points):
    """Gauss-Hermite rule of N(0, 1): `E f(Z) ~ sum(weights * f(nodes))`.

    Args:
        points: int, number of nodes; exact for polynomials to degree `2 points - 1`.

    Returns:
        `(nodes, weights)`, float64 arrays `[points]`; the weights sum to one.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    return nodes, weights / weights.sum()


def legendre_nodes(points):
    """Gauss-Legendre rule of the interval [0, 1].

    Args:
        points: int, number of nodes.

    Returns:
        `(nodes, weights)`, float64 arrays `[points]`; the weights sum to one.
    """
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return 0.5 * (nodes + 1.0), 0.5 * weights
