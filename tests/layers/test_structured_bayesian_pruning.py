"""What structured Bayesian pruning computes, prunes and learns."""

import keras
import numpy as np
import pytest
from keras import ops

import bayesnorm
from tests.helpers import long

MEAN = [0.0, -1.0, -8.0, 0.5, -18.0]
LOG_STDDEV = [-5.0, -1.0, 1.0, -2.0, 2.0]
KEPT = [True, True, False, True, False]


def _layer(shape=(5,), mean=MEAN, log_stddev=LOG_STDDEV, **kwargs):
    layer = bayesnorm.StructuredBayesianPruning(**kwargs)
    layer.build((None, *shape))
    layer.mean.assign(mean)
    layer.log_stddev.assign(log_stddev)
    return layer


def _theta(mean, log_stddev, points=400_001):
    """Values and probabilities of theta, by the trapezoidal rule in float64.

    And the density of log theta over that of the prior.
    """
    x = np.linspace(-20, 0, points)
    q = np.exp(-0.5 * ((x - mean) / np.exp(log_stddev)) ** 2)
    whole = q.sum() - 0.5 * (q[0] + q[-1])
    ratio = q / whole * (points - 1)
    q[[0, -1]] *= 0.5
    return np.exp(x), q / whole, ratio


def _call(layer, x, **kwargs):
    return ops.convert_to_numpy(layer(ops.convert_to_tensor(x), **kwargs))


def test_figures_by_quadrature():
    layer = _layer()
    expected, snr, median, kl = [], [], [], 0.0
    for m, s in zip(MEAN, LOG_STDDEV, strict=True):
        theta, q, ratio = _theta(m, s)
        mean = q @ theta
        expected.append(mean)
        snr.append(mean / np.sqrt(q @ (theta - mean) ** 2))
        median.append(theta[np.searchsorted(np.cumsum(q), 0.5)])
        kl += q @ np.log(np.maximum(ratio, 1e-300))
    for got, truth, rtol in (
        (layer.expected_scale(), expected, 1e-4),
        (layer.snr(), snr, 1e-4),
        (layer.median(), median, 2e-4),
    ):
        assert isinstance(got, np.ndarray)
        assert got.dtype == "float32"
        np.testing.assert_allclose(got, truth, rtol=rtol)
    np.testing.assert_allclose(float(layer.kl_divergence()), kl, rtol=1e-4)
    np.testing.assert_array_equal(layer.keep, KEPT)
    assert layer.keep.dtype == bool


def test_evaluation_is_the_mean_and_pruned_channels_are_the_bias(rng):
    layer = _layer((2, 3, 5), use_bias=True)
    bias = np.arange(1.0, 6.0, dtype="float32")
    layer.bias.assign(bias)
    x = rng.normal(size=(4, 2, 3, 5)).astype("float32")
    expected = np.where(KEPT, layer.expected_scale(), 0)
    np.testing.assert_allclose(_call(layer, x), x * expected + bias, rtol=1e-5)
    y = _call(layer, x)[..., ~layer.keep]
    np.testing.assert_array_equal(y, np.broadcast_to(bias[~layer.keep], y.shape))


def test_the_threshold_prunes():
    snr = _layer().snr()
    for threshold in (0.0, 0.3, 2.0, 30.0, 1e9):
        layer = _layer(threshold=threshold)
        np.testing.assert_array_equal(layer.keep, snr >= threshold)
        one = np.ones((1, 5), "float32")
        np.testing.assert_array_equal(_call(layer, one)[0] != 0, layer.keep)
    np.testing.assert_array_equal(_layer(threshold=float(snr[1])).keep[1], True)


