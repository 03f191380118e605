"""Rules of the other stock layers: normalization, shapes, merging, pooling, noise."""

import functools
import math

import keras
import numpy as np
from keras import layers, ops

from bayesnorm.maths import pooling as maths
from bayesnorm.maths.linear import BORDER_WIDTH
from bayesnorm.moments.moments import Moments
from bayesnorm.moments.registry import register


def _identity(layer, moments):
    return moments


for _layer in (
    layers.InputLayer,
    layers.Identity,
    layers.ActivityRegularization,
    layers.Masking,
    layers.AugMix,
    layers.AutoContrast,
    layers.CutMix,
    layers.MixUp,
    layers.RandAugment,
    layers.RandomBrightness,
    layers.RandomColorDegeneration,
    layers.RandomColorJitter,
    layers.RandomContrast,
    layers.RandomElasticTransform,
    layers.RandomErasing,
    layers.RandomFlip,
    layers.RandomGaussianBlur,
    layers.RandomGrayscale,
    layers.RandomHue,
    layers.RandomInvert,
    layers.RandomPerspective,
    layers.RandomPosterization,
    layers.RandomRotation,
    layers.RandomSaturation,
    layers.RandomSharpness,
    layers.RandomShear,
    layers.RandomTranslation,
    layers.RandomZoom,
):
    # Augmentation does nothing at inference.
    register(_layer, accepts_unknown=True)(_identity)


# --- normalization -------------------------------------------------------------


def _constant(value, like):
    return ops.cast(ops.convert_to_tensor(value), like.dtype)


@register(layers.Normalization, accepts_unknown=True)
def _normalization(layer, moments):
    _check_adapted(layer)
    if not layer.invert and (not moments.known or moments.assumed):
        # Constants of the data itself: the output is standardized.
        return Moments.standardized(
            moments.shape, axis=moments.axis, correlation=moments.correlation
        )
    if not moments.known:
        raise ValueError(
            f"Normalization {layer.name!r} with invert=True needs moments of its "
            "input, and those of the model's input are not declared."
        )
    mean = _constant(layer.mean, moments.mean)
    variance = _constant(layer.variance, moments.mean)
    stddev = ops.maximum(ops.sqrt(variance), keras.config.epsilon())
    if layer.invert:
        scale, shift = stddev, mean
    else:
        scale, shift = 1.0 / stddev, -mean / stddev
    if not moments.stationary:
        return moments.affine(scale, shift)
    kept = [i for i, n in enumerate(mean.shape) if n > 1]
    if not kept:
        return moments.affine(ops.reshape(scale, ()), ops.reshape(shift, ()))
    if kept == [kept[-1]]:
        x = moments.over(kept[-1])
        return x.affine(ops.reshape(scale, (-1,)), ops.reshape(shift, (-1,)))
    return _average(_spread(moments).affine(scale, shift), moments)


def _check_adapted(layer):
    # `adapt` makes variables, which a compiled function cannot look into.
    given = (layer.input_mean, layer.input_variance)
    if not all(value is None or np.isfinite(value).all() for value in given):
        raise ValueError(
            f"Normalization {layer.name!r} has a mean or variance that is not finite: "
            "are there NaN in the data that it was computed from? Received: "
            f"mean={layer.input_mean}, variance={layer.input_variance}"
        )


@register(layers.Rescaling, accepts_unknown=True)
def _rescaling(layer, moments):
    if not moments.known or moments.assumed:
        # Not standardized any more: unknown until a Normalization.
        return Moments(None, None, moments.shape, axis=moments.axis)
    scale, shift = (_constant(v, moments.mean) for v in (layer.scale, layer.offset))
    if moments.stationary and max(len(scale.shape), len(shift.shape)) > 1:
        raise ValueError(
            f"Rescaling {layer.name!r} has constants of shape {tuple(scale.shape)}, "
            "and moments at data-set level take numbers or vectors over the channels."
        )
    return moments.affine(scale, shift)


@register(layers.BatchNormalization, needs_inputs=False)
def _batch_normalization(layer, moments):
    if moments.stationary:
        # What it is there for; its moving statistics are late in training.
        x = Moments.standardized(moments.shape, axis=layer.axis).over(layer.axis)
        scale = _constant(layer.gamma, x.mean) if layer.scale else 1.0
        return x.affine(scale, _constant(layer.beta, x.mean) if layer.center else 0.0)
    x = moments
    variance = _constant(layer.moving_variance, x.mean)
    scale = 1.0 / ops.sqrt(variance + layer.epsilon)
    if layer.scale:
        scale = scale * _constant(layer.gamma, x.mean)
    shift = -_constant(layer.moving_mean, x.mean) * scale
    if layer.center:
        shift = shift + _constant(layer.beta, x.mean)
    return x.affine(x.along(scale, layer.axis), x.along(shift, layer.axis))


# --- noise of training -----------------------------------------------------------


