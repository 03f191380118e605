"""Rules of operations of `keras.ops`."""

import math

import keras
import numpy as np
from keras import ops

from bayesnorm.graph.internals import ReluOperation, math_ops
from bayesnorm.graph.internals import core_ops as core
from bayesnorm.graph.internals import nn_ops as nn
from bayesnorm.graph.internals import numpy_ops as numpy
from bayesnorm.pruning.channels import Channels
from bayesnorm.pruning.channelwise import activated, elementwise
from bayesnorm.pruning.merges import combined, concatenated
from bayesnorm.pruning.positions import reshaped, transposed
from bayesnorm.pruning.registry import register
from bayesnorm.pruning.walk import RefusedError


def _number(x):
    """A constant of the graph as a number.

    Raises:
        RefusedError: If it is none.
    """
    if not isinstance(x, int | float):
        x = np.asarray(ops.convert_to_numpy(x))
        if x.size != 1 or x.ndim:
            raise RefusedError("takes a constant of the graph with a shape of its own")
    return float(x)


def _binary(function, absorbs=False):
    """The rule of an operation of two operands, of which one may be a number."""

    def rule(trace, operation, a, b):
        if isinstance(a, Channels) and isinstance(b, Channels):
            return combined(trace, operation, [a, b], function, absorbs)
        if isinstance(a, Channels):
            number = _number(b)
            dead = np.full(len(a.ids), absorbs and number == 0)
            return elementwise(a, lambda x: function(x, number), dead)
        number = _number(a)
        return elementwise(b, lambda x: function(number, x))

    return rule


def _divide(a, b):
    with np.errstate(all="ignore"):
        found = np.divide(a, b)
    return np.where(np.isfinite(found), found, np.nan)


def _power(a, b):
    with np.errstate(all="ignore"):
        found = np.power(a, b)
    return np.where(np.isfinite(found), found, np.nan)


for _types, _function, _absorbs in (
    ((numpy.Add,), np.add, False),
    ((numpy.Subtract,), np.subtract, False),
    ((numpy.Multiply,), np.multiply, True),
    ((numpy.Divide, numpy.TrueDivide), _divide, False),
    ((numpy.Maximum,), np.maximum, False),
    ((numpy.Minimum,), np.minimum, False),
    ((numpy.Power,), _power, False),
):
    register(*_types)(_binary(_function, _absorbs))


@register(
    nn.Relu,
    nn.Relu6,
    nn.Selu,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Silu,
    nn.HardSigmoid,
    nn.HardTanh,
    nn.HardSilu,
    nn.LogSigmoid,
    nn.Squareplus,
    nn.TanhShrink,
    nn.SparsePlus,
    nn.SparseSigmoid,
    nn.Celu,
    nn.HardShrink,
    nn.SoftShrink,
    nn.Threshold,
    nn.Gelu,
    nn.LeakyRelu,
    nn.Elu,
    ReluOperation,
    numpy.Tanh,
    numpy.Exp,
    numpy.Square,
    numpy.Sqrt,
    numpy.Absolute,
    numpy.Negative,
    numpy.Clip,
    numpy.Log,
    numpy.Reciprocal,
    math_ops.Rsqrt,
    core.Cast,
    core.StopGradient,
)
def _unary(trace, operation, channels):
    return activated(operation, channels, operation.call)


@register(numpy.Concatenate)
def _concatenate(trace, operation, inputs):
    return concatenated(trace, operation, inputs, operation.axis)


def _thin_reshape(operation, removal):
    _, outputs = removal.channels(operation)
    shape = removal.shape(outputs)
    target = tuple(-1 if n is None else n for n in shape)
    return [lambda x: ops.reshape(x, target)]


@register(numpy.Reshape, thin=_thin_reshape)
def _reshape(trace, operation, channels):
    symbol = keras.KerasTensor(channels.shape, channels.dtype)
    return reshaped(trace, channels, operation.compute_output_spec(symbol).shape)


def _thin_take(operation, removal):
    return [removal.taken(operation)]


@register(numpy.Take, thin=_thin_take)
def _take(trace, operation, channels, indices):
    """Channels by their places, as in front of a layer that was pruned before."""
    if isinstance(indices, Channels):
        raise RefusedError("takes them from places that the input says")
    indices = np.asarray(ops.convert_to_numpy(indices))
    axis = operation.axis
    if axis is None or axis % len(channels.shape) != channels.axis:
        raise RefusedError("takes positions of them")
    if indices.ndim != 1 or not len(channels.ids):
        raise RefusedError("takes them from places of several axes")
    indices = trace.indices[id(operation)] = indices % len(channels.ids)
    shape = list(channels.shape)
    shape[channels.axis] = len(indices)
    return channels.replace(
        shape=tuple(shape),
        ids=channels.ids[indices],
        constant=channels.constant[indices],
    )


@register(numpy.Transpose)
def _transpose(trace, operation, channels):
    order = operation.axes or tuple(reversed(range(len(channels.shape))))
    return transposed(channels, tuple(order))


def _over_axes(constant):
    """The rule of an operation over axes of positions.

    `constant(values, count)` is what becomes of constants at so many positions.
    """

    def rule(trace, operation, channels):
        if getattr(operation, "initial", None) is not None:
            raise RefusedError("begins with a value of its own")
        rank = len(channels.shape)
        axes = operation.axis
        axes = range(rank) if axes is None else axes
        axes = {i % rank for i in ([axes] if isinstance(axes, int) else axes)}
        if axes & {0, channels.axis}:
            raise RefusedError("is over the channels")
        if channels.pattern is not None:
            channels = channels.only_zeros()
        sizes = [channels.shape[i] for i in axes]
        count = np.nan if None in sizes else math.prod(sizes)
        keep = operation.keepdims
        shape = tuple(
            1 if i in axes else n
            for i, n in enumerate(channels.shape)
            if keep or i not in axes
        )
        before = sum(i < channels.axis for i in axes)
        axis = channels.axis - (0 if keep else before)
        values = constant(channels.constant, count)
        return channels.replace(shape=shape, axis=axis, constant=values)

    return rule


register(numpy.Mean, numpy.Max, numpy.Min)(_over_axes(lambda x, count: x))
register(numpy.Sum)(_over_axes(lambda x, count: np.where(x == 0, 0.0, x * count)))


@register(numpy.ExpandDims)
def _expand_dims(trace, operation, channels):
    axes = [operation.axis] if isinstance(operation.axis, int) else operation.axis
    rank = len(channels.shape) + len(axes)
    added = {i % rank for i in axes}
    # In the new shape, where the old axes are.
    places = [i for i in range(rank) if i not in added]
    shape = [1] * rank
    for place, size in zip(places, channels.shape, strict=True):
        shape[place] = size
    return channels.replace(shape=tuple(shape), axis=places[channels.axis])
