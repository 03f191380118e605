"""Rules of `keras.ops` operations that stand in Functional graphs."""

import math

from keras import activations, ops

from bayesnorm.graph.internals import core_ops as core
from bayesnorm.graph.internals import nn_ops as nn
from bayesnorm.graph.internals import numpy_ops as numpy
from bayesnorm.maths.activations import elu_moments
from bayesnorm.maths.pooling import average_pool_moments
from bayesnorm.moments.activation_rules import activate, log_soften, rectify, soften
from bayesnorm.moments.layer_rules import (
    combine,
    concatenate_moments,
    reshape_moments,
    transpose_moments,
)
from bayesnorm.moments.moments import Moments
from bayesnorm.moments.registry import register

# --- arithmetic --------------------------------------------------------------------


def _is_moments(x):
    return isinstance(x, Moments)


def _constant(x, moments):
    """A constant of the graph, checked to go with the level of the moments."""
    x = ops.cast(ops.convert_to_tensor(x), moments.mean.dtype)
    rank, sizes = len(moments.shape), tuple(x.shape)
    if not moments.stationary or math.prod(sizes) == 1:
        return ops.reshape(x, ()) if math.prod(sizes) == 1 else x
    axes = [i for i, n in enumerate(sizes, rank - len(sizes)) if n > 1]
    if axes != [moments.channel_axis]:
        raise ValueError(
            "At data-set level a constant of the graph must be a number or a vector "
            f"over the channels (axis {moments.channel_axis} of an activation of "
            f"shape {moments.shape}). Received a constant of shape {sizes}."
        )
    return ops.reshape(x, (-1,))


@register(numpy.Add)
def _add(operation, a, b):
    if not _is_moments(a):
        a, b = b, a
    if not _is_moments(b):
        return a.affine(1.0, _constant(b, a))
    return a.affine(2.0) if a is b else combine([a, b], [1.0, 1.0])


@register(numpy.Subtract)
def _subtract(operation, a, b):
    if not _is_moments(a):
        return b.affine(-1.0, _constant(a, b))
    if not _is_moments(b):
        return a.affine(1.0, -_constant(b, a))
    return a.affine(0.0) if a is b else combine([a, b], [1.0, -1.0])


@register(numpy.Multiply)
def _multiply(operation, a, b):
    if not _is_moments(a):
        a, b = b, a
    if _is_moments(b):
        raise ValueError(
            "No rule takes means and variances through the product of two "
            "activations. Expected a constant factor. Put the product in a layer of "
            "your own and register its rule (bayesnorm.moments.register)."
        )
    return a.affine(_constant(b, a))


def _divide(operation, a, b):
    if not _is_moments(a) or _is_moments(b):
        raise ValueError(
            "No rule takes means and variances through a division by an activation. "
            "Expected a constant divisor. Put the division in a layer of your own "
            "and register its rule (bayesnorm.moments.register)."
        )
    return a.affine(1.0 / _constant(b, a))


for _operation in (numpy.Divide, numpy.TrueDivide):
    register(_operation)(_divide)


@register(numpy.Negative)
def _negative(operation, moments):
    return moments.affine(-1.0)


@register(core.Cast, accepts_unknown=True)
@register(core.StopGradient, accepts_unknown=True)
def _same(operation, moments):
    return moments


# --- activations -------------------------------------------------------------------

for _operation, _function in {
    nn.Relu: activations.relu,
    nn.Relu6: activations.relu6,
    nn.Selu: activations.selu,
    nn.Sigmoid: activations.sigmoid,
    nn.Softplus: activations.softplus,
    nn.Softsign: activations.softsign,
    nn.Silu: activations.silu,
    nn.HardSigmoid: activations.hard_sigmoid,
    nn.HardTanh: activations.hard_tanh,
    nn.HardSilu: activations.hard_silu,
    nn.LogSigmoid: activations.log_sigmoid,
    numpy.Tanh: activations.tanh,
    numpy.Exp: activations.exponential,
}.items():
    register(_operation)(lambda operation, moments, f=_function: activate(f, moments))


@register(nn.Gelu)
def _gelu(operation, moments):
    # The tanh approximation differs from the exact GELU by less than 5e-4.
    return activate(activations.gelu, moments)


@register(nn.LeakyRelu)
def _leaky_relu(operation, moments):
    return rectify(moments, float(operation.negative_slope))


@register(nn.Elu)
def _elu(operation, moments):
    mean, variance = elu_moments(moments.mean, moments.variance, operation.alpha)
    return moments.replace(mean=mean, variance=variance)


@register(nn.Softmax)
def _softmax(operation, moments):
    return soften(moments, operation.axis)


@register(nn.LogSoftmax)
def _log_softmax(operation, moments):
    return log_soften(moments, operation.axis)


# --- shapes ------------------------------------------------------------------------


@register(numpy.Reshape)
def _reshape(operation, moments):
    target = tuple(operation.newshape)
    if -1 in target[1:] and None not in moments.shape[1:]:
        rest = -math.prod(target[1:])
        size = math.prod(moments.shape[1:]) // rest if target[0] != -1 else None
        target = tuple(size if i and n == -1 else n for i, n in enumerate(target))
    return reshape_moments(moments, (moments.shape[0], *target[1:]))


@register(numpy.Transpose)
def _transpose(operation, moments):
    order = operation.axes or tuple(reversed(range(len(moments.shape))))
    return transpose_moments(moments, tuple(order))


@register(numpy.Concatenate)
def _concatenate(operation, moments):
    return concatenate_moments(moments, operation.axis)


@register(numpy.Mean)
def _mean(operation, moments):
    rank = len(moments.shape)
    axes = operation.axis
    axes = range(1, rank) if axes is None else axes
    axes = sorted({i % rank for i in ([axes] if isinstance(axes, int) else axes)})
    kept = [i for i in range(rank) if i not in axes]
    if 0 in axes or (moments.stationary and moments.channel_axis in axes):
        raise ValueError(
            "Moments pass through a mean over positions only, not over the batch or "
            f"the channels. Received axis={operation.axis} for an activation of "
            f"shape {moments.shape}."
        )
    if operation.keepdims:
        shape = tuple(1 if i in axes else n for i, n in enumerate(moments.shape))
    else:
        shape = tuple(moments.shape[i] for i in kept)
    sizes = [moments.shape[i] for i in axes]
    if None in sizes:
        raise ValueError(
            "Moments pass through a mean over a known number of positions. Received "
            f"axis={operation.axis} for an activation of shape {moments.shape}."
        )
    count = math.prod(sizes)
    if moments.stationary:
        mean, variance = average_pool_moments(
            moments.mean, moments.variance, count, moments.correlation
        )
        place = moments.channel_axis
        if not operation.keepdims:
            place = kept.index(place)
        axis = -1 if place == len(shape) - 1 else place
        return moments.replace(mean=mean, variance=variance, shape=shape, axis=axis)

    def average(x):
        return ops.mean(x, tuple(axes), keepdims=operation.keepdims)

    return moments.averaged(average, 1.0 / count, shape)
