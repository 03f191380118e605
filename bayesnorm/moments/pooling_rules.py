"""Rules of pooling layers."""

import itertools
import math

import numpy as np
from keras import layers, ops

from bayesnorm.maths import pooling as maths
from bayesnorm.moments.registry import register


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


# --- adaptive --------------------------------------------------------------------


def _windows(size, outputs):
    """Start and stop of the window of each output along an axis."""
    starts = [i * size // outputs for i in range(outputs)]
    stops = [-(-(i + 1) * size // outputs) for i in range(outputs)]
    return list(zip(starts, stops, strict=True))


def _adaptive(layer, moments):
    """`(moments, shape, windows)`, the windows of each axis of positions."""
    x, shape = _pooled_shape(layer, moments)
    sizes = x.shape[1:-1] if layer.data_format == "channels_last" else x.shape[2:]
    if None in sizes:
        raise ValueError(
            f"Layer {layer.name!r} pools a map of unknown size {x.shape}: give the "
            "model's Input its spatial sizes."
        )
    windows = [_windows(*pair) for pair in zip(sizes, layer.output_size, strict=True)]
    return x, shape, windows


def _adaptive_average(layer, moments):
    x, shape, windows = _adaptive(layer, moments)
    counts = np.ones(())
    for axis in windows:
        counts = np.multiply.outer(counts, [stop - start for start, stop in axis])
    if x.stationary:
        # At a random position of the output.
        size = 1.0 / np.mean(1.0 / counts)
        mean, variance = maths.average_pool_moments(
            x.mean, x.variance, size, x.correlation
        )
        return x.replace(mean=mean, variance=variance, shape=shape)
    last = layer.data_format == "channels_last"
    inverse = 1.0 / (counts[..., None] if last else counts)
    return x.averaged(layer.call, x.constant(inverse), shape)


def _adaptive_max(layer, moments):
    x, shape, windows = _adaptive(layer, moments)
    if x.stationary:
        sizes = {math.prod(b - a for a, b in w) for w in itertools.product(*windows)}
        if len(sizes) > 1:
            raise ValueError(
                f"Layer {layer.name!r} takes the maximum over windows of different "
                f"sizes, {sorted(sizes)}, of which data-set level has no moments."
            )
        mean, variance = maths.max_pool_moments(
            x.mean, x.variance, sizes.pop(), x.correlation
        )
        return x.replace(mean=mean, variance=variance, shape=shape)
    first = 1 if layer.data_format == "channels_last" else 2
    values = x.mean, x.variance, x.common_variance
    for axis, parts in enumerate(windows, first):
        where = (slice(None),) * axis
        won = [
            maths.max_over_axis(
                *(v if v is None else v[(*where, slice(*part))] for v in values), axis
            )
            for part in parts
        ]
        values = [
            v[0] if v[0] is None else ops.concatenate(v, axis)
            for v in zip(*won, strict=True)
        ]
    mean, variance, shared = values
    return x.replace(
        mean=mean, variance=variance, shared=shared, factor=None, shape=shape
    )


# From Keras 3.13 on.
for _rule, _kind in ((_adaptive_average, "Average"), (_adaptive_max, "Max")):
    for _rank in (1, 2, 3):
        _layer = getattr(layers, f"Adaptive{_kind}Pooling{_rank}D", None)
        if _layer is not None:
            register(_layer)(_rule)
