"""The truncated log-normal law against closed forms in 60 digits and more.

The grid holds the corners of the box of parameters, the edges of the interval, and both
sides of them; there the mean is up to 2.4e9 standard deviations outside.
"""

import functools

import mpmath
import numpy as np
import pytest
from keras import ops
from scipy import stats
from scipy.special import log_ndtr

from bayesnorm.maths import truncated_log_normal as law
from tests.helpers import gradients, tensor

mp = mpmath.mp
MEANS = [-20, -19.9, -15, -10, -5, -1, -0.1, -0.01, 0, 0.01, 0.1, 0.5, 1, 2.5, 5]
LOGS = [-20, -15, -10, -7, -5, -3, -2, -1, 0, 0.5, 1, 1.5, 2, 3, 4, 5]
GRID = [(m, s) for m in MEANS for s in LOGS]
DRAWS = [-6.0, -1.0, 0.0, 2.5, 6.0]
FUNCTIONS = {
    "kl": law.kl_to_log_uniform,
    "expected": law.expected_value,
    "snr": law.signal_to_noise,
    "evidence": law.log_evidence_ratio,
}


def _exact(mean, log_stddev):
    """The float32 parameters as numbers of enough digits for all that cancels."""
    mean, log_stddev = (mpmath.mpf(float(np.float32(v))) for v in (mean, log_stddev))
    outside = max(-20 - mean, mean, 1) / mpmath.exp(log_stddev)
    mp.dps = 80 + 4 * max(0, int(mpmath.log10(outside)))
    return mean, log_stddev


def _mills(z):
    """The Mills ratio of the normal law, z >= 0."""
    if z < 1000:
        return (
            mpmath.sqrt(mp.pi / 2)
            * mpmath.exp(z * z / 2)
            * mpmath.erfc(z / mpmath.sqrt(2))
        )
    fraction = mpmath.mpf(0)
    for k in range(40, 0, -1):
        fraction = k / (z + fraction)
    return 1 / (z + fraction)


class _Law:
    """The law at parameters of many digits; integrals relative to its highest point."""

    def __init__(self, mean, log_stddev):
        self.mean, self.stddev = mean, mpmath.exp(log_stddev)
        self.top = max(min(mean, mpmath.mpf(0)), mpmath.mpf(-20))

    def height(self, x):
        """The density at x over that of the highest point."""
        gap = (x - self.mean) ** 2 - (self.top - self.mean) ** 2
        return mpmath.exp(-gap / (2 * self.stddev**2))

    def integral(self, low=-20, high=0, k=0):
        """Of `exp(k (x - top))` times `height`, from `low` to `high`."""
        s, gap = self.stddev, self.top - self.mean
        mean = self.mean + k * s**2
        shift = -k * gap + (k * s) ** 2 / 2 + (gap / s) ** 2 / 2
        a, b = (mpmath.mpf(low) - mean) / s, (mpmath.mpf(high) - mean) / s

        def tail(z):
            return mpmath.exp(shift - z * z / 2) * _mills(z)

        if a > 0:
            return s * (tail(a) - tail(b))
        if b < 0:
            return s * (tail(-b) - tail(-a))
        return s * (mpmath.exp(shift) * mpmath.sqrt(2 * mp.pi) - tail(-a) - tail(b))

    def figures(self):
        """As of `FUNCTIONS`, a list."""
        whole, s = self.integral(), self.stddev
        first, second = (self.integral(k=k) / whole for k in (1, 2))
        a, b, top = ((x - self.mean) / s for x in (-20, 0, self.top))
        edges = s * (a * self.height(-20) - b * self.height(0)) / whole
        log_whole = mpmath.log(20) - mpmath.log(whole)
        return [
            log_whole - (1 + edges - top**2) / 2,
            mpmath.exp(self.top) * first,
            first / mpmath.sqrt(second - first**2),
            log_whole + mpmath.log(self.height(-20)),
        ]

    def spread(self):
        """The standard deviation of x, truncated."""
        whole, s = self.integral(), self.stddev
        a, b = ((x - self.mean) / s for x in (-20, 0))
        low, high = (s * self.height(x) / whole for x in (-20, 0))
        return s * mpmath.sqrt(1 + a * low - b * high - (low - high) ** 2)


def _differences(function, mean, log_stddev):
    """Central differences in many digits, for the mean and the log deviation."""
    h = mpmath.mpf(10) ** -25
    step = h * mpmath.exp(log_stddev)
    return (
        [
            (u - v) / (2 * step)
            for u, v in zip(
                function(_Law(mean + step, log_stddev)),
                function(_Law(mean - step, log_stddev)),
                strict=True,
            )
        ],
        [
            (u - v) / (2 * h)
            for u, v in zip(
                function(_Law(mean, log_stddev + h)),
                function(_Law(mean, log_stddev - h)),
                strict=True,
            )
        ],
    )


