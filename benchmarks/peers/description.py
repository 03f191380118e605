"""What a chain of Keras layers is, in words and arrays that other libraries take."""

import keras
import numpy as np


def describe(model):
    """Describes a network of convolutions, batch normalizations and what is between.

    Args:
        model: A chain of `Conv2D` without bias, `BatchNormalization`, `LeakyReLU`,
            `Dropout` and `GlobalAveragePooling2D`, channels last.

    Returns:
        `(layers, arrays)`: a list of dicts, each with `kind` and the names of its
        `weights`, and the arrays by the layer's number and their name, as PyTorch has
        them: kernels `[out, in, height, width]`.

    Raises:
        ValueError: If there is another layer, or a bias.
    """
    layers, arrays = [], {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        described, weights = _described(layer)
        arrays |= {f"{len(layers)}/{k}": np.array(v) for k, v in weights.items()}
        layers.append(described | {"weights": list(weights)})
    return layers, arrays


def _described(layer):
    if isinstance(layer, keras.layers.Conv2D) and not layer.use_bias:
        kernel = np.transpose(layer.kernel, (3, 2, 0, 1))
        pads = [0, 0, 0, 0]
        if layer.padding == "same":
            height, width = (
                _pads(size, kernel, stride)
                for size, kernel, stride in zip(
                    layer.input.shape[1:3],
                    layer.kernel_size,
                    layer.strides,
                    strict=True,
                )
            )
            # PyTorch names the last axis first.
            pads = [*width, *height]
        about = {"kind": "conv", "strides": list(layer.strides), "pads": pads}
        return about, {"weight": kernel}
    if isinstance(layer, keras.layers.BatchNormalization):
        return {"kind": "norm", "epsilon": layer.epsilon}, {
            "weight": layer.gamma,
            "bias": layer.beta,
            "running_mean": layer.moving_mean,
            "running_var": layer.moving_variance,
        }
    if isinstance(layer, keras.layers.LeakyReLU):
        return {"kind": "relu", "slope": layer.negative_slope}, {}
    if isinstance(layer, keras.layers.Dropout):
        return {"kind": "dropout", "rate": layer.rate}, {}
    if isinstance(layer, keras.layers.GlobalAveragePooling2D):
        return {"kind": "pool"}, {}
    raise ValueError(f"Layer {layer.name!r}, a {type(layer).__name__}, has no words.")


def _pads(size, kernel, stride):
    """Keras pads less before than after, where it cannot be even."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return [total // 2, total - total // 2]
