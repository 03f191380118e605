"""Projection of the kernels of a batch-normalized network."""

import keras
from keras import ops

from bayesnorm.layers.kernels import is_linear, project_kernels


def project(model):
    """Puts `||w|| = 1` on the filters that feed a batch normalization.

    The optimizer projects the kernels after every step from now on. The network's
    function stays what it is: a kernel, its bias and the moving statistics behind
    it are divided by the same norm. Train without weight decay on these kernels.

    Args:
        model: A built Functional or Sequential model; nested ones are searched.

    Returns:
        `(projected, skipped)`: the names of the layers whose kernels are
        constrained now, and of those that feed a batch normalization but could
        not be: they feed something else too, or share it with another layer.

    Raises:
        ValueError: If no linear layer feeds a batch normalization.

    Reference:
        Shekhovtsov & Flach, 2018, "Stochastic Normalizations as Bayesian
        Learning", section 2.1.
    """
    projected, skipped = [], []
    for norm in model._flatten_layers():
        if not isinstance(norm, keras.layers.BatchNormalization):
            continue
        sources = {_source(node.input_tensors[0]) for node in norm._inbound_nodes}
        linear = [layer for layer in sources if is_linear(layer)]
        alone = len(sources) == 1 and all(
            node.operation is norm for node in _consumers(linear)
        )
        for layer in linear:
            if alone:
                _project_before(layer, norm)
            (projected if alone else skipped).append(layer.name)
    if not projected and not skipped:
        raise ValueError(
            f"No linear layer of model {model.name!r} feeds a BatchNormalization: "
            "there is nothing to project. (The wrappers WeightNormalization and "
            "AnalyticNormalization take projection=True; a subclassed model shows "
            "no graph: call `bayesnorm.layers.project_kernels` on its layers.)"
        )
    return projected, skipped


def _source(tensor):
    return tensor._keras_history.operation


def _consumers(layers):
    return [node for layer in layers for node in layer._outbound_nodes]


def _project_before(layer, norm):
    norms = project_kernels(layer)
    if layer.use_bias:
        layer.bias.assign(layer.bias / norms)
    norm.moving_mean.assign(norm.moving_mean / norms)
    # (variance + epsilon) is what is divided; below zero there is no such variance.
    variance = (norm.moving_variance + norm.epsilon) / ops.square(norms) - norm.epsilon
    norm.moving_variance.assign(ops.maximum(variance, 0.0))