@pytest.fixture(autouse=True)
def digits():
    before = mp.dps
    yield
    mp.dps = before


@functools.cache
def _truth():
    """`[figures, points]`."""
    rows = [_Law(*_exact(*point)).figures() for point in GRID]
    return dict(zip(FUNCTIONS, np.array(rows, "float64").T, strict=True))


@functools.cache
def _slopes():
    """`[2, figures, points]`."""
    rows = [_differences(_Law.figures, *_exact(*point)) for point in GRID]
    return np.moveaxis(np.array(rows, "float64"), 0, -1)


def _points(points=GRID):
    return tuple(tensor(column) for column in zip(*points, strict=True))


def _value(function, *arguments):
    return np.asarray(ops.convert_to_numpy(function(*arguments)), "float64")


@pytest.mark.parametrize(
    ("mean", "log_stddev"), [(-0.1, -1.0), (1.0, 0.0), (-20.0, 1.0), (-3.0, 5.0)]
)
def test_the_closed_forms_are_the_integrals(mean, log_stddev):
    """What the tests compare with, against quadrature in 30 digits."""
    truth = _Law(*_exact(mean, log_stddev)).figures()
    mp.dps = 30
    mean, s = mpmath.mpf(float(np.float32(mean))), mpmath.exp(mpmath.mpf(log_stddev))

    def integral(f):
        return mpmath.quad(f, [-20, -10, -5, -2, -1, -0.5, 0])

    def q(x):
        return mpmath.exp(-((x - mean) ** 2) / (2 * s * s))

    whole = integral(q)
    kl = integral(lambda x: q(x) / whole * mpmath.log(20 * q(x) / whole))
    first, second = (
        integral(lambda x, k=k: q(x) / whole * mpmath.exp(k * x)) for k in (1, 2)
    )
    # A reduced prior of standard deviation 1e-9, E_q[p~ / p] by quadrature.
    width = mpmath.mpf(10) ** -9
    reduced = mpmath.quad(
        lambda t: 2 * mpmath.npdf(t) * 20 * q(-20 + width * t) / whole, [0, 3, 12]
    )
    assert mpmath.almosteq(truth[0], kl, 1e-12)
    assert mpmath.almosteq(truth[1], first, 1e-12)
    assert mpmath.almosteq(truth[2], first / mpmath.sqrt(second - first**2), 1e-12)
    assert abs(truth[3] - mpmath.log(reduced)) < 1e-6


@pytest.mark.parametrize(
    ("mean", "log_stddev", "truth"),
    [
        (0.0, -5.0, (7.269940920909264, 0.9946465149814642, 246.69920611420085)),
        (0.1, -5.0, (9.702077017876992, 0.9995502339451248, 2233.13114468181)),
        (5.0, -2.0, (7.606631430820886, 0.9963555410302788, 274.58508857710524)),
        (-20.0, 1.0, (1.26994092091461, 1.6528195321014326e-07, 0.035552732262516616)),
        (5.0, 5.0, (7.94888676593614e-06, 0.05025144788631657, 0.33423643687805965)),
    ],
)
def test_known_figures(mean, log_stddev, truth):
    """In 40 digits, by another program."""
    for name, value in zip(FUNCTIONS, truth, strict=False):
        function, atol = FUNCTIONS[name], 5e-6 * (name == "kl")
        got = _value(function, tensor([mean]), tensor([log_stddev]))
        np.testing.assert_allclose(got, [value], rtol=2e-6, atol=atol)


# Measured: KL 4.6e-6 absolute, E 1.4e-6, SNR 8.7e-7, evidence 7e-7 (TensorFlow, JAX).
@pytest.mark.parametrize(
    ("name", "rtol", "atol"),
    [
        ("kl", 1e-6, 5e-6),
        ("expected", 2e-6, 0.0),
        ("snr", 1e-6, 0.0),
        ("evidence", 1e-6, 2e-6),
    ],
)
def test_figures_on_the_whole_box(name, rtol, atol):
    got = _value(FUNCTIONS[name], *_points())
    np.testing.assert_allclose(got, _truth()[name], rtol=rtol, atol=atol)


def test_kl_of_a_law_that_is_all_but_the_prior():
    """Small to the last: 1e-4 relative, or 3e-7 where it is below."""
    wide = [(m, s) for m in MEANS for s in (3.0, 4.0, 5.0)]
    truth = [float(_Law(*_exact(*point)).figures()[0]) for point in wide]
    got = _value(law.kl_to_log_uniform, *_points(wide))
    np.testing.assert_allclose(got, truth, rtol=1e-4, atol=3e-7)


