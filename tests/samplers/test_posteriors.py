"""Samplers on posteriors of data, by mini-batches, against what is known of these.

Thermostats are right where the noise of the gradient is the same everywhere, and that
of one weight independent of that of another. That of mini-batches is not: what is left
of its heat, of order `h V / (2 m D)` for a variance V, the bounds leave room for.

A variable `[chains, d]` holds many chains, each with mini-batches of its own, drawn
with replacement: the loss is the sum of the chains' losses. `BAYESNORM_TEST_SEED`
varies the seeds.
"""

import math

import keras
import numpy as np
import pytest
from keras import ops
from scipy import linalg, optimize, special, stats

from bayesnorm import backend, priors, samplers
from tests.helpers import long
from tests.samplers.test_targets import SEED, THERMOSTAT, TOY, N, moments


def chains(sampler, nll, data, shape, prior, batch=10):
    """Returns `(weights, run)` of chains that start at 0.

    Args:
        sampler: A sampler.
        nll: Function `(weights, *data) -> [chains, batch]`, of weights `[chains, d]`.
        data: Arrays `[examples, ...]`, whose rows the chains draw; or `[chains,
            examples, ...]`, of each chain.
        shape: `(chains, d)`.
        prior: A regularizer.
        batch: Examples of a mini-batch.

    Returns:
        The variable, and a function `(start, stop) -> (mean, covariance)` of the chains
        and the steps from `start` to `stop - 1`, which it takes.
    """
    weights = keras.Variable(np.zeros(shape, "float32"))
    sampler.verbose = False
    sampler.build([weights])
    generator = keras.random.SeedGenerator(SEED + 11)
    own = data[0].ndim > 2
    number = data[0].shape[int(own)]
    # Of one table of rows, for gathers.
    table = [np.reshape(x, (-1, *x.shape[1 + own :])).astype("float32") for x in data]
    first = number * np.arange(shape[0])[:, None] if own else 0

    def loss():
        rows = keras.random.randint((shape[0], batch), 0, number, seed=generator)
        drawn = [ops.take(x, rows + first, axis=0) for x in table]
        values = nll(ops.convert_to_tensor(weights), *drawn)
        return ops.sum(ops.mean(values, -1)) + prior(weights), ()

    def step(i, totals):
        _, _, (gradient,) = backend.value_and_gradients(
            loss, [weights], [generator.state]
        )
        sampler.apply([gradient], [weights])
        after = ops.convert_to_tensor(weights)
        square = ops.matmul(ops.transpose(after), after)
        return [totals[0] + ops.sum(after, 0), totals[1] + square]

    variables = [weights, generator.state, *sampler.variables]
    loop = backend.compiled_loop(step, variables)

    def run(start, stop):
        zeros = [ops.zeros(shape[1:]), ops.zeros(shape[1:] * 2)]
        totals = loop(start, stop, zeros)
        mean, square = (
            np.asarray(t, "float64") / (stop - start) / shape[0] for t in totals
        )
        return mean, square - np.outer(mean, mean)

    return weights, run


def errors(mean, covariance, true_mean, truth):
    """Returns the largest errors of mean and covariance, in units of deviations."""
    scale = np.sqrt(np.diag(truth))
    return (
        np.abs((mean - true_mean) / scale).max(),
        np.abs((covariance - truth) / np.outer(scale, scale)).max(),
    )


# --- linear regression ---------------------------------------------------------------

NOISE, STDDEV = 5.0, 2.0
KINDS = {
    "atmc": lambda n, **kw: samplers.ATMC(n, speed_limit=1.5, **TOY | THERMOSTAT | kw),
    "sgnht": lambda n, **kw: samplers.SGNHT(n, **TOY | THERMOSTAT | kw),
    "sghmc": lambda n, **kw: samplers.SGHMC(n, **TOY | kw),
}


def linear_nll(weights, x, y):
    residual = y - ops.einsum("cbd,cd->cb", x, weights)
    return ops.square(residual) / (2 * NOISE**2)


def linear_inputs(number=80, size=3, correlated=False):
    """Returns inputs `[number, size]`, uncorrelated ones unless said otherwise."""
    rng = np.random.default_rng(1)
    x = np.linalg.qr(rng.normal(size=(number, size)))[0] * np.sqrt(number)
    x *= np.linspace(0.8, 1.2, size)
    if correlated:
        x[:, 1] += 0.5 * x[:, 0]
    return x


