"""Residual networks of bottlenecks without batch statistics, with priors."""

from __future__ import annotations

from typing import Any, Literal

import keras

from bayesnorm.arguments import check_number
from bayesnorm.models.blocks import (
    blocks_with_priors,
    image_inputs,
    scaled_widths,
)
from bayesnorm.models.resnet import BOTTLENECK, residual_stages
from bayesnorm.types import ArrayLike, Norm, Scale, Shape

_SMALL_WIDTHS = (16, 32, 64)
_LARGE_WIDTHS = (64, 128, 256, 512)
_LARGE_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def resnet_plus_plus(
    input_shape: Shape = (32, 32, 3),
    num_classes: int = 10,
    norm: Norm = "weight",
    scale: Scale = "plain",
    projection: bool = False,
    width: float = 1.0,
    depth: int = 56,
    activation: Literal["selu", "relu"] | None = None,
    last_scale: float | None = None,
    num_examples: int | None = None,
    prior_stddev: float = 1.0,
    input_mean: ArrayLike | None = None,
    input_variance: ArrayLike | None = None,
    seed: int | None = None,
    **scale_arguments: Any,
) -> keras.Model:
    """Builds ResNet++: bottlenecks with weight normalization and SELU.

    For small images a depth of `9 n + 2`: a 3x3 convolution of 16 filters, then three
    stages of n residual blocks, widths 16, 32, 64. For images of ImageNet the depths
    50, 101 and 152: a 7x7 convolution of 64 filters and stride 2, a 3x3 maximum pooling
    of stride 2, then four stages, widths 64, 128, 256, 512. The map is halved at the
    start of all stages but the first; global average pooling, dense.

    The branch of a block of width w has convolutions 1x1 of w filters, 3x3 of w, which
    halves the map, and 1x1 of 4 w. A normalization with scale and bias after every
    convolution; an activation after the first one, the first two of a branch and the
    sum. Where the shape changes, the shortcut is a normalized 1x1 convolution. Kernels
    start as LeCun's normal, scales as 1 but for the last one of each branch, so that
    each block starts near its shortcut.

    `norm="batch"` is the baseline: the same with batch normalization and ReLU.

    With `num_examples` the losses of the model are the priors
    (`bayesnorm.priors`, N times their sum is `-log p` up to a constant):

    - scales: `GroupLaplace` of scale 5, each by itself. With `scale="stochastic"` they
      have their own prior, and `"pruning"` adds that of its factors; `num_examples` is
      then the N of these layers too.
    - kernels: `UnitLength`, for `||w||` is divided out;
    - all others, the biases (inside of the scales, as of `ScaleNorm`) and the last
      layer, and without a normalization all weights: `Normal` of deviation
      `prior_stddev`.

    Args:
        input_shape: `(height, width, channels)`.
        num_classes: Number of classes.
        norm: None, `"batch"`, `"stochastic_batch"`, `"weight"` or `"analytic"`.
        scale: `"plain"`, `"noisy"`, `"stochastic"` or `"pruning"`.
        projection: Whether kernels are projected on `||w|| = 1`.
        width: Factor of the widths; the paper takes 2 with the depth of 56.
        depth: Number of layers but for the shortcuts': 11, 20, ..., 56, ... for small
            images; 50, 101 or 152.
        activation: `"selu"` or `"relu"`. None: ReLU with batch normalization, else
            SELU.
        last_scale: Number from 0, the last scale of each branch at the start. None: 1
            with batch normalization, else 0.1.
        num_examples: Integer N, the number of training examples, for the priors; None
            for no priors. Not with batch normalization.
        prior_stddev: Standard deviation of the normal prior.
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
        Heek & Kalchbrenner, 2019, "Bayesian Inference for Large Scale Image
        Classification"; He et al., 2016, "Deep Residual Learning for Image
        Recognition" (whose first 1x1 convolution halves the map).
    """
    large = depth in _LARGE_BLOCKS
    if not large and (depth != int(depth) or depth < 11 or (depth - 2) % 9):
        raise ValueError(
            "`depth` must be 9 n + 2 with an integer n from 1 (11, 20, 29, 38, 47, 56, "
            f"...), or one of {tuple(_LARGE_BLOCKS)}. Received: depth={depth!r}"
        )
    in_batches = norm in ("batch", "stochastic_batch")
    block = blocks_with_priors(
        norm,
        scale,
        projection,
        seed,
        scale_arguments,
        num_examples,
        prior_stddev,
        activation=activation or ("relu" if in_batches else "selu"),
        kernel_initializer=keras.initializers.LecunNormal,
    )
    unscaled = norm is None and scale in ("plain", "pruning")
    if last_scale is None:
        last_scale = 1.0 if in_batches or unscaled else 0.1
    elif unscaled:
        raise ValueError(
            f"There is no last scale with norm=None and scale={scale!r}: take another "
            f"normalization or leave `last_scale`. Received: last_scale={last_scale!r}"
        )
    check_number("last_scale", last_scale)
    inputs, x = image_inputs(input_shape, input_mean, input_variance)
    x = residual_stages(
        block,
        x,
        scaled_widths(_LARGE_WIDTHS if large else _SMALL_WIDTHS, width),
        _LARGE_BLOCKS[depth] if large else ((int(depth) - 2) // 9,) * 3,
        branch=BOTTLENECK,
        scale_initializer=keras.initializers.Constant(last_scale),
        large_images=large,
    )
    name = f"resnet_plus_plus{depth}"
    return block.model(inputs, block.classifier(x, num_classes), name)