# Of the mean per standard deviation: 1 / stddev is the scale of what changes.
@pytest.mark.parametrize(
    ("name", "rtol", "atol"),
    [
        ("kl", 1e-5, 2e-5),
        ("expected", 5e-6, 2e-6),
        ("snr", 5e-6, 1e-6),
        ("evidence", 1e-5, 5e-6),
    ],
)
def test_gradients_on_the_whole_box(name, rtol, atol):
    found = gradients(lambda *at: [FUNCTIONS[name](*at)], *zip(*GRID, strict=True))
    index = list(FUNCTIONS).index(name)
    scale = np.exp([s for _, s in GRID])
    for got, truth, unit in zip(
        found, _slopes()[:, index], (scale, np.ones_like(scale)), strict=True
    ):
        error = np.abs(got.astype("float64") - truth)
        unit = np.minimum(unit, 1.0)
        assert (error * unit <= rtol * np.abs(truth) * unit + atol).all()


def _dense():
    means = [*np.linspace(-20, 5, 51), -1e-7, 1e-7, -1e-3, 1e-3, np.float32(-19.999998)]
    return [x.ravel() for x in np.meshgrid(means, np.linspace(-20, 5, 51))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_are_finite(name):
    points = _dense()
    assert np.isfinite(_value(FUNCTIONS[name], *map(tensor, points))).all()
    for gradient in gradients(lambda *at: [FUNCTIONS[name](*at)], *points):
        assert np.isfinite(gradient).all()


def test_limits():
    """A narrow law inside is a plain log-normal; the widest one is the prior."""
    mean, log_stddev = np.array([-15.0, -5.0, -1.0]), np.array([-8.0, -5.0, -4.0])
    at, s = (tensor(mean), tensor(log_stddev)), np.exp(log_stddev)
    kl = np.log(20) - log_stddev - 0.5 * np.log(2 * np.pi * np.e)
    np.testing.assert_allclose(_value(law.kl_to_log_uniform, *at), kl, rtol=1e-6)
    np.testing.assert_allclose(
        _value(law.expected_value, *at), np.exp(mean + s**2 / 2), rtol=2e-6
    )
    np.testing.assert_allclose(
        _value(law.signal_to_noise, *at), np.expm1(s**2) ** -0.5, rtol=1e-6
    )
    at = tensor([-10.0]), tensor([5.0])
    prior = (1 - np.exp(-20)) / 20
    variance = (1 - np.exp(-40)) / 40 - prior**2
    np.testing.assert_allclose(_value(law.kl_to_log_uniform, *at), 0, atol=1e-6)
    np.testing.assert_allclose(_value(law.expected_value, *at), prior, rtol=2e-3)
    np.testing.assert_allclose(
        _value(law.signal_to_noise, *at), prior / variance**0.5, rtol=2e-3
    )
    np.testing.assert_allclose(_value(law.log_evidence_ratio, *at), 0, atol=2e-3)


def test_figures_are_monotone():
    """In the mean E rises and the evidence against falls; noise lowers the ratio."""
    m, s = (tensor(x.reshape(51, 56)[:, :51]) for x in _dense())
    expected = _value(law.expected_value, m, s)
    assert (np.diff(expected, axis=1) >= -3e-6 * expected[:, 1:]).all()
    evidence = _value(law.log_evidence_ratio, m, s)
    assert (np.diff(evidence, axis=1) <= 1e-5).all()
    ratio = _value(law.signal_to_noise, m, s)
    assert (np.diff(ratio, axis=0) < 0)[:40, 10:41].all()  # inside, stddev up to 1


def _normal(count, seed=0):
    return np.random.default_rng(seed).normal(size=count).astype("float32")


LAWS = [(1.0, -1.6), (-0.1, -5.0), (-3.0, 4.6), (5.0, -2.0), (0.0, 0.5), (-20.0, 1.0)]


@pytest.mark.parametrize(("mean", "log_stddev"), LAWS)
def test_draws_have_the_law(mean, log_stddev):
    """Kolmogorov and Smirnov, 20,000 draws: fails by chance at 1e-4 a case."""
    x = _value(law.quantile, tensor([mean]), tensor([log_stddev]), _normal(20_000))
    s = np.exp(np.float64(np.float32(log_stddev)))
    # By the tail on the side of the mean that holds the interval: no 0 / 0.
    sign = 1 if mean > -10 else -1
    a, b, z = (sign * (v - np.float32(mean)) / s for v in (-20.0, 0.0, x))
    low, high = (a, b) if sign > 0 else (b, a)
    top = log_ndtr(high)
    u = (np.exp(log_ndtr(z) - top) - np.exp(log_ndtr(low) - top)) / -np.expm1(
        log_ndtr(low) - top
    )
    assert ((x >= -20) & (x <= 0)).all()
    assert stats.kstest(u, "uniform").pvalue > 1e-4


def _solve(this, draw):
    """The x at the probability `Phi(draw)`: Newton's method in the log of a tail."""
    whole = this.integral()
    if this.mean > 0 or (this.mean >= -20 and draw < 0):  # what is below x
        aim, sign = mpmath.ncdf(draw), 1
    else:
        aim, sign = mpmath.ncdf(-draw), -1

    def share(x):
        low, high = (-20, x) if sign > 0 else (x, 0)
        return this.integral(low, high) / whole

    # A tail's logarithm is concave: from outside the solution all steps go one way.
    start = this.mean if -20 <= this.mean <= 0 else this.top
    x, low, high = start, mpmath.mpf(-20), mpmath.mpf(0)
    for _ in range(400):
        found = share(x)
        if abs(found / aim - 1) < mpmath.mpf(10) ** -30:
            return x
        if (found < aim) == (sign > 0):
            low = x
        else:
            high = x
        x = x - sign * mpmath.log(found / aim) * found * whole / this.height(x)
        if not low < x < high:
            x = (low + high) / 2
    raise AssertionError(this.mean, this.stddev, draw)


CORNERS = [
    (m, s) for m in (-20, -19.9, -10, -0.1, 0, 0.1, 5) for s in (-20, -5, -2, 1, 5)
]


@functools.cache
def _quantiles():
    """True `[points, draws, (x, dx/dmean, dx/dlog_stddev, stddev)]`."""
    rows = []
    for point in CORNERS:
        at = _exact(*point)
        this = _Law(*at)
        for draw in DRAWS:
            x = _solve(this, mpmath.mpf(float(np.float32(draw))))
            density = this.height(x) / this.integral()
            by = _differences(
                lambda one, x=x: [one.integral(high=x) / one.integral()], *at
            )
            rows.append([x, *(-change[0] / density for change in by), this.spread()])
    return np.array(rows, "float64").reshape(len(CORNERS), len(DRAWS), 4)


def _corner_draws():
    return tensor(np.array(DRAWS)[:, None] * np.ones(len(CORNERS)))


def test_quantiles_on_the_whole_box():
    """Six standard deviations to both sides: 1e-5 deviations, and float32's step.

    Measured 5.8e-6 on both backends.
    """
    truth, _, _, stddev = np.moveaxis(_quantiles(), -1, 0)
    got = _value(law.quantile, *_points(CORNERS), _corner_draws()).T
    step = np.spacing(np.abs(truth).astype("float32")).astype("float64")
    assert (np.abs(got - truth) <= 1e-5 * stddev + step).all()


def test_gradients_of_draws_on_the_whole_box():
    """Against the implicit function's, differences in 80 digits and more.

    Measured, on both backends: 9e-7 for the mean, 9e-6 standard deviations for
    the logarithm.
    """
    _, by_mean, by_log, stddev = np.moveaxis(_quantiles(), -1, 0)
    for i, draws in enumerate(_corner_draws()):
        mean, log_stddev = gradients(
            lambda *at, z=draws: [law.quantile(*at, z)], *zip(*CORNERS, strict=True)
        )
        np.testing.assert_allclose(mean, by_mean[:, i], rtol=1e-5, atol=2e-6)
        error = np.abs(log_stddev - by_log[:, i])
        assert (error <= 1e-5 * np.abs(by_log[:, i]) + 1.5e-5 * stddev[:, i]).all()


@pytest.mark.parametrize("far", [7.0, 13.0, 40.0])
def test_draws_and_their_gradients_are_finite(far):
    points = _dense()
    for draw in (-far, -0.01, far):
        z = tensor(np.full_like(points[0], draw))
        x = _value(law.quantile, *map(tensor, points), z)
        assert ((x >= -20) & (x <= 0)).all()
        for gradient in gradients(lambda *at, z=z: [law.quantile(*at, z)], *points):
            assert np.isfinite(gradient).all()


def test_a_draw_rises_with_its_normal_number():
    z = np.linspace(-7, 7, 57)[:, None] * np.ones_like(_dense()[0])
    x = _value(law.quantile, *map(tensor, _dense()), tensor(z))
    # Of a law all but uniform, 5e-6 of its standard deviation; measured.
    assert np.diff(x, axis=0).min() >= -4e-5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_not_finite_gives_nan(value, which):
    at = [-1.0, -1.0]
    at[which] = value
    at = tensor([at[0], -1.0]), tensor([at[1], -1.0])
    functions = [*FUNCTIONS.values(), lambda *at: law.quantile(*at, tensor([0.5, 0.5]))]
    for function in functions:
        lost, kept = _value(function, *at)
        assert np.isnan(lost)
        assert np.isfinite(kept)
