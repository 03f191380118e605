"""The learned scale against closed forms, and what it learns."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

import bayesnorm
from tests.helpers import long

L = keras.layers


def _built(shape=(4,), **kwargs):
    layer = bayesnorm.StochasticScaleNorm(**kwargs)
    layer.build((None, *shape))
    return layer


@pytest.mark.parametrize(
    ("scale", "stddev", "expected"),
    # log(10 / sigma) + (sigma^2 + (s - 1)^2) / 200 - 1/2 in float64
    [(1.0, 0.1, 4.105220185988091), (0.3, 2.0, 1.1318879124341003)],
)
def test_kl_of_the_normal_prior(scale, stddev, expected):
    assert np.isclose(
        np.log(10 / stddev) + (stddev**2 + (scale - 1) ** 2) / 200 - 0.5, expected
    )
    layer = _built(initial_stddev=stddev)
    layer.scale.assign([scale] * 4)
    np.testing.assert_allclose(float(layer.kl_divergence()), 4 * expected, rtol=1e-6)


def test_kl_is_summed_over_channels_with_one_stddev_for_the_layer():
    one = _built(per_channel=False, initial_stddev=0.3)
    many = _built(initial_stddev=0.3)
    assert one.rho.shape == (1,)
    assert np.isclose(float(one.kl_divergence()), float(many.kl_divergence()))


def test_the_summary_is_the_noise_relative_to_the_scale():
    layer = _built(initial_stddev=0.5, per_channel=False)
    layer.scale.assign([1.0, -2.0, 0.25, 0.0])
    ((name, (values, unit)),) = layer.posterior_summary().items()
    assert (name, unit) == ("relative_stddev", "1")
    np.testing.assert_allclose(values, [0.5, 0.25, 2.0, 0.5e12], rtol=1e-6)


def test_draws_have_the_posteriors_moments_and_are_shared_by_positions(rng):
    """z-scores of n = 20,000 draws per channel, all below 5 (p < 6e-7 each)."""
    layer = _built((2, 3, 4), seed=1)
    layer.scale.assign([0.5, 1.0, -1.5, 2.0])
    layer.bias.assign([0.0, 0.5, 1.0, -3.0])
    layer.rho.assign(np.log([0.05, 0.2, 0.5, 0.9]))
    n = 20_000
    x = np.broadcast_to(rng.normal(size=(1, 2, 3, 4)), (n, 2, 3, 4)).astype("float32")
    with bayesnorm.noise_mode("sample"):
        y = ops.convert_to_numpy(layer(x))
    scale = y / (x + ops.convert_to_numpy(layer.bias))
    np.testing.assert_allclose(
        scale, scale[:, :1, :1] * np.ones((1, 2, 3, 1)), rtol=1e-3
    )
    scale = scale[:, 0, 0].astype("float64")
    mean, stddev = np.array([0.5, 1.0, -1.5, 2.0]), np.array([0.05, 0.2, 0.5, 0.9])
    z_mean = (scale.mean(0) - mean) / (stddev / np.sqrt(n))
    z_variance = (scale.var(0) / stddev**2 - 1) / np.sqrt(2 / n)
    correlation = np.corrcoef(scale.T)[np.triu_indices(4, 1)] * np.sqrt(n)
    assert np.abs([*z_mean, *z_variance, *correlation]).max() < 5


def test_training_draws_and_evaluation_does_not(rng):
    layer = _built()
    x = rng.normal(size=(3, 4)).astype("float32")
    mean = ops.convert_to_numpy(layer(x))
    np.testing.assert_allclose(mean, x, rtol=1e-6)
    assert not np.allclose(ops.convert_to_numpy(layer(x, training=True)), mean)


@pytest.mark.parametrize(
    ("found_by", "prior"),
    [
        ("counting", "log_uniform"),
        *((by, "normal") for by in ("counting", "argument", "callback", "setter")),
        *(long(by, "log_uniform") for by in ("argument", "callback", "setter")),
    ],
)
def test_fit_finds_the_exact_posterior(rng, prior, found_by):
    """A scale and Gaussian data: the best normal posterior is the exact one.

    y = S x + noise, noise ~ N(0, 1): the posterior's precision is
    `sum x^2 + prior precision`; KL weighted by 1 / N of the mean NLL. The
    log-uniform prior, 1/|S|, adds about -1/s^2 to the precision: nothing here.
    """
    n = 400
    x = rng.normal(size=(n, 1)).astype("float32")
    y = (3 * x + rng.normal(size=(n, 1))).astype("float32")
    precision = np.sum(x**2) + (0.01 if prior == "normal" else 0)
    mean = (np.sum(x * y) + (0.01 if prior == "normal" else 0)) / precision

    layer = bayesnorm.StochasticScaleNorm(
        prior=prior,
        initial_stddev=0.5,
        scale_initializer=keras.initializers.Constant(2.0),
        kl_weight=1 / n if found_by == "argument" else None,
        seed=0,
    )
    model = keras.Sequential([keras.Input((1,)), layer])
    layer.bias.trainable = False
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 1200)),
        loss=lambda y, f: ops.square(y - f) / 2,
        steps_per_execution=20,
    )
    if found_by == "setter":
        bayesnorm.set_kl_weight(model, 1 / n)
    callbacks = [bayesnorm.KLWeight(n)] if found_by == "callback" else []
    history = model.fit(x, y, batch_size=20, epochs=60, verbose=0, callbacks=callbacks)
    assert np.isclose(float(layer.kl_weight_variable.value), 1 / n, rtol=1e-6)
    np.testing.assert_allclose(float(layer.scale.value[0]), mean, atol=0.02)
    # About 2 % of Monte Carlo noise is left at the end of the schedule.
    np.testing.assert_allclose(float(layer.stddev[0]), precision**-0.5, rtol=0.1)
    if callbacks:
        assert np.isclose(
            history.history["kl"][-1], float(bayesnorm.kl_divergence(model)), rtol=1e-6
        )
        np.testing.assert_allclose(history.history["kl_weight"], 1 / n)


def test_the_weight_changes_without_compiling_again(rng):
    layer = bayesnorm.StochasticScaleNorm()
    model = keras.Sequential([keras.Input((4,)), layer])
    x = rng.normal(size=(8, 4)).astype("float32")
    model.compile("sgd", "mse")
    losses = {}
    with bayesnorm.noise_mode("mean"):
        for weight in (0.0, 1.0, 0.5):
            bayesnorm.set_kl_weight(model, weight)
            losses[weight] = model.evaluate(x, x, verbose=0)
    kl = float(bayesnorm.kl_divergence(model))
    assert losses[0.0] == pytest.approx(0, abs=1e-6)
    assert losses[1.0] == pytest.approx(kl, rel=1e-5)
    assert losses[0.5] == pytest.approx(kl / 2, rel=1e-5)


def test_a_layer_used_twice_counts_its_kl_once(rng):
    layer = bayesnorm.StochasticScaleNorm(kl_weight=0.5)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layer(layer(inputs)))
    model(rng.normal(size=(2, 4)).astype("float32"), training=True)
    assert len(model.losses) == 1
    assert float(model.losses[0]) == pytest.approx(
        0.5 * float(layer.kl_divergence()), rel=1e-6
    )


def test_examples_are_counted_once_a_step_and_from_the_first_epoch_on(rng):
    layer = bayesnorm.StochasticScaleNorm()
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layer(layer(inputs)))
    x = rng.normal(size=(32, 4)).astype("float32")
    model(x[:2], training=True)
    model.compile("sgd", "mse")
    model.fit(x, x, batch_size=8, epochs=1, verbose=0)
    assert float(layer.kl_weight_variable.value) == 0
    model.fit(x, x, batch_size=8, epochs=1, verbose=0, validation_data=(x, x))
    assert float(layer.kl_weight_variable.value) == pytest.approx(1 / 32)


def test_examples_are_counted_in_a_model_that_fit_builds(rng):
    layer = bayesnorm.StochasticScaleNorm()
    model = keras.Sequential([keras.layers.Dense(4), layer])
    model.compile("sgd", "mse")
    x = rng.normal(size=(32, 4)).astype("float32")
    model.fit(x, x, batch_size=8, epochs=2, verbose=0)
    assert float(layer.kl_weight_variable.value) == pytest.approx(1 / 32)


def test_a_weight_that_was_set_is_saved_and_stays(rng, tmp_path):
    model = keras.Sequential([keras.Input((4,)), bayesnorm.StochasticScaleNorm()])
    bayesnorm.set_kl_weight(model, 0.123)
    model.compile("sgd", "mse")
    model.save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    x = rng.normal(size=(32, 4)).astype("float32")
    model.fit(x, x, epochs=3, verbose=0)
    weight = float(model.layers[0].kl_weight_variable.value)
    assert weight == pytest.approx(0.123)


_REPLICAS = """
import keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
import bayesnorm
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    layer = bayesnorm.StochasticScaleNorm(seed=0)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile("sgd", "mse")
x = np.ones((36, 4), "float32")
model.fit(x, x, batch_size=8, epochs=3, verbose=0)
kl = float(bayesnorm.kl_divergence(model))
print("weight", 36 * float(keras.ops.convert_to_numpy(layer.kl_weight_variable.value)))
bayesnorm.set_kl_weight(model, 1.0)
print("loss", model.evaluate(x, np.asarray(model(x)), batch_size=8, verbose=0) / kl)
def draw():
    with bayesnorm.noise_mode("sample"):
        return model(tf.ones((3, 4)))
