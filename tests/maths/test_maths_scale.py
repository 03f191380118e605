"""Softmax integrals and the Gaussian scale: against mpmath and quadrature."""

import keras
import mpmath
import numpy as np
import pytest
from keras import ops
from scipy import special

from bayesnorm.maths import scale, softmax
from tests.helpers import DTYPES, gradients, tensor

M, V = [1.0, 0.0, -0.5], [0.5, 1.0, 2.0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_exact(dtype):
    rtol = {"float32": 3e-6, "float64": 1e-8}[dtype]
    mean, variance = softmax.softmax_moments(
        tensor(M, dtype), tensor(V, dtype), "exact"
    )
    truth = [0.548537055401228, 0.2527927683926851, 0.1986701762055802]
    np.testing.assert_allclose(mean, truth, rtol=rtol)
    truth = [0.051462796425200685, 0.03698756812189499, 0.04017306562409032]
    np.testing.assert_allclose(variance, truth, rtol=10 * rtol)


def test_softmax_lognormal_and_probit():
    mean, variance = softmax.softmax_moments(tensor(M), tensor(V), "lognormal")
    truth = [0.5470676241436269, 0.26024188132741055, 0.19269049452896253]
    np.testing.assert_allclose(mean, truth, rtol=3e-6)
    truth = [0.053972088774149184, 0.04025850357247842, 0.03779921368883765]
    np.testing.assert_allclose(variance, truth, rtol=1e-5)
    mean, variance = softmax.softmax_moments(tensor(M), tensor(V), "probit")
    truth = [0.5964784, 0.2390757, 0.1644459]
    np.testing.assert_allclose(mean, truth, rtol=1e-6)
    assert variance is None
    with pytest.raises(ValueError, match="'exakt'"):
        softmax.softmax_moments(tensor(M), tensor(V), "exakt")


def test_softmax_auto_takes_the_method_of_each_example():
    mean = tensor([M, M])
    variance = tensor([[0.2, 0.5, 1.0], V])
    got = softmax.softmax_moments(mean, variance)
    cheap = softmax.softmax_moments(mean, variance, "lognormal")
    exact = softmax.softmax_moments(mean, variance, "exact")
    for g, c, e in zip(got, cheap, exact, strict=True):
        np.testing.assert_allclose(g[0], c[0], rtol=1e-6)
        np.testing.assert_allclose(g[1], e[1], rtol=1e-6)


@pytest.mark.parametrize("spread", [0.0, 1e-4, 0.5, 4.0, 16.0])
def test_softmax_exact_sums_to_one_and_meets_monte_carlo(spread):
    rng = np.random.default_rng(3)
    m = 3 * rng.normal(size=(4, 6)) + 40
    v = spread * rng.uniform(0.2, 1.0, size=m.shape)
    mean, variance = map(
        np.array, softmax.softmax_moments(tensor(m), tensor(v), "exact")
    )
    np.testing.assert_allclose(mean.sum(-1), 1.0, rtol=2e-5)
    n = 100_000
    p = rng.normal(m, np.sqrt(v), size=(n, *m.shape))
    p = np.exp(p - p.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    # 24 comparisons, two-sided: five standard errors fail by chance at 1e-5.
    assert np.all(np.abs(mean - p.mean(0)) < 5 * p.std(0) / n**0.5 + 3e-6)
    square = (p - p.mean(0)) ** 2
    error = square.std(0) / n**0.5
    assert np.all(np.abs(variance - square.mean(0)) < 5 * error + 3e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("deviations", [(0.1, 6.0), (4.9, 5.1), (75.0, 80.0), (2, 300)])
def test_softmax_of_wide_logits(deviations, dtype):
    """Of two classes the difference is Normal: a sigmoid's moments, by quadrature."""
    deviations = np.array(deviations, "float64")
    spread = np.sqrt(np.square(deviations).sum())
    mean = np.array([[0.0, 0.0], [10.0, -5.0], [372.0, 412.0], [-1.0, spread]])
    means, variances = softmax.softmax_moments(
        tensor(mean, dtype),
        tensor(np.tile(deviations**2, (4, 1)), dtype),
        "exact",
    )
    means, variances = np.asarray(means, "float64"), np.asarray(variances, "float64")
    np.testing.assert_allclose(means.sum(-1), 1.0, atol=1e-5)
    z = np.linspace(-9, 9, 400_001)
    weight = np.exp(-0.5 * z**2)
    weight /= weight.sum()
    for i, (a, b) in enumerate(mean):
        p = special.expit(a - b + spread * z)
        first = (weight * p).sum()
        assert means[i, 0] == pytest.approx(first, abs=2e-4)
        assert variances[i, 0] == pytest.approx(
            (weight * p**2).sum() - first**2, abs=5e-3
        )


def test_softmax_of_wide_and_narrow_logits(rng):
    mean = np.array([0.0, 20.0, -30.0, 3.0])
    stddev = np.array([0.0, 40.0, 90.0, 7.0])
    draws = special.softmax(mean + stddev * rng.normal(size=(400_000, 4)), -1)
    means, variances = softmax.softmax_moments(
        tensor([mean]),
        tensor([stddev**2]),
        "auto",
    )
    # The standard error is below 8e-4; the rest is the approximation's.
    np.testing.assert_allclose(means[0], draws.mean(0), atol=6e-3)
    np.testing.assert_allclose(variances[0], draws.var(0), atol=6e-3)


@pytest.mark.parametrize("method", ["auto", "exact", "lognormal"])
def test_softmax_at_zero_variance_and_gradients(method):
    m = np.array([[30.0, -60.0, 0.0], [0.0, 0.0, 0.0], [90.0, 0.0, 89.0]])
    p = np.exp(m - m.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    mean, variance = softmax.softmax_moments(tensor(m), tensor(0 * m), method)
    np.testing.assert_allclose(mean, p, rtol=5e-5, atol=1e-6)
    np.testing.assert_allclose(variance, 0, atol=2e-5)
    for v in (0.0, 1e-10, 0.7, 3.0, 300.0):
        for g in gradients(
            lambda m, v: softmax.softmax_moments(m, v, method), m, np.full(m.shape, v)
        ):
            assert np.isfinite(g).all()


def test_softmax_gradient_is_that_of_finite_differences():
    m, v = np.array(M), np.array(V)
    weight = tensor([1.0, -2.0, 0.5])

    def function(m, v):
        mean, variance = softmax.softmax_moments(m, v, "exact")
        return [weight * mean + weight * weight * variance]

    got = np.concatenate(gradients(function, m, v))
    x = np.concatenate([m, v])
    for i in range(6):
        step = 1e-2 * np.eye(6)[i]
        up, down = (
            float(ops.sum(function(tensor(y[:3]), tensor(y[3:]))[0]))
            for y in (x + step, x - step)
        )
        assert abs(got[i] - (up - down) / 2e-2) < 1e-4


def test_two_classes_are_the_logistic_normal():
    t = np.linspace(-9, 9, 20_001)
    density = np.exp(-(t**2) / 2) / np.exp(-(t**2) / 2).sum()
    truth = density @ (1 / (1 + np.exp(-(0.7 + 1.5 * t))))
    for method in ("exact", "lognormal"):
        got = softmax.softmax_moments(tensor([0.7, 0.0]), tensor([1.25, 1.0]), method)
        np.testing.assert_allclose(got[0][0], truth, rtol=1e-5)


def test_log_softmax_two_classes_and_zero_variance():
    t = np.linspace(-9, 9, 20_001)
    density = np.exp(-(t**2) / 2) / np.exp(-(t**2) / 2).sum()
    y = -np.logaddexp(0, -(0.7 + 1.5 * t))
    mean, variance = softmax.log_softmax_moments(
        tensor([0.7, 0.0]), tensor([1.25, 1.0])
    )
    np.testing.assert_allclose(mean[0], density @ y, rtol=1e-5)
    truth = density @ (y - density @ y) ** 2
    np.testing.assert_allclose(variance[0], truth, rtol=1e-4)
    m = tensor([[3.0, -60.0, 0.0]])
    mean, variance = softmax.log_softmax_moments(m, 0 * m)
    np.testing.assert_allclose(mean, ops.log_softmax(m), rtol=1e-5)
    np.testing.assert_array_equal(variance, np.zeros((1, 3)))


def test_softmax_of_one_class():
    with pytest.raises(ValueError, match="two classes"):
        softmax.softmax_moments(tensor([1.0]), tensor([1.0]), "lognormal")


def test_stddev_of_rho():
    rho = np.array([-5.0, -0.7, 0.0, 0.4, 30.0])
    sigma = np.array([0.006737946999085467, 0.4965853037914095, 1.0, 1.4, 31.0])
    np.testing.assert_allclose(scale.stddev_of_rho(tensor(rho)), sigma, rtol=1e-6)
    np.testing.assert_allclose(scale.rho_of_stddev(sigma), rho, rtol=1e-12, atol=1e-12)
    assert scale.rho_of_stddev(0.1) == pytest.approx(np.log(0.1))
    far = np.array([-80.0, -1.0, 0.5, 1e6])
    (slope,) = gradients(lambda u: [scale.stddev_of_rho(u)], far)
    np.testing.assert_allclose(slope, np.exp(np.minimum(far, 0)), rtol=1e-5)
    (slope,) = gradients(lambda u: [ops.log(scale.stddev_of_rho(u))], far)
    np.testing.assert_allclose(slope, 1 / (1 + np.maximum(far, 0)), rtol=1e-5)


@pytest.mark.parametrize(
    ("s", "sigma", "truth"),
    [
        (1.0, 0.1, 4.105220185988092),
        (2.5, 3.0, 0.760222804325936),
        (-4.0, 12.0, 0.1626784432060454),
    ],
)
def test_kl_to_normal(s, sigma, truth):
    got = scale.kl_to_normal(tensor([s]), tensor([sigma]), 10.0)
    np.testing.assert_allclose(got, [truth], rtol=3e-6)
    ds, dsigma = gradients(lambda a, b: [scale.kl_to_normal(a, b)], [s], [sigma])
    np.testing.assert_allclose(ds, [(s - 1) / 100], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(dsigma, [sigma / 100 - 1 / sigma], rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kl_to_log_uniform(dtype):
    ratio = np.array([0.0, 1e-3, 0.5, 3.0, 7.9, 8.1, 10.0, 30.0, 1e3, 1e6])
    with mpmath.workdps(40):
        truth = [
            float(r**2 / 2 * mpmath.hyp2f2(1, 1, 1.5, 2, -(mpmath.mpf(r) ** 2) / 2))
            if r < 20
            else float(
                mpmath.log(r)
                + (mpmath.euler + mpmath.log(2)) / 2
                - sum(
                    mpmath.fac2(2 * k - 1) / (2 * k * mpmath.mpf(r) ** (2 * k))
                    for k in range(1, 9)
                )
            )
            for r in ratio
        ]
    one = np.ones_like(ratio)
    got = scale.kl_to_log_uniform(tensor(-0.3 * ratio, dtype), tensor(0.3 * one, dtype))
    rtol = {"float32": 2e-6, "float64": 1e-8}[dtype]
    np.testing.assert_allclose(got, truth, rtol=rtol, atol=1e-12)
    assert truth[6] == pytest.approx(2.9326888740470194, rel=1e-12)


def test_kl_to_log_uniform_gradient():
    """d/dr = sqrt(2) Dawson(r / sqrt 2), 0 at mean 0."""
    from scipy.special import dawsn

    ratio = np.array([0.0, 0.3, 2.0, 7.99, 8.01, 50.0, 1e5])
    (slope, _) = gradients(
        lambda s, sigma: [scale.kl_to_log_uniform(s, sigma)], ratio, np.ones(7)
    )
    truth = np.sqrt(2) * dawsn(ratio / np.sqrt(2))
    np.testing.assert_allclose(slope, truth, rtol=2e-5, atol=1e-9)


def test_scaled_moments():
    """(x + b) S against its closed form and Monte Carlo."""
    rng = np.random.default_rng(4)
    m, v, s, q, b, n = 0.4, 0.7, 1.3, 0.2, -0.9, 400_000
    mean, variance = map(float, scale.scaled_moments(*map(tensor, (m, v, s, q, b))))
    y = (rng.normal(m, v**0.5, n) + b) * rng.normal(s, q**0.5, n)
    assert abs(mean - y.mean()) < 5 * y.std() / n**0.5
    assert abs(variance - y.var()) < 5 * ((y - y.mean()) ** 2).std() / n**0.5
    assert keras.ops.shape(tensor(mean)) == ()
