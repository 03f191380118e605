"""Projection of the kernels of a batch-normalized network."""

from __future__ import annotations

import keras
from keras import ops

from bayesnorm.arguments import check_model
from bayesnorm.graph import Index, layers_of
from bayesnorm.layers.kernels import (
    channel_axis,
    is_linear,
    kernel_norms,
    project_kernels,
)
from bayesnorm.layers.stochastic_batch_norm import StochasticBatchNormalization


def project(model: keras.Model) -> tuple[list[str], list[str]]:
    """Puts `||w|| = 1` on the filters that feed a batch normalization.

    The optimizer projects the kernels after every step from now on. The network's
    function stays what it is, and so does a calibrated posterior: a kernel, its bias
    and the statistics behind it are divided by the same norm. Train without weight
    decay on these kernels.

    Args:
        model: A built Functional or Sequential model; nested ones are searched.

    Returns:
        `(projected, skipped)`: the names of the layers whose kernels are
        constrained now, and of those that feed a batch normalization but could
        not be, and are left as they were: they feed something else too, share it
        with another layer, or have a filter that is 0 (or, without a gamma to take
        it up, so small a variance that epsilon rules).

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If no linear layer feeds a batch normalization.

    Reference:
        Shekhovtsov & Flach, 2018, "Stochastic Normalizations as Bayesian
        Learning", section 2.1.
    """
    check_model(model)
    projected, skipped, index = [], [], Index(model)
    for norm in layers_of(model):
        if not isinstance(norm, keras.layers.BatchNormalization):
            continue
        inputs = [call.inputs[0] for call in index.calls_of(norm)]
        sources = dict.fromkeys(c.operation for x in inputs for c in index.producers(x))
        linear = [layer for layer in sources if is_linear(layer)]
        for layer in linear:
            done = len(sources) == 1 and _feeds_only(index, layer, norm)
            done = done and _project_before(layer, norm)
            (projected if done else skipped).append(layer.name)
    if not projected and not skipped:
        raise ValueError(
            f"No linear layer of model {model.name!r} feeds a BatchNormalization: "
            "there is nothing to project. (The wrappers WeightNormalization and "
            "AnalyticNormalization take projection=True; a subclassed model shows "
            "no graph: call `bayesnorm.layers.project_kernels` on its layers.)"
        )
    return projected, skipped


def _feeds_only(index, layer, norm):
    """Whether nothing but `norm`, along the channels, takes the layer's output."""
    outputs = [call.outputs[0] for call in index.calls_of(layer)]
    rank = len(outputs[0].shape)
    along = norm.axis % rank == channel_axis(layer) % rank
    takers = {call.operation for x in outputs for call in index.consumers(x)}
    return along and takers == {norm} and not any(map(index.is_output, outputs))


def _project_before(layer, norm):
    """Projects, and mends `norm`; returns whether the function could be kept."""
    norms = kernel_norms(layer)
    # Divided is (variance + epsilon); below epsilon there is no such variance, and
    # gamma takes the rest.
    divided = (norm.moving_variance + norm.epsilon) / ops.square(norms)
    variance = ops.maximum(divided - norm.epsilon, 0.0)
    rest = ops.sqrt((variance + norm.epsilon) / divided)
    clipped = bool(ops.any(divided < norm.epsilon))
    if not bool(ops.all(norms > 0)) or (clipped and not norm.scale):
        return False
    if clipped:
        norm.gamma.assign(norm.gamma * rest)
    if layer.use_bias:
        layer.bias.assign(layer.bias / norms)
    norm.moving_mean.assign(norm.moving_mean / norms)
    norm.moving_variance.assign(variance)
    if isinstance(norm, StochasticBatchNormalization):
        norm.mu_mean.assign(norm.mu_mean / norms)
        norm.mu_variance.assign(norm.mu_variance / ops.square(norms))
        # What is divided by has epsilon in it, and gamma has taken the rest.
        shift = 2.0 * ops.log(rest / norms)
        norm.log_variance_mean.assign(norm.log_variance_mean + shift)
    project_kernels(layer)
    return True
