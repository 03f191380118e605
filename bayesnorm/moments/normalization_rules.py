"""Rules of normalizations."""

import math

import keras
import numpy as np
from keras import layers, ops

from bayesnorm.maths.normalization import standardized_moments
from bayesnorm.moments.moments import Moments
from bayesnorm.moments.registry import register
from bayesnorm.moments.shape_rules import averaged_over_positions, spread


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
    mean = moments.constant(layer.mean)
    variance = moments.constant(layer.variance)
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
    return averaged_over_positions(spread(moments).affine(scale, shift), moments)


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
    scale, shift = (moments.constant(v) for v in (layer.scale, layer.offset))
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
        scale = x.constant(layer.gamma) if layer.scale else 1.0
        return x.affine(scale, x.constant(layer.beta) if layer.center else 0.0)
    x = moments
    variance = x.constant(layer.moving_variance)
    scale = 1.0 / ops.sqrt(variance + layer.epsilon)
    if layer.scale:
        scale = scale * x.constant(layer.gamma)
    shift = -x.constant(layer.moving_mean) * scale
    if layer.center:
        shift = shift + x.constant(layer.beta)
    return x.affine(x.along(scale, layer.axis), x.along(shift, layer.axis))


# --- over elements of an example -------------------------------------------------
#
# The elements count as independent; noise that positions share keeps its share of
# the variance, also where a normalization over positions takes some of it away.


def normalize_over(moments, axes, epsilon, scale=None, shift=None, **kwargs):
    """Moments of a normalization of each example over some of its axes.

    At data-set level the channels normalized over count as they are, and positions
    as very many.

    Args:
        moments: Moments of the input.
        axes: Sequence of integers, normalized over.
        epsilon: Number, added to the variance.
        scale: Tensor that meets the axes in their order, or None.
        shift: Likewise.
        **kwargs: `shift` and `centered` of `standardized_moments`, as `subtract` and
            `centered`.
    """
    rank = len(moments.shape)
    axes = sorted(axis % rank for axis in axes)
    kwargs = {"shift": kwargs.pop("subtract", True), **kwargs}
    if moments.stationary:
        return _stationary(moments, axes, epsilon, scale, shift, kwargs)
    count = _count(moments, axes)
    mean, variance = standardized_moments(
        moments.mean, moments.variance, tuple(axes), epsilon, count, **kwargs
    )
    moments = moments.replace(mean=mean, variance=variance)
    sizes = [moments.shape[i] if i in axes else 1 for i in range(rank)]

    def met(x, default):
        return default if x is None else ops.reshape(x, sizes)

    return moments.affine(met(scale, 1.0), met(shift, 0.0))


def _count(moments, axes):
    """Number of elements along some axes, a tensor where it is not known before."""
    sizes = [moments.shape[i] for i in axes]
    if None not in sizes:
        return math.prod(sizes)
    shape = ops.shape(moments.mean)
    return ops.cast(math.prod(shape[i] for i in axes), moments.mean.dtype)


def _stationary(moments, axes, epsilon, scale, shift, kwargs):
    axis = moments.channel_axis
    x = moments.over(axis)
    over_channels = axis in axes
    count = x.shape[axis] if axes == [axis] else math.inf
    for values in (scale, shift):
        if values is not None and len(values.shape) > over_channels:
            raise ValueError(
                "A normalization over positions has a scale for each of them, and "
                "moments at data-set level are the same at all positions."
            )
    mean, variance = standardized_moments(
        x.mean, x.variance, (0,) if over_channels else (), epsilon, count, **kwargs
    )
    x = x.replace(mean=mean, variance=variance)
    return x.affine(1.0 if scale is None else scale, 0.0 if shift is None else shift)


def _list(axis):
    return [axis] if isinstance(axis, int) else list(axis)


@register(layers.LayerNormalization)
def _layer_normalization(layer, moments):
    rms = layer.rms_scaling
    return normalize_over(
        moments,
        _list(layer.axis),
        layer.epsilon,
        layer.gamma if layer.scale or rms else None,
        layer.beta if layer.center and not rms else None,
        subtract=not rms,
    )


@register(layers.RMSNormalization)
def _rms_normalization(layer, moments):
    return normalize_over(
        moments,
        _list(layer.axis),
        layer.epsilon,
        layer.scale,
        subtract=False,
        centered=False,
    )


def unit_length(moments, axes):
    """Moments of `x / |x|` over some axes of each example."""
    # Far below every square of note, and 0 stays 0.
    axes = [axis % len(moments.shape) for axis in axes]
    x = normalize_over(moments, axes, 1e-24, subtract=False, centered=False)
    if moments.stationary and axes != [moments.channel_axis]:
        raise ValueError(
            "Vectors over positions have no known length at data-set level. Received: "
            f"axis={tuple(axes)} for an activation of shape {moments.shape}."
        )
    count = _count(moments, axes)
    return x.affine(ops.rsqrt(ops.cast(count, x.mean.dtype)))


@register(layers.UnitNormalization)
def _unit_normalization(layer, moments):
    return unit_length(moments, _list(layer.axis))


@register(layers.GroupNormalization)
def _group_normalization(layer, moments):
    rank = len(moments.shape)
    axis, groups = layer.axis % rank, layer.groups
    x = moments.over(axis)
    channels = x.shape[axis]
    if x.stationary:
        grouped, axes, count = (groups, channels // groups), (1,), math.inf
    else:
        sizes = ops.shape(x.mean)
        grouped = (*sizes[:axis], groups, channels // groups, *sizes[axis + 1 :])
        axes = tuple(i for i in range(1, rank + 1) if i != axis)
        count = _count(x, range(1, rank)) / groups
    mean, variance = standardized_moments(
        ops.reshape(x.mean, grouped),
        ops.reshape(x.variance, grouped),
        axes,
        layer.epsilon,
        count,
    )
    x = x.replace(
        mean=ops.reshape(mean, ops.shape(x.mean)),
        variance=ops.reshape(variance, ops.shape(x.mean)),
    )
    scale = x.along(layer.gamma, axis) if layer.scale else 1.0
    return x.affine(scale, x.along(layer.beta, axis) if layer.center else 0.0)
