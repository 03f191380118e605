"""Initialization from data: what batch normalization would do to the first batch."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from bayesnorm.arguments import check_model
from bayesnorm.graph import Index, run
from bayesnorm.layers import (
    AnalyticNormalization,
    ScaleNorm,
    StochasticScaleNorm,
    noise_mode,
)
from bayesnorm.layers.kernels import LINEAR_LAYERS, channel_axis, output_kernel
from bayesnorm.maths import scale as scale_maths
from bayesnorm.types import ArrayLike

_NORMALIZED = (AnalyticNormalization, keras.layers.BatchNormalization)
# A channel that hardly varies over the batch is centred, not blown up.
_SMALLEST_STDDEV = 1e-6


def data_dependent_init(model: keras.Model, images: ArrayLike) -> list[str]:
    """Sets scales and biases so that all pre-activations have mean 0, variance 1.

    One pass of a batch goes through the network, layer by layer, each on the outputs
    of those already set. With m and s the mean and the standard deviation of a
    channel over the batch and all positions:

    - a linear layer with a bias (its pre-activation y): `kernel / s`,
      `bias <- (bias - m) / s`;
    - `ScaleNorm` and `StochasticScaleNorm`, `y = (x + bias) * scale`, of m and s of
      x: `bias <- -m`, `scale <- 1 / s`; a posterior keeps the relative deviation
      that it starts with, `stddev <- initial_stddev / s`.

    What follows an `AnalyticNormalization` or a `BatchNormalization`, and a linear
    layer before the latter, is left as it is.

    Args:
        model: A built Functional or Sequential model; nested ones are included.
        images: Array `[n, ...]` of inputs of the model, some hundred of the training
            set.

    Returns:
        The names of the layers that were set, in order.

    Raises:
        ValueError: If the model has no graph, there are fewer than two examples, or
            they are not finite.

    Reference:
        Salimans & Kingma, 2016, "Weight Normalization", section 3; Shekhovtsov &
        Flach, 2018, "Stochastic Normalizations as Bayesian Learning", appendix B.
    """
    check_model(model)
    images = np.asarray(images)
    if len(images) < 2 or not np.isfinite(images).all():
        raise ValueError(
            "`images` must be two or more finite examples. Received: an array of "
            f"shape {images.shape}, finite: {bool(np.isfinite(images).all())}"
        )
    done, index = {}, Index(model)

    def call(operation, *args, **kwargs):
        if isinstance(operation, keras.Model):
            return run(operation, args[0], call)
        if operation not in done:
            if isinstance(operation, LINEAR_LAYERS):
                done[operation] = _init_linear(index, operation, *args)
            elif isinstance(operation, ScaleNorm):
                done[operation] = _init_scale(index, operation, *args)
        return operation(*args, **kwargs)

    with noise_mode("mean"):
        run(model, ops.convert_to_tensor(images), call)
    return [layer.name for layer, was_set in done.items() if was_set]


def _init_linear(index, layer, inputs):
    followed = any(
        isinstance(taker.operation, keras.layers.BatchNormalization)
        for call in index.calls_of(layer)
        for taker in index.consumers(call.outputs[0])
    )
    if not layer.use_bias or followed:
        return False
    activation, layer.activation = layer.activation, keras.activations.linear
    try:
        outputs = layer(inputs)
    finally:
        layer.activation = activation
    mean, stddev = _channel_moments(outputs, channel_axis(layer))
    kernel, shape = output_kernel(layer)
    kernel.assign(_array(kernel) / stddev.reshape(shape))
    layer.bias.assign((_array(layer.bias) - mean) / stddev)
    return True


def _init_scale(index, layer, inputs):
    sources = [
        source.operation
        for call in index.calls_of(layer)
        for source in index.producers(call.inputs[0])
    ]
    if any(isinstance(source, _NORMALIZED) for source in sources):
        return False
    mean, stddev = _channel_moments(inputs, layer.axis)
    layer.bias.assign(-mean)
    layer.scale.assign(1.0 / stddev)
    if isinstance(layer, StochasticScaleNorm):
        stddevs = layer.initial_stddev / stddev
        if not layer.per_channel:
            stddevs = stddevs.mean(keepdims=True)
        layer.rho.assign(scale_maths.rho_of_stddev(stddevs))
    return True


def _channel_moments(tensor, axis):
    """Returns mean and stddev over all axes but `axis`, float64."""
    values = np.moveaxis(_array(tensor), axis, -1)
    values = values.reshape(-1, values.shape[-1])
    stddev = values.std(axis=0)
    return values.mean(axis=0), np.where(stddev > _SMALLEST_STDDEV, stddev, 1.0)


def _array(tensor):
    return np.asarray(ops.convert_to_numpy(tensor), "float64")
