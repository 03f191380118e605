"""Projecting an existing batch-normalized network; measuring channel statistics."""

import keras
import numpy as np
import pytest
from keras import ops

import bayesnorm
from bayesnorm.layers.kernels import filter_norms

L = keras.layers


def _network():
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(6, 3, padding="same", name="conv")(inputs)
    x = L.ReLU()(L.BatchNormalization()(x))
    x = L.SeparableConv2D(5, 3, name="separable")(x)
    x = L.ReLU()(L.BatchNormalization()(x))
    tower = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            L.DepthwiseConv2D(3, use_bias=False, name="depthwise"),
            L.BatchNormalization(),
            L.Conv2DTranspose(4, 3, strides=2, name="transposed"),
            L.BatchNormalization(),
        ]
    )
    x = L.GlobalAveragePooling2D()(tower(x))
    return keras.Model(inputs, L.Dense(3, name="head")(x))


@pytest.fixture
def trained(rng):
    model = _network()
    model.compile("adam", "mse")
    x = rng.normal(1, 2, size=(64, 8, 8, 3)).astype("float32")
    model.fit(x, rng.normal(size=(64, 3)), epochs=2, verbose=0)
    return model, x


def _layers(model):
    return {layer.name: layer for layer in model._flatten_layers()}


NAMES = {"conv", "separable", "depthwise", "transposed"}


def test_projection_keeps_the_function_and_holds_in_training(trained, rng, tmp_path):
    model, x = trained
    before = ops.convert_to_numpy(model(x, training=False))
    projected, skipped = bayesnorm.project(model)
    assert set(projected) == NAMES
    assert not skipped
    after = ops.convert_to_numpy(model(x, training=False))
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)

    def norms():
        for name in NAMES - {"separable"}:
            yield ops.convert_to_numpy(filter_norms(_layers(model)[name]))
        separable = _layers(model)["separable"]
        for kernel, axes in (
            (separable.depthwise_kernel, (0, 1)),
            (separable.pointwise_kernel, (0, 1, 2)),
        ):
            yield np.sqrt(np.square(ops.convert_to_numpy(kernel)).sum(axes))

    for norm in norms():
        np.testing.assert_allclose(norm, 1, atol=1e-6)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(x, rng.normal(size=(64, 3)), epochs=2, verbose=0)
    for norm in norms():
        np.testing.assert_allclose(norm, 1, atol=1e-6)

    # The constraints are part of the model.
    model.save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(x, rng.normal(size=(64, 3)), epochs=1, verbose=0)
    for norm in norms():
        np.testing.assert_allclose(norm, 1, atol=1e-6)


def test_projection_keeps_the_calibrated_posterior(trained):
    model, x = trained
    model = bayesnorm.calibrate(bayesnorm.to_stochastic(model, seed=0), x, 8)
    arguments = {"samples": 4, "seed": 1, "task": "regression"}
    before = [
        bayesnorm.predict(model, x[:9], method=method, **arguments)
        for method in ("sample", "moments")
    ]
    bayesnorm.project(model)
    for old, method in zip(before, ("sample", "moments"), strict=True):
        new = bayesnorm.predict(model, x[:9], method=method, **arguments)
        np.testing.assert_allclose(new.mean, old.mean, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(new.variance, old.variance, rtol=1e-3, atol=1e-5)


def test_projection_skips_a_layer_that_feeds_something_else():
    inputs = keras.Input((4,))
    x = L.Dense(3, name="both")(inputs)
    y = L.Add()([x, L.BatchNormalization()(x)])
    model = keras.Model(inputs, y)
    kernel = ops.convert_to_numpy(model.get_layer("both").kernel)
    assert bayesnorm.project(model) == ([], ["both"])
    np.testing.assert_array_equal(
        ops.convert_to_numpy(model.get_layer("both").kernel), kernel
    )


def test_projection_leaves_what_it_cannot_keep():
    inputs = keras.Input((5, 4))
    shown = L.Dense(3, name="shown")(inputs)
    across = L.Dense(3, name="across")(inputs)
    model = keras.Model(
        inputs,
        [shown, L.BatchNormalization()(shown), L.BatchNormalization(axis=1)(across)],
    )
    weights = model.get_weights()
    projected, skipped = bayesnorm.project(model)
    assert not projected
    assert sorted(skipped) == ["across", "shown"]
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("scale", [True, False])
def test_projection_of_a_nearly_dead_channel(scale, rng):
    model = keras.Sequential(
        [keras.Input((4,)), L.Dense(3), L.BatchNormalization(scale=scale)]
    )
    dense, norm = model.layers
    dense.kernel.assign(5 * dense.kernel)
    norm.moving_variance.assign([1e-6, 1.0, 1.0])
    x = rng.normal(size=(6, 4)).astype("float32")
    before = ops.convert_to_numpy(model(x))
    projected, _ = bayesnorm.project(model)
    assert bool(projected) == scale
    np.testing.assert_allclose(ops.convert_to_numpy(model(x)), before, rtol=1e-4)


def test_projection_without_batch_normalization():
    model = keras.Sequential([keras.Input((4,)), L.Dense(3)])
    with pytest.raises(ValueError, match="nothing to project"):
        bayesnorm.project(model)


def test_channel_statistics_are_numpys(rng):
    model = keras.Sequential([keras.Input((5, 3)), L.Identity(name="same")])
    x = rng.normal(1000, [0.01, 1, 5], size=(500, 5, 3)).astype("float32")
    statistics = bayesnorm.channel_statistics(model, x, ["same"], batch_size=64)
    x = x.astype("float64")
    np.testing.assert_allclose(statistics["same"].mean, x.mean((0, 1)), rtol=1e-12)
    np.testing.assert_allclose(statistics["same"].stddev, x.std((0, 1)), rtol=1e-9)


def test_channel_statistics_errors(rng):
    model = keras.Sequential([keras.Input((3,)), L.Dense(2)])
    with pytest.raises(ValueError, match="no such layers"):
        bayesnorm.channel_statistics(model, rng.normal(size=(4, 3)))
    with pytest.raises(ValueError, match="empty"):
        bayesnorm.channel_statistics(model, np.zeros((0, 3)), [model.layers[0].name])
