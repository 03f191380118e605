"""Fully connected networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from bayesnorm.arguments import positive_integer
from bayesnorm.models.blocks import (
    blocks_with_priors,
    image_inputs,
    scaled_widths,
)
from bayesnorm.types import ArrayLike, Norm, Scale, Shape


def mlp(
    input_shape: Shape = (28, 28, 1),
    num_classes: int = 10,
    norm: Norm = None,
    scale: Scale = "plain",
    projection: bool = False,
    width: float = 1.0,
    units: Sequence[int] = (500, 300),
    dropout: float = 0.0,
    num_examples: int | None = None,
    prior_stddev: float = 1.0,
    input_mean: ArrayLike | None = None,
    input_variance: ArrayLike | None = None,
    seed: int | None = None,
    **scale_arguments: Any,
) -> keras.Model:
    """Builds a fully connected network, by default 784-500-300-10 on MNIST.

    The pixels as a vector, dense layers of `units`, each with its normalization and a
    ReLU, dense of the classes. `units=(300, 100)` is LeNet-300-100. With
    `scale="pruning"` the pixels are pruned as well.

    Args:
        input_shape: `(height, width, channels)`.
        num_classes: Number of classes.
        norm: None, `"batch"`, `"stochastic_batch"`, `"weight"` or `"analytic"`.
        scale: `"plain"`, `"noisy"`, `"stochastic"` or `"pruning"`.
        projection: Whether kernels are projected on `||w|| = 1`.
        width: Factor of the widths.
        units: Widths of the hidden layers, a tuple.
        dropout: Rate of the Monte Carlo dropout after each ReLU.
        num_examples: Integer N, the number of training examples, for priors of the
            weights (`bayesnorm.priors`), the losses of the model: without a
            normalization `Normal`, with weight or analytic normalization those of
            `resnet_plus_plus`. None for no priors. Not with batch normalization.
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
        Neklyudov et al., 2017, "Structured Bayesian Pruning via Log-Normal
        Multiplicative Noise", section 5.2.
    """
    for number in units:
        positive_integer("units", number)
    block = blocks_with_priors(
        norm,
        scale,
        projection,
        seed,
        scale_arguments,
        num_examples,
        prior_stddev,
    )
    inputs, x = image_inputs(input_shape, input_mean, input_variance)
    x = block.prune(keras.layers.Flatten(name="flatten")(x), "flatten")
    for i, number in enumerate(scaled_widths(units, width)):
        x = block(x, keras.layers.Dense, number, name=f"dense{i}")
        x = block.activation(x, dropout, f"dense{i}")
    return block.model(inputs, block.classifier(x, num_classes), "mlp")
