"""Rules of operations of `keras.ops` on axes: shapes and sums over axes."""

import functools
import math

import keras
from keras import ops

from bayesnorm.graph.internals import numpy_ops as numpy
from bayesnorm.maths.pooling import (
    average_pool_moments,
    max_over_axis,
    max_pool_moments,
)
from bayesnorm.moments.merge_rules import concatenate_moments
from bayesnorm.moments.registry import refuse, refuse_stationary, register
from bayesnorm.moments.shape_rules import (
    moved,
    reshape_moments,
    through_example,
    transpose_moments,
)

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


@register(numpy.Swapaxes)
def _swap_axes(operation, moments):
    order = list(range(len(moments.shape)))
    a, b = operation.axis1, operation.axis2
    order[a], order[b] = order[b], order[a]
    return transpose_moments(moments, tuple(order))


@register(numpy.Moveaxis)
def _move_axes(operation, moments):
    rank = len(moments.shape)
    places = {
        to % rank: source % rank
        for source, to in zip(operation.source, operation.destination, strict=True)
    }
    rest = iter(i for i in range(rank) if i not in places.values())
    return transpose_moments(
        moments, tuple(places[i] if i in places else next(rest) for i in range(rank))
    )


@register(numpy.Concatenate)
def _concatenate(operation, moments):
    return concatenate_moments(moments, operation.axis)


@register(numpy.Stack)
def _stack(operation, moments):
    """At data-set level the channels stay; the new axis is one of positions."""
    rank = len(moments[0].shape) + 1
    axis = operation.axis % rank
    moments = [
        moved(
            x,
            functools.partial(ops.expand_dims, axis=axis),
            (*x.shape[:axis], 1, *x.shape[axis:]),
        )
        for x in moments
    ]
    refuse_stationary(operation, moments[0])
    return concatenate_moments(moments, axis)


def _elements(operation, moments, *args):
    """Elements are moved, copied or left out, as the operation does it."""
    shape = operation.compute_output_spec(keras.KerasTensor(moments.shape), *args).shape
    return moved(moments, lambda x: operation.call(x, *args), tuple(shape))


for _operation in (
    numpy.BroadcastTo,
    numpy.ExpandDims,
    numpy.Flip,
    numpy.GetItem,
    numpy.Repeat,
    numpy.Roll,
    numpy.Squeeze,
    numpy.Tile,
):
    register(_operation)(_elements)


@register(numpy.Take)
def _take(operation, moments, indices):
    """Elements along an axis, by indices that are the same for all examples."""
    axis = operation.axis
    if axis is None or axis % len(moments.shape) == 0:
        raise ValueError(
            f"Operation {operation.name!r} takes elements of all examples, or examples "
            "themselves: what an example's output is depends on others. Expected an "
            f"axis behind the first. Received: axis={axis!r}"
        )
    return _elements(operation, moments, indices)


@register(numpy.Pad)
def _pad(operation, moments, constant_values=None):
    """What a padding by a constant adds has no variance."""
    shape = operation.compute_output_spec(keras.KerasTensor(moments.shape)).shape

    def pad(x, value=None):
        return None if x is None else operation.call(x, value)

    def rule(x):
        constant = 0.0 if operation.mode == "constant" else None
        shared = x.shared
        if shared is not None:
            shared = ops.broadcast_to(shared, ops.shape(x.variance))
        return x.replace(
            mean=pad(x.mean, constant_values),
            variance=pad(x.variance, constant),
            shared=pad(shared, constant),
            factor=pad(x.factor, constant),
            shape=(x.shape[0], *shape[1:]),
        )

    return through_example(moments, rule)


def split_moments(moments, indices_or_sections, axis):
    """Moments of the parts of an activation along an axis, a list."""
    parts = numpy.Split(indices_or_sections, axis)
    shapes = parts.compute_output_spec(keras.KerasTensor(moments.shape))
    return [
        moved(moments, lambda x, i=i: parts.call(x)[i], tuple(y.shape))
        for i, y in enumerate(shapes)
    ]


@register(numpy.Split)
def _split(operation, moments):
    return split_moments(moments, operation.indices_or_sections, operation.axis)


# --- over axes ---------------------------------------------------------------------


def _axes(operation, moments):
    """`(positions, over_channels, axes)` of an operation over axes."""
    rank = len(moments.shape)
    axes = operation.axis
    axes = range(rank) if axes is None else axes
    axes = sorted({i % rank for i in ([axes] if isinstance(axes, int) else axes)})
    if 0 in axes:
        raise ValueError(
            "Moments are not taken together over the batch. Received "
            f"axis={operation.axis} for an activation of shape {moments.shape}."
        )
    sizes = [moments.shape[i] for i in axes]
    if None in sizes:
        raise ValueError(
            "Moments pass over a known number of positions. Received "
            f"axis={operation.axis} for an activation of shape {moments.shape}."
        )
    channels = moments.channel_axis
    return [i for i in axes if i != channels], channels in axes, axes