values = strategy.run(tf.function(draw)).values
print("same", float(tf.reduce_min(tf.abs(values[0] - values[1])) < 1e-6))
"""


@pytest.mark.tensorflow
def test_replicas_count_all_examples_draw_apart_and_add_one_kl():
    run = subprocess.run(
        [sys.executable, "-c", _REPLICAS], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    figures = dict(line.split() for line in run.stdout.splitlines() if " " in line)
    assert float(figures["weight"]) == pytest.approx(1, rel=1e-5)
    assert float(figures["loss"]) == pytest.approx(1, rel=1e-5)
    assert float(figures["same"]) == 0


def test_kl_warm_up():
    callback = bayesnorm.KLWeight(num_examples=100, warmup_epochs=3)
    model = keras.Sequential([keras.Input((4,)), bayesnorm.StochasticScaleNorm()])
    callback.set_model(model)
    seen = []
    for epoch in range(6):
        callback.on_epoch_begin(epoch)
        seen.append(float(model.layers[0].kl_weight_variable.value) * 100)
    np.testing.assert_allclose(seen, [0.25, 0.5, 0.75, 1, 1, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prior": "cauchy"}, "'normal', 'log_uniform'"),
        ({"prior_scale": 0.0}, "prior_scale"),
        ({"initial_stddev": float("inf")}, "initial_stddev"),
        ({"kl_weight": -1.0}, "kl_weight"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"seed": 2**40}, "seed"),
        ({"kl_weight": "auto"}, "kl_weight"),
        ({"num_examples": 0}, "num_examples"),
        ({"num_examples": 10, "kl_weight": 0.1}, "give one of the two"),
        ({"per_channel": "no"}, "per_channel"),
    ],
)
def test_argument_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        bayesnorm.StochasticScaleNorm(**arguments)


@pytest.mark.parametrize("axis", [0, 3, -3, 1.5, None, (1, 2)])
@pytest.mark.parametrize("layer", [bayesnorm.ScaleNorm, bayesnorm.StochasticScaleNorm])
def test_wrong_axis(layer, axis):
    with pytest.raises(ValueError, match=r"must name a channel axis.*1 to 2"):
        layer(axis=axis)(keras.Input((5, 4)))


def test_unknown_channels():
    with pytest.raises(ValueError, match="number of channels"):
        bayesnorm.ScaleNorm()(keras.Input((5, None)))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_set_kl_weight_errors(weight):
    model = keras.Sequential([keras.Input((4,)), bayesnorm.StochasticScaleNorm()])
    with pytest.raises(ValueError, match="finite number from 0"):
        bayesnorm.set_kl_weight(model, weight)


def test_noise_mode_error():
    match = "'auto', 'mean', 'sample'"
    with pytest.raises(ValueError, match=match), bayesnorm.noise_mode("samples"):
        pass
