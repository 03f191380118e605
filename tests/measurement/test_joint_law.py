"""The joint law of batch statistics: found, kept, drawn, and handed on."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import bayesnorm
from bayesnorm.layers.stochastic_batch_norm import (
    batch_statistics,
    stochastic_batch_normalizations,
)
from bayesnorm.measurement.minibatch import record_statistics

SBN = bayesnorm.StochasticBatchNormalization


def numpy(x):
    return ops.convert_to_numpy(x)


def images(rng, n=320):
    """Of a brightness and a contrast of their own: statistics that go together."""
    x = rng.normal(size=(n, 6, 6, 2)) * np.exp(0.5 * rng.normal(size=(n, 1, 1, 1)))
    return (x + rng.normal(size=(n, 1, 1, 1))).astype("float32")


def network(**arguments):
    """Three normalizations, one of them in a nested model."""
    nested = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            layers.Conv2D(4, 3),
            SBN(name="second", seed=2, **arguments),
            layers.ReLU(),
        ],
        name="nested",
    )
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(3, 3)(inputs)
    x = layers.ReLU()(SBN(name="first", seed=1, **arguments)(x))
    x = layers.Flatten()(nested(x))
    x = SBN(name="third", seed=3, **arguments)(layers.Dense(5)(x))
    return keras.Model(inputs, layers.Dense(3)(layers.ReLU()(x)))


def calibrated(model, x, **arguments):
    with warnings.catch_warnings():
        # Of an untrained network the moving averages are no statistics.
        warnings.simplefilter("ignore")
        arguments = {"batch_size": 16, "shuffle": False, "verbose": False, **arguments}
        return bayesnorm.calibrate(model, x, **arguments)


def law_of(model):
    """The factor of all layers, `[rank, statistics]`."""
    norms = stochastic_batch_normalizations(model)
    factors = [numpy(norm.law_factor) for norm in norms]
    return np.concatenate([f.reshape(len(f), -1) for f in factors], axis=1)


def recorded(model, x):
    """The statistics of the batches in the order of `law_of`, `[batches, size]`."""
    batches = iter(x.reshape(-1, 16, *x.shape[1:]))
    met = record_statistics(model, batches, len(x) // 16)
    parts = {
        layer.name: np.concatenate([mean, log_variance], axis=1)
        for layer, mean, log_variance in met.by_call()
    }
    norms = stochastic_batch_normalizations(model)
    return np.concatenate([parts[norm.name] for norm in norms], axis=1).astype(
        "float64"
    )


def drawn(model, samples):
    """The statistics that the layers of sampled networks normalize with."""
    norms = stochastic_batch_normalizations(model)
    inputs = keras.Input((1,))
    # Of y = (x - mean) exp(-log_variance / 2), with x = 0 and with x = 1, the two.
    ends = [_constant(norm, inputs, value) for norm in norms for value in (0.0, 1.0)]
    said = bayesnorm.predict(
        keras.Model(inputs, ends),
        np.zeros((1, 1), "float32"),
        samples,
        seed=0,
        task="regression",
        keep_samples=True,
        verbose=False,
    )
    outputs = [p.samples[:, 0].astype("float64") for p in said.values()]
    parts = []
    for at_zero, at_one in zip(outputs[::2], outputs[1::2], strict=True):
        scale = at_one - at_zero
        parts += [-at_zero / scale, -2.0 * np.log(scale)]
    return np.concatenate(parts, axis=1)


def _constant(norm, inputs, value):
    """What a normalization makes of a constant."""
    (channels,) = norm.moving_mean.shape
    x = layers.Dense(
        channels,
        kernel_initializer="zeros",
        bias_initializer=keras.initializers.Constant(value),
    )(inputs)
    if norm.name != "third":
        x = layers.Reshape((1, 1, channels))(x)
    return layers.Flatten()(norm(x))


# --- found -----------------------------------------------------------------------


def test_with_room_for_all_batches_the_law_is_their_covariance(rng):
    x, model = images(rng), network()
    calibrated(model, x, rank=19)
    statistics = recorded(model, x)
    expected = np.corrcoef(statistics.T)
    factor = law_of(model).astype("float64")
    # Beside other layers, not within one alone.
    np.testing.assert_allclose(factor.T @ factor, expected, atol=2e-4)
    assert np.abs(expected[:6, 6:]).max() > 0.5
    assert all(n.law_rank == 19 for n in stochastic_batch_normalizations(model))


def test_a_small_rank_is_nearly_the_best_one(rng):
    x, model = images(rng, 1600), network()
    calibrated(model, x, rank=4)
    expected = np.corrcoef(recorded(model, x).T)
    values, vectors = np.linalg.eigh(expected)
    best = (vectors[:, -4:] * values[-4:]) @ vectors[:, -4:].T
    factor = law_of(model).astype("float64")

    def error(approximation):
        difference = approximation - expected
        return np.linalg.norm(difference - np.diag(np.diag(difference)))

    assert error(factor.T @ factor) < 1.2 * error(best)
    assert error(best) < 0.6 * error(np.zeros_like(best))


def test_moments_are_those_of_the_independent_law(rng):
    x, joint, independent = images(rng), network(), network()
    independent.set_weights(joint.get_weights())
    calibrated(joint, x)
    calibrated(independent, x, law="independent")
    pairs = map(stochastic_batch_normalizations, (joint, independent))
    for a, b in zip(*pairs, strict=True):
        assert b.law_factor is None
        moments = a.statistics_moments(), b.statistics_moments()
        for one, other in zip(*moments, strict=True):
            np.testing.assert_array_equal(one, other)


def test_going_on_is_as_if_never_stopped(rng, tmp_path):
    x, whole = images(rng), network()
    parts = network()
    parts.set_weights(whole.get_weights())
    calibrated(whole, x, rank=5)
    calibrated(parts, x[:160], rank=5)
    parts.save(tmp_path / "model.keras")
    parts = keras.saving.load_model(tmp_path / "model.keras")
    calibrated(parts, x[160:], reset=False)
    for a, b in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_a_layer_that_is_called_twice_has_one_law_for_both_calls(rng):
    shared, other = SBN(name="shared"), SBN(name="other")
    inputs = keras.Input((4,))
    calls = [shared(layers.Dense(3)(inputs)) for _ in range(2)]
    single = other(layers.Dense(3)(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Add()([*calls, single])))
    data = rng.normal(size=(400, 16, 4)) + rng.normal(size=(400, 1, 4))
    data = data.reshape(-1, 4).astype("float32")
    calibrated(model, data, rank=12)
    met = record_statistics(model, iter(data.reshape(-1, 16, 4)), 400)
    first, second, single = (
        np.concatenate(statistics, axis=1) for _, *statistics in met.by_call()
    )
    rows = [
        np.concatenate([call, single], axis=1).astype("float64")
        for call in (first, second)
    ]
    assert met.layers == (shared, shared, other)
    expected = np.corrcoef(np.concatenate(rows).T)
    parts = [numpy(n.law_factor).reshape(12, -1) for n in (shared, other)]
    factor = np.concatenate(parts, axis=1)
    # Running means of one and of two calls a pass differ by the order of 1 / batches.
    np.testing.assert_allclose(factor.T @ factor, expected, atol=0.02)
    assert np.abs(expected[:6, 6:]).max() > 0.3


def test_the_calls_of_one_layer_count_alike(rng):
    shared, inputs = SBN(), keras.Input((4,))
    calls = [shared(layers.Dense(3)(inputs)) for _ in range(2)]
    model = keras.Model(inputs, layers.Add()(calls))
    data = rng.normal(size=(80, 4)).astype("float32")
    calibrated(model, data)
    met = record_statistics(model, iter(data.reshape(-1, 16, 4)), 5)
    pooled = np.concatenate([np.concatenate(x, axis=1) for _, *x in met.by_call()])
    factor = numpy(shared.law_factor).reshape(16, -1)
    expected = np.corrcoef(pooled.astype("float64").T)
    np.testing.assert_allclose(factor.T @ factor, expected, atol=1e-4)


def test_a_frozen_layer_has_no_part_in_the_law(rng):
    x, model = images(rng), network()
    calibrated(model, x)
    model.get_layer("nested").trainable = False
    calibrated(model, x)
    second = model.get_layer("nested").get_layer("second")
    assert second.is_fixed()
    assert not numpy(second.law_factor).any()
    assert numpy(model.get_layer("first").law_factor).any()


class Cell(layers.Layer):
    """A recurrent cell that normalizes."""

    state_size = output_size = 4

    def __init__(self):
        super().__init__()
        self.norm = SBN(name="in_a_cell")

    def build(self, input_shape):
        self.norm.build(input_shape)

    def call(self, x, states, training=None):
        h = self.norm(x, training=training) + 0.5 * states[0]
        return h, [h]


@pytest.mark.tensorflow
def test_a_layer_in_a_loop_is_named_and_independent(rng):
    """With Keras on JAX no layer can keep statistics there."""
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, SBN(name="behind")(layers.RNN(Cell())(inputs)))
    x = rng.normal(size=(64, 5, 4)).astype("float32")
    with pytest.warns(UserWarning, match="no statistics come: in_a_cell. Theirs"):
        bayesnorm.calibrate(model, x, batch_size=16)
    norm = model.layers[1].cell.norm
    assert not numpy(norm.law_factor).any()
    assert numpy(model.get_layer("behind").law_factor).any()


# --- drawn -----------------------------------------------------------------------


def test_draws_have_the_covariance_of_the_batches_across_layers(rng):
    """4,000 networks: each entry within 5 standard errors of a correlation."""
    x, model, samples = images(rng), network(), 4000
    calibrated(model, x, rank=19)
    statistics, got = recorded(model, x), drawn(model, samples)
    variance = statistics.var(0, ddof=1)
    np.testing.assert_allclose(
        got.mean(0), statistics.mean(0), atol=5 * (variance.max() / samples) ** 0.5
    )
    # Of a variance of normal draws the relative error is sqrt(2 / n).
    relative = got.var(0, ddof=1) / variance - 1.0
    assert np.abs(relative).max() < 5 * (2 / samples) ** 0.5
    expected = np.corrcoef(statistics.T)
    error = 5 * (1 - expected**2 + 0.01) / samples**0.5
    assert (np.abs(np.corrcoef(got.T) - expected) < error).all()
    between = np.abs(expected[:6, 6:])
    assert between.max() > 0.5

    calibrated(model, x, law="independent")
    independent = np.corrcoef(drawn(model, samples).T)
    bound = 5 / samples**0.5
    assert np.abs(independent - np.eye(len(independent))).max() < bound


def test_marginals_of_a_small_rank_are_exact(rng):
    x, model, samples = images(rng), network(), 4000
    calibrated(model, x, rank=2)
    got = drawn(model, samples)
    variance = recorded(model, x).var(0, ddof=1)
    relative = got.var(0, ddof=1) / variance - 1.0
    assert np.abs(relative).max() < 5 * (2 / samples) ** 0.5


def test_a_layer_by_itself_has_the_law_within_it(rng):
    x, model = images(rng), network(noise="example")
    calibrated(model, x, rank=19)
    norm = model.get_layer("third")
    n = 4000
    with bayesnorm.noise_mode("sample"):
        y = [numpy(norm(np.full((n, 5), v, "float32"))) for v in (0.0, 0.0)]
    # Two calls draw twice, and each example has its own.
    assert np.abs(y[0] - y[1]).max() > 0
    factor = numpy(norm.law_factor).astype("float64")
    mean, stddev, log_variance, log_stddev = map(numpy, norm.statistics_moments())
    z = np.random.default_rng(1).normal(size=(200_000, 19))
    own = np.sqrt(np.maximum(1 - np.square(factor).sum(0), 0))
    e = np.random.default_rng(2).normal(size=(2, 200_000, 5))
    m, logs = (z @ factor[:, k] + own[k] * e[k] for k in (0, 1))
    expected = -(mean + stddev * m) * np.exp(-0.5 * (log_variance + log_stddev * logs))
    expected, got = np.corrcoef(expected.T), np.corrcoef(y[0].T)
    np.testing.assert_allclose(got, expected, atol=0.1)
    assert np.abs(off_diagonal(expected)).max() > 0.3


def off_diagonal(matrix):
    return matrix - np.diag(np.diag(matrix))


def test_the_joint_law_is_nearer_to_real_batches(rng):
    x, model = images(rng, 1600), network()
    test = x[:40]
    arguments = {"samples": 400, "from_logits": True, "seed": 1, "verbose": False}
    calibrated(model, x)
    real = bayesnorm.predict(model, test, method="minibatch", train_data=x, **arguments)
    errors = {}
    for law in ("joint", "independent"):
        calibrated(model, x, law=law)
        found = bayesnorm.predict(model, test, **arguments)
        errors[law] = (
            np.abs(found.probs - real.probs).mean(),
            np.abs(found.mutual_information - real.mutual_information).mean(),
        )
    for joint, independent in zip(errors["joint"], errors["independent"], strict=True):
        assert joint < 0.7 * independent, errors


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_moments_follow_the_correlation_within_a_channel(sign):
    """Of positions, and of their average, by quadrature of one draw of both."""
    norm, stddev, log_stddev, rho = SBN(law_rank=1, scale=False), 0.7, 0.8, 0.81 * sign
    inputs = keras.Input((2, 1))
    y = norm(inputs)
    model = keras.Model(inputs, [y, layers.GlobalAveragePooling1D()(y)])
    norm.mu_mean.assign([0.3])
    norm.mu_variance.assign([stddev**2])
    norm.log_variance_mean.assign([-0.4])
    norm.log_variance_variance.assign([log_stddev**2])
    norm.statistics_count.assign(1e6)
    norm.law_factor.assign([[[0.9], [0.9 * sign]]])
    values = np.array([1.5, -2.0])
    got = bayesnorm.moments.propagate(model, values.reshape(1, 2, 1).astype("f"), 0.0)

    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = np.outer(weights, weights) / weights.sum() ** 2
    z, e = np.meshgrid(nodes, nodes, indexing="ij")
    mean = 0.3 + stddev * (rho * z + (1 - rho**2) ** 0.5 * e)
    draws = (values[:, None, None] - mean) * np.exp(0.2 - 0.5 * log_stddev * z)
    for moments, of_draws in zip(got, (draws, draws.mean(0)[None]), strict=True):
        first = (weights * of_draws).sum((1, 2))
        second = (weights * of_draws**2).sum((1, 2)) - first**2
        np.testing.assert_allclose(numpy(moments.mean).ravel(), first, rtol=1e-4)
        np.testing.assert_allclose(numpy(moments.variance).ravel(), second, rtol=1e-4)


def test_networks_do_not_depend_on_the_batch(rng):
    x, model = images(rng, 64), network()
    calibrated(model, x)
    arguments = {"samples": 3, "keep_samples": True, "task": "regression", "seed": 4}
    whole = bayesnorm.predict(model, x, **arguments)
    parts = bayesnorm.predict(model, x, batch_size=9, chunk_size=11, **arguments)
    np.testing.assert_allclose(whole.samples, parts.samples, atol=2e-5)


# --- handed on -------------------------------------------------------------------


def same_networks(one, other, x):
    arguments = {"samples": 4, "keep_samples": True, "task": "regression", "seed": 4}
    expected = bayesnorm.predict(one, x, **arguments).samples
    got = bayesnorm.predict(other, x, **arguments).samples
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert np.ptp(expected, axis=0).max() > 1e-3


def test_the_law_goes_where_the_weights_go(rng, tmp_path):
    x, model = images(rng), network()
    calibrated(model, x, rank=7)
    model.save(tmp_path / "model.keras")
    same_networks(model, keras.saving.load_model(tmp_path / "model.keras"), x[:8])

    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    same_networks(model, clone, x[:8])

    # Into networks that were made without it, or with another one.
    model.save_weights(tmp_path / "model.weights.h5")
    for before in (None, 3):
        fresh = network()
        if before:
            calibrated(fresh, x, rank=before)
        fresh.load_weights(tmp_path / "model.weights.h5")
        same_networks(model, fresh, x[:8])
        assert {n.law_rank for n in stochastic_batch_normalizations(fresh)} == {7}
        same_networks(model, bayesnorm.copy_weights(model, network()), x[:8])

    # And away again.
    independent = calibrated(network(), x, law="independent")
    independent.save_weights(tmp_path / "independent.weights.h5")
    model.load_weights(tmp_path / "independent.weights.h5")
    same_networks(independent, model, x[:8])
    assert model.get_layer("first").law_factor is None


def test_conversion_keeps_the_law(rng):
    x, model = images(rng), network()
    calibrated(model, x)
    model.compile("sgd", "mse")
    inner = keras.Sequential([model, layers.BatchNormalization()])
    inner.build((None, 6, 6, 2))
    converted = bayesnorm.to_stochastic(inner)
    np.testing.assert_array_equal(law_of(converted.layers[0]), law_of(model))


def test_an_ensemble_is_one_function_of_the_laws_of_its_members(rng):
    x = images(rng)
    members = [calibrated(network(), x, rank=4) for _ in range(2)]
    sets = bayesnorm.WeightSets.of(members)
    arguments = {"samples": 5, "keep_samples": True, "task": "regression", "seed": 2}
    expected = bayesnorm.predict(members, x[:6], **arguments)
    got = bayesnorm.predict(sets, x[:6], **arguments)
    np.testing.assert_allclose(got.samples, expected.samples, rtol=1e-5, atol=1e-6)


def test_an_old_configuration_is_the_independent_law():
    config = SBN(name="old").get_config()
    assert config.pop("law_rank") == 0
    layer = SBN.from_config(config)
    layer.build((None, 3))
    assert layer.law_factor is None
    assert len(layer.weights) == 10
    with pytest.raises(ValueError, match="law_rank"):
        SBN(law_rank=-1)


def test_training_goes_on_with_a_law(rng):
    x, model = images(rng, 64), network()
    model.compile("sgd", "mse")
    y = np.zeros((64, 3), "float32")
    model.fit(x, y, verbose=0)
    calibrated(model, x, rank=3)
    before = law_of(model)
    model.fit(x, y, epochs=20, verbose=0)
    np.testing.assert_array_equal(law_of(model), before)
    with pytest.raises(ValueError, match="not trained"):
        calibrated(model, x, reset=False)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_keeps_the_law_in_float32(rng, policy):
    x = images(rng)
    plain = network()
    keras.config.set_dtype_policy(policy)
    model = network()
    model.set_weights(plain.get_weights())
    calibrated(model, x, rank=4)
    calibrated(plain, x, rank=4)
    a, b = law_of(model), law_of(plain)
    assert a.dtype == np.float32
    assert np.abs(a.T @ a - b.T @ b).max() < 0.1


# --- errors ----------------------------------------------------------------------


def test_errors_say_the_mend_and_leave_the_law(rng):
    x, model = images(rng), network()
    calibrated(model, x, rank=4)
    before = model.get_weights()

    def refused(match, data=x, **arguments):
        with pytest.raises(ValueError, match=match):
            calibrated(model, data, **arguments)
        for a, b in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)

    refused(r"21 or more batches. Received: 20 .*rank=19 or less, or no rank", rank=20)
    refused("`law` must be one of", law="rank")
    refused("`rank` must be an integer from 1", rank=0)
    refused("`rank` is of the joint law", law="independent", rank=3)
    refused("had batches of .*calibrate with reset=True", batch_size=8, reset=False)
    refused("latest calibration was law='joint', rank=4", rank=5, reset=False)
    refused("same law and rank.*reset=True", law="independent", reset=False)
    refused("2 or more batches", data=x[:16])
    broken = x.copy()
    broken[200] = np.inf
    refused("NaN or infinity", data=broken, rank=6)
    refused("not finite", data=np.full_like(x, 1e30), law="independent")
    # Fewer batches than the default rank: what there is.
    calibrated(model, x[:80])
    assert np.linalg.matrix_rank(law_of(model), tol=1e-3) == 4


def test_statistics_from_outside_need_no_law(rng):
    norm = SBN(law_rank=2)
    x = rng.normal(size=(8, 3)).astype("float32")
    expected = numpy(norm(x, training=True))
    with batch_statistics(lambda layer, x, mask, _: layer.batch_statistics(x, mask)):
        np.testing.assert_allclose(numpy(norm(x)), expected, atol=1e-5)
