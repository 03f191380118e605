"""The contract of layers with a posterior, by layers that a user writes."""

import inspect
import pathlib
import re

import keras
import numpy as np
import pytest
from keras import ops

import bayesnorm
from bayesnorm.layers import posterior_layers


@keras.saving.register_keras_serializable("test_posterior")
class NoisyBias(bayesnorm.VariationalLayer):
    """`y = x + b`, `b ~ Normal(mean, exp(log_stddev)^2)`, prior Normal(0, 1)."""

    def build(self, input_shape):
        shape, start = input_shape[-1:], keras.initializers.Constant(-1.0)
        self.mean = self.add_weight(name="mean", shape=shape, initializer="zeros")
        self.log_stddev = self.add_weight(name="s", shape=shape, initializer=start)
        super().build(input_shape)

    @property
    def noise_shapes(self):
        return {"bias": tuple(self.mean.shape)}

    def kl_divergence(self):
        squares = self.mean**2 + ops.exp(2.0 * self.log_stddev) - 1.0
        return ops.sum(0.5 * squares - self.log_stddev)

    def call(self, inputs, training=None):
        z = self.standard_normal("bias", ops.shape(inputs)[0], training)
        bias = self.mean + (0.0 if z is None else ops.exp(self.log_stddev) * z)
        shape = (-1, *[1] * (len(inputs.shape) - 2), inputs.shape[-1])
        return inputs + ops.cast(ops.reshape(bias, shape), inputs.dtype)


@bayesnorm.moments.register(NoisyBias)
def _noisy_bias_moments(layer, moments):
    moments = moments.over(-1)
    moments = moments.affine(1.0, moments.along(ops.convert_to_tensor(layer.mean)))
    if moments.stationary:
        return moments
    return moments.with_common_noise(ops.exp(2.0 * layer.log_stddev), axis=-1)


def _example(base):
    (source,) = re.findall(r"```python\n(.*?)```", inspect.getdoc(base), re.DOTALL)
    return source


def documented(base):
    """Returns the layer that the docstring of a base class shows."""
    names = {"__name__": "documented"}
    exec(_example(base), names)
    (layer,) = (x for x in names.values() if isinstance(x, type))
    return layer


def _values(rng, *shape):
    return rng.normal(size=shape).astype("float32")


def _model(**kwargs):
    layer = NoisyBias(**kwargs)
    return keras.Sequential([keras.Input((4,)), layer]), layer


def test_kl_is_that_of_tfp_in_float64(rng):
    from tensorflow_probability.substrates import numpy as tfp

    normal = tfp.distributions.Normal
    model, layer = _model()
    mean, log_stddev = rng.normal(size=(2, 4)).astype("float32").astype("float64")
    layer.mean.assign(mean)
    layer.log_stddev.assign(log_stddev)
    one = np.ones(4)
    expected = normal(mean, np.exp(log_stddev)).kl_divergence(normal(0 * one, one))
    kl = bayesnorm.kl_divergence(model)
    np.testing.assert_allclose(float(kl), expected.sum(), rtol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_loss_of_fit_contains_the_weighted_kl_once(rng, jit_compile):
    layer = NoisyBias(kl_weight=0.25)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layer(layer(inputs)))
    layer.mean.assign([0.5, -1.0, 2.0, 0.0])
    x = _values(rng, 32, 4)
    expected = 0.25 * float(layer.kl_divergence()) + 4 * np.mean([0.25, 1, 4, 0])
    with bayesnorm.noise_mode("mean"):
        model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=jit_compile)
        losses = model.fit(x, x, batch_size=8, epochs=2, verbose=0).history["loss"]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_a_frozen_layer_adds_nothing(rng):
    model, layer = _model(kl_weight=1.0)
    layer.trainable = False
    assert not model.losses
    with bayesnorm.noise_mode("mean"):
        model.compile(keras.optimizers.SGD(0.1), "mse")
        x = _values(rng, 8, 4)
        (loss,) = model.fit(x, x, verbose=0).history["loss"]
    assert loss == 0


