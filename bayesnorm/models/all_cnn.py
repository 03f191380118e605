"""The all-convolutional network of the stochastic normalization experiments."""

from __future__ import annotations

from typing import Any, Literal

import keras

from bayesnorm.arguments import check_choice
from bayesnorm.models.blocks import NormalizedBlocks, image_inputs, scaled_widths
from bayesnorm.types import ArrayLike, Norm, Scale

_KERNELS = (3, 3, 3, 3, 3, 3, 3, 1, 1)
_STRIDES = (1, 1, 2, 1, 1, 2, 1, 1, 1)
_WIDTHS = (96, 96, 96, 192, 192, 192, 192, 192)
_SMALLEST = 27


def all_cnn(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    num_classes: int = 10,
    norm: Norm = "analytic",
    scale: Scale = "stochastic",
    projection: bool = True,
    width: float = 1.0,
    padding: Literal["valid", "same"] = "valid",
    input_mean: ArrayLike | None = None,
    input_variance: ArrayLike | None = None,
    seed: int | None = None,
    **scale_arguments: Any,
) -> keras.Model:
    """Builds the All-CNN: nine convolutions, then global average pooling.

    Kernels 3, 3, 3, 3, 3, 3, 3, 1, 1; strides 1, 1, 2, 1, 1, 2, 1, 1, 1; widths
    96, 96, 96, 192, 192, 192, 192, 192, classes; a normalization after every
    convolution, leaky ReLU (slope 0.01) after all but the last. Without padding a
    32x32 image gives maps of 30, 28, 13, 11, 9, 4, 2, 2, 2. Images too small for
    that (under 27 pixels) need `padding="same"`.

    Args:
        input_shape: `(height, width, channels)`.
        num_classes: Number of classes.
        norm: None, `"batch"`, `"stochastic_batch"`, `"weight"` or `"analytic"`.
        scale: `"plain"`, `"noisy"`, `"stochastic"` or `"pruning"`.
        projection: Whether kernels are projected on `||w|| = 1`.
        width: Factor of the widths.
        padding: `"valid"` or `"same"`.
        input_mean: Per-channel mean of the images, in their units; None if they
            come standardized.
        input_variance: Per-channel variance of the images.
        seed: Integer, seed of the initial weights and of the noise.
        **scale_arguments: Arguments of `StochasticScaleNorm`,
            `StructuredBayesianPruning` or `NoisyScaleNorm`; the latter's deviations may
            be lists, an entry for each layer.

    Returns:
        A Functional model, images `[batch, height, width, channels]` to logits
        `[batch, classes]`.

    Raises:
        ValueError: If an argument is not as above or the image is too small.

    Reference:
        Shekhovtsov & Flach, 2018, "Stochastic Normalizations as Bayesian
        Learning", appendix B; Springenberg et al., 2015, "Striving for
        Simplicity: The All Convolutional Net".
    """
    check_choice("padding", padding, ("valid", "same"))
    if padding == "valid" and min(input_shape[:2]) < _SMALLEST:
        raise ValueError(
            f"Without padding the network needs images of {_SMALLEST} pixels or more "
            f"a side: pass padding='same'. Received: input_shape={input_shape}"
        )
    block = NormalizedBlocks(norm, scale, projection, seed, scale_arguments)
    widths = scaled_widths(_WIDTHS, width) + [num_classes]
    inputs, x = image_inputs(input_shape, input_mean, input_variance)
    layers = zip(widths, _KERNELS, _STRIDES, strict=True)
    for i, (filters, kernel, stride) in enumerate(layers):
        x = block(
            x,
            keras.layers.Conv2D,
            filters,
            kernel,
            strides=stride,
            padding=padding,
            name=f"conv{i}",
            prunable=i < len(widths) - 1,
        )
        if i < len(widths) - 1:
            x = keras.layers.LeakyReLU(0.01, name=f"relu{i}")(x)
    logits = keras.layers.GlobalAveragePooling2D(name="logits")(x)
    return block.model(inputs, logits, "all_cnn")
