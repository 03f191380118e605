"""Networks as other libraries are told of them."""

import keras
import numpy as np
import pytest
from keras import layers

from benchmarks.peers.description import describe


def convolved(x, kernel, strides, pads):
    """`x` `[n, c, height, width]`, as PyTorch's convolution, position by position."""
    left, right, top, bottom = pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    _, _, *size = kernel.shape
    rows, columns = (
        range(0, x.shape[2 + i] - size[i] + 1, strides[i]) for i in range(2)
    )
    return np.stack(
        [
            np.stack(
                [
                    np.einsum(
                        "nchw,ochw->no",
                        x[:, :, i : i + size[0], j : j + size[1]],
                        kernel,
                    )
                    for j in columns
                ],
                -1,
            )
            for i in rows
        ],
        2,
    )


def run(described, arrays, x):
    """What a description says, in NumPy."""
    for i, layer in enumerate(described):
        w = {name: arrays[f"{i}/{name}"] for name in layer["weights"]}
        if layer["kind"] == "conv":
            x = convolved(x, w["weight"], layer["strides"], layer["pads"])
        elif layer["kind"] == "norm":
            w = {k: v[:, None, None] for k, v in w.items()}
            x = (x - w["running_mean"]) / np.sqrt(w["running_var"] + layer["epsilon"])
            x = x * w["weight"] + w["bias"]
        elif layer["kind"] == "relu":
            x = np.where(x > 0, x, layer["slope"] * x)
        elif layer["kind"] == "pool":
            x = x.mean((2, 3))
    return x


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_description_is_the_network(rng, padding):
    model = keras.Sequential(
        [
            keras.Input((9, 8, 3)),
            layers.Conv2D(4, (3, 2), 2, padding, use_bias=False),
            layers.BatchNormalization(epsilon=0.1),
            layers.LeakyReLU(0.2),
            layers.Dropout(0.5),
            layers.Conv2D(5, 2, 1, padding, use_bias=False),
            layers.GlobalAveragePooling2D(),
        ]
    )
    for weight in model.weights:
        if weight.dtype == "float32":
            weight.assign(rng.uniform(0.2, 1.0, weight.shape))
    x = rng.normal(size=(2, 9, 8, 3)).astype("float32")
    found = run(*describe(model), np.transpose(x, (0, 3, 1, 2)))
    np.testing.assert_allclose(found, model(x), rtol=1e-5, atol=1e-5)


def test_what_has_no_words_is_named():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="head")])
    with pytest.raises(ValueError, match="'head', a Dense"):
        describe(model)
