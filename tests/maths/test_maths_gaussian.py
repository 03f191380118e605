"""Gaussian helpers, activations, pooling: against mpmath, SciPy and quadrature."""

import numpy as np
import pytest
from keras import ops
from scipy import integrate, special

from bayesnorm.maths import activations, gaussian, pooling
from tests.helpers import DTYPES, gradients, tensor


def test_cdf_tails():
    z = np.array([-12.0, -5.0, -1.0, 0.0, 2.0, 6.0])
    np.testing.assert_allclose(
        gaussian.cdf(tensor(z)), special.ndtr(z), rtol=4e-6, atol=1e-37
    )
    np.testing.assert_allclose(
        gaussian.pdf(tensor(z)), np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi), rtol=1e-5
    )


def test_quadrature_nodes_are_exact_for_polynomials():
    nodes, weights = gaussian.hermite_nodes(8)
    assert abs(weights @ nodes**14 - special.factorial2(13)) < 1e-6
    nodes, weights = gaussian.legendre_nodes(8)
    assert abs(weights @ nodes**15 - 1 / 16) < 1e-14


# mean, variance, function, its moments to ten digits (mpmath)
CASES = [
    ("relu_moments", {}, 0.0, 1.0, 0.3989422804014327, 0.3408450569081046),
    ("elu_moments", {}, 0.0, 1.0, 0.16052057226655608, 0.6191785633721413),
    (
        "leaky_relu_moments",
        {"slope": 0.01},
        0.7,
        0.25,
        0.7181507306406903,
        0.21690494875124874,
    ),
    ("selu_moments", {}, 0.7, 0.25, 0.7279804099712055, 0.29280104621030345),
    (
        "leaky_relu_moments",
        {"slope": 0.01},
        -1.2,
        4.0,
        0.32197200983867585,
        0.5890067187091629,
    ),
    ("selu_moments", {}, -1.2, 4.0, -0.6055075422796988, 1.811333351399946),
    ("gelu_moments", {}, 0.7, 0.25, 0.5873910974849023, None),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "kwargs", "m", "v", "mean", "variance"), CASES)
def test_activation_literals(dtype, name, kwargs, m, v, mean, variance):
    rtol = {"float32": 2e-6, "float64": 1e-9}[dtype]
    got = getattr(activations, name)(tensor(m, dtype), tensor(v, dtype), **kwargs)
    np.testing.assert_allclose(got[0], mean, rtol=rtol)
    if variance is not None:
        np.testing.assert_allclose(got[1], variance, rtol=rtol)


FUNCTIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.maximum(x, 0.2 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "gelu": lambda x: x * special.ndtr(x),
    "sigmoid": special.expit,
    "tanh": np.tanh,
    "softplus": lambda x: np.logaddexp(0, x),
    "silu": lambda x: x * special.expit(x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activations_against_quadrature(name):
    """float32, standard deviations up to 1.5 where Gauss-Hermite is exact."""
    m, v = np.meshgrid([-3.0, -0.4, 0.0, 0.5, 4.0], [1e-4, 0.3, 2.25])
    # A fine trapezoid, cut at the kink for the functions that have one.
    t = np.linspace(-9, 9, 180_001)
    x = m[..., None] + np.sqrt(v)[..., None] * t
    density = np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi)
    y = FUNCTIONS[name](x)
    mean = integrate.trapezoid(y * density, t)
    variance = integrate.trapezoid((y - mean[..., None]) ** 2 * density, t)
    got = getattr(activations, f"{name}_moments")(tensor(m), tensor(v))
    np.testing.assert_allclose(got[0], mean, rtol=3e-4, atol=3e-6)
    np.testing.assert_allclose(got[1], variance, rtol=2e-3, atol=2e-7)


def test_hermite_error_bound():
    """The stated bound holds for tanh (d = pi/2) and the sigmoid (d = pi)."""
    for function, reference, d in (
        (ops.tanh, np.tanh, np.pi / 2),
        (ops.sigmoid, special.expit, np.pi),
    ):
        for s in (0.5, 1.0, 2.0):
            for points in (16, 32, 64):
                t = np.linspace(-10, 10, 40_001)
                density = np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi)
                truth = integrate.trapezoid(reference(0.3 + s * t) * density, t)
                got = activations.elementwise_moments(
                    function, tensor(0.3), tensor(s * s), points=points
                )[0]
                bound = 12 * np.exp(d**2 / (2 * s**2) - 2 * d * points**0.5 / s)
                assert abs(float(got) - truth) < bound + 3e-7


