"""Residual networks for small images, of a depth to choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from bayesnorm.models.blocks import NormalizedBlocks, image_inputs, scaled_widths
from bayesnorm.types import ArrayLike, Norm, Scale, Shape, Tensor

_WIDTHS = (16, 32, 64)
# The convolutions of a residual branch: kernel, filters as multiples of the width.
BASIC = ((3, 1), (3, 1))
BOTTLENECK = ((1, 1), (3, 1), (1, 4))


def resnet(
    input_shape: Shape = (32, 32, 3),
    num_classes: int = 10,
    norm: Norm = "batch",
    scale: Scale = "plain",
    projection: bool = False,
    width: float = 1.0,
    depth: int = 20,
    input_mean: ArrayLike | None = None,
    input_variance: ArrayLike | None = None,
    seed: int | None = None,
    **scale_arguments: Any,
) -> keras.Model:
    """Builds a ResNet of `6 n + 2` layers for images of 32 pixels.

    A 3x3 convolution of 16 filters, then three stages of n residual blocks of two 3x3
    convolutions, widths 16, 32, 64, the map halved at the start of stages two and
    three; global average pooling, dense. A normalization after every convolution; a
    ReLU after the first of a block and after its sum. Where the shape changes, the
    shortcut is a normalized 1x1 convolution.

    With `scale="pruning"` the widths inside of the blocks are pruned; those of the sums
    are held by every block of a stage, and stay.

    Args:
        input_shape: `(height, width, channels)`.
        num_classes: Number of classes.
        norm: None, `"batch"`, `"stochastic_batch"`, `"weight"` or `"analytic"`.
        scale: `"plain"`, `"noisy"`, `"stochastic"` or `"pruning"`.
        projection: Whether kernels are projected on `||w|| = 1`.
        width: Factor of the widths.
        depth: Number of layers but for the shortcuts': 8, 14, 20, ...
        input_mean: Per-channel mean of the images; None to take them as they come.
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
        He et al., 2016, "Deep Residual Learning for Image Recognition", section 4.2
        (their shortcuts there have no convolution).
    """
    if depth != int(depth) or depth < 8 or (depth - 2) % 6:
        raise ValueError(
            "`depth` must be 6 n + 2 with an integer n from 1: 8, 14, 20, 26, 32, ... "
            f"Received: depth={depth!r}"
        )
    block = NormalizedBlocks(norm, scale, projection, seed, scale_arguments)
    widths = scaled_widths(_WIDTHS, width)
    inputs, x = image_inputs(input_shape, input_mean, input_variance)
    blocks = [(int(depth) - 2) // 6] * len(widths)
    x = residual_stages(block, x, widths, blocks)
    return block.model(inputs, block.classifier(x, num_classes), f"resnet{depth}")


def residual_stages(
    block: NormalizedBlocks,
    x: Tensor,
    widths: Sequence[int],
    blocks: Sequence[int],
    branch: Any = BASIC,
    scale_initializer: Any = "ones",
    large_images: bool = False,
) -> Tensor:
    """Applies the first convolution, the residual stages and the pooling.

    Args:
        block: A `NormalizedBlocks`.
        x: Symbolic images.
        widths: Widths of the stages; from one to the next the map is halved.
        blocks: Number of residual blocks of each stage.
        branch: `BASIC` or `BOTTLENECK`, the convolutions of a residual branch. The
            first that is wider than a pixel halves the map.
        scale_initializer: Initializer of the last scale of a branch.
        large_images: Whether the first convolution is 7x7 of stride 2, with a 3x3
            maximum pooling of stride 2 behind its activation; otherwise it is 3x3.

    Returns:
        Symbolic features, `[batch, channels]`.
    """

    def convolution(
        x: Tensor,
        filters: int,
        kernel: int,
        stride: int,
        name: str,
        prunable: bool = False,
        initial: Any = "ones",
    ) -> Tensor:
        return block(
            x,
            keras.layers.Conv2D,
            filters,
            kernel,
            strides=stride,
            padding="same",
            name=name,
            prunable=prunable,
            scale_initializer=initial,
        )

    kernel, stride = (7, 2) if large_images else (3, 1)
    x = convolution(x, widths[0], kernel, stride, "conv")
    x = block.activation(x, 0, "conv")
    if large_images:
        x = keras.layers.MaxPooling2D(3, 2, padding="same", name="conv_pool")(x)
    halving = next(k for k, (kernel, _) in enumerate(branch) if kernel > 1)
    last = len(branch) - 1
    for i, (width, number) in enumerate(zip(widths, blocks, strict=True)):
        for j in range(number):
            name, stride = f"block{i}_{j}", 2 if i and not j else 1
            filters = width * branch[last][1]
            shortcut = x
            if stride > 1 or x.shape[-1] != filters:
                shortcut = convolution(x, filters, 1, stride, f"{name}_shortcut")
            for k, (kernel, factor) in enumerate(branch):
                x = convolution(
                    x,
                    width * factor,
                    kernel,
                    stride if k == halving else 1,
                    f"{name}_conv{k}",
                    prunable=k < last,
                    initial=scale_initializer if k == last else "ones",
                )
                if k < last:
                    x = block.activation(x, 0, f"{name}_conv{k}")
            x = keras.layers.Add(name=f"{name}_sum")([x, shortcut])
            x = block.activation(x, 0, name)
    return keras.layers.GlobalAveragePooling2D(name="pool")(x)