def linear_data(**kwargs):
    x = linear_inputs(**kwargs)
    # Of residuals whose squares say little of products of inputs: of two weights the
    # noise has then little in common.
    rng = np.random.default_rng(4)
    return x, x @ rng.normal(size=x.shape[1]) + NOISE * rng.normal(size=len(x))


def linear_posterior(x, y):
    """Returns mean and covariance of the weights, in closed form."""
    precision = x.T @ x / NOISE**2 + np.eye(x.shape[1]) / STDDEV**2
    covariance = np.linalg.inv(precision)
    return covariance @ x.T @ y / NOISE**2, covariance


def check_linear(kind, **kwargs):
    """Returns the posterior's covariance and that of chains, checks the mean."""
    x, y = linear_data(**kwargs)
    true_mean, truth = linear_posterior(x, y)
    sampler = KINDS[kind](len(x))
    prior = priors.Normal(len(x), STDDEV)
    _, run = chains(sampler, linear_nll, [x, y], (1500, 3), prior, 15)
    run(0, 500)
    mean, covariance = run(500, 1700)
    assert errors(mean, covariance, true_mean, truth)[0] < 0.03
    return truth, covariance


@pytest.mark.parametrize("kind", ["atmc", "sgnht"])
def test_linear_regression(kind):
    # 1 % are left of the heat (`with_heat`), and 0.5 % are chance.
    truth, covariance = check_linear(kind)
    assert errors(0, covariance, 0, truth)[1] < 0.03
    new = np.random.default_rng(3).normal(size=(5, 3))
    variance, true_variance = (
        np.einsum("id,de,ie->i", new, c, new) for c in (covariance, truth)
    )
    np.testing.assert_allclose(variance, true_variance, rtol=0.03)


@pytest.mark.slow
def test_linear_regression_without_thermostats():
    # The heat that thermostats take out above.
    truth, covariance = check_linear("sghmc")
    assert np.all(np.diag(covariance) > 1.1 * np.diag(truth))


def with_heat(x, y, batch, h, friction, adaptive):
    """Returns the covariance of chains, with thermostats that rest at their mean.

    That of the step's linear map, by its Lyapunov equation, with the covariance of the
    mini-batch's gradient averaged over the chains.
    """
    mean, covariance = linear_posterior(x, y)
    precision = np.linalg.inv(covariance)
    size, eye = x.shape[1], np.eye(x.shape[1])

    def stationary(thermostat, noise):
        b = friction + (0 if adaptive else thermostat)
        alpha = friction - (thermostat if adaptive else 0)
        decay, weight = np.exp(-b * h), -np.expm1(-b * h) / b
        b, decay, weight, alpha = (v * np.ones(size) for v in (b, decay, weight, alpha))
        kick = np.hstack([-weight[:, None] * precision, np.diag(decay)])
        drift = np.hstack([eye, 0 * eye]) + h * kick
        heat = np.diag(-alpha * np.expm1(-2 * b * h) / b)
        heat = heat + weight[:, None] * noise * weight
        heat = np.kron([[h * h, h], [h, 1]], heat)
        return linalg.solve_discrete_lyapunov(np.vstack([drift, kick]), heat)

    for _ in range(20):
        squares = (y - x @ mean) ** 2 + np.einsum("id,de,ie->i", x, covariance, x)
        slopes = (x.T * squares) @ x / NOISE**4
        whole = x.T @ x / NOISE**2
        whole = np.outer(mean, mean) / STDDEV**4 + whole @ covariance @ whole
        noise = (len(x) * slopes - whole) / batch
        settled = optimize.fsolve(
            lambda v, noise=noise: np.diag(stationary(v, noise))[size:] - 1,
            np.diag(noise) * h / 2,
        )
        covariance = stationary(settled, noise)[:size, :size]
    return covariance


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["atmc", "sgnht"])
def test_thermostats_leave_what_the_noise_of_weights_has_in_common(kind):
    x, y = linear_data(correlated=True)
    mean, truth = linear_posterior(x, y)
    expected = {
        h: with_heat(x, y, 10, h, TOY["friction"], kind == "atmc")
        for h in (0.05, 0.025, 0.0125)
    }
    error = {h: errors(0, c, 0, truth)[1] for h, c in expected.items()}
    # Of first order in the step.
    assert 0.05 < error[0.05] < 0.1
    assert 1.7 < error[0.05] / error[0.025] < 2.2
    # Thermostats of much mass, which rest nearly; momenta as are computed there.
    kwargs = TOY | {"thermostat_mass": 10.0, "speed_limit": math.inf}
    sampler = getattr(samplers, kind.upper())(len(x), **kwargs)
    prior = priors.Normal(len(x), STDDEV)
    _, run = chains(sampler, linear_nll, [x, y], (1500, 3), prior)
    run(0, 1500)
    found = run(1500, 4000)
    assert errors(*found, mean, expected[0.05])[1] < 0.015