def _dropout(layer, moments):
    if not moments.stationary or not layer.rate:
        return moments
    rate = layer.rate
    variance = moments.variance + rate * ops.square(moments.mean)
    return moments.replace(mean=moments.mean, variance=variance / (1.0 - rate))


for _layer in (
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.GaussianDropout,
):
    register(_layer)(_dropout)


@register(layers.GaussianNoise)
def _gaussian_noise(layer, moments):
    if not moments.stationary:
        return moments
    return moments.replace(variance=moments.variance + layer.stddev**2)


@register(layers.AlphaDropout)
def _alpha_dropout(layer, moments):
    if not moments.stationary or not layer.rate:
        return moments
    rate, low = layer.rate, -1.0507009873554805 * 1.6732632423543772
    scale = ((1.0 - rate) * (1.0 + rate * low**2)) ** -0.5
    kept = 1.0 - rate
    spread = kept * moments.variance + kept * rate * ops.square(moments.mean - low)
    mean = kept * moments.mean + rate * low - low * rate
    return moments.replace(mean=scale * mean, variance=scale**2 * spread)


# --- shapes ----------------------------------------------------------------------


def _map(moments, function, shape):
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


def _spread(moments):
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


def _average(full, like, axis=-1):
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


def _moved(moments, function, shape, axis=-1):
    """Moments under a map of positions and channels, at either level."""
    if not moments.stationary:
        return _map(moments, function, shape)
    if not len(moments.mean.shape):
        return moments.replace(shape=tuple(shape), axis=axis)
    full = _map(_spread(moments), function, (1, *shape[1:]))
    return _average(full, moments, axis).replace(shape=tuple(shape))


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
        return _map(moments, lambda x: ops.reshape(x, (ops.shape(x)[0], *sizes)), shape)
    return _moved(moments, lambda x: ops.reshape(x, (-1, *sizes)), shape)


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
        return _map(moments, lambda x: ops.transpose(x, order), shape)
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
    return _map(moments, layer.call, shape)


def _copied(layer, moments):
    """Elements are copied or left out: channels stay what they are."""
    shape = layer.compute_output_shape(moments.shape)
    if moments.stationary:
        return moments.replace(shape=tuple(shape))
    return _map(moments, layer.call, shape)


# Bilinear up-sampling as well: neighbours that it averages count as correlated.
for _layer in (
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.CenterCrop,
    layers.RandomCrop,
    layers.Resizing,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
):
    register(_layer)(_copied)


def _zero_padding(layer, moments):
    shape = tuple(layer.compute_output_shape(moments.shape))
    if not moments.stationary:
        return _map(moments, layer.call, shape)
    share = 1.0
    for i, (before, after) in enumerate(zip(moments.shape, shape, strict=True)):
        wide = before is None or before >= BORDER_WIDTH
        if i and before != after and not wide:
            share *= before / after
    variance = share * moments.variance + share * (1 - share) * ops.square(moments.mean)
    return moments.replace(mean=share * moments.mean, variance=variance, shape=shape)


for _layer in (layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D):
    register(_layer)(_zero_padding)


# --- merging ---------------------------------------------------------------------


def combine(parts, signs):
    """Moments of a signed sum of independent activations that broadcast."""
    tensors = [keras.KerasTensor(p.shape) for p in parts]
    shape = tuple(functools.reduce(ops.add, tensors).shape)
    mean = sum(s * p.mean for s, p in zip(signs, parts, strict=True))
    variance = sum(s * s * p.variance for s, p in zip(signs, parts, strict=True))
    # Two draws: neither pattern of a factor is that of the sum.
    known = [(s, p.common_variance) for s, p in zip(signs, parts, strict=True)]
    known = [s * s * v for s, v in known if v is not None]
    shared = sum(known) if known else None
    first = next((p for p in parts if len(p.mean.shape)), parts[0])
    return first.replace(
        mean=mean, variance=variance, shared=shared, factor=None, shape=shape
    )


@register(layers.Add)
def _add(layer, moments):
    # One tensor given twice is no second, independent one.
    distinct = list({id(m): m for m in moments}.values())
    times = [float(sum(m is other for other in moments)) for m in distinct]
    return combine(distinct, times)


@register(layers.Average)
def _average_merge(layer, moments):
    return combine(moments, [1.0 / len(moments)] * len(moments))


@register(layers.Subtract)
def _subtract(layer, moments):
    return combine(moments, [1.0, -1.0])


