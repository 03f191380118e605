"""Rules of layers that take positions together, move them or add some."""

import math

import keras
import numpy as np
from keras import layers

from bayesnorm.layers.kernels import channel_axis
from bayesnorm.pruning.registry import register
from bayesnorm.pruning.walk import RefusedError

# As many elements of an example as are looked at one by one.
_MOST = 10**8


def _shape_of(layer, channels):
    return tuple(layer.compute_output_shape(channels.shape))


@register(
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
)
def _pooled(trace, layer, channels):
    """Windows at the border are of what is inside alone."""
    channels = trace.over(channels, channel_axis(layer), layer)
    if channels.pattern is not None:
        channels = channels.only_zeros()
    return channels.replace(shape=_shape_of(layer, channels))


@register(
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
)
def _global(trace, layer, channels):
    channels = trace.over(channels, channel_axis(layer), layer)
    if channels.pattern is not None:
        channels = channels.only_zeros()
    shape = _shape_of(layer, channels)
    axis = channels.axis if layer.keepdims else 1
    return channels.replace(shape=shape, axis=axis)


@register(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D)
def _padded(trace, layer, channels):
    channels = trace.over(channels, channel_axis(layer), layer)
    shape = _shape_of(layer, channels)
    if not np.any(np.nan_to_num(channels.constant)):
        return channels.replace(shape=shape, pattern=None)
    padding = str(layer.padding)
    pattern = ("padded", padding, channels.shape, channels.pattern)
    # A constant 0 is of every pattern.
    return channels.replace(shape=shape, pattern=pattern)


@register(
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.CenterCrop,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
    layers.Resizing,
)
def _moved(trace, layer, channels):
    """Positions are left out, repeated or interpolated."""
    if getattr(layer, "pad_to_aspect_ratio", False):
        raise RefusedError("pads with a value")
    channels = trace.over(channels, channel_axis(layer), layer)
    if channels.pattern is not None:
        channels = channels.only_zeros()
    return channels.replace(shape=_shape_of(layer, channels))


@register(layers.RepeatVector)
def _repeated(trace, layer, channels):
    return channels.replace(shape=_shape_of(layer, channels), axis=2)


def transposed(channels, order):
    """Channels of a tensor with its axes in another order.

    Raises:
        RefusedError: If they come to lie along the first axis, that of examples.
    """
    if order.index(channels.axis) == 0:
        raise RefusedError("moves them to the axis of the examples")
    if channels.pattern is not None:
        channels = channels.only_zeros()
    shape = tuple(channels.shape[i] for i in order)
    return channels.replace(shape=shape, axis=order.index(channels.axis))


@register(layers.Permute)
def _permute(trace, layer, channels):
    return transposed(channels, (0, *layer.dims))


def reshaped(trace, channels, shape):
    """Channels of a tensor in another shape.

    A channel of several positions becomes as many entries of one number; where one axis
    becomes several, what has its place along the last one is kept or removed together.

    Raises:
        RefusedError: If sizes are not known, or examples become positions, unless the
            channels stay along the last axis.
    """
    if channels.pattern is not None:
        channels = channels.only_zeros()
    sizes, new = channels.shape[1:], tuple(shape[1:])
    last = len(shape) - 1
    known = None not in sizes and None not in new
    if not known or math.prod(sizes) != math.prod(new):
        same = channels.axis == len(channels.shape) - 1 and sizes[-1:] == new[-1:]
        if not same or new[-1] is None:
            raise RefusedError(
                "makes positions of examples"
                if known
                else "is given an unknown number of positions"
            )
        return channels.replace(shape=tuple(shape), axis=last)
    if math.prod(sizes) > _MOST:
        raise RefusedError("is given very large inputs")
    ids, constant = (
        np.ascontiguousarray(channels.spread(x)).reshape(new)
        for x in (channels.ids, channels.constant)
    )
    axis = _axis_of(ids)
    if axis is None:
        axis = last
        rows = ids.reshape(-1, ids.shape[-1])
        trace.tie(rows[0], *rows[1:])
    first = np.moveaxis(ids, axis - 1, 0).reshape(shape[axis], -1)[:, 0]
    values = np.moveaxis(constant, axis - 1, 0).reshape(shape[axis], -1)
    same = (values == values[:, :1]).all(1)
    return channels.replace(
        shape=tuple(shape),
        axis=axis,
        ids=first,
        constant=np.where(same, values[:, 0], np.nan),
        pattern=None,
    )


def _axis_of(ids):
    """The axis, from 1, along which alone numbers differ; None if there is none."""
    for i in reversed(range(ids.ndim)):
        if (ids == np.take(ids, [0], axis=i)).all():
            continue
        others = tuple(j for j in range(ids.ndim) if j != i)
        same = (ids.min(others) == ids.max(others)).all() if others else True
        return i + 1 if same else None
    # All are of one number.
    return ids.ndim if ids.size else None


def _thin_reshape(layer, removal):
    _, outputs = removal.channels(layer)
    shape = removal.shape(outputs)[1:]
    shape = tuple(-1 if n is None else n for n in shape)
    return [keras.layers.Reshape(shape, name=layer.name, dtype=layer.dtype_policy)]


@register(layers.Reshape, thin=_thin_reshape)
def _reshape(trace, layer, channels):
    return reshaped(trace, channels, _shape_of(layer, channels))


@register(layers.Flatten)
def _flatten(trace, layer, channels):
    shape = _shape_of(layer, channels)
    if layer.data_format == "channels_first" and len(channels.shape) > 2:
        rank = len(channels.shape)
        channels = transposed(channels, (0, *range(2, rank), 1))
    return reshaped(trace, channels, shape)
