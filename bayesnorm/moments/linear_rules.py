"""Rules of dense and convolutional layers."""

import math

from keras import layers, ops

from bayesnorm.maths import linear as maths
from bayesnorm.moments.activation_rules import activate
from bayesnorm.moments.moments import (
    Moments,
    common_variance,
    statistics_dtype,
)
from bayesnorm.moments.registry import register
from bayesnorm.moments.shape_rules import through_example


def _value(variable, like):
    return ops.cast(ops.convert_to_tensor(variable), like.dtype)


def _bias(layer, like):
    return None if layer.bias is None else _value(layer.bias, like)


def _channel_axis(layer):
    return -1 if layer.data_format == "channels_last" else 1


def _with_bias(layer, mean):
    bias = _bias(layer, mean)
    if bias is None:
        return mean
    if layer.data_format == "channels_first":
        bias = ops.reshape(bias, (-1,) + (1,) * layer.rank)
    return mean + bias


@register(layers.Dense)
def _dense(layer, moments):
    x = moments.over(-1)
    kernel = _value(layer.kernel, x.mean)
    mean, variance = maths.dense_moments(
        x.mean, x.variance, kernel, _bias(layer, x.mean)
    )
    shared = _common(x, tuple(range(1, len(x.shape) - 1)))
    if shared is not None:
        shared = ops.matmul(shared, ops.square(kernel))
    shape = (*x.shape[:-1], layer.units)
    x = x.replace(mean=mean, variance=variance, shared=shared, factor=None, shape=shape)
    return activate(layer.activation, x)


@register(layers.EinsumDense)
def _einsum_dense(layer, moments):
    kernel = layer.kernel

    def rule(x):
        weights = _value(kernel, x.mean)
        squared = ops.square(weights)
        bias = _bias(layer, x.mean)
        mean = ops.einsum(layer.equation, x.mean, weights)
        shared = x.common_variance
        if shared is not None:
            shared = ops.einsum(layer.equation, shared, squared)
        return x.replace(
            mean=mean if bias is None else mean + bias,
            variance=ops.einsum(layer.equation, x.variance, squared),
            shared=shared,
            factor=None,
            shape=(x.shape[0], *layer.compute_output_shape(x.shape)[1:]),
        )

    return activate(layer.activation, through_example(moments, rule))


@register(layers.Embedding, accepts_unknown=True)
def _embedding(layer, moments):
    """The rows of the table: integers have no noise.

    At data-set level all rows are equally frequent.
    """
    if layer.mask_zero:
        raise ValueError(
            f"Embedding {layer.name!r} has mask_zero=True, and moments know no masks: "
            "what follows would count what is masked. Use mask_zero=False, or "
            "method='sample'."
        )
    table = ops.cast(ops.convert_to_tensor(layer.embeddings), statistics_dtype())
    shape = (*moments.shape, layer.output_dim)
    if moments.stationary:
        return Moments(
            ops.mean(table, 0),
            ops.var(table, 0),
            shape,
            correlation=moments.correlation,
        )
    mean = ops.take(table, ops.cast(moments.mean, "int32"), axis=0)
    return Moments(mean, ops.zeros_like(mean), shape, stationary=False)


_WINDOW = ("kernel_size", "strides", "dilation_rate")


def _taps(layer, shape, function, **kwargs):
    sizes = shape[1:-1] if layer.data_format == "channels_last" else shape[2:]
    return [
        function(
            size,
            kernel,
            stride=stride,
            dilation=dilation,
            padding=layer.padding,
            **{name: value and value[i] for name, value in kwargs.items()},
        )
        for i, (size, kernel, stride, dilation) in enumerate(
            zip(sizes, *(getattr(layer, n) for n in _WINDOW), strict=True)
        )
    ]


def _conv_rule(moments_of, convolve, noise, taps=maths.conv_taps, **options):
    """The rule of a family of convolutions.

    Args:
        moments_of: function `(layer, mean, variance, taps)`, data-set level.
        convolve: function `(layer, x)`: the map of `x`, without bias.
        noise: function `(layer, x)` of Moments per example: variance of the output
            and its parts `shared` and `factor`.
        taps: function, the patterns of taps along one axis.
        **options: attributes of the layer that `taps` takes as well, by name.
    """

    def rule(layer, moments):
        x = moments.over(_channel_axis(layer))
        shape = tuple(layer.compute_output_shape(x.shape))
        if x.stationary:
            extra = {name: getattr(layer, of) for name, of in options.items()}
            mean, variance = moments_of(
                layer, x.mean, x.variance, _taps(layer, x.shape, taps, **extra)
            )
            x = x.replace(mean=mean, variance=variance, shape=shape)
            return activate(layer.activation, x)
        variance, shared, factor = noise(layer, x)
        x = x.replace(
            mean=_with_bias(layer, convolve(layer, x.mean)),
            variance=variance,
            shared=shared,
            factor=factor,
            shape=shape,
        )
        return activate(layer.activation, x)

    return rule


