"""Rules of dense and convolutional layers, which mix channels."""

import math

import keras
import numpy as np
from keras import layers, ops

from bayesnorm.graph import copy_of
from bayesnorm.layers.kernels import (
    DEPTHWISE_LAYERS,
    SEPARABLE_LAYERS,
    TRANSPOSED_LAYERS,
    channel_axis,
)
from bayesnorm.pruning.channels import Balance, Sink
from bayesnorm.pruning.registry import register, rule_for
from bayesnorm.pruning.walk import RefusedError

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)


def applied(function, values):
    """Returns a function of the package's or the user's on float64 values, as float64.

    It is computed in float32, as the network does.
    """
    # Of the rank that `is_elementwise` tries.
    x = ops.convert_to_tensor(np.nan_to_num(values).astype("float32")[None])
    y = np.asarray(ops.convert_to_numpy(function(x)), "float64")[0]
    return np.where(np.isnan(values), np.nan, y)


def is_elementwise(function, size):
    """Whether a function of vectors of a size leaves their elements apart, by trial."""
    rng = np.random.default_rng(0)
    # Several vectors: a function over positions, too, puts elements together.
    first, second = rng.normal(size=(2, 3, size)).astype("float32")
    for _ in range(4):
        chosen = rng.integers(0, 2, first.shape).astype(bool)
        mixed = np.where(chosen, second, first)
        try:
            found, known = (
                ops.convert_to_numpy(function(ops.convert_to_tensor(x)))
                for x in (mixed, first)
            )
        except Exception:
            # The function wants another rank: it looks at more than an element.
            return False
        if found.shape != known.shape or np.any((found != known)[~chosen]):
            return False
    return True


def _array(variable):
    return np.array(ops.convert_to_numpy(ops.convert_to_tensor(variable)))


def kernel_of(layer):
    """Returns the kernel of a layer as `[..., inputs, outputs]`."""
    kernel = _array(layer.kernel)
    swapped = isinstance(layer, TRANSPOSED_LAYERS)
    return np.swapaxes(kernel, -1, -2) if swapped else kernel


def summed(kernel):
    """Returns the sum of a kernel over its window, `[inputs, outputs]`."""
    return kernel.reshape(-1, *kernel.shape[-2:]).sum(0)


def _bias_of(layer, size):
    bias = np.zeros(size) if layer.bias is None else _array(layer.bias)
    return bias.astype("float64")


def obstacle(layer):
    """Returns why the kernel of a linear layer cannot be changed, None if it can."""
    quantized = getattr(layer, "quantization_mode", None)
    if quantized or getattr(layer, "lora_enabled", False):
        return "is quantized, or has low-rank weights beside its kernel"
    activation = getattr(layer, "activation", None)
    # Its weights may not be there yet.
    if isinstance(activation, keras.Layer) and (
        activation.weights or type(activation).build is not keras.Layer.build
    ):
        return "has an activation with weights of its own"
    return None


def is_plain(layer):
    """Whether a linear layer is nothing but its kernel, its bias and an activation."""
    return rule_for(layer) is not None and obstacle(layer) is None


def _check(layer):
    reason = obstacle(layer)
    if reason is not None:
        raise RefusedError(reason)


def _outputs(trace, layer, channels, ids, shape, values):
    """The `Channels` that a layer gives, of constants before its activation."""
    size = len(ids)
    axis = channel_axis(layer) % len(shape)
    outputs = channels.replace(
        shape=tuple(shape), axis=axis, ids=ids, constant=values, pattern=None
    )
    if layer.activation is keras.activations.linear:
        return outputs
    if not is_elementwise(layer.activation, size):
        trace.pin(ids, layer, "has an activation over the channels")
        return outputs.with_constant(np.full(size, np.nan))
    return outputs.with_constant(applied(layer.activation, values))


def pads(layer):
    """Whether a convolution's windows go over the border."""
    padded = getattr(layer, "padding", "valid") in ("same", "causal")
    return padded and math.prod(layer.kernel_size) > 1


