"""Rules of layers that move, copy or leave out elements."""

from keras import layers, ops

from bayesnorm.maths.activations import safe_sqrt
from bayesnorm.maths.linear import BORDER_WIDTH
from bayesnorm.moments.registry import register


def moved_elements(moments, function, shape):
    """Applies a map that only moves elements to full tensors."""
    shared, factor = moments.shared, moments.factor
    if shared is not None:
        shared = function(ops.broadcast_to(shared, ops.shape(moments.variance)))
    return moments.replace(
        mean=function(moments.mean),
        variance=function(moments.variance),
        shared=shared,
        factor=None if factor is None else function(factor),
        shape=tuple(shape),
        assumed=moments.assumed,
    )


def spread(moments):
    """Stationary moments written out over one example: full tensors `[1, ...]`."""
    sizes = moments.shape[1:]
    if None in sizes:
        raise ValueError(
            "Moments at data-set level cannot be laid out over positions of unknown "
            f"number. Received an activation of shape {moments.shape}: give the "
            "model's Input its spatial sizes, or pool globally."
        )
    axis = moments.channel_axis
    vector = (1,) * axis + (-1,) + (1,) * (len(sizes) - axis)

    def full(x):
        x = ops.reshape(x, vector) if len(x.shape) else x
        return ops.broadcast_to(x, (1, *sizes))

    return moments.replace(
        mean=full(moments.mean), variance=full(moments.variance), stationary=False
    )


def averaged_over_positions(full, like, axis=-1):
    """Back to one mean and variance per channel: those of a random position."""
    others = tuple(i for i in range(len(full.shape)) if i != axis % len(full.shape))
    mean = ops.mean(full.mean, others, keepdims=True)
    variance = ops.mean(full.variance + ops.square(full.mean - mean), others)
    return full.replace(
        mean=ops.reshape(mean, (-1,)),
        variance=variance,
        shared=None,
        stationary=True,
        axis=axis,
        correlation=like.correlation,
    )


def moved(moments, function, shape, axis=-1):
    """Moments under a map of positions and channels, at either level."""
    if not moments.stationary:
        return moved_elements(moments, function, shape)
    if not len(moments.mean.shape):
        return moments.replace(shape=tuple(shape), axis=axis)
    full = moved_elements(spread(moments), function, (1, *shape[1:]))
    return averaged_over_positions(full, moments, axis).replace(shape=tuple(shape))


def through_example(moments, function, axis=-1):
    """Applies a function of Moments per example, at either level.

    At data-set level it is given those of one example, all elements independent, and
    the outcome is that of a random position.
    """
    if not moments.stationary:
        return function(moments)
    result = function(spread(moments))
    shape = (moments.shape[0], *result.shape[1:])
    return averaged_over_positions(result, moments, axis).replace(shape=shape)


def reshape_moments(moments, shape):
    """Moments of an activation reshaped to `shape` (the batch first)."""
    sizes = tuple(shape[1:])
    if moments.stationary and _keeps_channels(moments, shape):
        return moments.replace(shape=tuple(shape))
    if None in sizes:
        if moments.stationary or sizes.count(None) > 1:
            raise ValueError(
                "Moments cannot be laid out over positions of unknown number. Received "
                f"activations of shapes {moments.shape} and {tuple(shape)}."
            )
        sizes = tuple(-1 if n is None else n for n in sizes)

        def reshape(x):
            return ops.reshape(x, (ops.shape(x)[0], *sizes))

        return moved_elements(moments, reshape, shape)
    return moved(moments, lambda x: ops.reshape(x, (-1, *sizes)), shape)


def _keeps_channels(moments, shape):
    rank = len(moments.shape)
    return moments.channel_axis == rank - 1 and moments.shape[-1] == shape[-1]


@register(layers.Flatten)
def _flatten(layer, moments):
    shape = layer.compute_output_shape(moments.shape)
    if layer.data_format == "channels_first" and len(moments.shape) > 2:
        order = (0, *range(2, len(moments.shape)), 1)
        moments = transpose_moments(moments, order)
    return reshape_moments(moments, shape)


@register(layers.Reshape)
def _reshape(layer, moments):
    return reshape_moments(moments, layer.compute_output_shape(moments.shape))


def transpose_moments(moments, order):
    """Moments of an activation with its axes in another order."""
    shape = tuple(moments.shape[i] for i in order)
    if not moments.stationary:
        return moved_elements(moments, lambda x: ops.transpose(x, order), shape)
    axis = order.index(moments.channel_axis)
    last = axis == len(shape) - 1
    return moments.replace(shape=shape, axis=-1 if last else axis)


@register(layers.Permute)
def _permute(layer, moments):
    return transpose_moments(moments, (0, *layer.dims))


@register(layers.RepeatVector)
def _repeat_vector(layer, moments):
    shape = layer.compute_output_shape(moments.shape)
    if moments.stationary:
        return moments.replace(shape=tuple(shape))
    return moved_elements(moments, layer.call, shape)


def _copied(layer, moments):
    """Elements are copied or left out: channels stay what they are."""
    shape = layer.compute_output_shape(moments.shape)
    if moments.stationary:
        return moments.replace(shape=tuple(shape))
    return moved_elements(moments, layer.call, shape)


for _layer in (
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.CenterCrop,
    layers.RandomCrop,
    layers.UpSampling1D,
    layers.UpSampling3D,
):
    register(_layer)(_copied)


@register(layers.Resizing)
@register(layers.UpSampling2D)
def _interpolated(layer, moments):
    """Neighbours that an interpolation averages count as perfectly correlated."""
    if moments.stationary or layer.interpolation == "nearest":
        return _copied(layer, moments)
    shared = moments.common_variance
    if shared is not None:
        shared = ops.square(layer.call(safe_sqrt(shared)))
    return moments.replace(
        mean=layer.call(moments.mean),
        variance=ops.square(layer.call(safe_sqrt(moments.variance))),
        shared=shared,
        factor=None,
        shape=tuple(layer.compute_output_shape(moments.shape)),
    )


def _zero_padding(layer, moments):
    shape = tuple(layer.compute_output_shape(moments.shape))
    if not moments.stationary:
        return moved_elements(moments, layer.call, shape)
    share = 1.0
    for i, (before, after) in enumerate(zip(moments.shape, shape, strict=True)):
        wide = before is None or before >= BORDER_WIDTH
        if i and before != after and not wide:
            share *= before / after
    variance = share * moments.variance + share * (1 - share) * ops.square(moments.mean)
    return moments.replace(mean=share * moments.mean, variance=variance, shape=shape)


for _layer in (layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D):
    register(_layer)(_zero_padding)