def _without(operation, moments, axes):
    """Drops axes of size 1, unless the operation keeps them."""
    if operation.keepdims or not axes:
        return moments
    kept = [i for i in range(len(moments.shape)) if i not in axes]
    shape = tuple(moments.shape[i] for i in kept)
    if moments.stationary:
        if moments.channel_axis in axes:
            scalar = [ops.reshape(x, ()) for x in (moments.mean, moments.variance)]
            return moments.replace(
                mean=scalar[0], variance=scalar[1], shape=shape, axis=-1
            )
        place = kept.index(moments.channel_axis)
        return moments.replace(
            shape=shape, axis=-1 if place == len(shape) - 1 else place
        )

    def drop(x):
        return None if x is None else ops.squeeze(x, tuple(axes))

    shared = moments.shared
    if shared is not None:
        shared = ops.broadcast_to(shared, ops.shape(moments.variance))
    return moments.replace(
        mean=drop(moments.mean),
        variance=drop(moments.variance),
        shared=drop(shared),
        factor=drop(moments.factor),
        shape=shape,
    )


def _kept(moments, axes):
    return tuple(1 if i in axes else n for i, n in enumerate(moments.shape))


def _average(moments, axes):
    """The mean over positions, whose axes stay."""
    count = math.prod(moments.shape[i] for i in axes)
    if moments.stationary:
        mean, variance = average_pool_moments(
            moments.mean, moments.variance, count, moments.correlation
        )
        return moments.replace(mean=mean, variance=variance, shape=_kept(moments, axes))
    return moments.averaged(
        lambda x: ops.mean(x, tuple(axes), keepdims=True),
        1.0 / count,
        _kept(moments, axes),
    )


def _average_channels(moments):
    """The mean over channels, which are independent; their axis stays."""
    axis = moments.channel_axis
    x = moments.over(axis)
    place = 0 if x.stationary else axis
    size = x.shape[axis]

    def mean(v):
        return None if v is None else ops.mean(v, place, keepdims=True)

    shared = x.common_variance
    return x.replace(
        mean=mean(x.mean),
        variance=mean(x.variance) / size,
        shared=None if shared is None else mean(shared) / size,
        factor=None,
        shape=_kept(x, [axis]),
    )


@register(numpy.Mean)
def _mean(operation, moments):
    """Channels count as independent, positions apart from the noise they share."""
    positions, over_channels, axes = _axes(operation, moments)
    x = _average(moments, positions) if positions else moments
    x = _average_channels(x) if over_channels else x
    return _without(operation, x, axes)


@register(numpy.Sum)
def _sum(operation, moments):
    axes = _axes(operation, moments)[2]
    count = math.prod(moments.shape[i] for i in axes)
    return _mean(operation, moments).affine(float(count))


def _extreme(sign):
    """The rule of the maximum (sign 1) or minimum (-1) over axes."""

    def rule(operation, moments):
        positions, over_channels, axes = _axes(operation, moments)
        x = moments.affine(sign)
        if x.stationary and positions:
            count = math.prod(x.shape[i] for i in positions)
            mean, variance = max_pool_moments(x.mean, x.variance, count, x.correlation)
            x = x.replace(mean=mean, variance=variance, shape=_kept(x, positions))
        elif positions:
            values = x.mean, x.variance, x.common_variance
            for axis in positions:
                values = max_over_axis(*values, axis)
            x = x.replace(
                **dict(zip(("mean", "variance", "shared"), values, strict=True)),
                factor=None,
                shape=_kept(x, positions),
            )
        if over_channels:
            x = x.over(x.channel_axis)
            place = 0 if x.stationary else x.channel_axis
            mean, variance, _ = max_over_axis(x.mean, x.variance, None, place)
            x = x.replace(
                mean=mean,
                variance=variance,
                shared=None,
                factor=None,
                shape=_kept(x, [x.channel_axis]),
            )
        return _without(operation, x.affine(sign), axes)

    return rule


register(numpy.Max)(_extreme(1.0))
register(numpy.Min)(_extreme(-1.0))


for _name in ("NotEqual", "Equal", "Less", "Greater", "LogicalAnd", "LogicalOr", "Any"):
    refuse(
        getattr(numpy, _name),
        "What is true or false, a mask say (of an Embedding with mask_zero=True, of a "
        "Masking layer), has no mean and variance: use method='sample'.",
    )
