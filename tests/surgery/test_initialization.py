"""Data-dependent initialization: every pre-activation has mean 0 and variance 1."""

import keras
import numpy as np
import pytest
from keras import layers as kl

from bayesnorm import models
from bayesnorm.layers import (
    AnalyticNormalization,
    ScaleNorm,
    StochasticScaleNorm,
    WeightNormalization,
)
from bayesnorm.surgery.initialization import data_dependent_init


def outputs_of(model, names, x):
    probe = keras.Model(model.inputs, [model.get_layer(name).output for name in names])
    outputs = keras.tree.flatten(probe([x]))
    return [np.asarray(y, "float64") for y in outputs]


def assert_standard(values):
    values = values.reshape(-1, values.shape[-1])
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(values.std(0), 1, atol=1e-4)


@pytest.fixture
def images(rng):
    return (3 + 2 * rng.normal(size=(64, 9, 9, 3))).astype("float32")


@pytest.mark.parametrize(
    ("norm", "scale"),
    [(None, "plain"), (None, "stochastic"), ("weight", "plain")]
    + [("weight", "stochastic")],
)
def test_all_cnn_has_standard_preactivations(images, norm, scale):
    model = models.all_cnn(
        (9, 9, 3), 4, norm=norm, scale=scale, width=0.05, padding="same", seed=0
    )
    done = data_dependent_init(model, images)
    suffix = "" if (norm, scale) == (None, "plain") else "_scale"
    names = [f"conv{i}{suffix}" for i in range(9)]
    assert done == names
    for values in outputs_of(model, names, images):
        assert_standard(values)


def test_posterior_keeps_its_relative_deviation(images):
    for per_channel in (True, False):
        inputs = keras.Input((9, 9, 3))
        x = WeightNormalization(kl.Conv2D(5, 3))(inputs)
        layer = StochasticScaleNorm(initial_stddev=0.3, per_channel=per_channel)
        model = keras.Model(inputs, layer(x))
        data_dependent_init(model, images)
        ratio = np.asarray(layer.stddev) / np.asarray(layer.scale)
        expected = 0.3 if per_channel else ratio
        np.testing.assert_allclose(ratio, expected, rtol=1e-5)
        mean_ratio = np.mean(layer.stddev) / np.mean(layer.scale)
        assert mean_ratio == pytest.approx(0.3, rel=1e-5)


def test_all_kinds_of_linear_layers_nested_and_with_activations(images):
    inner = keras.Sequential(
        [
            keras.Input((9, 9, 3)),
            kl.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise"),
            kl.SeparableConv2D(5, 3, name="separable"),
            kl.Conv2DTranspose(4, 3, bias_initializer="normal", name="transposed"),
        ],
        name="inner",
    )
    inputs = keras.Input((9, 9, 3))
    x = kl.Flatten()(inner(inputs))
    x = kl.Dense(6, activation="softplus", name="curved")(x)
    model = keras.Model(inputs, kl.Dense(2, name="last")(x))
    done = data_dependent_init(model, images)
    assert done == ["depthwise", "separable", "transposed", "curved", "last"]
    for values in outputs_of(inner, done[:3], images):
        assert_standard(values)
    curved, last = outputs_of(model, done[3:], images)
    assert_standard(np.log(np.expm1(curved)))
    assert_standard(last)


def test_what_is_normalized_already_is_left(images):
    inputs = keras.Input((9, 9, 3))
    x = kl.Normalization(mean=[3.0] * 3, variance=[4.0] * 3)(inputs)
    x = AnalyticNormalization(kl.Conv2D(5, 3))(x)
    x = StochasticScaleNorm()(x)
    x = kl.Conv2D(4, 3, bias_initializer="ones")(x)
    x = kl.BatchNormalization()(x)
    model = keras.Model(inputs, ScaleNorm()(x))
    before = model.get_weights()
    assert data_dependent_init(model, images) == []
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_constant_channel_stays_finite(images):
    images[..., 0] = 0.5
    inputs = keras.Input((9, 9, 3))
    layer = kl.DepthwiseConv2D(1, name="depthwise")
    model = keras.Model(inputs, layer(inputs))
    data_dependent_init(model, images)
    (values,) = outputs_of(model, ["depthwise"], images)
    np.testing.assert_allclose(values[..., 0], 0, atol=1e-5)
    assert_standard(values[..., 1:])


def test_unusable_batches_are_refused(images):
    model = keras.Sequential([keras.Input((9, 9, 3)), kl.Conv2D(2, 3)])
    with pytest.raises(ValueError, match=r"two or more.*\(1, 9, 9, 3\)"):
        data_dependent_init(model, images[:1])
    images[3, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="finite: False"):
        data_dependent_init(model, images)
