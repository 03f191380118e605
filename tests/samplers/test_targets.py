"""Samplers on targets of known moments.

Figures are averages over many chains at once, each a weight of its own. The bounds are
3 %, and the errors of the averages, given where they are computed, below a quarter of
that: a right sampler fails once in 10,000 runs at most. `BAYESNORM_TEST_SEED` varies
the seeds.
"""

import math
import os

import keras
import numpy as np
import pytest
from keras import ops

from bayesnorm import backend, samplers

SEED = int(os.environ.get("BAYESNORM_TEST_SEED", "0"))
N = 50


def moments(sampler, slope, shape, steps, burn_in, noise=None, start=None):
    """Runs chains; returns mean `[d]` and covariance `[d, d]` over chains and steps.

    Args:
        sampler: A sampler of `num_examples=N`.
        slope: Function of the weights, `[chains, d]`, to the gradient of U.
        shape: `(chains, d)`.
        steps: Number of steps.
        burn_in: How many of these do not count.
        noise: `[d]`, the variance of the noise of the gradient, or None.
        start: The weights at the start; None for zeros.
    """
    initial = np.zeros(shape) if start is None else start
    weights = keras.Variable(np.asarray(initial, "float32"))
    sampler.verbose = False
    sampler.build([weights])
    scale = None if noise is None else ops.convert_to_tensor(np.sqrt(noise), "float32")

    def step(i, totals):
        values = ops.convert_to_tensor(weights)
        gradient = slope(values)
        if scale is not None:
            seed = backend.fold_in(backend.seed_from_int(SEED + 77), i)
            gradient += scale * backend.stateless_normal(shape, seed)
        sampler.apply([gradient / N], [weights])
        after = ops.convert_to_tensor(weights)
        counts = ops.cast(i >= burn_in, "float32") / (shape[0] * (steps - burn_in))
        square = ops.matmul(ops.transpose(after), after)
        return [totals[0] + counts * ops.sum(after, 0), totals[1] + counts * square]

    run = backend.compiled_loop(step, [weights, *sampler.variables])
    zeros = [ops.zeros(shape[1:]), ops.zeros(shape[1:] * 2)]
    mean, square = (np.asarray(t, "float64") for t in run(0, steps, zeros))
    return mean, square - np.outer(mean, mean)


TOY = {"learning_rate": 0.05, "mass": 1.0, "friction": 2.0, "seed": SEED + 1}
# With these, `xi` settles within some hundred steps; its target is the same for any.
THERMOSTAT = {"thermostat_mass": 1.0}


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (lambda: samplers.ATMC(N, speed_limit=math.inf, **TOY, **THERMOSTAT), 1.0),
        (lambda: samplers.ATMC(N, speed_limit=1.5, **TOY, **THERMOSTAT), 1.0),
        (lambda: samplers.SGNHT(N, **TOY, **THERMOSTAT), 1.0),
        # Closed form: the discrete Lyapunov equation of its step.
        (lambda: samplers.SGHMC(N, **TOY), 1.5018),
    ],
    ids=["atmc", "atmc_hyperbolic", "sgnht", "sghmc"],
)
def test_variance_under_noise_of_the_gradient(sampler, expected):
    # 4,000 chains of some 40 independent draws each: the variance's error is 0.35 %.
    mean, variance = moments(
        sampler(), lambda x: x, (4000, 1), 3000, 1000, noise=[40.0]
    )
    assert abs(mean[0]) < 0.02
    assert abs(variance[0, 0] / expected - 1) < 0.03


def precision(size=10):
    """Returns a correlated Gaussian's precision, eigenvalues 0.5 to 4."""
    rng = np.random.default_rng(5)
    basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return basis @ np.diag(np.linspace(0.5, 4.0, size)) @ basis.T


