"""What tests of several rooms use."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from bayesnorm.graph import layers_of

DTYPES = ["float32"] + ["float64"] * (keras.backend.backend() == "tensorflow")


def long(*values):
    """A case that only `pytest -m slow` runs: the default suite has its like."""
    return pytest.param(*values, marks=pytest.mark.slow)


def tensor(x, dtype="float32"):
    return ops.convert_to_tensor(np.asarray(x), dtype)


def gradients(function, *values, dtype="float32"):
    """Gradients of `sum(function(*values))` on either backend."""
    values = [tensor(v, dtype) for v in values]
    if keras.backend.backend() == "jax":
        import jax

        total = lambda *xs: sum(ops.sum(y) for y in function(*xs))  # noqa: E731
        return [np.asarray(g) for g in jax.grad(total, range(len(values)))(*values)]
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(values)
        total = sum(ops.sum(y) for y in function(*values))
    return [g.numpy() for g in tape.gradient(total, values)]


def randomized(model, seed=0):
    """Gives batch normalizations statistics and weights that tell them apart."""
    rng = np.random.default_rng(seed)
    for layer in layers_of(model):
        if isinstance(layer, layers.BatchNormalization):
            size = layer.moving_mean.shape
            layer.moving_mean.assign(rng.normal(size=size))
            layer.moving_variance.assign(rng.uniform(0.5, 2.0, size))
            if layer.scale:
                layer.gamma.assign(rng.uniform(0.5, 1.5, size))
            if layer.center:
                layer.beta.assign(rng.normal(size=size))
    return model


def with_augmentation():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.RandomFlip(seed=1),
            layers.GaussianNoise(0.5, seed=2),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(3, "softmax"),
        ]
    )


def with_training_nodes():
    x = inputs = keras.Input((8, 8, 3))
    base = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization()]
    )
    x = base(layers.RandomFlip(seed=1)(x), training=True)
    x = layers.BatchNormalization()(x, training=True)
    x = layers.Dropout(0.5, seed=1)(x, training=True)
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(3, "softmax")(x))