def _is_depthwise(layer):
    each = isinstance(layer, _CONVOLUTIONS) and layer.kernel.shape[-2] == 1
    return each and layer.groups > 1


def _mixed(trace, layer, channels, shape, at_border, carries):
    """Follows channels through a layer that mixes all of them, or those of a group."""
    channels = trace.over(channels, channel_axis(layer), layer)
    kernel = kernel_of(layer)
    size = kernel.shape[-1]
    groups = getattr(layer, "groups", 1)
    positions = tuple(range(kernel.ndim - 2))
    used = (kernel != 0).any(axis=(*positions, -1)) if groups == 1 else None
    if groups > 1:
        blocks = kernel.reshape(*kernel.shape[:-1], groups, size // groups)
        used = (blocks != 0).any(axis=(*positions, -1)).T.reshape(-1)
    trace.sinks.append(Sink(layer, channels, ~used, at_border, carries and groups == 1))
    ids = trace.made_by(layer, size)
    if groups > 1:
        trace.balances += [Balance(x.reshape(groups, -1)) for x in (channels.ids, ids)]
    # Of a filter that is 0 the bias is left.
    dead = ~(kernel != 0).any(axis=(*positions, -2))
    values = np.where(dead, _bias_of(layer, size), np.nan)
    return _outputs(trace, layer, channels, ids, shape, values)


def resized(layer, change):
    """Returns a copy of a layer, not yet built, with other arguments.

    Constraints held for the weights as they were: they do not go with it.

    Args:
        layer: The layer.
        change: Function of its arguments, a dict, that returns those that are others.
    """

    def changed(config):
        arguments = config["config"]
        free = {k: None for k in arguments if k.endswith("_constraint")}
        return {**config, "config": {**arguments, **free, **change(arguments)}}

    return copy_of(layer, changed)


def _thinned(layer, shape, sizes, kernels, bias):
    """A built layer of other sizes and weights."""
    new = resized(layer, lambda arguments: {"use_bias": bias is not None, **sizes})
    new.build(shape)
    for variable, value in kernels:
        getattr(new, variable).assign(value)
    if bias is not None:
        new.bias.assign(bias)
    return new


def _bias(layer, bias):
    """A bias, None where the layer has none and needs none."""
    return bias if layer.bias is not None or np.any(bias) else None


def _folded(sink, removal, kernel, bias):
    """Brings what removed constant channels add into a kernel and a bias.

    Args:
        sink: The `Sink`.
        removal: The `Removal`.
        kernel: float64 `[..., inputs, outputs]`, changed in place.
        bias: float64 `[outputs]`, changed in place.

    Returns:
        The indices of the inputs that stay.
    """
    rows = removal.rows(sink)
    gone = np.setdiff1d(np.arange(kernel.shape[-2]), rows)
    constant = np.where(sink.unused, 0.0, removal.constant(sink))
    gone = gone[constant[gone] != 0]
    if not len(gone):
        return rows
    if sink.at_border:
        carrier = removal.carrier(sink)
        shares = constant[gone] / removal.constant(sink)[carrier]
        kernel[..., carrier, :] += shares @ kernel[..., gone, :]
    else:
        bias += constant[gone] @ summed(kernel)[gone]
    return rows


def _thin_mixed(layer, removal):
    sink = removal.sink(layer)
    _, outputs = removal.channels(layer)
    kernel = kernel_of(layer).astype("float64")
    size = kernel.shape[-1]
    bias = _bias_of(layer, size)
    columns = np.flatnonzero(removal.kept(outputs.ids))
    groups = getattr(layer, "groups", 1)
    if groups == 1:
        rows = _folded(sink, removal, kernel, bias)
        kernel = kernel[..., rows, :][..., columns]
    else:
        kernel = _grouped(sink, removal, kernel, bias, groups, columns)
    if isinstance(layer, TRANSPOSED_LAYERS):
        kernel = np.swapaxes(kernel, -1, -2)
    sizes = {"units" if isinstance(layer, layers.Dense) else "filters": len(columns)}
    bias = _bias(layer, bias)
    bias = None if bias is None else bias[columns]
    shape = removal.input_shape(sink)
    new = _thinned(layer, shape, sizes, [("kernel", kernel)], bias)
    return [*removal.gathers(sink), new]


def _grouped(sink, removal, kernel, bias, groups, columns):
    """The kernel of a grouped convolution of which equally much stays in each group."""
    within, block = kernel.shape[-2], kernel.shape[-1] // groups
    constant = np.where(sink.unused, 0.0, removal.constant(sink)).reshape(groups, -1)
    kept = removal.kept(sink.channels.ids).reshape(groups, within)
    parts = []
    for o in columns:
        group = o // block
        gone = np.flatnonzero(~kept[group])
        bias[o] += constant[group, gone] @ summed(kernel)[gone, o]
        parts.append(kernel[..., kept[group], o])
    return np.stack(parts, -1)


@register(layers.Dense, thin=_thin_mixed)
def _dense(trace, layer, channels):
    _check(layer)
    shape = (*channels.shape[:-1], layer.units)
    # At other positions than all a constant is none for a bias.
    at_border = channels.pattern is not None
    return _mixed(trace, layer, channels, shape, at_border, True)


def _thin_convolution(layer, removal):
    if not _is_depthwise(layer):
        return _thin_mixed(layer, removal)
    inputs, outputs = removal.channels(layer)
    kept = removal.kept(outputs.ids)
    sizes = {
        "filters": int(kept.sum()),
        "groups": int(removal.kept(inputs.ids).sum()),
    }
    kernel = _array(layer.kernel)[..., kept]
    return _thin_apart(layer, removal, sizes, kernel, kept)


@register(*_CONVOLUTIONS, thin=_thin_convolution)
def _convolution(trace, layer, channels):
    _check(layer)
    shape = layer.compute_output_shape(channels.shape)
    if _is_depthwise(layer):
        return _apart(trace, layer, channels, shape, _array(layer.kernel)[..., 0, :])
    at_border = pads(layer) or channels.pattern is not None
    return _mixed(trace, layer, channels, shape, at_border, True)


@register(*TRANSPOSED_LAYERS, thin=_thin_mixed)
def _transposed(trace, layer, channels):
    """How many windows meet at a position depends on it."""
    _check(layer)
    shape = layer.compute_output_shape(channels.shape)
    return _mixed(trace, layer, channels, shape, True, True)


# --- a filter for each channel -------------------------------------------------------


def _apart(trace, layer, channels, shape, kernel):
    """Follows channels through filters `[..., outputs]` of one channel each."""
    channels = trace.over(channels, channel_axis(layer), layer)
    size = kernel.shape[-1]
    each = size // len(channels.ids)
    ids = trace.made_by(layer, size)
    trace.tie(np.repeat(channels.ids, each), ids)
    kernel = kernel.reshape(-1, size).astype("float64")
    constant = np.repeat(channels.constant, each)
    if pads(layer) or channels.pattern is not None:
        constant = np.where(constant == 0, 0.0, np.nan)
    values = np.where(kernel.any(0), kernel.sum(0) * constant, 0.0)
    values += _bias_of(layer, size)
    return _outputs(trace, layer, channels, ids, shape, values)


def _thin_apart(layer, removal, change, kernel, kept):
    inputs, _ = removal.channels(layer)
    bias = None if layer.bias is None else _array(layer.bias)[kept]
    shape = removal.shape(inputs)
    return [_thinned(layer, shape, change, [("kernel", kernel)], bias)]


def _thin_depthwise(layer, removal):
    inputs, outputs = removal.channels(layer)
    kernel = _array(layer.kernel)[..., removal.kept(inputs.ids), :]
    return _thin_apart(layer, removal, {}, kernel, removal.kept(outputs.ids))


@register(*DEPTHWISE_LAYERS, thin=_thin_depthwise)
def _depthwise(trace, layer, channels):
    _check(layer)
    channels = trace.over(channels, channel_axis(layer), layer)
    kernel = _array(layer.kernel)
    if layer.depth_multiplier > 1:
        # All that is made of a channel goes with it.
        ids = trace.made_by(layer, kernel.shape[-1] * kernel.shape[-2])
        each = ids.reshape(-1, layer.depth_multiplier)
        trace.tie(*each.T)
    kernel = kernel.reshape(*kernel.shape[:-2], -1)
    shape = layer.compute_output_shape(channels.shape)
    return _apart(trace, layer, channels, shape, kernel)


# --- separable -----------------------------------------------------------------------


def _separable_kernels(layer):
    """The kernels, `[positions, inputs, each]` and `[inputs, each, outputs]`."""
    depthwise = _array(layer.depthwise_kernel).astype("float64")
    inputs, each = depthwise.shape[-2:]
    pointwise = _array(layer.pointwise_kernel).astype("float64")
    return depthwise.reshape(-1, inputs, each), pointwise.reshape(inputs, each, -1)


def _thin_separable(layer, removal):
    sink = removal.sink(layer)
    _, outputs = removal.channels(layer)
    depthwise, pointwise = _separable_kernels(layer)
    rows, columns = removal.rows(sink), removal.kept(outputs.ids)
    gone = np.setdiff1d(np.arange(depthwise.shape[1]), rows)
    constant = np.where(sink.unused, 0.0, removal.constant(sink))
    bias = _bias_of(layer, pointwise.shape[-1])
    bias += np.einsum(
        "kim,imo,i->o", depthwise[:, gone], pointwise[gone], constant[gone]
    )
    shape = layer.pointwise_kernel.shape
    kernels = [
        ("depthwise_kernel", _array(layer.depthwise_kernel)[..., rows, :]),
        (
            "pointwise_kernel",
            pointwise[rows][..., columns].reshape(*shape[:-2], -1, columns.sum()),
        ),
    ]
    bias = _bias(layer, bias)
    bias = None if bias is None else bias[columns]
    size = {"filters": int(columns.sum())}
    new = _thinned(layer, removal.input_shape(sink), size, kernels, bias)
    return [*removal.gathers(sink), new]


@register(*SEPARABLE_LAYERS, thin=_thin_separable)
def _separable(trace, layer, channels):
    _check(layer)
    channels = trace.over(channels, channel_axis(layer), layer)
    depthwise, pointwise = _separable_kernels(layer)
    used = (np.einsum("kim,imo->kio", np.abs(depthwise), np.abs(pointwise)) != 0).any(0)
    at_border = pads(layer) or channels.pattern is not None
    trace.sinks.append(Sink(layer, channels, ~used.any(-1), at_border, False))
    shape = layer.compute_output_shape(channels.shape)
    ids = trace.made_by(layer, pointwise.shape[-1])
    values = np.where(used.any(0), np.nan, _bias_of(layer, len(ids)))
    return _outputs(trace, layer, channels, ids, shape, values)


# --- made of integers ----------------------------------------------------------------


def _thin_embedding(layer, removal):
    _, outputs = removal.channels(layer)
    kept = removal.kept(outputs.ids)
    new = resized(layer, lambda arguments: {"output_dim": int(kept.sum())})
    new.build(None)
    new.embeddings.assign(_array(layer.embeddings)[:, kept])
    return [new]


@register(layers.Embedding, thin=_thin_embedding)
def _embedding(trace, layer, channels):
    _check(layer)
    trace.pin(channels.ids, layer, "are indices of an embedding")
    ids = trace.made_by(layer, layer.output_dim)
    shape = (*channels.shape, layer.output_dim)
    table = _array(layer.embeddings).astype("float64")
    constant = np.where((table == table[:1]).all(0), table[0], np.nan)
    return channels.replace(
        shape=shape,
        axis=len(shape) - 1,
        ids=ids,
        constant=constant,
        pattern=None,
        dtype="float32",
    )