def _positions(layer):
    first = 1 if layer.data_format == "channels_last" else 2
    return tuple(range(first, first + layer.rank))


def _common(x, positions):
    """Variance of the average over positions of the noise that they share."""
    return x.mean_common_variance(lambda y: ops.mean(y, positions, keepdims=True))


def _patterns(x):
    """Standard deviations, over the positions, of the noise that they share.

    Full maps: one with the signs of the last draw of a scale, one without.
    """
    maps = [] if x.factor is None else [x.factor]
    if x.shared is not None:
        # The small number: a finite derivative at 0.
        root = ops.sqrt(x.shared + 1e-20)
        maps.append(ops.broadcast_to(root, ops.shape(x.variance)))
    return maps


def _filter_noise(layer, x, kernel):
    """Noise behind a kernel for each channel, exact: `sum_k w_k f_k` of a pattern f."""

    def convolve(y, weights):
        return ops.depthwise_conv(y, weights, **_options(layer))

    if not x.has_common_noise:
        return convolve(x.variance, ops.square(kernel)), None, None
    variance = convolve(x.variance - x.common_variance, ops.square(kernel))
    maps = [convolve(y, kernel) for y in _patterns(x)]
    variance = variance + sum(ops.square(y) for y in maps)
    factor = None if x.factor is None else maps[0]
    return variance, None if x.shared is None else ops.square(maps[-1]), factor


def _mix_noise(layer, x, kernel, convolve):
    """Noise behind a kernel that mixes channels, each with a pattern of its own.

    What positions share, with standard deviations f over the K taps of a channel,
    adds `(sum_k w_k f_k)^2` to the variance. Exactly that costs a map for each pair
    of channels; here, with the means W of w and F of f over the window, it is

        K^2 W^2 F^2 + sum_k (w_k - W)^2 sum_k (f_k - F)^2 / (K - 1),

    the average over all orders of the deviations, exact for constant patterns or
    kernels. The first term goes on as shared. Neglected: that the outputs have draws
    in common. Weights that were trained add such noise up: on five small networks
    with stochastic batch normalization (EEGNet, U-Net, depthwise, plain, residual)
    the standard deviation of the logits was 1.0 to 1.5 times the sampled one with
    random weights and 0.65 to 0.96 times after training (geometric means over examples
    and logits), the mutual information, which goes with its square, 0.9 to 2.8 and
    0.3 to 0.6 times.
    """
    common = x.common_variance
    if common is None:
        return convolve(x.variance, ops.square(kernel)), None, None
    local = sum(ops.square(_window_mean(layer, y)) for y in _patterns(x))
    rest = ops.maximum(_window_mean(layer, common) - local, 0.0)
    taps = tuple(range(len(kernel.shape) - 2))
    count = math.prod(layer.kernel_size)
    deviation = kernel - ops.mean(kernel, taps, keepdims=True)
    spread = ops.sum(ops.square(deviation), taps, keepdims=True)

    def pointwise(y, weights):
        return ops.conv(y, weights, data_format=layer.data_format)

    shared = pointwise(local, ops.square(ops.sum(kernel, taps, keepdims=True)))
    variance = convolve(x.variance - common, ops.square(kernel)) + shared
    if count > 1:
        variance = variance + pointwise(rest, spread * (count / (count - 1)))
    return variance, shared, None


