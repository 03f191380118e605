"""Rules of layers that put several tensors together."""

import functools

import numpy as np
from keras import layers

from bayesnorm.pruning.channels import Channels
from bayesnorm.pruning.registry import register
from bayesnorm.pruning.walk import RefusedError


def broadcast_shape(shapes):
    """Returns the shape of tensors put together element by element."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    found = []
    for sizes in zip(*padded, strict=True):
        known = [n for n in sizes if n not in (None, 1)]
        found.append(known[0] if known else None if None in sizes else 1)
    return tuple(found)


def combined(trace, operation, inputs, function, absorbs=False):
    """Channels of a function of two tensors or more, element by element.

    Args:
        trace: The `Trace`.
        operation: The layer.
        inputs: List of `Channels`.
        function: Function of two vectors of constants.
        absorbs: Whether a constant 0 of one makes the outcome 0, whatever the others.

    Raises:
        RefusedError: If their channels do not lie along the same axis.
    """
    _check_tensors(inputs)
    shape = broadcast_shape([x.shape for x in inputs])
    aligned = [_aligned(x, shape) for x in inputs]
    axes = {x.axis for x in aligned if len(x.ids) > 1} or {aligned[0].axis}
    if len(axes) > 1:
        raise RefusedError("meets tensors of channels along several axes")
    (axis,) = axes
    size = max(len(x.ids) for x in aligned)
    sizes = [(1,) * (len(shape) - len(x.shape)) + tuple(x.shape) for x in inputs]
    along = [n[axis] == len(x.ids) for n, x in zip(sizes, aligned, strict=True)]
    if shape[axis] != size or not all(along):
        # Positions of one lie where the channels of another do.
        raise RefusedError("meets tensors of channels along several axes")
    for x in aligned:
        if len(x.ids) < size:
            trace.pin(x.ids, operation, "meets all channels of another tensor")
    wide = [x for x in aligned if len(x.ids) == size]
    trace.tie(*(x.ids for x in wide))
    if len({x.pattern for x in aligned}) > 1:
        aligned = [x.only_zeros() for x in aligned]
    pattern = aligned[0].pattern
    constants = [np.broadcast_to(x.constant, size) for x in aligned]
    constant = functools.reduce(function, constants)
    if absorbs:
        constant = np.where(np.any([c == 0 for c in constants], 0), 0.0, constant)
    return wide[0].replace(shape=shape, axis=axis, constant=constant, pattern=pattern)


def _check_tensors(inputs):
    if not all(isinstance(x, Channels) for x in inputs):
        raise RefusedError("takes a constant of the graph with a shape of its own")


def _aligned(channels, shape):
    """Channels of a tensor of the rank of the outcome."""
    more = len(shape) - len(channels.shape)
    axis = channels.axis + more
    if not len(channels.ids):
        raise RefusedError("is given an unknown number of channels")
    if len(channels.ids) not in (1, shape[axis]):
        raise RefusedError("meets a tensor of other channels")
    return channels.replace(axis=axis)


@register(layers.Add)
def _add(trace, layer, inputs):
    return combined(trace, layer, inputs, np.add)


@register(layers.Subtract)
def _subtract(trace, layer, inputs):
    return combined(trace, layer, inputs, np.subtract)


@register(layers.Multiply)
def _multiply(trace, layer, inputs):
    return combined(trace, layer, inputs, np.multiply, absorbs=True)


@register(layers.Average)
def _average(trace, layer, inputs):
    total = combined(trace, layer, inputs, np.add)
    return total.replace(constant=total.constant / len(inputs))


@register(layers.Maximum)
def _maximum(trace, layer, inputs):
    return combined(trace, layer, inputs, np.maximum)


@register(layers.Minimum)
def _minimum(trace, layer, inputs):
    return combined(trace, layer, inputs, np.minimum)


def concatenated(trace, operation, inputs, axis):
    """Channels of tensors one behind the other along an axis."""
    _check_tensors(inputs)
    first = inputs[0]
    axis %= len(first.shape)
    if axis == 0 or len({x.axis for x in inputs}) > 1:
        raise RefusedError("meets tensors of channels along several axes")
    if not all(len(x.ids) for x in inputs):
        raise RefusedError("is given an unknown number of channels")
    if len({x.pattern for x in inputs}) > 1:
        inputs = [x if x.pattern is None else x.only_zeros() for x in inputs]
    sizes = [x.shape[axis] for x in inputs]
    total = None if None in sizes else sum(sizes)
    shape = tuple(total if i == axis else n for i, n in enumerate(first.shape))
    if axis == first.axis:
        ids = np.concatenate([x.ids for x in inputs])
        constant = np.concatenate([x.constant for x in inputs])
    else:
        trace.tie(*(x.ids for x in inputs))
        ids, constants = first.ids, np.array([x.constant for x in inputs])
        same = (constants == constants[:1]).all(0)
        # One behind the other, maps of positions are no longer the same.
        same &= (inputs[0].pattern is None) | (constants[0] == 0)
        constant = np.where(same, constants[0], np.nan)
    pattern = inputs[0].pattern if axis == first.axis else None
    return Channels(shape, first.axis, ids, constant, pattern, first.dtype)


@register(layers.Concatenate)
def _concatenate(trace, layer, inputs):
    return concatenated(trace, layer, inputs, layer.axis)
