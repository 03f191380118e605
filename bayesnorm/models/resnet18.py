"""ResNet-18 for small images."""

from __future__ import annotations

from typing import Any

import keras

from bayesnorm.models.blocks import NormalizedBlocks, image_inputs, scaled_widths
from bayesnorm.models.resnet import residual_stages
from bayesnorm.types import ArrayLike, Norm, Scale, Shape

_WIDTHS = (64, 128, 256, 512)
_BLOCKS = (2, 2, 2, 2)


def resnet18(
    input_shape: Shape = (32, 32, 3),
    num_classes: int = 10,
    norm: Norm = "batch",
    scale: Scale = "plain",
    projection: bool = False,
    width: float = 1.0,
    input_mean: ArrayLike | None = None,
    input_variance: ArrayLike | None = None,
    seed: int | None = None,
    **scale_arguments: Any,
) -> keras.Model:
    """Builds ResNet-18 in the form for images of 32 pixels.

    A 3x3 convolution of 64 filters, then four stages of two residual blocks of two 3x3
    convolutions, widths 64, 128, 256, 512, the map halved at the start of stages two to
    four; global average pooling, dense. A normalization after every convolution; a ReLU
    after the first of a block and after its sum. Where the shape changes, the shortcut
    is a normalized 1x1 convolution. What can be pruned are the widths inside of the
    blocks.

    Args:
        input_shape: `(height, width, channels)`.
        num_classes: Number of classes.
        norm: None, `"batch"`, `"stochastic_batch"`, `"weight"` or `"analytic"`.
        scale: `"plain"`, `"noisy"`, `"stochastic"` or `"pruning"`.
        projection: Whether kernels are projected on `||w|| = 1`.
        width: Factor of the widths.
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
        Normalization", section 4; He et al., 2016, "Deep Residual Learning for Image
        Recognition".
    """
    block = NormalizedBlocks(norm, scale, projection, seed, scale_arguments)
    widths = scaled_widths(_WIDTHS, width)
    inputs, x = image_inputs(input_shape, input_mean, input_variance)
    x = residual_stages(block, x, widths, _BLOCKS)
    return block.model(inputs, block.classifier(x, num_classes), "resnet18")
