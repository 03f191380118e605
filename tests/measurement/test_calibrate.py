"""Calibration of frozen networks, and on data that are not those of the training."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import bayesnorm

SBN = bayesnorm.StochasticBatchNormalization


def numpy(x):
    return ops.convert_to_numpy(x)


@keras.saving.register_keras_serializable("test_calibrate")
class OnItsAverages(layers.Wrapper):
    """Calls a layer with `training=False`, as code for transfer learning does."""

    def call(self, inputs):
        return self.layer(inputs, training=False)


def transfer(kind):
    """Returns a network with a backbone on its moving averages, and its layer."""
    norm = SBN(name="base_norm")
    base = keras.Sequential([keras.Input((4,)), norm, layers.Dense(6)])
    inputs = keras.Input((4,))
    if kind == "trainable=False":
        base.trainable = False
    hidden = base(inputs) if kind == "trainable=False" else OnItsAverages(base)(inputs)
    outputs = layers.Dense(3)(SBN(name="head_norm")(hidden))
    return keras.Model(inputs, outputs), norm


@pytest.mark.parametrize("kind", ["trainable=False", "training=False"])
def test_frozen_layers_are_measured_where_asked(rng, kind):
    model, norm = transfer(kind)
    x = rng.normal(1.0, 2.0, size=(160, 4)).astype("float32")
    before = numpy(model(x, training=False))
    with pytest.warns(UserWarning, match=r"moving averages, without noise: base_norm"):
        bayesnorm.calibrate(model, x, batch_size=16)
    assert norm.is_fixed()
    with pytest.raises(ValueError, match="calibrate with reset=True"):
        bayesnorm.calibrate(model, x, batch_size=16, reset=False, frozen=True)

    with pytest.warns(UserWarning, match="lie far") as record:
        bayesnorm.calibrate(model, x, batch_size=16, shuffle=False, frozen=True)
    assert not [w for w in record if "without noise" in str(w.message)]
    batches = x.reshape(10, 16, 4).astype("float64")
    mean, mean_stddev, log_variance, _ = map(numpy, norm.statistics_moments())
    np.testing.assert_allclose(mean, batches.mean((0, 1)), atol=1e-5)
    np.testing.assert_allclose(mean_stddev, batches.mean(1).std(0, ddof=1), rtol=1e-4)
    logs = np.log(batches.var(1) + norm.epsilon).mean(0)
    np.testing.assert_allclose(log_variance, logs, atol=1e-4)
    np.testing.assert_array_equal(numpy(model(x, training=False)), before)

    model.trainable = False
    bayesnorm.calibrate(model, x, batch_size=16, frozen=True)
    assert model.get_layer("head_norm").check_noise() is None


def _network(momentum):
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(8, 3, name="conv"),
            layers.BatchNormalization(momentum=momentum, name="first"),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(16),
            layers.BatchNormalization(momentum=momentum, name="second"),
            layers.Dense(2),
        ]
    )


def _images(rng, n=256):
    return rng.uniform(size=(n, 6, 6, 2)).astype("float32")


def _trained(rng, momentum, batch_size, epochs):
    """A stochastic network, trained on images in [0, 1]."""
    model, x = _network(momentum), _images(rng)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(x, x[:, 0, 0], batch_size=batch_size, epochs=epochs, verbose=0)
    return bayesnorm.to_stochastic(model)


def _far(model, x, **arguments):
    """Returns the layers that calibration names, in the text of its warning."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        bayesnorm.calibrate(model, x, **arguments)
    found = [str(w.message) for w in record if "lie far" in str(w.message)]
    return found[0].split("Sampled")[0] if found else ""


def test_data_that_are_scaled_otherwise_than_in_training_are_said(rng):
    model = _trained(rng, momentum=0.9, batch_size=32, epochs=8)
    x = _images(rng)
    for scaled in (255.0 * x, x / 255.0, 2.0 * x - 1.0, (x - x.mean()) / x.std()):
        assert "first" in _far(model, scaled, batch_size=32)
    assert not _far(model, x, batch_size=32)


@pytest.mark.parametrize(
    ("momentum", "batch_size", "epochs", "sizes"),
    [(0.9, 32, 8, (2, 4, 32, 128)), (0.9, 4, 1, (2, 4, 128)), (0.0, 4, 1, (4,))],
)
def test_the_errors_of_sampling_are_not_taken_for_another_scale(
    rng, momentum, batch_size, epochs, sizes
):
    """Few small batches, of another size than in training, in a bad order."""
    model = _trained(rng, momentum, batch_size, epochs)
    x = _images(rng)
    x = x[np.argsort(x.mean((1, 2, 3)))]
    for size in sizes:
        for shuffle in (True, False):
            assert not _far(model, x, batch_size=size, shuffle=shuffle)
    assert not _far(model, x[:8], batch_size=4)
