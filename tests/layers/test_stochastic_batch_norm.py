"""Stochastic batch normalization: the layer, conversion, calibration, sampling."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from scipy import stats

import bayesnorm
from bayesnorm.layers.stochastic_batch_norm import batch_statistics
from bayesnorm.measurement.minibatch import _full_batches, record_statistics

SBN = bayesnorm.StochasticBatchNormalization


def numpy(x):
    return ops.convert_to_numpy(x)


def single(layer, shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layer(inputs))


def given(layer, mean, mean_stddev, log_variance, stddev):
    """Sets the moments of the statistics, as if of very many batches."""
    layer.mu_mean.assign(mean)
    layer.mu_variance.assign(np.square(mean_stddev))
    layer.log_variance_mean.assign(log_variance)
    layer.log_variance_variance.assign(np.square(stddev))
    layer.statistics_count.assign(1e6)
    return layer


# --- the layer -------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"axis": 1, "momentum": 0.9, "epsilon": 0.1},
        {"center": False, "gamma_initializer": "random_normal"},
        {"scale": False, "beta_initializer": "random_normal"},
        {"moving_mean_initializer": "random_normal", "trainable": False},
    ],
)
def test_without_noise_it_is_batch_normalization_to_the_bit(rng, arguments):
    x = rng.normal(size=(6, 4, 4, 4)).astype("float32")
    outputs = []
    for cls in (layers.BatchNormalization, SBN):
        keras.utils.set_random_seed(1)
        layer = cls(**arguments)
        layer.build(x.shape)
        values = [numpy(layer(x, training=t)) for t in (True, True, False)]
        outputs.append([*values, *map(numpy, layer.get_weights()[: len(values)])])
    for expected, got in zip(*outputs, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_mask_is_respected(rng):
    x = rng.normal(size=(4, 5, 3)).astype("float32")
    mask = rng.uniform(size=(4, 5)) < 0.6
    plain, ours = layers.BatchNormalization(), SBN()
    expected = plain(x, training=True, mask=mask)
    np.testing.assert_array_equal(ours(x, training=True, mask=mask), expected)
    np.testing.assert_allclose(ours.mu_mean, x[mask].mean(0), rtol=1e-5)


def test_moments_while_training_are_debiased_exponential_averages(rng):
    layer = SBN(momentum=0.8, epsilon=0.01)
    batches = rng.normal(3.0, 0.5, size=(7, 10, 4)).astype("float32")
    layer.build((None, 4))
    for batch in batches:
        layer(batch, training=True)
    weights = 0.8 ** np.arange(6, -1, -1)
    weights = weights / weights.sum()
    x = batches.astype("float64")
    values = x.mean(1), np.log(x.var(1) + 0.01)
    got = [numpy(m) for m in layer.statistics_moments()]
    for i, value in enumerate(values):
        mean = weights @ value
        variance = weights @ (value - mean) ** 2 / (1 - (weights**2).sum())
        np.testing.assert_allclose(got[2 * i], mean, rtol=1e-5)
        np.testing.assert_allclose(got[2 * i + 1], np.sqrt(variance), rtol=2e-4)


@pytest.mark.parametrize("momentum", [0.99, 0.999, 0.0, 1.0])
def test_the_first_averages_are_not_negative(rng, momentum):
    layer = SBN(momentum=momentum)
    layer.build((None, 2))
    # A rate that rounding puts above 1 would cost 1e-6 mean^2 here.
    batches = rng.normal(1000.0, 0.5, size=(5, 16, 2)).astype("float32")
    for i, batch in enumerate(batches):
        layer(batch, training=True)
        assert (numpy(layer.mu_variance) >= 0).all()
        if i and momentum > 0.9:
            means = batches[: i + 1].astype("float64").mean(1)
            stddev = numpy(layer.statistics_moments()[1])
            np.testing.assert_allclose(stddev, means.std(0, ddof=1), rtol=0.05)


def test_frozen_it_sees_nothing(rng):
    layer = SBN(trainable=False)
    layer(rng.normal(size=(8, 3)).astype("float32"), training=True)
    assert float(layer.statistics_count.value) == 0


@pytest.mark.parametrize("noise", ["batch", "example"])
def test_draws_follow_the_law(rng, noise):
    layer = SBN(noise=noise, seed=5)
    layer.build((None, 2))
    mean, s_mean = np.array([0.5, -1.0]), np.array([0.3, 0.1])
    log_variance, s = np.array([0.2, -0.5]), np.array([0.4, 0.2])
    given(layer, mean, s_mean, log_variance, s)
    layer.gamma.assign([1.5, 2.0])
    layer.beta.assign([0.1, -0.2])
    x = np.tile([[1.0, 2.0]], (3000, 1)).astype("float32")
    with bayesnorm.noise_mode("sample"):
        y = numpy(layer(x, training=False))
    shared = np.ptp(y, axis=0).max() == 0
    assert shared == (noise == "batch")
    if shared:
        network, samples = single(layer, (2,)), 20_000
        sampled = bayesnorm.predict(
            network, x[:2], samples, task="regression", verbose=False
        )
        y_mean, y_variance = sampled.mean[0], sampled.variance[0]
    else:
        samples, y_mean, y_variance = len(y), y.mean(0), y.var(0)
    # (x - mu) / sigma gamma + beta with independent normal mu and log-normal sigma.
    d = np.array([1.0, 2.0]) - mean
    inverse = np.exp(-log_variance / 2 + s**2 / 8)
    square = np.exp(-log_variance + s**2 / 2)
    gamma = np.array([1.5, 2.0])
    first = gamma * d * inverse + np.array([0.1, -0.2])
    second = gamma**2 * ((s_mean**2 + d**2) * square - d**2 * inverse**2)
    error = np.sqrt(second / samples)
    assert (np.abs(y_mean - first) < 5 * error).all()
    np.testing.assert_allclose(y_variance, second, rtol=0.25)
    # The moments rule gives the same two in closed form.
    got = bayesnorm.moments.propagate(single(layer, (2,)), x[:1], 0.0)
    np.testing.assert_allclose(numpy(got.mean)[0], first, rtol=1e-5)
    np.testing.assert_allclose(numpy(got.variance)[0], second, rtol=1e-4)


def test_statistics_given_from_outside(rng):
    layer = SBN(epsilon=0.05)
    x = rng.normal(2.0, 3.0, size=(9, 3, 3, 2)).astype("float32")
    expected = numpy(layer(x, training=True))
    with batch_statistics(lambda layer, x, mask, _: layer.batch_statistics(x, mask)):
        got = numpy(layer(x, training=False))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_renorm_is_refused():
    with pytest.raises(ValueError, match="renorm=True"):
        SBN(renorm=True)
    with pytest.raises(ValueError, match="noise"):
        SBN(noise="layer")


# --- conversion ------------------------------------------------------------------


def small_net(norm=layers.BatchNormalization):
    """Nested, shared and wrapped normalizations, and a residual connection."""
    block = keras.Sequential(
        [keras.Input((8, 8, 4)), layers.Conv2D(4, 3, padding="same"), norm()],
        name="block",
    )
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same")(x)
    shared = norm(name="shared")
    x = layers.ReLU()(shared(x))
    x = layers.Add()([x, block(x)])
    x = shared(block(x))
    x = layers.Dropout(0.2)(x)
    x = layers.Reshape((8, 32))(x)
    x = layers.TimeDistributed(norm())(x)
    x = layers.Dense(5)(layers.Flatten()(x))
    return keras.Model(inputs, x)


def trained(model, rng, steps=3):
    x = rng.normal(1.0, 2.0, size=(64, *model.input_shape[1:])).astype("float32")
    y = rng.integers(0, model.output_shape[-1], size=64)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss)
    model.fit(x, y, batch_size=64 // steps, epochs=1, verbose=0)
    return x


def test_conversion_keeps_the_function_to_the_bit(rng):
    model = small_net()
    x = trained(model, rng)
    before = [w.copy() for w in model.get_weights()]
    converted = bayesnorm.to_stochastic(model, seed=3)
    found = [x for x in _flat(converted) if isinstance(x, SBN)]
    assert len(found) == 3  # shared, in the block, in the wrapper
    assert converted.loss is not None
    np.testing.assert_array_equal(
        numpy(converted(x, training=False)), numpy(model(x, training=False))
    )
    assert not {id(v) for v in converted.variables} & {id(v) for v in model.variables}
    bayesnorm.calibrate(converted, x, batch_size=16)
    np.testing.assert_array_equal(
        numpy(converted(x, training=False)), numpy(model(x, training=False))
    )
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def _flat(model):
    return model._flatten_layers(include_self=True, recursive=True)


def test_layers_that_derive_more_from_their_weights(rng):
    x = rng.normal(5.0, 3.0, size=(32, 4)).astype("float32")
    normalization = layers.Normalization()
    normalization.adapt(x)
    inputs = keras.Input((4,))
    y = layers.Dense(3)(layers.BatchNormalization()(normalization(inputs)))
    model = keras.Model(inputs, y)
    converted = bayesnorm.to_stochastic(model)
    np.testing.assert_array_equal(numpy(converted(x)), numpy(model(x)))


def test_a_normalization_shared_by_two_nested_models(rng):
    shared = layers.BatchNormalization(name="shared")
    nested = []
    for _ in range(2):
        i = keras.Input((4,))
        nested.append(keras.Model(i, layers.Dense(3)(shared(i))))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Add()([n(inputs) for n in nested]))
    x = rng.normal(2.0, 3.0, size=(32, 4)).astype("float32")
    model(x, training=True)
    converted = bayesnorm.to_stochastic(model)
    assert sum(isinstance(layer, SBN) for layer in _flat(converted)) == 1
    np.testing.assert_array_equal(numpy(converted(x)), numpy(model(x)))


def test_functions_and_losses_that_nobody_registered(rng):
    def loss(y, p):
        return ops.mean(ops.square(y - p), axis=-1)

    inputs = keras.Input((4,))
    y = layers.Lambda(lambda t: ops.relu(t) + 1.0, output_shape=(4,))(inputs)
    model = keras.Model(inputs, layers.BatchNormalization()(y))
    model.compile("adam", loss)
    with pytest.warns(UserWarning, match="without its metrics"):
        converted = bayesnorm.to_stochastic(model)
    assert converted.loss is loss
    assert model.compiled
    x = rng.normal(size=(8, 4)).astype("float32")
    np.testing.assert_array_equal(numpy(converted(x)), numpy(model(x)))


@pytest.mark.parametrize(
    ("layer", "shape", "mask"),
    [
        (layers.Dropout(0.5, noise_shape=(1, 4)), (4,), (4,)),
        (layers.SpatialDropout1D(0.5), (5, 4), (1, 4)),
        (layers.SpatialDropout2D(0.5), (5, 5, 4), (1, 1, 4)),
        (
            layers.SpatialDropout2D(0.5, data_format="channels_first"),
            (4, 5, 5),
            (4, 1, 1),
        ),
        (layers.SpatialDropout3D(0.5), (5, 5, 5, 4), (1, 1, 1, 4)),
    ],
)
def test_every_dropout_keeps_its_mask(rng, layer, shape, mask):
    model = bayesnorm.to_stochastic(single(layer, shape), dropout=True)
    found = model.layers[-1]
    assert found.noise_shapes == {"mask": mask}
    x = np.ones((64, *shape), "float32")
    y = numpy(model(x, training=True))
    assert set(np.unique(y)) == {0.0, 2.0}
    shared = y.std(0).max() == 0
    assert shared == (type(layer) is layers.Dropout)


def test_dropout_is_converted_when_asked(rng):
    model = small_net()
    trained(model, rng)
    kinds = [type(x) for x in _flat(bayesnorm.to_stochastic(model))]
    assert bayesnorm.MonteCarloDropout not in kinds
    kinds = [type(x) for x in _flat(bayesnorm.to_stochastic(model, dropout=True))]
    assert bayesnorm.MonteCarloDropout in kinds
    assert layers.Dropout not in kinds


@keras.saving.register_keras_serializable("test")
class Composite(layers.Layer):
    """Makes its normalization in its own code."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.BatchNormalization(name="hidden_norm")

    def call(self, x, training=None):
        return self.norm(x, training=training)