def test_examples_are_counted_until_a_weight_is_set_and_both_are_saved(rng, tmp_path):
    x = _values(rng, 24, 4)
    model, layer = _model()
    model.compile("sgd", "mse")
    model.fit(x, x, batch_size=10, epochs=2, verbose=0)
    assert float(layer.kl_weight_variable.value) == pytest.approx(1 / 24)

    def loaded_and_trained_on_half(file="model.keras"):
        model.save(tmp_path / file)
        loaded = keras.saving.load_model(tmp_path / file, compile=False)
        loaded.compile("sgd", "mse")
        for old, new in zip(model.get_weights(), loaded.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
        loaded.fit(x[:12], x[:12], epochs=2, verbose=0)
        return float(loaded.layers[0].kl_weight_variable.value)

    assert loaded_and_trained_on_half() == pytest.approx(1 / 12)
    bayesnorm.set_kl_weight(model, 0.125)
    assert loaded_and_trained_on_half() == 0.125
    assert loaded_and_trained_on_half("model.h5") == 0.125


@pytest.mark.parametrize("said_by", ["layer", "call"])
def test_the_first_epoch_has_its_kl_where_n_is_said(rng, said_by, recwarn):
    """The loss that `ReduceLROnPlateau("loss")` watches does not jump."""
    model, layer = _model(num_examples=32 if said_by == "layer" else None)
    if said_by == "call":
        bayesnorm.set_kl_weight(model, 1 / 32)
    x = _values(rng, 32, 4)
    with bayesnorm.noise_mode("mean"):
        model.compile(keras.optimizers.SGD(0.0), "mse")
        losses = model.fit(x, x, epochs=3, verbose=0).history["loss"]
    np.testing.assert_allclose(losses, float(layer.kl_divergence()) / 32, rtol=1e-5)
    bayesnorm.predict(model, x, task="regression")
    assert not _said(recwarn)


class OwnMetrics(keras.Model):
    """A model whose `metrics` are its own, as in Keras's guide to `train_step`."""

    def __init__(self, *graph):
        super().__init__(*graph)
        self.own = keras.metrics.Mean(name="own")

    @property
    def metrics(self):
        return [self.own]


def _fit(model, x, **arguments):
    model.fit(x, x, batch_size=8, epochs=2, verbose=0, **arguments)


def _on_batches(model, x, **_):
    for i in range(0, len(x), 8):
        model.train_on_batch(x[i : i + 8], x[i : i + 8])


def _by_hand(model, x, **_):
    for i in range(0, len(x), 8):
        model(x[i : i + 8], training=True)


def _said(record):
    return [str(w.message) for w in record if "set_kl_weight" in str(w.message)]


@pytest.mark.parametrize(
    ("cls", "train", "arguments", "reason"),
    [
        (keras.Model, _fit, {}, "counted 32 examples"),
        (keras.Model, _fit, {"steps_per_epoch": 2}, "counted 16 examples"),
        # Keras resets metrics in `train_on_batch` from 3.11 on.
        (keras.Model, _on_batches, {}, "counted 8 examples|in a loop of your own"),
        (OwnMetrics, _fit, {}, "a model whose `metrics` leave out"),
        (keras.Model, _by_hand, {}, "in a loop of your own"),
    ],
)
def test_a_weight_that_may_be_wrong_is_said_once(rng, cls, train, arguments, reason):
    inputs = keras.Input((4,))
    x = NoisyBias(name="second")(NoisyBias(name="first")(inputs))
    model = cls(inputs, x)
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match=r"set_kl_weight\(model, 1 / N\)") as record:
        train(model, _values(rng, 32, 4), **arguments)
    (message,) = _said(record)
    assert "Layer 'first'" in message
    assert re.search(reason, message)
    assert "num_examples=N" in message


def test_a_posterior_without_its_kl_is_not_sampled_in_silence(rng, recwarn):
    """One single epoch of `fit`: the weight comes when it is over."""
    model = keras.Sequential([keras.Input((4,)), NoisyBias(name="bias"), NoisyBias()])
    x = _values(rng, 16, 4)
    model.compile("sgd", "mse")
    model.fit(x, x, epochs=1, verbose=0)
    assert not _said(recwarn)
    with pytest.warns(UserWarning, match="KL of layer 'bias'"):
        bayesnorm.predict(model, x, task="regression")
    bayesnorm.predict(model, x, task="regression")
    assert len(_said(recwarn)) == 0


def test_measurements_are_no_training(rng, recwarn):
    norm = bayesnorm.StochasticBatchNormalization()
    model = keras.Sequential([keras.Input((4,)), norm, NoisyBias()])
    x = _values(rng, 32, 4)
    bayesnorm.calibrate(model, x, batch_size=8)
    bayesnorm.predict(model, x, method="minibatch", train_data=x, task="regression")
    assert not _said(recwarn)
    assert float(model.layers[1].examples_seen.value) == 0


def test_n_that_the_code_says_outlives_weights_that_were_counted(rng, tmp_path):
    model, _ = _model()
    x = _values(rng, 24, 4)
    model.compile("sgd", "mse")
    model.fit(x, x, epochs=2, verbose=0)
    model.save_weights(tmp_path / "counted.weights.h5")
    model, layer = _model(num_examples=100)
    model.load_weights(tmp_path / "counted.weights.h5")
    model.compile("sgd", "mse")
    model.fit(x, x, epochs=2, verbose=0)
    assert float(layer.kl_weight_variable.value) == pytest.approx(1 / 100)


