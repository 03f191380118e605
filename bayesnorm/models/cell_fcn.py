"""The fully convolutional network of the cell segmentation experiment."""

from __future__ import annotations

from typing import Any, Literal

import keras

from bayesnorm.arguments import check_choice
from bayesnorm.models.blocks import NormalizedBlocks, image_inputs, scaled_widths
from bayesnorm.types import ArrayLike, Norm, Scale, Shape

_STAGES = ((64, 64), (32, 32), (16, 16), (8, 8, 8), (4, 4))
_ACTIVATIONS = {
    "softmax": lambda name: keras.layers.Softmax(axis=-1, name=name),
    "leaky_relu": lambda name: keras.layers.LeakyReLU(0.01, name=name),
    "softplus": lambda name: keras.layers.Activation("softplus", name=name),
}


def cell_fcn(
    input_shape: Shape = (None, None, 1),
    num_classes: int = 2,
    norm: Norm = "analytic",
    scale: Scale = "stochastic",
    projection: bool = True,
    width: float = 1.0,
    activation: Literal["softmax", "leaky_relu", "softplus"] = "leaky_relu",
    input_mean: ArrayLike | None = None,
    input_variance: ArrayLike | None = None,
    seed: int | None = None,
    **scale_arguments: Any,
) -> keras.Model:
    """Builds the segmentation network: 9x9 convolutions, poolings of stride 1.

    Convolutions of 64, 64, P, 32, 32, P, 16, 16, P, 8, 8, 8, P, 4, 4, P filters, P a
    3x3 average pooling of stride 1, then a 1x1 convolution to the classes; all padded,
    so that every pixel gets a label. A normalization after every convolution, an
    activation after all but the last.

    Args:
        input_shape: `(height, width, channels)`; height and width may be None.
        num_classes: Number of classes.
        norm: None, `"batch"`, `"stochastic_batch"`, `"weight"` or `"analytic"`.
        scale: `"plain"`, `"noisy"`, `"stochastic"` or `"pruning"`.
        projection: Whether kernels are projected on `||w|| = 1`.
        width: Factor of the widths.
        activation: `"softmax"` over the channels as the paper writes, `"leaky_relu"`
            (slope 0.01) or `"softplus"`.
        input_mean: Per-channel mean of the images; None if they come standardized.
        input_variance: Per-channel variance of the images.
        seed: Integer, seed of the initial weights and of the noise.
        **scale_arguments: Arguments of `StochasticScaleNorm`,
            `StructuredBayesianPruning` or `NoisyScaleNorm`; the latter's deviations may
            be lists, an entry for each layer.

    Returns:
        A Functional model, images `[batch, height, width, channels]` to logits
        `[batch, height, width, classes]`.

    Raises:
        ValueError: If an argument is not as above.

    Reference:
        Shekhovtsov & Flach, 2018, "Stochastic Normalizations as Bayesian
        Learning", section 4.2 and appendix B.
    """
    check_choice("activation", activation, tuple(_ACTIVATIONS))
    block = NormalizedBlocks(norm, scale, projection, seed, scale_arguments)
    inputs, x = image_inputs(input_shape, input_mean, input_variance)
    for i, stage in enumerate(_STAGES):
        for j, filters in enumerate(scaled_widths(stage, width)):
            name = f"conv{i}_{j}"
            x = block(x, keras.layers.Conv2D, filters, 9, padding="same", name=name)
            x = _ACTIVATIONS[activation](f"{name}_activation")(x)
        x = keras.layers.AveragePooling2D(3, 1, padding="same", name=f"pool{i}")(x)
    x = block(x, keras.layers.Conv2D, num_classes, 1, name="logits", prunable=False)
    return block.model(inputs, x, "cell_fcn")
