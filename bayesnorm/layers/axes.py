"""The channel axis of a layer: checks and broadcasting."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from bayesnorm import backend
from bayesnorm.types import Tensor


def canonical_axis(layer: keras.layers.Layer, axis: int, input_shape: Any) -> int:
    """Returns `axis` counted from 0.

    Args:
        layer: The layer, for the message.
        axis: Integer, the channel axis.
        input_shape: Shape with the batch first.

    Raises:
        ValueError: If the axis is the batch, is not there or has no size.
    """
    rank = len(input_shape)
    whole = isinstance(axis, int) and not isinstance(axis, bool)
    positive = axis + rank if whole and axis < 0 else axis
    if not whole or not 1 <= positive < rank:
        raise ValueError(
            f"`axis` of layer {layer.name!r} must name a channel axis of its "
            f"input: 1 to {rank - 1}, or -{rank - 1} to -1. Received: axis={axis!r} "
            f"with an input of shape {tuple(input_shape)}."
        )
    if input_shape[positive] is None:
        raise ValueError(
            f"Layer {layer.name!r} must know the number of channels (axis {axis}) "
            f"when it is built. Received an input of shape {tuple(input_shape)}: "
            "give the model's Input that size."
        )
    return positive


def add_along(x: Tensor, vector: Tensor, axis: int) -> Tensor:
    """Returns `x + vector`, the vector along `axis`, in the dtype of `x`.

    Args:
        x: Tensor.
        vector: Tensor `[channels]`.
        axis: Integer from 0.
    """
    vector, rank = ops.cast(vector, x.dtype), len(x.shape)
    if axis == rank - 1:
        return backend.add_bias(x, vector)
    return x + ops.reshape(vector, broadcast_shape(axis, rank, -1))


def broadcast_shape(
    axis: int, rank: int, channels: int, batch: Any = 1
) -> tuple[Any, ...]:
    """Returns `[batch, 1, ..., channels, ..., 1]`, `channels` at `axis`."""
    shape = [1] * rank
    shape[0] = batch
    shape[axis] = channels
    return tuple(shape)
