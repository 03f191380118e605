"""VGG-11 for small images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from bayesnorm.models.blocks import NormalizedBlocks, image_inputs, scaled_widths
from bayesnorm.types import ArrayLike, Norm, Scale, Shape, Tensor

_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


def vgg11(
    input_shape: Shape = (32, 32, 3),
    num_classes: int = 10,
    norm: Norm = "batch",
    scale: Scale = "plain",
    projection: bool = False,
    width: float = 1.0,
    dropout: float = 0.0,
    input_mean: ArrayLike | None = None,
    input_variance: ArrayLike | None = None,
    seed: int | None = None,
    **scale_arguments: Any,
) -> keras.Model:
    """Builds VGG-11: eight padded 3x3 convolutions in five stages, then dense.

    Widths 64, M, 128, M, 256, 256, M, 512, 512, M, 512, 512, M, classes, M a 2x2 max
    pooling; a normalization and a ReLU after every convolution. Poolings of maps that
    are one pixel wide already (small images) are left out.

    Args:
        input_shape: `(height, width, channels)`.
        num_classes: Number of classes.
        norm: None, `"batch"`, `"stochastic_batch"`, `"weight"` or `"analytic"`.
        scale: `"plain"`, `"noisy"`, `"stochastic"` or `"pruning"`.
        projection: Whether kernels are projected on `||w|| = 1`.
        width: Factor of the widths.
        dropout: Rate of the Monte Carlo dropout after each ReLU.
        input_mean: Per-channel mean of the images; None to take them as they come, as
            in the paper.
        input_variance: Per-channel variance of the images.
        seed: Integer, seed of the initial weights and of the noise.
        **scale_arguments: Arguments of `StochasticScaleNorm`,
            `StructuredBayesianPruning` or `NoisyScaleNorm`; the latter's deviations may
            be lists, an entry for each layer.

    Returns:
        A Functional model, images `[batch, height, width, channels]` to logits
        `[batch, classes]`.

    Raises:
        ValueError: If an argument is not as above.

    Reference:
        Atanov et al., 2018, "Uncertainty Estimation via Stochastic Batch
        Normalization", section 4; Simonyan & Zisserman, 2015, "Very Deep
        Convolutional Networks for Large-Scale Image Recognition".
    """
    block = NormalizedBlocks(norm, scale, projection, seed, scale_arguments)
    inputs, x = image_inputs(input_shape, input_mean, input_variance)
    rates = [[dropout] * len(stage) for stage in _STAGES]
    x = vgg_convolutions(block, x, _STAGES, width, rates)
    x = keras.layers.Flatten(name="flatten")(x)
    return block.model(inputs, block.classifier(x, num_classes), "vgg11")


def vgg_convolutions(
    block: NormalizedBlocks,
    x: Tensor,
    stages: Sequence[Sequence[int]],
    width: float,
    rates: Sequence[Sequence[float]],
) -> Tensor:
    """Applies the padded 3x3 convolutions of a VGG network, and its poolings.

    Args:
        block: A `NormalizedBlocks`.
        x: Symbolic maps.
        stages: Numbers of filters, a tuple for each stage, a pooling at its end.
        width: Factor of the widths.
        rates: Rates of dropout, in the form of `stages`.

    Returns:
        Symbolic maps.
    """
    for i, (stage, of_stage) in enumerate(zip(stages, rates, strict=True)):
        layers = zip(scaled_widths(stage, width), of_stage, strict=True)
        for j, (filters, rate) in enumerate(layers):
            name = f"conv{i}_{j}"
            x = block(x, keras.layers.Conv2D, filters, 3, padding="same", name=name)
            x = block.activation(x, rate, name)
        if min(x.shape[1:3]) > 1:
            x = keras.layers.MaxPooling2D(name=f"pool{i}")(x)
    return x