# --- calibration ---------------------------------------------------------------------


def rank_statistics(kind):
    """Returns chi-square of the ranks of the true weights among draws, `[d]`.

    Simulations each have true weights of the prior, and data of their own. There are 20
    ranks: 19 degrees of freedom.
    """
    count, draws, thin, burn_in = 4000, 19, 40, 200
    rng = np.random.default_rng(SEED + 21)
    x = linear_inputs(40, 2)
    true = STDDEV * rng.normal(size=(count, 2))
    y = true @ x.T + NOISE * rng.normal(size=(count, len(x)))
    sampler = KINDS[kind](len(x), learning_rate=0.1)
    weights, run = chains(
        sampler,
        linear_nll,
        [np.broadcast_to(x, (count, *x.shape)), y],
        (count, 2),
        priors.Normal(len(x), STDDEV),
        5,
    )
    run(0, burn_in)
    ranks = 0
    for start in range(burn_in, burn_in + draws * thin, thin):
        run(start, start + thin)
        ranks = ranks + (ops.convert_to_numpy(weights) < true)
    counts = np.stack([np.bincount(r, minlength=draws + 1) for r in ranks.T])
    expected = count / (draws + 1)
    return ((counts - expected) ** 2 / expected).sum(1)


# Of two weights, together above it for one seed of 10,000.
RANKS = stats.chi2.isf(0.5e-4, 19)


@pytest.mark.parametrize("kind", ["atmc", long("sgnht")])
def test_ranks_of_the_true_weights_are_uniform(kind):
    assert rank_statistics(kind).max() < RANKS


@pytest.mark.slow
def test_ranks_show_the_heat_of_mini_batches():
    assert rank_statistics("sghmc").max() > RANKS


# --- logistic regression -------------------------------------------------------------


def logistic_nll(weights, x, y):
    logits = ops.einsum("cbd,cd->cb", x, weights)
    return ops.softplus(logits) - y * logits


def logistic_data(number=60, size=3, seed=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(number, size))
    y = rng.random(number) < special.expit(x @ rng.normal(size=size))
    return x, y.astype("float64")


def logistic_energy(weights, x, y):
    """Returns U and its gradient, `[n]` and `[n, d]`, of weights `[n, d]`."""
    logits = weights @ x.T
    energy = (np.logaddexp(0, logits) - y * logits).sum(1)
    energy += (weights**2).sum(1) / (2 * STDDEV**2)
    return energy, (special.expit(logits) - y) @ x + weights / STDDEV**2


def by_quadrature(x, y, nodes=24):
    """Returns mean and covariance of the weights, by Gauss and Hermite."""
    size = x.shape[1]
    mode = np.zeros(size)
    for _ in range(30):
        p = special.expit(x @ mode)
        hessian = (x.T * (p * (1 - p))) @ x + np.eye(size) / STDDEV**2
        mode -= np.linalg.solve(hessian, logistic_energy(mode[None], x, y)[1][0])
    # Wider than the normal approximation, for a tail that may be heavier.
    root = 1.2 * np.linalg.cholesky(np.linalg.inv(hessian))
    points, logs = np.polynomial.hermite_e.hermegauss(nodes)
    logs = np.log(logs) + points**2 / 2
    grid = np.stack(np.meshgrid(*[points] * size), -1).reshape(-1, size)
    weights = mode + grid @ root.T
    total = sum(np.meshgrid(*[logs] * size)).ravel()
    total -= logistic_energy(weights, x, y)[0]
    mass = special.softmax(total)
    mean = mass @ weights
    return mean, (weights - mean).T @ (mass[:, None] * (weights - mean))