def test_pruned_channels_are_drawn_in_training_alone(rng):
    layer = _layer((3, 5), seed=1)
    x = np.ones((64, 3, 5), "float32")
    trained = _call(layer, x, training=True)
    assert (trained > 0).all()
    assert (trained.std(0) > 0).all()
    with bayesnorm.noise_mode("sample"):
        sampled = _call(layer, x)
    np.testing.assert_array_equal((sampled != 0).any((0, 1)), KEPT)
    assert (sampled[..., KEPT].std(0) > 0).all()
    # One draw per example and channel, shared by positions.
    np.testing.assert_array_equal(trained, trained[:, :1] * np.ones((1, 3, 1)))
    # Which is that of the mean network, where no noise is asked for.
    with bayesnorm.noise_mode("mean"):
        np.testing.assert_array_equal(_call(layer, x, training=True), _call(layer, x))


def test_draws_have_the_posteriors_moments():
    """z-scores of n = 20,000 draws per channel, all below 5 (p < 6e-7 each)."""
    n, layer = 20_000, _layer(seed=1)
    y = _call(layer, np.ones((n, 5), "float32"), training=True).astype("float64")
    for k, (m, s) in enumerate(zip(MEAN, LOG_STDDEV, strict=True)):
        theta, q, _ = _theta(m, s)
        mean = q @ theta
        variance = q @ (theta - mean) ** 2
        fourth = q @ (theta - mean) ** 4
        assert abs(y[:, k].mean() - mean) < 5 * (variance / n) ** 0.5
        error = 5 * ((fourth - variance**2) / n) ** 0.5
        assert abs(y[:, k].var() - variance) < error
    low = np.corrcoef(np.argsort(np.argsort(y, 0), 0).T)[np.triu_indices(5, 1)]
    assert np.abs(low * n**0.5).max() < 5


@pytest.mark.parametrize("use_bias", [False, True])
def test_moments_are_those_of_draws_in_evaluation(rng, use_bias):
    """Mean and variance of n = 20,000: z-scores below 5; pruned channels have none."""
    layer = _layer((2, 5), use_bias=use_bias, seed=2)
    inputs = keras.Input((2, 5))
    model = keras.Model(inputs, layer(inputs))
    if use_bias:
        layer.bias.assign([0.5, -1.0, 2.0, 0.0, 3.0])
    x, n = rng.normal(size=(1, 2, 5)).astype("float32"), 20_000
    moments = bayesnorm.moments.propagate(model, x, 0.0)
    mean, variance = (
        ops.convert_to_numpy(v).astype("float64")
        for v in (moments.mean, moments.variance)
    )
    mean, variance = (np.broadcast_to(v, (1, 2, 5))[0] for v in (mean, variance))
    with bayesnorm.noise_mode("sample"):
        y = _call(model, np.repeat(x, n, 0)).astype("float64")
    squares = (y - y.mean(0)) ** 2
    assert (np.abs(y.mean(0) - mean) <= 5 * (variance / n) ** 0.5 + 1e-6).all()
    error = 5 * squares.std(0) / n**0.5 + 1e-9
    assert (np.abs(squares.mean(0) - variance) <= error).all()
    assert (variance[:, KEPT] > 0).all()
    assert (variance[:, ~np.array(KEPT)] == 0).all()
    # What positions share is all of it: their average has the average's variance.
    pooled = keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(model(inputs)))
    got = bayesnorm.moments.propagate(pooled, x, 0.0).variance
    with bayesnorm.noise_mode("sample"):
        y = _call(pooled, np.repeat(x, n, 0)).astype("float64")
    np.testing.assert_allclose(
        np.broadcast_to(ops.convert_to_numpy(got), (1, 5))[0],
        y.var(0),
        rtol=0.15,
        atol=1e-9,
    )


