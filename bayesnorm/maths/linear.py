"""Mean and variance of linear maps of inputs with independent elements.

Two levels: a *data set* is one mean and one variance per channel, the same at
every position ([C] vectors; the cost does not grow with batch or map), an
*example* has full maps `[B, ..., C]`.
"""

import math

import keras
import numpy as np
from keras import ops

# From this map width on, the zero padding of the border is left out.
BORDER_WIDTH = 32


def dense_moments(mean, variance, kernel, bias=None):
    """Moments of `x @ kernel + bias`.

    Args:
        mean: tensor `[..., inputs]`.
        variance: tensor `[..., inputs]`.
        kernel: tensor `[inputs, units]`.
        bias: tensor `[units]` or None.

    Returns:
        `(mean, variance)`, each `[..., units]`: `sum_k w_k m_k + b` and
        `sum_k w_k^2 v_k`.
    """
    mean = ops.matmul(mean, kernel)
    if bias is not None:
        mean = mean + bias
    return mean, ops.matmul(variance, ops.square(kernel))


def conv_taps(size, kernel, stride=1, dilation=1, padding="valid", border=BORDER_WIDTH):
    """Which taps of a kernel fall inside the map, along one axis.

    Args:
        size: int, width of the input map, or None.
        kernel: int, taps of the kernel.
        stride: int.
        dilation: int.
        padding: "valid", "same" or "causal".
        border: int; a map of this width or wider (or of unknown width) counts as
            having no border.

    Returns:
        `(masks, shares)`: 0/1 array `[classes, kernel]`, the distinct patterns of
        taps inside the map, and `[classes]`, the share of output positions of each.
    """
    if padding == "valid" or size is None or size >= border:
        return np.ones((1, kernel)), np.ones(1)
    reach = (kernel - 1) * dilation
    outputs = -(-size // stride)
    before = reach
    if padding == "same":
        before = max((outputs - 1) * stride + reach + 1 - size, 0) // 2
    first = np.arange(outputs)[:, None] * stride - before
    source = first + np.arange(kernel) * dilation
    return _classes((source >= 0) & (source < size))


def conv_transpose_taps(
    size,
    kernel,
    stride=1,
    dilation=1,
    padding="valid",
    output_padding=None,
    border=BORDER_WIDTH,
):
    """Which taps of a transposed convolution reach an output, along one axis.

    Away from the border the patterns are the `stride` phases.

    Args:
        size: int, width of the input map, or None.
        kernel: int, taps of the kernel.
        stride: int.
        dilation: int.
        padding: "valid" or "same".
        output_padding: int or None, as in Keras.
        border: int; an input of this width or wider (or of unknown width) counts
            as having no border.

    Returns:
        `(masks, shares)` as `conv_taps`.
    """
    extent = (kernel - 1) * dilation + 1
    if padding == "valid":
        before = extent - 1
        after = extent - 1
        after += max(stride - extent, 0) if output_padding is None else output_padding
    else:
        total = stride + extent - 2
        if output_padding is not None:
            total = extent + extent % 2 - 2 + output_padding
        before = min(total // 2 + total % 2, extent - 1)
        after = total - before
    offset = extent - 1 - before
    outputs = stride
    if size is not None and size < border:
        outputs = (size - 1) * stride + 2 - extent + before + after
    place = np.arange(outputs)[:, None] + offset - np.arange(kernel) * dilation
    mask = place % stride == 0
    if size is not None and size < border:
        mask &= (place >= 0) & (place < size * stride)
    return _classes(mask)


def _classes(mask):
    patterns, counts = np.unique(mask, axis=0, return_counts=True)
    return patterns.astype("float64"), counts / counts.sum()


def _over_positions(taps_mean, taps_variance, taps):
    """Moments at a random position from those of each tap.

    Args:
        taps_mean: tensor `[kernel..., filters]`, mean of `w x` at each tap.
        taps_variance: the same for the variance.
        taps: list of `(masks, shares)`, one for each axis of the kernel.

    Returns:
        `(mean, variance)`, each `[filters]`: the average over positions, and the
        average variance plus the variance over positions of the means.
    """
    dtype = keras.backend.standardize_dtype(taps_mean.dtype)
    shares = np.ones(())
    for masks, share in taps:
        masks = ops.convert_to_tensor(masks, dtype)
        # Contracts the first remaining axis of the kernel, appends the classes.
        taps_mean = ops.tensordot(taps_mean, masks, axes=[[0], [1]])
        taps_variance = ops.tensordot(taps_variance, masks, axes=[[0], [1]])
        shares = np.multiply.outer(shares, share)
    filters = taps_mean.shape[0]
    shares = ops.convert_to_tensor(shares.reshape(-1), dtype)
    means = ops.reshape(taps_mean, (filters, -1))
    mean = ops.sum(means * shares, -1)
    variances = ops.reshape(taps_variance, (filters, -1))
    spread = ops.square(means - mean[:, None])
    return mean, ops.sum((variances + spread) * shares, -1)


def conv_moments(mean, variance, kernel, bias=None, taps=None, groups=1):
    """Moments of a convolution at data-set level.

    Args:
        mean: tensor `[channels]`.
        variance: tensor `[channels]`.
        kernel: tensor `[kernel..., channels / groups, filters]`.
        bias: tensor `[filters]` or None.
        taps: list of `conv_taps` (or `conv_transpose_taps`), one for each axis of
            the kernel; None for the interior, where all taps count.
        groups: int.

    Returns:
        `(mean, variance)`, each `[filters]`.
    """
    window = tuple(kernel.shape[:-2])
    inputs, filters = kernel.shape[-2:]
    if groups == 1 and all(np.all(masks) for masks, _ in taps or ()):
        # Every position sees all taps: one product with the kernel as a matrix.
        count = math.prod(window)
        return dense_moments(
            ops.tile(mean, (count,)),
            ops.tile(variance, (count,)),
            ops.reshape(kernel, (-1, filters)),
            bias,
        )

    def per_tap(weights, values):
        weights = ops.reshape(weights, (-1, inputs, groups, filters // groups))
        values = ops.reshape(values, (groups, inputs))
        return ops.reshape(
            ops.einsum("kigo,gi->kgo", weights, values), (*window, filters)
        )

    return _finish(
        per_tap(kernel, mean), per_tap(ops.square(kernel), variance), bias, taps
    )


def depthwise_conv_moments(mean, variance, kernel, bias=None, taps=None):
    """Moments of a depthwise convolution at data-set level.

    Args:
        mean: tensor `[channels]`.
        variance: tensor `[channels]`.
        kernel: tensor `[kernel..., channels, multiplier]`.
        bias: tensor `[channels * multiplier]` or None.
        taps: as in `conv_moments`.

    Returns:
        `(mean, variance)`, each `[channels * multiplier]`.
    """
    shape = (*kernel.shape[:-2], kernel.shape[-2] * kernel.shape[-1])
    return _finish(
        ops.reshape(kernel * mean[:, None], shape),
        ops.reshape(ops.square(kernel) * variance[:, None], shape),
        bias,
        taps,
    )


def separable_conv_moments(mean, variance, depthwise, pointwise, bias=None, taps=None):
    """Moments of a separable convolution at data-set level, exact.

    The two kernels are composed to one, so that outputs of one channel stay
    correlated between them when the depth multiplier is above one.

    Args:
        mean: tensor `[channels]`.
        variance: tensor `[channels]`.
        depthwise: tensor `[kernel..., channels, multiplier]`.
        pointwise: tensor `[1..., channels * multiplier, filters]`.
        bias: tensor `[filters]` or None.
        taps: as in `conv_moments`.

    Returns:
        `(mean, variance)`, each `[filters]`.
    """
    kernel = separable_kernel(depthwise, pointwise)
    return conv_moments(mean, variance, kernel, bias, taps)


def separable_kernel(depthwise, pointwise):
    """The kernel `[kernel..., channels, filters]` of a separable convolution."""
    channels, multiplier = depthwise.shape[-2:]
    return ops.einsum(
        "...cm,cmf->...cf",
        depthwise,
        ops.reshape(pointwise, (channels, multiplier, pointwise.shape[-1])),
    )


def conv_transpose_moments(mean, variance, kernel, bias=None, taps=None):
    """Moments of a transposed convolution at data-set level.

    Args:
        mean: tensor `[channels]`.
        variance: tensor `[channels]`.
        kernel: tensor `[kernel..., filters, channels]`.
        bias: tensor `[filters]` or None.
        taps: list of `conv_transpose_taps`, one for each axis of the kernel.

    Returns:
        `(mean, variance)`, each `[filters]`; the variance contains that of the
        means over the phases.
    """
    return conv_moments(mean, variance, ops.swapaxes(kernel, -1, -2), bias, taps)


def _finish(taps_mean, taps_variance, bias, taps):
    if taps is None:
        axes = tuple(range(len(taps_mean.shape) - 1))
        mean, variance = ops.sum(taps_mean, axes), ops.sum(taps_variance, axes)
    else:
        mean, variance = _over_positions(taps_mean, taps_variance, taps)
    if bias is not None:
        mean = mean + bias
    return mean, variance
