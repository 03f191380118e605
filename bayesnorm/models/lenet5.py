"""LeNet-5, as in the experiments of batch normalization and of pruning."""

from __future__ import annotations

from typing import Any, Literal

import keras

from bayesnorm.arguments import check_choice
from bayesnorm.models.blocks import (
    blocks_with_priors,
    image_inputs,
    scaled_widths,
)
from bayesnorm.types import ArrayLike, Norm, Scale

_WIDTHS = (20, 50, 500)


def lenet5(
    input_shape: tuple[int, int, int] = (28, 28, 1),
    num_classes: int = 10,
    norm: Norm = "batch",
    scale: Scale = "plain",
    projection: bool = False,
    width: float = 1.0,
    dropout: float = 0.0,
    padding: Literal["valid", "same"] = "valid",
    num_examples: int | None = None,
    prior_stddev: float = 1.0,
    input_mean: ArrayLike | None = None,
    input_variance: ArrayLike | None = None,
    seed: int | None = None,
    **scale_arguments: Any,
) -> keras.Model:
    """Builds LeNet-5 with a normalization after each hidden linear layer.

    Convolution 5x5 of 20 filters, normalization, ReLU, 2x2 max pooling; the same with
    50 filters; dense of 500 units, normalization, ReLU; dense of the classes. With
    `norm=None` it is "LeNet-5-Caffe", 20-50-800-500 on 28 pixels: with
    `scale="pruning"` the 800 inputs of the first dense layer are pruned as well.

    Args:
        input_shape: `(height, width, channels)`.
        num_classes: Number of classes.
        norm: None, `"batch"`, `"stochastic_batch"`, `"weight"` or `"analytic"`.
        scale: `"plain"`, `"noisy"`, `"stochastic"` or `"pruning"`.
        projection: Whether kernels are projected on `||w|| = 1`.
        width: Factor of the widths.
        dropout: Rate of the Monte Carlo dropout after each ReLU.
        padding: `"valid"` as in the paper, or `"same"` for images under 16 pixels.
        num_examples: Integer N, the number of training examples, for priors of the
            weights (`bayesnorm.priors`), the losses of the model: without a
            normalization `Normal`, with weight or analytic normalization those of
            `resnet_plus_plus`. None for no priors. Not with batch normalization.
        prior_stddev: Standard deviation of the normal prior.
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
        ValueError: If an argument is not as above or the image is too small.

    Reference:
        Atanov et al., 2018, "Uncertainty Estimation via Stochastic Batch
        Normalization", section 4; LeCun et al., 1998, "Gradient-Based Learning
        Applied to Document Recognition"; Neklyudov et al., 2017, "Structured Bayesian
        Pruning via Log-Normal Multiplicative Noise", section 5.2.
    """
    check_choice("padding", padding, ("valid", "same"))
    if padding == "valid" and min(input_shape[:2]) < 16:
        raise ValueError(
            "Without padding the network needs images of 16 pixels or more a side: "
            f"pass padding='same'. Received: input_shape={input_shape}"
        )
    block = blocks_with_priors(
        norm,
        scale,
        projection,
        seed,
        scale_arguments,
        num_examples,
        prior_stddev,
    )
    *filters, units = scaled_widths(_WIDTHS, width)
    inputs, x = image_inputs(input_shape, input_mean, input_variance)
    for i, number in enumerate(filters):
        name = f"conv{i}"
        x = block(x, keras.layers.Conv2D, number, 5, padding=padding, name=name)
        x = block.activation(x, dropout, name)
        x = keras.layers.MaxPooling2D(name=f"pool{i}")(x)
    x = block.prune(keras.layers.Flatten(name="flatten")(x), "flatten")
    x = block(x, keras.layers.Dense, units, name="dense0")
    x = block.activation(x, dropout, "dense0")
    return block.model(inputs, block.classifier(x, num_classes), "lenet5")
