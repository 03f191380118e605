"""The registry, and moments through graphs: branches, sharing, nesting, plain ops."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from bayesnorm.layers import AnalyticNormalization
from bayesnorm.moments import (
    Moments,
    check_upstream,
    pooled_upstream_moments,
    propagate,
    register,
    register_activation,
    register_elementwise,
    registry,
    rule_for,
    upstream_moments,
)
from tests.helpers import gradients


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


@keras.saving.register_keras_serializable("test")
class Mystery(layers.Layer):
    def call(self, x):
        return x


def equal(a, b):
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(a.variance, b.variance, rtol=1e-5, atol=1e-6)


def test_unknown_layer_is_named():
    x = keras.Input((3,))
    y = layers.Dense(2)(Mystery(name="odd")(x))
    message = "'odd' of type Mystery.*register"
    with pytest.raises(ValueError, match=message):
        check_upstream(y)
    with pytest.raises(ValueError, match=message):
        propagate(keras.Model(x, y), 0.0, 1.0)
    inner = keras.Sequential([keras.Input((3,)), Mystery(name="odd")])
    with pytest.raises(ValueError, match=message):
        check_upstream(inner(x))
    with pytest.raises(ValueError, match="register_activation"):
        propagate(
            keras.Sequential([keras.Input((3,)), layers.Activation(lambda x: x)]), 0, 1
        )
    with pytest.raises(TypeError, match="layer class"):
        register("Dense")


def test_a_users_rules(monkeypatch):
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))

    class Square(layers.Layer):
        def call(self, x):
            return x * x

    class Negate(Mystery):
        def call(self, x):
            return -x

    @register_elementwise(Square)
    def square(mean, variance):
        return mean**2 + variance, 2 * variance**2 + 4 * mean**2 * variance

    @register(Mystery)
    def negate(layer, x):
        return x.replace(mean=-x.mean)

    def cube(x):
        return x**3

    @register_activation(cube)
    def cube_moments(mean, variance):
        return mean**3 + 3 * mean * variance, variance

    model = keras.Sequential(
        [keras.Input((2,)), Negate(), Square(), layers.Activation(cube)]
    )
    got = propagate(model, [1.0, 2.0], [1.0, 1.0])
    mean, variance = np.array([2.0, 5.0]), np.array([6.0, 18.0])
    np.testing.assert_allclose(got.mean, mean**3 + 3 * mean * variance)
    np.testing.assert_allclose(got.variance, variance)
    assert rule_for(model.layers[0])  # by its base class


def test_branches_and_shared_layers():
    x = keras.Input((6, 6, 2))
    conv = layers.Conv2D(2, 3, padding="same")
    a, b = conv(x), conv(layers.ReLU()(x))
    y = layers.Concatenate()([layers.Add()([a, b]), layers.Subtract()([a, b])])
    y = layers.Concatenate()([y, layers.Average()([a, b])])
    model = keras.Model(x, [y, a])
    got, first = propagate(model, [0.2, -0.4], [1.0, 2.0])

    def of(inner, mean, variance):
        m = keras.Sequential([keras.Input((6, 6, 2)), inner])
        return propagate(m, mean, variance)

    pa = of(conv, [0.2, -0.4], [1.0, 2.0])
    relu = of(layers.ReLU(), [0.2, -0.4], [1.0, 2.0])
    pb = of(conv, relu.mean, relu.variance)
    equal(first, pa)
    mean = [pa.mean + pb.mean, pa.mean - pb.mean, (pa.mean + pb.mean) / 2]
    total = pa.variance + pb.variance
    np.testing.assert_allclose(got.mean, np.concatenate(mean), rtol=1e-5)
    variance = np.concatenate([total, total, total / 4])
    np.testing.assert_allclose(got.variance, variance, rtol=1e-5)
    batch = np.random.default_rng(0).normal(size=(2, 6, 6, 2)).astype("float32")
    got, _ = propagate(model, batch, 0.0)
    np.testing.assert_allclose(got.mean, model(batch)[0], rtol=1e-5, atol=1e-6)


def test_nested_models_equal_flat_ones():
    inner = keras.Sequential(
        [keras.Input((5, 5, 3)), layers.Conv2D(4, 3), layers.LeakyReLU(0.1)]
    )
    x = keras.Input((5, 5, 3))
    head = keras.Sequential([layers.Flatten(), layers.Dense(2)])
    nested = keras.Model(x, head(inner(x)))
    flat = keras.Sequential([keras.Input((5, 5, 3)), *inner.layers, *head.layers])
    equal(propagate(nested, 0.3, 1.2), propagate(flat, 0.3, 1.2))
    equal(upstream_moments(nested.outputs[0]), propagate(nested, 0.0, 1.0))
    check_upstream(nested.outputs[0])
    batch = np.ones((2, 5, 5, 3), "float32")
    equal(propagate(nested, batch, 0.1), propagate(flat, batch, 0.1))


def test_plain_operations():
    x = keras.Input((4, 4, 2))
    conv = layers.Conv2D(3, 3, padding="same")
    y = ops.relu(conv(x) * 2.0 - 1.0)
    y = ops.leaky_relu(-y, 0.1) / 4.0 + np.array([1.0, 2.0, 3.0], "float32")
    y = ops.mean(y + y, axis=(1, 2))
    y = ops.softmax(ops.concatenate([y, y], axis=-1))
    model = keras.Model(x, y)
    z = keras.Input((4, 4, 2))
    w = layers.Rescaling(2.0, -1.0)(conv(z))
    w = layers.Rescaling(-1.0)(layers.ReLU()(w))
    w = layers.LeakyReLU(0.1)(w)
    w = layers.Rescaling(0.5, np.array([2.0, 4.0, 6.0], "float32"))(w)
    w = layers.GlobalAveragePooling2D()(w)
    w = layers.Softmax()(layers.Concatenate()([w, w]))
    same = keras.Model(z, w)
    batch = np.random.default_rng(1).normal(size=(2, 4, 4, 2)).astype("float32")
    np.testing.assert_allclose(model(batch), same(batch), rtol=1e-4)
    equal(
        propagate(model, [0.1, 0.2], [1.0, 0.5]),
        propagate(same, [0.1, 0.2], [1.0, 0.5]),
    )
    equal(propagate(model, batch, 0.2), propagate(same, batch, 0.2))
    check_upstream(model.outputs[0])


def test_reshape_and_transpose_operations():
    x = keras.Input((2, 3, 4))
    y = ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, 24))
    model = keras.Model(x, y)
    got = propagate(model, [1.0, 2.0, 3.0, 4.0], 1.0)
    np.testing.assert_allclose(got.mean, np.tile([1.0, 2.0, 3.0, 4.0], 6))
    batch = np.random.default_rng(1).normal(size=(2, 2, 3, 4)).astype("float32")
    np.testing.assert_allclose(propagate(model, batch, 0.0).mean, model(batch))


def test_constants_at_data_set_level():
    x = keras.Input((3,))
    y = keras.Model(x, x + np.ones((1, 3), "float32") * 2)
    np.testing.assert_allclose(propagate(y, 0.0, 1.0).mean, [2.0, 2.0, 2.0])
    x = keras.Input((2, 3))
    y = keras.Model(x, x + np.ones((2, 3), "float32"))
    with pytest.raises(ValueError, match="vector over the channels"):
        propagate(y, 0.0, 1.0)


def test_the_input_counts_as_standardized():
    x = keras.Input((4, 4, 3))
    got = upstream_moments(x)
    assert (float(got.mean), float(got.variance), got.assumed) == (0.0, 1.0, True)
    constants = {"mean": [1.0, 2.0, 3.0], "variance": [4.0, 1.0, 9.0]}
    y = layers.Normalization(**constants)(layers.Rescaling(1 / 255)(x))
    got = upstream_moments(layers.RandomFlip()(y))
    assert (float(got.mean), float(got.variance)) == (0.0, 1.0)
    # Declared moments pass through the same layers as they are.
    declared = Moments(
        ops.convert_to_tensor([255.0, 0.0, 0.0]),
        255.0**2 * ops.ones(3),
        (None, 4, 4, 3),
    )
    got = upstream_moments(y, known={x.name: declared})
    np.testing.assert_allclose(got.mean, [0.0, -2.0, -1.0], atol=1e-6)
    np.testing.assert_allclose(got.variance, [0.25, 1.0, 1 / 9], rtol=1e-5)
    with pytest.raises(ValueError, match="Normalization"):
        upstream_moments(layers.Rescaling(1 / 255)(x))
    with pytest.raises(ValueError, match=r"'body'.*Normalization"):
        upstream_moments(layers.Conv2D(2, 3, name="body")(layers.Rescaling(2.0)(x)))


def test_per_pixel_normalization_of_declared_moments():
    shift = np.arange(4.0).reshape(1, 4, 1) * np.ones((1, 4, 2))
    layer = layers.Normalization(axis=(1, 2), mean=shift[0], variance=np.ones((4, 2)))
    model = keras.Sequential([keras.Input((4, 2)), layer])
    got = propagate(model, [3.0, 3.0], [1.0, 2.0])
    np.testing.assert_allclose(got.mean, [1.5, 1.5])
    np.testing.assert_allclose(got.variance, [2.25, 3.25])


def test_a_layer_that_needs_no_inputs_ends_the_walk(monkeypatch):
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))

    class Standard(layers.Layer):
        def call(self, x):
            return x

    @register(Standard, needs_inputs=False)
    def standard(layer, x):
        return Moments.standardized(x.shape)

    y = layers.Dense(3)(Standard()(Mystery()(keras.Input((3,)))))
    check_upstream(y)
    got = upstream_moments(y)
    assert got.mean.shape == (3,)


def test_pooled_moments_of_several_tensors():
    x = keras.Input((3,))
    y = layers.Rescaling(2.0, 1.0)(layers.ReLU()(x))
    z = layers.ReLU()(x)
    got = pooled_upstream_moments([y, z])
    a, b = upstream_moments(y), upstream_moments(z)
    mean = (a.mean + b.mean) / 2
    np.testing.assert_allclose(got.mean, mean, rtol=1e-6)
    truth = (a.variance + b.variance) / 2 + (a.mean - b.mean) ** 2 / 4
    np.testing.assert_allclose(got.variance, truth, rtol=1e-6)


def test_deep_graphs_do_not_recurse():
    y = keras.Input((2,))
    relu = layers.Identity()
    for _ in range(1500):
        y = relu(y)
    check_upstream(y)
    assert float(upstream_moments(y).variance) == 1.0


def test_several_inputs():
    a, b = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([a, b], layers.Add()([a, layers.Rescaling(2.0)(b)]))
    got = propagate(model, [np.zeros(3), np.ones(3)], [1.0, 2.0])
    np.testing.assert_allclose(got.mean, [2.0, 2.0, 2.0])
    np.testing.assert_allclose(got.variance, [9.0, 9.0, 9.0])
    with pytest.raises(ValueError, match="2 inputs"):
        propagate(model, [np.zeros(3)], 1.0)


def test_wrong_shapes_and_models_are_refused():
    model = keras.Sequential([keras.Input((4, 3)), layers.Dense(2)])
    with pytest.raises(ValueError, match=r"Received: shape \(2,\)"):
        propagate(model, [0.0, 0.0], 1.0)

    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="Functional model"):
        propagate(Subclassed(), 0.0, 1.0)
    unknown = keras.Sequential([keras.Input((None, 3)), layers.Flatten()])
    with pytest.raises(ValueError, match="unknown"):
        propagate(unknown, [0.0, 1.0, 2.0], 1.0)


def test_half_precision_layers_keep_float32_moments():
    policy = "mixed_bfloat16"
    model = keras.Sequential(
        [keras.Input((6, 6, 3)), layers.Conv2D(4, 3, dtype=policy)]
    )
    got = propagate(model, 0.1, 1.0)
    assert keras.backend.standardize_dtype(got.mean.dtype) == "float32"
    kernel = np.array(model.layers[0].kernel, "float64")
    np.testing.assert_allclose(got.variance, (kernel**2).sum((0, 1, 2)), rtol=1e-6)
    from keras.src.backend import AutocastScope

    with AutocastScope("bfloat16"):
        inside = upstream_moments(model.outputs[0])
    np.testing.assert_allclose(inside.variance, got.variance, rtol=1e-6)


@pytest.mark.parametrize("variance", [0.0, 1e-8, 1.0])
def test_gradients_are_finite(variance):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(3, 3, padding="same", activation="leaky_relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(3, 3, activation="elu"),
            layers.AveragePooling2D(1),
            layers.Activation("tanh"),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )

    def function(mean, variance):
        got = propagate(model, mean, variance)
        return [got.mean * ops.arange(3.0), got.variance]

    batch = np.zeros((2, 6, 6, 2))
    batch[0] = np.random.default_rng(0).normal(size=(6, 6, 2))
    for mean in (batch, np.zeros(2)):
        for g in gradients(function, mean, np.full(mean.shape, variance)):
            assert np.isfinite(g).all()


def test_gradient_of_a_relu_at_mean_zero():
    """What a normalization puts out: the derivative there is 1/2, not 0 or 1."""
    for slope in (0.0, 0.01):
        model = keras.Sequential([keras.Input((1,)), layers.LeakyReLU(slope)])
        (g, _) = gradients(
            lambda m, v, model=model: [propagate(model, m, v).mean], [0.0], [1.0]
        )
        np.testing.assert_allclose(g, [(1 + slope) / 2], rtol=1e-6)


def test_replace_keeps_the_share_of_common_noise():
    ones = ops.ones((1, 2, 3))
    x = Moments(
        ones,
        2.0 * ones,
        (1, 2, 3),
        stationary=False,
        shared=ops.ones((1, 1, 3)),
        factor=-0.5 * ones,
    )
    y = x.replace(variance=4.0 * x.variance)
    np.testing.assert_allclose(y.shared, 4.0 * np.ones((1, 2, 3)))
    np.testing.assert_allclose(y.factor, -1.0 * np.ones((1, 2, 3)))
    np.testing.assert_allclose(y.common_variance, 5.0 * np.ones((1, 2, 3)))


def test_a_normalization_of_data_with_nan_is_refused():
    inputs = keras.Input((3,))
    x = layers.Normalization(mean=[0.0, float("nan"), 1.0], variance=[1.0] * 3)(inputs)
    model = keras.Model(inputs, AnalyticNormalization(layers.Dense(2))(x))
    with pytest.raises(ValueError, match="not finite: are there NaN in the data"):
        model(np.zeros((1, 3), "float32"))