@pytest.mark.parametrize("name", FUNCTIONS)
def test_zero_variance_is_the_function_itself(name):
    m = np.array([-50.0, -1.0, -1e-3, 0.0, 1e-3, 2.0, 300.0])
    function = getattr(activations, f"{name}_moments")
    mean, variance = function(tensor(m), tensor(np.zeros(7)))
    np.testing.assert_allclose(mean, FUNCTIONS[name](m), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(variance, np.zeros(7))
    for v in (0.0, 1e-12, 1.0, 1e6):
        for gradient in gradients(function, m, np.full(7, v)):
            assert np.isfinite(gradient).all()


def test_relu_tail_keeps_relative_accuracy():
    """No cancellation in the tail: z = -4 in float32, against mpmath."""
    mean, variance = activations.relu_moments(tensor(-4.0), tensor(1.0))
    np.testing.assert_allclose(mean, 7.145258432e-06, rtol=1e-2)
    assert float(variance) > 0
    assert float(activations.relu_moments(tensor(-30.0), tensor(1.0))[0]) == 0.0


def test_leaky_relu_gradient_is_that_of_finite_differences():
    rng = np.random.default_rng(0)
    m, v = rng.normal(size=6), rng.uniform(0.1, 2, size=6)

    def function(m, v):
        mean, variance = activations.leaky_relu_moments(m, v, 0.1)
        return [mean + 0.7 * variance]

    def total(m, v):
        x = np.linspace(-10, 10, 40_001)[:, None] * np.sqrt(v) + m
        t = np.linspace(-10, 10, 40_001)
        w = np.exp(-(t**2) / 2)[:, None] / np.exp(-(t**2) / 2).sum()
        y = np.maximum(x, 0.1 * x)
        mean = (w * y).sum(0)
        return (mean + 0.7 * (w * (y - mean) ** 2).sum(0)).sum()

    got = gradients(function, m, v)
    for i in range(6):
        for g, (dm, dv) in zip(got, ((1e-4, 0), (0, 1e-4)), strict=True):
            e = np.eye(6)[i]
            up, down = total(m + dm * e, v + dv * e), total(m - dm * e, v - dv * e)
            assert abs(g[i] - (up - down) / 2e-4) < 2e-4


def test_max_pool_constants_and_average():
    assert pooling.max_constants(1) == pytest.approx((0.0, 1.0), abs=1e-9)
    assert pooling.max_constants(4) == pytest.approx(
        (1.0293753730039916, 0.49171523687475494), rel=1e-9
    )
    assert pooling.max_constants(9) == pytest.approx(
        (1.4850131622, 0.3573533264), rel=1e-9
    )
    got = pooling.max_pool_moments(tensor(0.5), tensor(1.44), 4, 0.6)
    np.testing.assert_allclose(got, [1.2812409790347237, 1.1472279764398587], rtol=1e-6)
    got = pooling.average_pool_moments(tensor(0.5), tensor(1.44), 4, 0.25)
    np.testing.assert_allclose(got, [0.5, 1.44 * (0.25 + 0.75 / 4)], rtol=1e-6)


def test_maximum_of_two_is_exact():
    rng = np.random.default_rng(1)
    m1, m2, v1, v2, c = 0.4, 0.9, 1.3, 0.5, 0.3
    got = pooling.max_of_two_moments(*map(tensor, (m1, v1, m2, v2, c)))
    y = rng.multivariate_normal([m1, m2], [[v1, c], [c, v2]], 400_000).max(1)
    n = len(y)
    assert abs(float(got[0]) - y.mean()) < 5 * y.std() / n**0.5
    error = np.sqrt(((y - y.mean()) ** 4).mean() - y.var() ** 2) / n**0.5
    assert abs(float(got[1]) - y.var()) < 5 * error
    certain = pooling.max_of_two_moments(*map(tensor, (1.0, 0.0, -3.0, 0.0)))
    np.testing.assert_array_equal(certain, [1.0, 0.0, 1.0])
    for g in gradients(
        lambda *a: pooling.max_of_two_moments(*a)[:2], 1.0, 0.0, 1.0, 0.0
    ):
        assert np.isfinite(g)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_max_pool_maps_within_the_stated_error(padding):
    rng = np.random.default_rng(2)
    mean = rng.normal(size=(1, 5, 5, 2)).astype("float32")
    variance = rng.uniform(0.2, 1.5, size=mean.shape).astype("float32")
    got = pooling.max_pool_maps(
        tensor(mean), tensor(variance), None, (3, 3), (2, 2), padding
    )
    x = rng.normal(mean, np.sqrt(variance), size=(20_000, *mean.shape[1:]))
    y = np.array(ops.max_pool(tensor(x), 3, 2, padding))
    np.testing.assert_allclose(got[0][0], y.mean(0), atol=0.06)
    np.testing.assert_allclose(got[1][0] / y.var(0), 1.0, atol=0.3)
    zero = np.zeros_like(variance)
    got = pooling.max_pool_maps(
        tensor(mean), tensor(zero), None, (3, 3), (2, 2), padding
    )
    truth = ops.max_pool(tensor(mean), 3, 2, padding)
    np.testing.assert_allclose(got[0], truth, rtol=1e-5)
