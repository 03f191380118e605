"""Rules of layers that merge several activations."""

import functools

import keras
from keras import layers, ops

from bayesnorm.maths.activations import safe_sqrt
from bayesnorm.maths.pooling import max_of_two_moments
from bayesnorm.maths.products import product_moments, square_moments
from bayesnorm.moments.normalization_rules import unit_length
from bayesnorm.moments.registry import refuse_stationary, register


def _met(parts):
    """Prepares activations that broadcast: `(parts, shape)`.

    The noise of one that is spread over positions is shared by them.
    """
    tensors = [keras.KerasTensor(p.shape) for p in parts]
    shape = tuple(functools.reduce(ops.add, tensors).shape)
    if not parts[0].stationary:
        return [
            p.replace(shared=p.variance, factor=None) if _is_spread(p, shape) else p
            for p in parts
        ], shape
    axes = {p.channel_axis - len(p.shape) for p in parts if len(p.mean.shape)}
    if len(axes) > 1:
        raise ValueError(
            "Moments at data-set level meet along one channel axis. Received "
            f"activations of shapes {[p.shape for p in parts]} with channels along "
            f"axes {sorted(axes)}."
        )
    return parts, shape


def _is_spread(moments, shape):
    """Whether positions of an activation are repeated to fill `shape`."""
    rank, axis = len(moments.shape), moments.channel_axis
    sizes = zip(moments.shape, shape[len(shape) - rank :], strict=True)
    return any(
        n == 1 and full != 1 and i not in (0, axis) for i, (n, full) in enumerate(sizes)
    )


def combine(parts, signs):
    """Moments of a signed sum of independent activations that broadcast."""
    parts, shape = _met(parts)
    mean = sum(s * p.mean for s, p in zip(signs, parts, strict=True))
    variance = sum(s * s * p.variance for s, p in zip(signs, parts, strict=True))
    # Of several draws one keeps its pattern over the positions, with its signs.
    shared, factor = [], None
    for s, p in zip(signs, parts, strict=True):
        if p.factor is not None and factor is None:
            factor = s * p.factor
            if p.shared is not None:
                shared.append(s * s * p.shared)
        elif p.has_common_noise:
            shared.append(s * s * p.common_variance)
    result = _merged(parts, mean, variance, sum(shared) if shared else None, shape)
    return result.replace(shared=result.shared, factor=factor)


def _merged(parts, mean, variance, shared, shape):
    first = next((p for p in parts if len(p.mean.shape)), parts[0])
    return first.replace(
        mean=mean, variance=variance, shared=shared, factor=None, shape=shape
    )


def multiply(first, second):
    """Moments of the product of two activations that broadcast, or of a square.

    Two different activations count as independent, which a gate (squeeze and
    excitation, a GLU) is not quite: it is computed from what it multiplies, and what
    the two have in common in their noise is neglected.
    """
    if first is second:
        mean, variance = square_moments(first.mean, first.variance)
        return first.replace(mean=mean, variance=variance)
    (a, b), shape = _met([first, second])
    mean, variance = product_moments(a.mean, a.variance, b.mean, b.variance)
    if a.stationary:
        return _merged([a, b], mean, variance, None, shape)
    # The noise of a gate has the signs of what it multiplies, as that of a scale.
    shared, factor = None, None
    for x, other in ((a, b), (b, a)):
        common = x.common_variance
        if common is None:
            continue
        if factor is None and _is_spread(x, shape):
            factor = other.mean * safe_sqrt(common)
            continue
        power = ops.square(other.mean)
        if other is b and b.common_variance is not None:
            power = power + b.common_variance
        shared = common * power + (0.0 if shared is None else shared)
    result = _merged([a, b], mean, variance, shared, shape)
    return result.replace(shared=shared, factor=factor)


def larger(first, second):
    """Moments of the larger of two activations, Gaussian and independent."""
    if first is second:
        return first
    (a, b), shape = _met([first, second])
    mean, variance, share = max_of_two_moments(a.mean, a.variance, b.mean, b.variance)
    common = [(p, x.common_variance) for p, x in ((share, a), (1.0 - share, b))]
    common = [ops.square(p) * v for p, v in common if v is not None]
    return _merged([a, b], mean, variance, sum(common) if common else None, shape)


def smaller(first, second):
    """Moments of the smaller of two activations, Gaussian and independent."""
    return larger(first.affine(-1.0), second.affine(-1.0)).affine(-1.0)


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


@register(layers.Multiply)
def _multiply(layer, moments):
    return functools.reduce(multiply, moments)


@register(layers.Maximum)
def _maximum(layer, moments):
    return functools.reduce(larger, moments)


@register(layers.Minimum)
def _minimum(layer, moments):
    return functools.reduce(smaller, moments)


@register(layers.Dot)
def _dot(layer, moments):
    """Sums of products of independent elements, of activations without common noise."""
    first, second = moments
    refuse_stationary(layer, first)
    axes = layer.axes if not isinstance(layer.axes, int) else (layer.axes,) * 2
    axes = [axis % len(x.shape) for axis, x in zip(axes, moments, strict=True)]
    if layer.normalize:
        first, second = (
            unit_length(x, (axis,)) for x, axis in zip(moments, axes, strict=True)
        )
    flat = keras.layers.Dot(axes)
    mean, variance = product_moments(
        first.mean,
        first.variance,
        second.mean,
        second.variance,
        lambda a, b: flat.call([a, b]),
    )
    shape = tuple(layer.compute_output_shape([x.shape for x in moments]))
    return first.replace(
        mean=mean, variance=variance, shared=None, factor=None, shape=shape
    )


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