def _window_mean(layer, x):
    """The mean of a map over the window of a convolution, 0 outside of the map."""
    window = tuple(
        (size - 1) * dilation + 1
        for size, dilation in zip(layer.kernel_size, layer.dilation_rate, strict=True)
    )
    if window == layer.strides == (1,) * layer.rank:
        return x
    padding, pads = layer.padding, [(0, 0)] * len(x.shape)
    for axis, size, stride in zip(
        _positions(layer), window, layer.strides, strict=True
    ):
        if padding == "causal":
            pads[axis] = (size - 1, 0)
        elif padding == "same" and x.shape[axis] is not None:
            outputs = -(-x.shape[axis] // stride)
            total = max((outputs - 1) * stride + size - x.shape[axis], 0)
            pads[axis] = (total // 2, total - total // 2)
    if any(map(any, pads)):
        # A pooling of its own leaves the border out of its means.
        x, padding = ops.pad(x, pads), "valid"
    return ops.average_pool(x, window, layer.strides, padding, layer.data_format)


def _options(layer):
    return {
        "strides": layer.strides,
        "padding": layer.padding,
        "dilation_rate": layer.dilation_rate,
        "data_format": layer.data_format,
    }


def _convolve(layer, x, kernel):
    options = _options(layer)
    if layer.padding == "causal":
        x = ops.pad(x, layer._compute_causal_padding())
        options["padding"] = "valid"
    return ops.conv(x, kernel, **options)


def _conv(layer, x):
    return _convolve(layer, x, _value(layer.kernel, x))


def _conv_noise(layer, x):
    kernel = _value(layer.kernel, x.mean)
    return _mix_noise(layer, x, kernel, lambda y, k: _convolve(layer, y, k))


def _conv_moments(layer, mean, variance, taps):
    return maths.conv_moments(
        mean,
        variance,
        _value(layer.kernel, mean),
        _bias(layer, mean),
        taps,
        layer.groups,
    )


def _depthwise(layer, x):
    return ops.depthwise_conv(x, _value(layer.kernel, x), **_options(layer))


def _depthwise_noise(layer, x):
    return _filter_noise(layer, x, _value(layer.kernel, x.mean))


def _depthwise_moments(layer, mean, variance, taps):
    return maths.depthwise_conv_moments(
        mean, variance, _value(layer.kernel, mean), _bias(layer, mean), taps
    )


def _separable_kernels(layer, like):
    return _value(layer.depthwise_kernel, like), _value(layer.pointwise_kernel, like)


def _separable(layer, x):
    return ops.separable_conv(x, *_separable_kernels(layer, x), **_options(layer))


def _separable_noise(layer, x):
    depthwise, pointwise = _separable_kernels(layer, x.mean)
    if layer.depth_multiplier > 1:
        # Outputs of one input channel are correlated: only the composed kernel
        # gives the variance.
        kernel = maths.separable_kernel(depthwise, pointwise)
        return _mix_noise(layer, x, kernel, lambda y, k: _convolve(layer, y, k))
    variance, shared, factor = _filter_noise(layer, x, depthwise)
    weights = ops.square(pointwise)

    def mix(y):
        return ops.conv(y, weights, data_format=layer.data_format)

    common = common_variance(variance, shared, factor)
    return mix(variance), None if common is None else mix(common), None


def _separable_moments(layer, mean, variance, taps):
    return maths.separable_conv_moments(
        mean,
        variance,
        _value(layer.depthwise_kernel, mean),
        _value(layer.pointwise_kernel, mean),
        _bias(layer, mean),
        taps,
    )


def _transposed(layer, x, kernel, **options):
    return ops.conv_transpose(x, kernel, data_format=layer.data_format, **options)


def _transpose_options(layer):
    options = _options(layer)
    del options["data_format"]
    return {**options, "output_padding": layer.output_padding}


def _transpose(layer, x):
    kernel = _value(layer.kernel, x)
    return _transposed(layer, x, kernel, **_transpose_options(layer))


def _transpose_noise(layer, x):
    """Taps of one output count as independent: at a stride as wide there is one."""
    kernel = _value(layer.kernel, x.mean)
    options = _transpose_options(layer)
    variance = _transposed(layer, x.variance, ops.square(kernel), **options)
    shared = _common(x, _positions(layer))
    if shared is not None:
        # An output position sees one in prod(strides) of the taps.
        taps = tuple(range(len(kernel.shape) - 2))
        kernel = ops.square(ops.sum(kernel, taps, keepdims=True))
        kernel = kernel / math.prod(layer.strides) ** 2
        # Keras wants the strides from 3.10 to 3.14, where nothing strides as well.
        shared = _transposed(layer, shared, kernel, strides=1)
    return variance, shared, None


def _transpose_moments(layer, mean, variance, taps):
    return maths.conv_transpose_moments(
        mean, variance, _value(layer.kernel, mean), _bias(layer, mean), taps
    )


_TRANSPOSED = {"taps": maths.conv_transpose_taps, "output_padding": "output_padding"}
for _rule, _layers in (
    (
        _conv_rule(_conv_moments, _conv, _conv_noise),
        (layers.Conv1D, layers.Conv2D, layers.Conv3D),
    ),
    (
        _conv_rule(_depthwise_moments, _depthwise, _depthwise_noise),
        (layers.DepthwiseConv1D, layers.DepthwiseConv2D),
    ),
    (
        _conv_rule(_separable_moments, _separable, _separable_noise),
        (layers.SeparableConv1D, layers.SeparableConv2D),
    ),
    (
        _conv_rule(_transpose_moments, _transpose, _transpose_noise, **_TRANSPOSED),
        (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose),
    ),
):
    for _layer in _layers:
        register(_layer)(_rule)