def concatenate_moments(parts, axis):
    """Moments of activations joined along an axis."""
    rank = len(parts[0].shape)
    axis = axis % rank
    sizes = [p.shape[axis] for p in parts]
    size = None if None in sizes else sum(sizes)
    shape = tuple(size if i == axis else n for i, n in enumerate(parts[0].shape))
    if parts[0].stationary:
        if axis != rank - 1 and any(axis != p.channel_axis for p in parts):
            raise ValueError(
                "Moments at data-set level are joined along the channels. Received "
                f"axis {axis} of activations of shapes {[p.shape for p in parts]}."
            )
        parts = [p.over(axis) for p in parts]
    place = 0 if parts[0].stationary else axis

    def join(values):
        return ops.concatenate(values, axis=place)

    def join_noise(noises):
        if all(v is None for v in noises):
            return None
        noises = [
            ops.zeros_like(p.mean)
            if v is None
            else ops.broadcast_to(v, ops.shape(p.mean))
            for p, v in zip(parts, noises, strict=True)
        ]
        return join(noises)

    return parts[0].replace(
        mean=join([p.mean for p in parts]),
        variance=join([p.variance for p in parts]),
        shared=join_noise([p.shared for p in parts]),
        factor=join_noise([p.factor for p in parts]),
        shape=shape,
    )


@register(layers.Concatenate)
def _concatenate(layer, moments):
    return concatenate_moments(moments, layer.axis)


# --- pooling ---------------------------------------------------------------------


def _window(layer, shape):
    """Sizes of the pooling window over the positions; a global one is the map's."""
    sizes = shape[1:-1] if layer.data_format == "channels_last" else shape[2:]
    return tuple(getattr(layer, "pool_size", sizes))


def _pooled_shape(layer, moments):
    axis = -1 if layer.data_format == "channels_last" else 1
    return moments.over(axis), tuple(layer.compute_output_shape(moments.shape))


def _stationary_pool(function, layer, x, shape):
    window = _window(layer, x.shape)
    size = math.prod(window) if None not in window else None
    if size is None and x.correlation < 1:
        raise ValueError(
            f"Layer {layer.name!r} pools a map of unknown size {x.shape}: with a "
            "correlation below 1 the number of positions must be known."
        )
    mean, variance = function(x.mean, x.variance, size or 1, x.correlation)
    axis = -1 if len(shape) == 2 else x.axis
    return x.replace(mean=mean, variance=variance, shape=shape, axis=axis)


def _average_pool(layer, moments):
    x, shape = _pooled_shape(layer, moments)
    if x.stationary:
        return _stationary_pool(maths.average_pool_moments, layer, x, shape)
    return x.averaged(layer.call, _inverse_count(layer, x.mean), shape)


def _inverse_count(layer, x):
    """One over the number of positions averaged, at each output position."""
    positions = slice(1, -1) if layer.data_format == "channels_last" else slice(2, None)
    sizes = tuple(x.shape[positions])
    if not hasattr(layer, "pool_size"):
        if None in sizes:
            sizes = ops.cast(ops.stack(list(ops.shape(x)[positions])), x.dtype)
            return 1.0 / ops.prod(sizes)
        return 1.0 / math.prod(sizes)
    if layer.padding == "valid" or None in sizes:
        return 1.0 / math.prod(layer.pool_size)
    inside = np.ones(())
    for size, window, stride in zip(sizes, layer.pool_size, layer.strides, strict=True):
        outputs = -(-size // stride)
        before = max((outputs - 1) * stride + window - size, 0) // 2
        first = np.arange(outputs)[:, None] * stride - before + np.arange(window)
        inside = np.multiply.outer(inside, ((first >= 0) & (first < size)).sum(1))
    inside = inside[..., None] if layer.data_format == "channels_last" else inside
    return ops.convert_to_tensor(1.0 / inside, x.dtype)


def _max_pool(layer, moments):
    x, shape = _pooled_shape(layer, moments)
    if x.stationary:
        return _stationary_pool(maths.max_pool_moments, layer, x, shape)
    first = 1 if layer.data_format == "channels_last" else 2
    window = _window(layer, x.shape)
    if None in window:
        raise ValueError(
            f"Layer {layer.name!r} takes the maximum over a map of unknown size "
            f"{x.shape}: give the model's Input its spatial sizes."
        )
    pooled = hasattr(layer, "pool_size")
    mean, variance, shared = maths.max_pool_maps(
        x.mean,
        x.variance,
        x.common_variance,
        window,
        layer.strides if pooled else window,
        layer.padding if pooled else "valid",
        first_axis=first,
    )
    if len(shape) < len(x.shape):
        mean, variance, shared = (
            v if v is None else ops.reshape(v, (-1, *shape[1:]))
            for v in (mean, variance, shared)
        )
    return x.replace(
        mean=mean, variance=variance, shared=shared, factor=None, shape=shape
    )


for _rule, _layers in (
    (
        _average_pool,
        (
            layers.AveragePooling1D,
            layers.AveragePooling2D,
            layers.AveragePooling3D,
            layers.GlobalAveragePooling1D,
            layers.GlobalAveragePooling2D,
            layers.GlobalAveragePooling3D,
        ),
    ),
    (
        _max_pool,
        (
            layers.MaxPooling1D,
            layers.MaxPooling2D,
            layers.MaxPooling3D,
            layers.GlobalMaxPooling1D,
            layers.GlobalMaxPooling2D,
            layers.GlobalMaxPooling3D,
        ),
    ),
):
    for _layer in _layers:
        register(_layer)(_rule)