def test_gradient_of_a_draw_reaches_the_parameters(rng):
    """Of E[theta], from 40,000 draws: z-scores against quadrature below 5.

    Channel by channel, the estimate's error from 40 groups of draws.
    """
    n, h, layer = 1000, 1e-4, _layer(seed=4)
    found = []
    for _ in range(40):
        found.append(_gradient(layer, np.ones((n, 5), "float32")))
    found = np.array(found, "float64") / n
    error = 5 * found.std(0) / len(found) ** 0.5 + 2e-6
    for k, (m, s) in enumerate(zip(MEAN, LOG_STDDEV, strict=True)):
        for i, (dm, ds) in enumerate(((h, 0), (0, h))):
            up, low = _theta(m + dm, s + ds), _theta(m - dm, s - ds)
            truth = (up[0] @ up[1] - low[0] @ low[1]) / (2 * h)
            assert abs(found[:, i, k].mean() - truth) < error[i, k] + 1e-4 * abs(truth)


def _gradient(layer, x):
    """Of the sum of the outputs in training, for `mean` and `log_stddev`."""
    variables = [layer.mean, layer.log_stddev]
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            total = ops.sum(layer(x, training=True))
        return [ops.convert_to_numpy(g) for g in tape.gradient(total, variables)]
    import jax

    # The state of the draws moves on as in a step of training.
    trained = [v.value for v in layer.trainable_variables]
    rest = [v.value for v in layer.non_trainable_variables]

    def total(trained):
        y, rest_after = layer.stateless_call(trained, rest, x, training=True)
        return ops.sum(y), rest_after

    slopes, rest_after = jax.grad(total, has_aux=True)(trained)
    for variable, value in zip(layer.non_trainable_variables, rest_after, strict=True):
        variable.assign(value)
    order = [id(v) for v in layer.trainable_variables]
    return [np.asarray(slopes[order.index(id(v))]) for v in variables]


