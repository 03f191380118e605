"""Masks by the size of filters, to compare with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from bayesnorm.arguments import check_model
from bayesnorm.graph import Index, graph_of
from bayesnorm.layers.kernels import LINEAR_LAYERS, filter_norms


def magnitude_masks(
    model: keras.Model,
    fraction: float | dict[str, float],
    layers: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Returns masks that keep the filters of the largest norms, layer by layer.

    Args:
        model: A built Functional or Sequential model.
        fraction: Number in (0, 1], the share of filters that each layer keeps, rounded
            up; or a dict of such numbers by the name of a layer.
        layers: Names of the layers; None for the dense and convolutional ones whose
            output is not one of the model's (or those of the dict).

    Returns:
        Dict from layer name to booleans `[filters]`, for `bayesnorm.prune(keep=...)`.

    Raises:
        ValueError: If a fraction is not in (0, 1].

    Reference:
        Li et al., 2017, "Pruning Filters for Efficient ConvNets" (there L1 norms).
    """
    check_model(model)
    graph_of(model)
    index, masks = Index(model), {}
    for layer in dict.fromkeys(call.operation for call in index.calls):
        if not isinstance(layer, LINEAR_LAYERS):
            continue
        outputs = [call.outputs[0] for call in index.calls_of(layer)]
        last = any(_reaches_output(index, x) for x in outputs)
        if isinstance(fraction, dict):
            share = fraction.get(layer.name)
        else:
            share = None if last else fraction
        if share is None or (layers is not None and layer.name not in layers):
            continue
        if not 0 < share <= 1:
            raise ValueError(
                "A fraction must be above 0 and at most 1. Received: "
                f"{share!r} for layer {layer.name!r}"
            )
        norms = ops.convert_to_numpy(filter_norms(layer))
        count = math.ceil(share * len(norms))
        mask = np.zeros(len(norms), bool)
        mask[np.argsort(-norms, kind="stable")[:count]] = True
        masks[layer.name] = mask
    return masks


def _reaches_output(index, tensor):
    """Whether a tensor is an output of the model, perhaps behind an activation."""
    if index.is_output(tensor):
        return True
    takers = index.consumers(tensor)
    return any(
        _reaches_output(index, taker.outputs[0])
        for taker in takers
        if not getattr(taker.operation, "weights", None)
        and len(taker.inputs) == 1
        and tuple(taker.outputs[0].shape) == tuple(tensor.shape)
    )