def test_the_posterior_that_fit_finds_is_the_exact_one(rng):
    """y = x + b + noise, noise ~ N(0, 1): the precision of b is N + 1."""
    n = 400
    x = _values(rng, n, 1)
    y = x + 2.0 + _values(rng, n, 1)
    layer = NoisyBias(kl_weight=1 / n, seed=0)
    model = keras.Sequential([keras.Input((1,)), layer])
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 1000)
    model.compile(
        keras.optimizers.Adam(schedule),
        loss=lambda y, f: ops.square(y - f) / 2,
        steps_per_execution=20,
    )
    model.fit(x, y, batch_size=20, epochs=50, verbose=0)
    mean = np.sum(y - x) / (n + 1)
    np.testing.assert_allclose(float(layer.mean.value[0]), mean, atol=0.02)
    stddev = np.exp(float(layer.log_stddev.value[0]))
    np.testing.assert_allclose(stddev, (n + 1) ** -0.5, rtol=0.1)


def test_all_methods_of_predict(rng):
    model, layer = _model(seed=0)
    layer.mean.assign([0.5, -1.0, 2.0, 0.0])
    layer.log_stddev.assign(np.log([0.1, 0.2, 0.4, 0.8]))
    x = _values(rng, 3, 4)
    mean = x + [0.5, -1.0, 2.0, 0.0]
    np.testing.assert_allclose(model.predict(x, verbose=0), mean, rtol=1e-5)
    noisy = bayesnorm.sampling_model(model).predict(x, verbose=0)
    assert np.abs(noisy - mean).min() > 0

    moments = bayesnorm.moments.propagate(model, x, 0.0)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-5)
    variance = np.broadcast_to(moments.variance, x.shape)
    np.testing.assert_allclose(variance, [[0.01, 0.04, 0.16, 0.64]] * 3, rtol=1e-5)

    sampled = bayesnorm.predict(
        model, x, samples=50, seed=0, from_logits=True, keep_samples=True
    )
    assert sampled.mutual_information.min() > 1e-3
    again = bayesnorm.predict(model, x, samples=50, seed=0, from_logits=True)
    np.testing.assert_array_equal(again.probs, sampled.probs)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_variables_and_kl_are_float32_in_half_precision(rng, policy):
    keras.config.set_dtype_policy(policy)
    model, layer = _model()
    half = policy.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(model(_values(rng, 2, 4)).dtype) == half
    (loss,) = model.losses
    for value in (*layer.weights, loss, layer.kl_divergence()):
        assert keras.backend.standardize_dtype(value.dtype) == "float32"


def test_posterior_layers_are_found_wherever_they_are():
    inner, layer = _model()
    other = bayesnorm.StochasticScaleNorm()
    plain = bayesnorm.NoisyScaleNorm(0.1, 0.1)
    model = keras.Sequential([keras.Input((4,)), inner, plain, other, inner])
    assert posterior_layers(model) == [layer, other]
    with pytest.raises(TypeError, match=r"`model` must be a keras\.Model"):
        posterior_layers(layer)


class _TooEarly(NoisyBias):
    def build(self, input_shape):
        bayesnorm.VariationalLayer.build(self, input_shape)


class _Regularized(NoisyBias):
    def build(self, input_shape):
        self.mean = self.add_weight(shape=(4,), regularizer="l2", name="mean")
        bayesnorm.VariationalLayer.build(self, input_shape)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (_TooEarly, r"Make the variables before `super\(\)\.build.*Found: none"),
        (_Regularized, r"without a regularizer.*Found: '.*mean', regularized"),
    ],
)
def test_a_layer_that_cannot_bring_in_its_kl_says_so(cls, message):
    with pytest.raises(ValueError, match=message):
        cls().build((None, 4))


def test_a_kl_weight_before_it_is_there():
    with pytest.raises(ValueError, match="no weight of its KL: it is not built"):
        NoisyBias().set_kl_weight(1.0)

    class Forgetful(NoisyBias):
        def build(self, input_shape):
            self.mean = self.add_weight(shape=input_shape[-1:], name="mean")

    with pytest.raises(ValueError, match=r"does not end with\s+`super\(\)\.build"):
        Forgetful()(np.ones((2, 4), "float32"))


def test_another_variable_can_carry_the_kl():
    class ByStddev(NoisyBias):
        @property
        def kl_carrier(self):
            return self.log_stddev

    for cls, losses in ((NoisyBias, 0), (ByStddev, 1)):
        model = keras.Sequential([keras.Input((4,)), cls(kl_weight=1.0)])
        model.layers[0].mean.trainable = False
        assert len(model.losses) == losses


def test_the_guide_shows_the_documented_layer():
    guide = pathlib.Path(__file__).parents[2] / "docs/guides/extending.md"
    assert _example(bayesnorm.VariationalLayer) in guide.read_text()