def test_what_cannot_be_converted_is_named():
    inputs = keras.Input((4,))
    x = layers.BatchNormalization()(Composite()(inputs))
    with pytest.warns(UserWarning, match="hidden_norm"):
        bayesnorm.to_stochastic(keras.Model(inputs, x))
    with pytest.raises(ValueError, match=r"hidden_norm.*own code"):
        bayesnorm.to_stochastic(keras.Model(inputs, Composite()(inputs)))


def test_models_that_cannot_be_converted():
    inputs = keras.Input((4,))
    dense = keras.Model(inputs, layers.Dense(2)(inputs))
    with pytest.raises(ValueError, match="no BatchNormalization"):
        bayesnorm.to_stochastic(dense)
    with pytest.raises(ValueError, match="has no StochasticBatchNormalization"):
        bayesnorm.calibrate(dense, np.zeros((8, 4), "float32"))
    with pytest.raises(TypeError, match=r"keras\.Model"):
        bayesnorm.to_stochastic(layers.Dense(2))

    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="shows no graph"):
        bayesnorm.to_stochastic(Own())


FAMILIES = {
    "MobileNetV2": {"alpha": 0.35},
    "MobileNetV3Small": {},
    "ResNet50": {},
    "ResNet50V2": {},
    "EfficientNetB0": {},
    "EfficientNetV2B0": {},
    "DenseNet121": {},
    "Xception": {},
    "NASNetMobile": {"input_shape": (224, 224, 3)},
    "InceptionV3": {"input_shape": (96, 96, 3)},
    "InceptionResNetV2": {"input_shape": (96, 96, 3)},
    "MobileNet": {"alpha": 0.25},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_keras_applications(rng, name):
    arguments = {"input_shape": (96, 96, 3), **FAMILIES[name]}
    model = getattr(keras.applications, name)(weights=None, classes=7, **arguments)
    x = rng.uniform(0, 255, size=(1, *arguments["input_shape"])).astype("float32")
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            for v in (layer.moving_mean, layer.moving_variance):
                v.assign(rng.uniform(0.5, 1.5, size=v.shape))
    converted = bayesnorm.to_stochastic(model)
    np.testing.assert_array_equal(
        numpy(converted(x, training=False)), numpy(model(x, training=False))
    )
    kinds = {type(layer) for layer in _flat(converted)}
    assert SBN in kinds
    assert layers.BatchNormalization not in kinds


@pytest.mark.slow
def test_convnext_has_nothing_to_convert():
    model = keras.applications.ConvNeXtTiny(
        weights=None, classes=3, input_shape=(64, 64, 3)
    )
    with pytest.raises(ValueError, match="no BatchNormalization"):
        bayesnorm.to_stochastic(model)


# --- calibration -----------------------------------------------------------------


def test_calibration_is_exact_and_stable_in_float32(rng):
    model = single(SBN(epsilon=1e-3), (5, 3))
    # Far from 0 and narrow: E x^2 - (E x)^2 would leave nothing in float32.
    x = rng.normal(1000.0, 0.1, size=(320, 5, 3)).astype("float32")
    bayesnorm.calibrate(model, x, batch_size=16, shuffle=False)
    batches = x.astype("float64").reshape(20, 80, 3)
    got = [numpy(m) for m in model.layers[-1].statistics_moments()]
    means, logs = batches.mean(1), np.log(batches.var(1) + 1e-3)
    np.testing.assert_allclose(got[0], means.mean(0), rtol=1e-6)
    np.testing.assert_allclose(got[1], means.std(0, ddof=1), rtol=0.05)
    np.testing.assert_allclose(got[2], logs.mean(0), rtol=1e-2)
    assert model.layers[-1].calibration_batch_size == 16
    assert model.layers[-1].get_config()["calibration_batch_size"] == 16


def test_calibration_of_deep_layers_uses_the_batches_themselves(rng):
    model = small_net(SBN)
    x = trained(model, rng)
    before = numpy(model(x, training=False))
    bayesnorm.calibrate(model, x[:48], batch_size=16, shuffle=False)
    layer = model.get_layer("shared")
    assert float(layer.statistics_count.value) == 6  # used twice, three batches
    np.testing.assert_array_equal(numpy(model(x, training=False)), before)
    # The first normalization sees the convolution's output alone.
    first = keras.Model(model.inputs, model.layers[1].output)
    hidden = numpy(first(x[:48])).astype("float64").reshape(3, -1, 4)
    recorded = record_statistics(model, iter([x[:16], x[16:32], x[32:48]]), 3)
    assert recorded.layers[0] is layer
    np.testing.assert_allclose(recorded.values[:, :4], hidden.mean(1), atol=1e-5)
    logs = np.log(hidden.var(1) + layer.epsilon)
    np.testing.assert_allclose(recorded.values[:, 4:8], logs, atol=1e-4)


@pytest.mark.parametrize("kind", ["array", "dataset", "generator"])
def test_calibration_takes_any_stream(rng, kind):
    x = rng.normal(size=(50, 4)).astype("float32")
    batches = [x[i : i + 8] for i in range(0, 50, 8)]
    data = {
        "array": lambda: x,
        "generator": lambda: ((b, np.zeros(len(b))) for b in batches),
        "dataset": lambda: iter(batches),
    }[kind]()
    model = single(SBN(), (4,))
    size = 8 if kind == "array" else None
    bayesnorm.calibrate(model, data, batch_size=size, shuffle=False)
    layer = model.layers[-1]
    assert float(layer.statistics_count.value) == 6  # the ragged last is left out
    np.testing.assert_allclose(layer.mu_mean, x[:48].mean(0), atol=1e-6)


def test_calibration_goes_on_with_more_data(rng):
    x = rng.normal(size=(64, 4)).astype("float32")
    whole, parts = single(SBN(), (4,)), single(SBN(), (4,))
    bayesnorm.calibrate(whole, x, batch_size=8, shuffle=False)
    with pytest.raises(ValueError, match="calibrate with reset=True"):
        bayesnorm.calibrate(parts, x, batch_size=8, reset=False)
    bayesnorm.calibrate(parts, x[:24], batch_size=8, shuffle=False)
    bayesnorm.calibrate(parts, x[24:], batch_size=8, shuffle=False, reset=False)
    pairs = zip(whole.get_weights(), parts.get_weights(), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="had batches of"):
        bayesnorm.calibrate(parts, x, batch_size=4, reset=False)


def transfer(rng):
    """A backbone on its moving averages, and a head that is trained by batches."""
    base = keras.Sequential(
        [keras.Input((4,)), layers.Dense(6), SBN(name="base_norm")], name="base"
    )
    base(rng.normal(size=(64, 4)).astype("float32"), training=True)
    base.trainable = False
    inputs = keras.Input((4,))
    x = SBN(name="head_norm")(layers.Dense(5)(base(inputs)))
    return keras.Model(inputs, layers.Dense(3)(x))


def test_what_was_not_trained_by_batches_keeps_its_averages(rng):
    model = transfer(rng)
    x = rng.normal(1.0, 2.0, size=(160, 4)).astype("float32")
    with pytest.warns(UserWarning, match="base_norm"):
        bayesnorm.calibrate(model, x, batch_size=16)
    base = model.get_layer("base").layers[-1]
    assert numpy(base.statistics_moments()[1]).max() == 0
    with bayesnorm.noise_mode("sample"):
        sampled = numpy(model.get_layer("base")(x, training=False))
    plain = numpy(model.get_layer("base")(x, training=False))
    np.testing.assert_allclose(sampled, plain, rtol=1e-4, atol=1e-5)
    recorded = record_statistics(model, x, 3)
    assert [layer.name for layer in recorded.layers] == ["head_norm"]
    for method in ("sample", "minibatch"):
        got = bayesnorm.predict(
            model, x, 3, method=method, train_data=x, from_logits=True
        )
        assert got.mutual_information.max() > 0
    model.trainable = False
    with pytest.raises(ValueError, match="frozen=True"):
        bayesnorm.calibrate(model, x, batch_size=16)


def test_going_on_after_training_is_refused(rng):
    model = single(SBN(), (4,))
    x = rng.normal(size=(160, 4)).astype("float32")
    bayesnorm.calibrate(model, x, batch_size=16)
    bayesnorm.calibrate(model, x, batch_size=16, reset=False)
    for _ in range(3):
        model(x + 5, training=True)
    with pytest.raises(ValueError, match="not trained"):
        bayesnorm.calibrate(model, x, batch_size=16, reset=False)


def test_one_channel_and_a_mask(rng):
    inputs = keras.Input((6, 1))
    model = keras.Model(inputs, SBN()(layers.Masking(0.0)(inputs)))
    x = rng.normal(size=(64, 6, 1)).astype("float32")
    x[:, 4:] = 0.0
    bayesnorm.calibrate(model, x, batch_size=16)
    got = bayesnorm.predict(
        model, x, 4, method="minibatch", train_data=x, task="regression"
    )
    assert np.isfinite(got.mean).all()


def test_calibration_that_fails_loses_nothing(rng):
    model = single(SBN(), (4,))
    x = rng.normal(size=(32, 4)).astype("float32")
    bayesnorm.calibrate(model, x, batch_size=8)
    before = model.get_weights()
    broken = x.copy()
    broken[20, 1] = np.nan
    for data, size, message in (
        (broken, 8, "NaN or infinity"),
        (x[:0], 8, "empty"),
        (x, 32, "2 or more batches"),
        (x[:10], 8, "2 or more batches"),
        (x[:, :3], 8, "shape"),
        (np.full_like(x, 1e30), 8, "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            bayesnorm.calibrate(model, data, batch_size=size)
        for a, b in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


# --- sampling --------------------------------------------------------------------


def test_an_uncalibrated_network_does_not_sample(rng):
    model = single(SBN(name="norm"), (4,))
    x = rng.normal(size=(8, 4)).astype("float32")
    for method in ("sample", "moments"):
        with pytest.raises(ValueError, match=r"'norm' cannot sample.*calibrate"):
            bayesnorm.predict(model, x, method=method, task="regression")
    with bayesnorm.noise_mode("sample"):
        assert np.isnan(numpy(model(x))).all()
    bayesnorm.predict(model, x, method="mean", task="regression")


def test_a_seeded_sample_is_the_same_function_on_every_batch(rng):
    model = small_net(SBN)
    x = trained(model, rng)
    bayesnorm.calibrate(model, x, batch_size=16)
    arguments = {"samples": 3, "seed": 4, "keep_samples": True, "from_logits": True}
    whole = bayesnorm.predict(model, x, batch_size=64, **arguments)
    parts = bayesnorm.predict(model, x, batch_size=9, **arguments)
    np.testing.assert_allclose(whole.samples, parts.samples, atol=2e-5)
    assert np.abs(whole.samples[0] - whole.samples[1]).max() > 1e-3
    other = bayesnorm.predict(model, x, **{**arguments, "seed": 5})
    assert np.abs(whole.samples - other.samples).max() > 1e-3


def test_minibatch_samples_are_the_networks_of_real_batches(rng):
    model = small_net(SBN)
    x = trained(model, rng)
    # Batches of their own order, one for each sample; dropout would be another noise.
    for layer in _flat(model):
        if isinstance(layer, layers.Dropout):
            layer.rate = 0.0
    batches = [x[i : i + 16] for i in (0, 16, 32)]
    got = bayesnorm.predict(
        model,
        x[:5],
        samples=3,
        method="minibatch",
        train_data=iter(batches),
        keep_samples=True,
        from_logits=True,
    )
    for sample, batch in zip(got.samples, batches, strict=True):
        recorded = []
        with batch_statistics(_recorder(recorded)):
            model(batch, training=True)
        statistics = iter(recorded)
        with batch_statistics(lambda *_, it=statistics: next(it)):
            logits = model(x[:5], training=False)
        np.testing.assert_allclose(sample, numpy(ops.softmax(logits)), atol=2e-5)


def test_two_seeds_take_other_batches_in_every_pass(rng):
    """Were a pass of one that of the other, two averages would not be independent."""
    model = small_net(SBN)
    x = np.arange(60 * np.prod(model.input_shape[1:]), dtype="float32")
    x = x.reshape(60, *model.input_shape[1:])
    batches = [
        {
            tuple(batch.ravel())
            for batch in map(numpy, _full_batches(model, x, 40, 8, s))
        }
        for s in (0, 1, 2)
    ]
    assert [*map(len, batches)] == [40] * 3
    assert not batches[0] & batches[1] | batches[1] & batches[2]


def _recorder(recorded):
    def record(layer, x, mask, by_batch):
        assert by_batch
        recorded.append(layer.batch_statistics(x, mask))
        return recorded[-1]

    return record


def test_minibatch_needs_training_data(rng):
    model = small_net(SBN)
    x = trained(model, rng)
    with pytest.raises(ValueError, match="train_data"):
        bayesnorm.predict(model, x, method="minibatch", from_logits=True)
    with pytest.raises(ValueError, match="3 samples need as many"):
        bayesnorm.predict(
            model,
            x,
            samples=3,
            method="minibatch",
            train_data=iter([x[:16], x[16:32]]),
            from_logits=True,
        )


def test_samples_approximate_real_batches_better_than_the_mean(rng):
    """Independent Gaussian channels, batches of 8: there the law is nearly exact."""
    inputs = keras.Input((6,))
    x = layers.Dense(12, activation="tanh")(SBN()(inputs))
    model = keras.Model(inputs, layers.Dense(3)(x))
    model.layers[-1].kernel.assign(3.0 * model.layers[-1].kernel.value)
    data = rng.normal(1.0, 2.0, size=(4000, 6)).astype("float32")
    bayesnorm.calibrate(model, data, batch_size=8)
    norm = model.layers[1]
    norm.moving_mean.assign(data.mean(0))
    norm.moving_variance.assign(data.var(0))
    test = data[:200]
    arguments = {"from_logits": True, "samples": 2000, "seed": 1}
    real = bayesnorm.predict(
        model, test, method="minibatch", train_data=data, **arguments
    )
    ours = bayesnorm.predict(model, test, **arguments)
    mean = bayesnorm.predict(model, test, method="mean", from_logits=True)
    distances = [
        0.5 * np.abs(p.probs - real.probs).sum(-1).mean() for p in (ours, mean)
    ]
    assert distances[0] < 0.3 * distances[1], distances


def test_an_ensemble_of_stochastic_networks_averages_their_samples(rng):
    models = []
    for _ in range(2):
        model = small_net(SBN)
        x = trained(model, rng)
        models.append(bayesnorm.calibrate(model, x, batch_size=16))
    got = bayesnorm.predict(
        models, x, samples=4, seed=2, keep_samples=True, from_logits=True
    )
    assert got.samples.shape == (8, 64, 5)
    np.testing.assert_allclose(got.probs, got.samples.mean(0), atol=1e-6)


# --- dropout ---------------------------------------------------------------------


def test_dropout_trains_as_keras_and_samples_one_mask_for_all(rng):
    layer = bayesnorm.MonteCarloDropout(0.3, seed=2)
    x = np.ones((500, 40), "float32")
    y = numpy(layer(x, training=True))
    assert set(np.unique(y)) == {0, np.float32(1 / 0.7)}
    dropped = (y == 0).sum()
    assert stats.binomtest(int(dropped), y.size, 0.3).pvalue > 1e-4
    np.testing.assert_array_equal(numpy(layer(x, training=False)), x)
    model = single(layer, (40,))
    got = bayesnorm.predict(
        model, x, samples=50, seed=1, keep_samples=True, task="regression"
    )
    assert np.ptp(got.samples, axis=1).max() == 0
    dropped = (got.samples[:, 0] == 0).sum()
    assert stats.binomtest(int(dropped), 2000, 0.3).pvalue > 1e-4


def test_dropout_of_whole_channels(rng):
    layer = bayesnorm.MonteCarloDropout(0.5, noise_shape=(None, 1, 1, None))
    x = np.ones((6, 4, 4, 8), "float32")
    with bayesnorm.noise_mode("sample"):
        y = numpy(layer(x, training=False))
    assert np.ptp(y, axis=(1, 2)).max() == 0
    assert {0.0, 2.0} == set(np.unique(y))


def test_dropout_moments(rng):
    x = rng.normal(size=(1, 30)).astype("float32")
    model = single(bayesnorm.MonteCarloDropout(0.25), (30,))
    got = bayesnorm.moments.propagate(model, x, 0.0)
    np.testing.assert_allclose(numpy(got.mean), x, rtol=1e-6)
    np.testing.assert_allclose(numpy(got.variance), x**2 / 3, rtol=1e-5)


def test_dropout_arguments():
    with pytest.raises(ValueError, match="rate"):
        bayesnorm.MonteCarloDropout(1.0)
    model = single(bayesnorm.MonteCarloDropout(0.5), (None, 3))
    with pytest.raises(ValueError, match="fixed shape"):
        bayesnorm.predict(model, np.zeros((2, 5, 3), "float32"), task="regression")
