"""The step of Langevin dynamics: against closed forms and orders of convergence."""

import math

import numpy as np
import pytest
from scipy import integrate, linalg

from bayesnorm.maths import langevin
from tests.helpers import DTYPES, tensor

RTOL = {"float32": 2e-6, "float64": 1e-9}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kick_without_friction_is_its_limit(dtype):
    got = langevin.kick(
        tensor(0.7, dtype),
        tensor(-1.3, dtype),
        0.4,
        0.6,
        1e-13,
        2.0,
        tensor(0.5, dtype),
    )
    # p - h g + sqrt(2 h alpha m) e
    truth = 0.7 + 0.4 * 1.3 + math.sqrt(2 * 0.4 * 0.6 * 2.0) * 0.5
    np.testing.assert_allclose(got, truth, rtol=RTOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("friction", [-1.5, -1e-4, 0.0, 1e-4, 0.3, 40.0])
def test_the_kick_solves_its_equation(dtype, friction):
    p, g, h, alpha, m, c, temperature = 0.7, -1.3, 0.4, 0.6, 2.0, 0.8, 0.7
    b = friction / math.sqrt(1 + (p / (m * c)) ** 2)
    at = friction if friction == 0 else None

    def mean(s):
        return (
            p - s * g if at == 0 else math.exp(-b * s) * p + math.expm1(-b * s) / b * g
        )

    # The variance is the integral of what came in at each time, decayed since.
    variance, _ = integrate.quad(
        lambda s: 2 * temperature * alpha * m * math.exp(-2 * b * (h - s)), 0, h
    )
    values = [
        langevin.kick(
            tensor(p, dtype),
            tensor(g, dtype),
            h,
            alpha,
            tensor(friction, dtype),
            m,
            tensor(noise, dtype),
            c,
            temperature,
        )
        for noise in (0.0, 1.0)
    ]
    np.testing.assert_allclose(values[0], mean(h), rtol=RTOL[dtype])
    truth = mean(h) + math.sqrt(variance)
    np.testing.assert_allclose(values[1], truth, rtol=RTOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rates_of_the_thermostat(dtype):
    p = tensor([0.0, 1.3, -4.0], dtype)
    got = langevin.thermostat_rate(p, 2.0, 0.8, virial=True)
    truth = [-1.0, -0.34418366990175564, 1.9711254108328298]
    np.testing.assert_allclose(got, truth, rtol=RTOL[dtype])
    got = langevin.thermostat_rate(p, 2.0, temperature=1.7)
    np.testing.assert_allclose(got, [-1.7, 1.3**2 / 2 - 1.7, 6.3], rtol=RTOL[dtype])


@pytest.mark.parametrize("virial", [False, True])
@pytest.mark.parametrize("speed", [0.4, 1.0, math.inf])
def test_rates_have_mean_zero_at_the_temperature(virial, speed):
    mass, temperature = 1.7, 0.6
    p = np.linspace(-60, 60, 200_001)
    energy = p * p / (2 * mass)
    if speed < math.inf:
        q = (p / (mass * speed)) ** 2
        energy = mass * speed**2 * q / (np.sqrt(1 + q) + 1)
    density = np.exp(-energy / temperature)
    rate = langevin.thermostat_rate(
        tensor(p, "float64"), mass, speed, temperature, virial
    )
    mean = integrate.trapezoid(np.array(rate) * density, p)
    mean /= integrate.trapezoid(density, p)
    # JAX's float64 is float32.
    assert abs(mean) < (1e-8 if "float64" in DTYPES else 1e-6)


def test_speeds_stay_below_their_limit():
    p = tensor([-1e6, -1.0, 0.0, 1.0, 1e6], "float64")
    speeds = np.array(langevin.velocity(p, 2.0, 0.3))
    assert np.all(np.abs(speeds) <= 0.3)
    np.testing.assert_allclose(speeds[3], 0.5 / math.sqrt(1 + 1 / 0.36))
    speeds = np.array(langevin.velocity(p, 2.0))
    np.testing.assert_allclose(speeds, np.array(p) / 2)


def test_the_integrator_is_of_order_two():
    # Half a kick, then whole steps, then back half a kick: the symmetric splitting. On
    # a quartic well, without noise, against a solution to 1e-12.
    mass, friction, time = 1.3, 0.7, 2.0

    def slope(_, state):
        theta, p = state
        return [p / mass, -(theta**3) - friction * p]

    truth = integrate.solve_ivp(
        slope, (0, time), [1.0, 0.3], rtol=1e-12, atol=1e-12, method="DOP853"
    ).y[:, -1]

    def error(steps):
        h = time / steps
        theta, p = np.float64(1.0), np.float64(0.3)

        def kick(p, theta, h):
            gradient = tensor(theta**3, "float64")
            return np.float64(
                langevin.kick(
                    tensor(p, "float64"), gradient, h, 0.0, friction, mass, 0.0
                )
            )

        p = kick(p, theta, h / 2)
        for i in range(steps):
            theta = theta + h * p / mass
            p = kick(p, theta, h if i + 1 < steps else h / 2)
        return np.hypot(theta - truth[0], p - truth[1])

    order = math.log2(error(40) / error(80))
    assert 1.95 < order < 2.05


def stationary_variances(h, exact, friction=3.0, curvature=1.7, mass=1.3):
    """Returns those of theta after a drift and halfway, of the map that a step is.

    On `U = curvature theta^2 / 2` at temperature 1, in units of `1 / curvature`.
    """

    def step(theta, p, noise):
        p = langevin.kick(
            tensor(p, "float64"),
            tensor(curvature * theta, "float64"),
            h,
            friction,
            friction,
            mass,
            tensor(noise, "float64"),
            exact=exact,
        )
        p = np.float64(p)
        return theta + h * p / mass, p

    columns = np.array([step(*unit) for unit in np.eye(3)]).T
    noise = columns[:, 2:]
    covariance = linalg.solve_discrete_lyapunov(columns[:, :2], noise @ noise.T)
    half = np.array([1.0, -h / (2 * mass)])
    return curvature * covariance[0, 0], curvature * half @ covariance @ half


@pytest.mark.parametrize("exact", [False, True])
def test_the_stationary_bias_is_of_order_two(exact):
    bias = [stationary_variances(h, exact)[0] - 1 for h in (0.1, 0.05)]
    order = math.log2(bias[0] / bias[1])
    assert 1.95 < order < 2.05
    # Its closed form, for long steps, too.
    h, friction, curvature, mass = 0.6, 3.0, 1.7, 1.3
    x = friction * h / 2
    half = 1.0 if exact else x / math.tanh(x)
    quarter = curvature * h * h / (4 * mass)
    truth = [half**2 / (half - quarter), half]
    np.testing.assert_allclose(stationary_variances(h, exact), truth, rtol=1e-5)
