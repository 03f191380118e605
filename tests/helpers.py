"""What tests of several rooms use."""

import keras
import numpy as np
from keras import ops

DTYPES = ["float32"] + ["float64"] * (keras.backend.backend() == "tensorflow")


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