def by_hmc(x, y, number=1000, steps=180, burn_in=20):
    """Returns mean and covariance of the weights, by TFP's Hamiltonian Monte Carlo."""
    if keras.backend.backend() == "jax":
        from tensorflow_probability.substrates.jax import mcmc

        seed_dtype = "uint32"
    else:
        from tensorflow_probability import mcmc

        seed_dtype = "int32"
    data, labels = (ops.convert_to_tensor(v, "float32") for v in (x, y))

    def log_density(weights):
        logits = weights @ ops.transpose(data)
        nll = ops.sum(ops.softplus(logits) - labels * logits, 1)
        return -nll - ops.sum(weights**2, 1) / (2 * STDDEV**2)

    def sample():
        return mcmc.sample_chain(
            steps,
            ops.zeros((number, x.shape[1])),
            num_burnin_steps=burn_in,
            kernel=mcmc.HamiltonianMonteCarlo(log_density, 0.1, 6),
            trace_fn=lambda _, results: results.is_accepted,
            seed=ops.cast(backend.seed_from_int(SEED + 4), seed_dtype),
        )

    kept, accepted = map(ops.convert_to_numpy, backend.compiled(sample, [])())
    assert accepted.mean() > 0.8
    kept = kept.reshape(-1, x.shape[1])
    return kept.mean(0), np.cov(kept.T)


def logistic_errors(kind, x, y, true, number, steps, h, batch, burn_in=500):
    sampler, prior = KINDS[kind](len(x), learning_rate=h), priors.Normal(len(x), STDDEV)
    shape = (number, x.shape[1])
    _, run = chains(sampler, logistic_nll, [x, y], shape, prior, batch)
    run(0, burn_in)
    return errors(*run(burn_in, burn_in + steps), *true)


@pytest.mark.parametrize("kind", ["atmc", long("sgnht")])
def test_logistic_regression(kind):
    x, y = logistic_data()
    truth = by_quadrature(x, y)
    mean, covariance = logistic_errors(kind, x, y, truth, 1500, 2000, 0.025, 40)
    # About 0.02 are left, of noise that weights have in common, and 0.01 are chance.
    assert mean < 0.04
    assert covariance < 0.06


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["atmc", "sgnht"])
def test_logistic_regression_of_more_weights(kind):
    x, y = logistic_data(100, 6)
    truth = by_hmc(x, y)
    mean, covariance = logistic_errors(
        kind, x, y, truth, 600, 4000, 0.0075, 50, burn_in=1000
    )
    # 0.06 are left, of noise that is larger and more in common than above.
    assert mean < 0.05
    assert covariance < 0.1


@pytest.mark.slow
def test_the_truths_of_logistic_regression_agree():
    x, y = logistic_data()
    truth = by_quadrature(x, y)
    np.testing.assert_allclose(by_quadrature(x, y, 36)[1], truth[1], rtol=1e-5)
    # Of 180,000 draws.
    assert max(errors(*by_hmc(x, y), *truth)) < 0.015


# --- a funnel ------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [1.5, long(math.inf)])
def test_a_funnel(speed):
    # v standard normal, x normal of variance e^v: E x^2 = e^(1/2). The error of the
    # last, of heavy tails, is 1.2 %; those of the others are 0.5 %.
    def slope(values):
        v, x = values[:, :1], values[:, 1:]
        inverse = ops.exp(-v)
        rest = x * x * inverse
        return ops.concatenate([v + (1 - rest) / 2, x * inverse], axis=1)

    rng = np.random.default_rng(SEED + 5)
    v = rng.normal(size=3000)
    start = np.stack([v, np.exp(v / 2) * rng.normal(size=3000)], 1)
    sampler = samplers.ATMC(
        N, **TOY | {"learning_rate": 0.03} | THERMOSTAT, speed_limit=speed
    )
    mean, covariance = moments(
        sampler, slope, start.shape, 5000, 1000, noise=[10.0, 10.0], start=start
    )
    assert np.abs(mean).max() < 0.03
    assert abs(covariance[0, 0] - 1) < 0.03
    assert abs(covariance[1, 1] / math.exp(0.5) - 1) < 0.05
