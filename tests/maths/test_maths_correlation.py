"""Correlations as a factor of low rank, against dense ones in float64."""

import numpy as np
import pytest
from keras import ops

from bayesnorm.maths import correlation
from bayesnorm.maths.normalization import random_normalization
from tests.helpers import DTYPES, tensor


def rows_of(rng, number=60, size=12, rank=3):
    """Rows of a law of a few directions, on very different scales."""
    latent = rng.normal(size=(number, rank)) * [3.0, 2.0, 1.0][:rank]
    rows = latent @ rng.normal(size=(rank, size))
    rows += 0.5 * rng.normal(size=(number, size))
    return rows * np.logspace(-3, 3, size)


def kept_up(rows, rank, dtype):
    """The factor and the moments after all rows, one by one, as a calibration does."""
    size = rows.shape[1]
    factor = np.zeros((rank, size))
    mean, variance = np.zeros(size), np.zeros(size)
    for count, x in enumerate(rows):
        arguments = [tensor(v, dtype) for v in (mean, variance, x)]
        keep, row = correlation.deviation(float(count), *arguments)
        stacked = ops.concatenate([tensor(factor, dtype) * keep, row[None]])
        factor = ops.convert_to_numpy(correlation.compressed(stacked, rank))
        rate, delta = 1 / (count + 1), x - mean
        mean = (mean + rate * delta).astype(dtype)
        variance = ((1 - rate) * (variance + rate * delta**2)).astype(dtype)
    return factor


def off_diagonal(matrix):
    return matrix - np.diag(np.diag(matrix))


@pytest.mark.parametrize("dtype", DTYPES)
def test_with_room_for_all_rows_the_factor_is_that_of_the_correlations(rng, dtype):
    rows = rows_of(rng, number=20)
    factor = kept_up(rows, 20, dtype).astype("float64")
    tolerance = 1e-10 if dtype == "float64" else 2e-5
    expected = np.corrcoef(rows.T)
    np.testing.assert_allclose(factor.T @ factor, expected, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_factor_kept_up_is_nearly_the_best_of_its_rank(rng, dtype):
    rows = rows_of(rng, number=400, rank=3)
    expected = np.corrcoef(rows.T)
    values, vectors = np.linalg.eigh(expected)
    best = (vectors[:, -3:] * values[-3:]) @ vectors[:, -3:].T
    factor = kept_up(rows, 3, dtype).astype("float64")
    scale = np.linalg.norm(expected)
    error = np.linalg.norm(factor.T @ factor - expected) / scale
    least = np.linalg.norm(best - expected) / scale
    assert error < 1.05 * least
    assert 0.01 < least < 0.2
    # What is kept of each variable is no more than there is.
    assert (np.square(factor).sum(0) <= 1 + 1e-5).all()


def test_compression_is_the_dense_eigen_decomposition(rng):
    rows = rng.normal(size=(9, 30))
    values, vectors = np.linalg.eigh(rows.T @ rows)
    for rank in (1, 4, 9):
        factor = ops.convert_to_numpy(correlation.compressed(tensor(rows), rank))
        expected = (vectors[:, -rank:] * values[-rank:]) @ vectors[:, -rank:].T
        np.testing.assert_allclose(factor.T @ factor, expected, atol=2e-4)
        lengths = np.square(factor).sum(1)
        np.testing.assert_allclose(lengths, values[::-1][:rank], rtol=1e-4)


def test_rows_far_from_zero_keep_their_correlations_in_float32(rng):
    """Means 1e4 deviations away, where E x y - E x E y has no digit left."""
    rows = rng.normal(size=(300, 2)) @ [[1.0, 0.6], [0.0, 0.8]]
    rows = (1e4 + rows).astype("float32")
    factor = kept_up(rows, 2, "float32")
    expected = np.corrcoef(rows.T.astype("float64"))[0, 1]
    np.testing.assert_allclose(factor[:, 0] @ factor[:, 1], expected, atol=0.01)


def test_what_never_varies_or_overflows_has_no_correlation():
    mean, variance = np.array([1.0, 2.0, 0.0]), np.array([0.0, 1.0, 1.0])
    arguments = [tensor(v) for v in (mean, variance, [1.0, 3.0, 1e30])]
    keep, row = map(ops.convert_to_numpy, correlation.deviation(4.0, *arguments))
    # Four rows of variance 1, and one 1 away: 4 + 4 / 5.
    np.testing.assert_allclose(keep, [0, (4 / 4.8) ** 0.5, 0], rtol=1e-6)
    np.testing.assert_allclose(row, [0, (0.8 / 4.8) ** 0.5, 0], rtol=1e-6)


def test_own_stddev_completes_the_variance(rng):
    factor = rng.uniform(-0.4, 0.4, (5, 7))
    own = ops.convert_to_numpy(correlation.own_stddev(tensor(factor)))
    np.testing.assert_allclose(own**2 + np.square(factor).sum(0), 1, rtol=1e-5)
    over = tensor(np.full((1, 2), 1.0 + 1e-6))
    np.testing.assert_array_equal(ops.convert_to_numpy(correlation.own_stddev(over)), 0)


@pytest.mark.parametrize("log_stddev", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("rho", [-1.0, -0.5, 0.0, 0.8])
def test_random_normalization_is_the_integral(log_stddev, rho):
    """Two values under one draw, by quadrature in float64."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = np.outer(weights, weights) / weights.sum() ** 2
    z, e = np.meshgrid(nodes, nodes, indexing="ij")
    stddev, m, values = 0.7, -0.4, np.array([1.5, -2.0])
    mean = 0.3 + stddev * (rho * z + (1 - rho**2) ** 0.5 * e)
    scale = np.exp(-0.5 * (m + log_stddev * z))
    draws = (values[:, None, None] - mean) * scale
    first = (weights * draws).sum((1, 2))
    second = np.einsum("pij,qij,ij->pq", draws, draws, weights) - np.outer(first, first)

    got = random_normalization(*map(tensor, (stddev, m, log_stddev, rho)))
    i, q, shift, common, offset = (float(x) for x in got)
    t = values - 0.3 + shift
    np.testing.assert_allclose(i * t, first, rtol=1e-5)
    pattern = q**0.5 * t + offset
    covariance = (i**2 + q) * common + np.outer(pattern, pattern)
    np.testing.assert_allclose(covariance, second, rtol=1e-4, atol=1e-5)