@pytest.mark.parametrize(
    "sampler",
    [
        lambda: samplers.ATMC(N, speed_limit=math.inf, **TOY, **THERMOSTAT),
        lambda: samplers.ATMC(N, speed_limit=1.5, **TOY, **THERMOSTAT),
        lambda: samplers.SGNHT(N, **TOY, **THERMOSTAT),
    ],
    ids=["atmc", "atmc_hyperbolic", "sgnht"],
)
def test_correlated_gaussian_with_noise_of_many_sizes(sampler):
    matrix = ops.convert_to_tensor(precision(), "float32")
    centre = np.linspace(-1, 1, 10).astype("float32")
    mean, covariance = moments(
        sampler(),
        lambda x: ops.matmul(x - centre, matrix),
        (1000, 10),
        4000,
        1500,
        noise=np.linspace(10, 60, 10),
    )
    truth = np.linalg.inv(precision())
    scale = np.sqrt(np.diag(truth))
    assert np.abs((mean - centre) / scale).max() < 0.03
    # Of each entry in units of the deviations: 0.5 % by chance.
    error = (covariance - truth) / np.outer(scale, scale)
    assert np.abs(error).max() < 0.03


@pytest.mark.parametrize("temperature", [0.25, 3.0])
@pytest.mark.parametrize("speed", [math.inf, 1.5])
def test_temperature_is_that_of_the_target(temperature, speed):
    sampler = samplers.ATMC(
        N, speed_limit=speed, temperature=temperature, **TOY, **THERMOSTAT
    )
    _, variance = moments(sampler, lambda x: x, (4000, 1), 3000, 1000, noise=[10.0])
    assert abs(variance[0, 0] / temperature - 1) < 0.03


def lyapunov(h, friction, exact):
    """Returns E theta^2 of SGHMC's step on U = theta^2 / 2, m = 1, T = 1."""
    from scipy import linalg

    decay = math.exp(-friction * h)
    weight = h * (1 + decay) / 2 if exact else -math.expm1(-friction * h) / friction
    # p <- decay p - weight theta + noise; theta <- theta + h p
    step = np.array([[1 - h * weight, h * decay], [-weight, decay]])
    variance = -math.expm1(-2 * friction * h)
    noise = variance * np.array([[h * h, h], [h, 1.0]])
    return linalg.solve_discrete_lyapunov(step, noise)[0, 0]


@pytest.mark.parametrize("exact", [False, True])
def test_bias_of_long_steps_is_the_closed_form(exact):
    h, friction = 0.5, 3.0
    sampler = samplers.SGHMC(
        N, learning_rate=h, mass=1.0, friction=friction, exact_kick=exact, seed=SEED + 2
    )
    _, variance = moments(sampler, lambda x: x, (4000, 1), 1500, 100)
    truth = lyapunov(h, friction, exact)
    # 1.247 and 1.067: they can be told apart.
    assert abs(variance[0, 0] / truth - 1) < 0.012


def test_langevin_dynamics_of_known_bias():
    # theta <- (1 - h) theta + sqrt(2 h) e: variance 2 h / (1 - (1 - h)^2); the noise of
    # the gradient adds h^2 V / (1 - (1 - h)^2).
    h, extra = 0.1, 5.0
    sampler = samplers.SGLD(N, learning_rate=h, seed=SEED + 3)
    _, variance = moments(sampler, lambda x: x, (4000, 1), 1000, 100, noise=[extra])
    truth = (2 * h + h * h * extra) / (1 - (1 - h) ** 2)
    assert abs(variance[0, 0] / truth - 1) < 0.03


def test_a_banana():
    # x standard normal, y = x^2 / 2 + half a standard normal: E y = 1/2, Var y = 3/4.
    def slope(values):
        x, y = values[:, :1], values[:, 1:]
        rest = (y - x * x / 2) / 0.25
        return ops.concatenate([x - rest * x, rest], axis=1)

    sampler = samplers.ATMC(N, **TOY | {"learning_rate": 0.03}, speed_limit=1.5)
    mean, covariance = moments(
        sampler, slope, (3000, 2), 6000, 2000, noise=[10.0, 10.0]
    )
    np.testing.assert_allclose(mean, [0.0, 0.5], atol=0.03)
    np.testing.assert_allclose(np.diag(covariance), [1.0, 0.75], rtol=0.05)
