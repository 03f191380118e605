"""The VGG-like network of the pruning experiments."""

from __future__ import annotations

from typing import Any

import keras

from bayesnorm.models.blocks import NormalizedBlocks, image_inputs, scaled_widths
from bayesnorm.models.vgg11 import vgg_convolutions
from bayesnorm.types import ArrayLike, Norm, Scale, Shape

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_RATES = ((0.3, 0.0), (0.4, 0.0), (0.4, 0.4, 0.0), (0.4, 0.4, 0.0), (0.4, 0.4, 0.5))
_UNITS, _UNITS_RATE = 512, 0.5


def vgg_like(
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
    """Builds the VGG-like network: 13 padded 3x3 convolutions, then two dense layers.

    Widths 64, 64, M, 128, 128, M, 256, 256, 256, M, 512, 512, 512, M, 512, 512, 512, M,
    dense 512, classes, M a 2x2 max pooling; a normalization and a ReLU after every
    hidden layer. Poolings of maps that are one pixel wide already (small images) are
    left out. With `scale="pruning"` the inputs of the first dense layer are pruned as
    well, one by one.

    Args:
        input_shape: `(height, width, channels)`.
        num_classes: Number of classes.
        norm: None, `"batch"`, `"stochastic_batch"`, `"weight"` or `"analytic"`.
        scale: `"plain"`, `"noisy"`, `"stochastic"` or `"pruning"`.
        projection: Whether kernels are projected on `||w|| = 1`.
        width: Factor of the widths.
        dropout: Factor of the rates of Monte Carlo dropout, which at 1 are the paper's,
            from 0.3 after the first convolution to 0.5 before the dense layers.
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
        Neklyudov et al., 2017, "Structured Bayesian Pruning via Log-Normal
        Multiplicative Noise", section 5.3; Zagoruyko, 2015, "92.45% on CIFAR-10 in
        Torch", for the network and its dropout.
    """
    block = NormalizedBlocks(norm, scale, projection, seed, scale_arguments)
    (units,) = scaled_widths((_UNITS,), width)
    rates = [[dropout * rate for rate in stage] for stage in _RATES]
    inputs, x = image_inputs(input_shape, input_mean, input_variance)
    x = vgg_convolutions(block, x, _STAGES, width, rates)
    x = block.prune(keras.layers.Flatten(name="flatten")(x), "flatten")
    x = block(x, keras.layers.Dense, units, name="dense0")
    x = block.activation(x, dropout * _UNITS_RATE, "dense0")
    return block.model(inputs, block.classifier(x, num_classes), "vgg_like")
