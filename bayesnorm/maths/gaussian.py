"""The standard normal distribution on tensors, and quadrature."""

import math

import numpy as np
from keras import ops

from bayesnorm import backend


def pdf(z):
    """Density of N(0, 1) at `z`."""
    return ops.exp(-0.5 * ops.square(z)) * (1.0 / math.sqrt(2.0 * math.pi))


def cdf(z):
    """Distribution function of N(0, 1) at `z`, accurate in both tails."""
    return 0.5 * backend.erfc(z * -math.sqrt(0.5))


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