def test_the_summary():
    layer = _layer()
    summary = layer.posterior_summary()
    assert {name: unit for name, (_, unit) in summary.items()} == {
        "snr": "1",
        "kept": "%",
    }
    np.testing.assert_array_equal(summary["snr"][0], layer.snr())
    np.testing.assert_allclose(summary["kept"][0], [60.0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["mean", "log_stddev"])
def test_parameters_that_are_not_finite_prune_nothing(name, value):
    layer = _layer()
    variable = getattr(layer, name)
    values = ops.convert_to_numpy(variable).copy()
    values[3] = value
    variable.assign(values)
    for figure in (layer.expected_scale, layer.snr, layer.median, layer.evidence):
        with pytest.raises(ValueError, match=r"not finite, of the channels \[3\]"):
            figure()
    with pytest.raises(ValueError, match="not finite"):
        layer.keep
    x = np.ones((3, 5), "float32")
    with bayesnorm.noise_mode("sample"):
        sampled = _call(layer, x)
    inputs = keras.Input((5,))
    compiled = keras.Model(inputs, layer(inputs)).predict(x, verbose=0)
    for y in (_call(layer, x), sampled, _call(layer, x, training=True), compiled):
        assert np.isnan(y[:, 3]).all()
        assert np.isfinite(np.delete(y, 3, 1)).all()
    summary = layer.posterior_summary()
    assert np.isnan(summary["kept"][0]).all()
    np.testing.assert_array_equal(
        np.isnan(summary["snr"][0]), [False, False, False, True, False]
    )


def test_the_optimizer_keeps_the_box():
    layer = bayesnorm.StructuredBayesianPruning(initial_mean=4.9, num_examples=1)
    model = keras.Sequential([keras.Input((2,)), layer])
    model.compile(keras.optimizers.SGD(1e4), "mse")
    x = np.ones((4, 2), "float32")
    for _ in range(3):
        model.train_on_batch(x, x)
    for variable, low, high in ((layer.mean, -20, 5), (layer.log_stddev, -20, 5)):
        value = ops.convert_to_numpy(variable)
        assert ((value >= low) & (value <= high)).all()
    # What is lost stays lost: clipped, it would be a parameter like any other.
    for bad in (np.nan, np.inf, -np.inf):
        value = ops.convert_to_numpy(layer.mean.constraint(np.array([bad, 1.0], "f4")))
        assert np.isnan(value[0])
        assert value[1] == 1


def test_evidence_prunes_what_lies_at_zero():
    """Without a threshold: channels that sit at e^-20, not those that are wide."""
    layer = _layer(
        mean=[0.0, -1.0, -20.0, -15.0, -19.0], log_stddev=[-5.0, 1.0, 0.0, -3.0, 1.5]
    )
    evidence = layer.evidence()
    np.testing.assert_array_equal(evidence >= 0, [False, False, True, False, True])
    for k in (1, 2, 4):
        *_, ratio = _theta(*(float(v.value[k]) for v in (layer.mean, layer.log_stddev)))
        np.testing.assert_allclose(evidence[k], np.log(ratio[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_axis(rng, axis):
    x = rng.normal(size=(2, 5, 5, 5)).astype("float32")
    layer = _layer((5, 5, 5), axis=axis, use_bias=True)
    layer.bias.assign([1.0, 2.0, 3.0, 4.0, 5.0])
    shape = [1, 1, 1, 1]
    shape[axis] = 5
    scale = np.where(KEPT, layer.expected_scale(), 0).reshape(shape)
    bias = np.arange(1.0, 6.0).reshape(shape)
    np.testing.assert_allclose(_call(layer, x), x * scale + bias, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": -1.0}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"initial_mean": 5.1}, "`initial_mean` must be a number from -20 to 5"),
        ({"initial_log_stddev": -21}, "`initial_log_stddev` must be a number"),
        ({"initial_log_stddev": float("nan")}, "initial_log_stddev"),
        ({"initial_mean": "zeros"}, "initial_mean"),
        ({"use_bias": "no"}, "use_bias"),
        ({"kl_weight": -1.0}, "kl_weight"),
        ({"num_examples": 10, "kl_weight": 0.1}, "give one of the two"),
    ],
)
def test_argument_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        bayesnorm.StructuredBayesianPruning(**arguments)


@pytest.mark.parametrize("axis", [0, 3, 1.5, None])
def test_wrong_axis(axis):
    with pytest.raises(ValueError, match=r"must name a channel axis.*1 to 2"):
        bayesnorm.StructuredBayesianPruning(axis=axis)(keras.Input((5, 4)))


@pytest.mark.parametrize("examples", [400, long(2000)])
def test_training_finds_the_channels_that_matter(rng, examples):
    """Of 12 inputs a linear target depends on 4: those are kept, no others.

    From the authors' start. Under the log-uniform prior the noise of an input that
    the target does not need costs nothing, and is the way to a lower KL.
    """
    useful = [1, 4, 7, 10]
    weights = np.zeros((12, 1))
    weights[useful, 0] = [1.0, -1.5, 2.0, -1.0]
    x = rng.normal(size=(examples, 12))
    y = x @ weights + 0.5 * rng.normal(size=(examples, 1))
    x, y = x.astype("float32"), y.astype("float32")
    layer = bayesnorm.StructuredBayesianPruning(num_examples=examples, seed=0)
    model = keras.Sequential([keras.Input((12,)), layer, keras.layers.Dense(1)])
    model.layers[-1].set_weights([np.linalg.lstsq(x, y)[0], np.zeros(1)])
    # The Gaussian likelihood of the noise's variance, 0.25.
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.05, 800)),
        lambda y, f: 2 * ops.square(y - f),
        steps_per_execution=20,
    )
    model.fit(x, y, batch_size=examples // 20, epochs=40, verbose=0)
    np.testing.assert_array_equal(np.flatnonzero(layer.keep), useful)
    assert layer.snr()[useful].min() > 3
    # By the evidence, too: useless ones are all but a tie with the model without them.
    tie = layer.evidence() >= -0.5 * np.log(2 * np.pi)
    np.testing.assert_array_equal(np.flatnonzero(~tie), useful)
    np.testing.assert_array_equal(
        model.predict(x, verbose=0),
        model.predict(np.where(layer.keep, x, 7.0), verbose=0),
    )
    residual = y - model.predict(x, verbose=0)
    assert 0.2 < np.mean(residual**2) < 0.4
