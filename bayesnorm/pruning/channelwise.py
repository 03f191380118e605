"""Rules of layers that work on each channel by itself."""

import keras
import numpy as np
from keras import layers, ops

from bayesnorm.graph import copy_of
from bayesnorm.graph.internals import CustomScaleLayer, LayerScale, StochasticDepth
from bayesnorm.layers import (
    MonteCarloAlphaDropout,
    MonteCarloDropout,
    MonteCarloGaussianDropout,
    MonteCarloGaussianNoise,
    NoisyScaleNorm,
    ScaleNorm,
    StochasticBatchNormalization,
    StochasticScaleNorm,
    StructuredBayesianPruning,
    noise_mode,
)
from bayesnorm.pruning.linear import applied, is_elementwise, resized
from bayesnorm.pruning.merges import combined
from bayesnorm.pruning.registry import register
from bayesnorm.pruning.walk import RefusedError


def elementwise(channels, function, dead=None):
    """Channels behind a function of each by itself.

    Args:
        channels: `Channels`.
        function: Function of the constants, float64 `[n]`, 0 where there is none, that
            returns what becomes of them.
        dead: Booleans, where the output does not depend on the input; None for nowhere.
    """
    known = channels.is_constant if dead is None else channels.is_constant | dead
    values = np.where(known, function(np.nan_to_num(channels.constant)), np.nan)
    if channels.pattern is None:
        return channels.with_constant(values)
    # A map of 0 and 1 stays one where 0 stays 0.
    zero = function(np.zeros(len(values)))
    return channels.replace(constant=np.where(zero == 0, values, np.nan))


def _by_call(layer, channels):
    """Returns the function that a layer is of the values of its channels."""
    rank = len(channels.shape)
    shape = [1] * rank
    shape[channels.axis] = -1

    def function(values):
        x = ops.reshape(ops.convert_to_tensor(values.astype("float32")), shape)
        with noise_mode("mean"):
            y = layer(x)
        return np.asarray(ops.convert_to_numpy(y), "float64").reshape(-1)

    return function


# --- with weights of a channel -------------------------------------------------------


def _thin_vectors(layer, removal):
    """A copy of a layer with the entries of the channels that stay.

    Its weights are vectors over the channels, or have these last.
    """
    inputs, _ = removal.channels(layer)
    kept = removal.kept(inputs.ids)
    new = resized(layer, lambda arguments: _with_lists(arguments, kept))
    new.build(removal.shape(inputs))
    store = {}
    layer.save_own_variables(store)
    store = {k: np.array(ops.convert_to_numpy(v)) for k, v in store.items()}
    for name, value in store.items():
        # What has no number for its name is the state of the noise.
        if name.isdigit() and value.shape[-1:] == kept.shape:
            store[name] = value[..., kept]
    new.load_own_variables(store)
    return [new]


def _with_lists(arguments, kept):
    """Those of a layer's arguments that are lists over the channels, thinned."""
    return {
        k: np.asarray(v)[kept].tolist()
        for k, v in arguments.items()
        if _is_vector(v, len(kept))
    }


def _is_vector(value, size):
    numbers = isinstance(value, list | tuple | np.ndarray) and len(value) == size
    return numbers and np.asarray(value).dtype.kind == "f"


def axis_of(layer):
    """Returns the channel axis of a layer that has one by the name `axis`."""
    axis = layer.axis
    return axis[0] if isinstance(axis, list | tuple) else axis


@register(
    layers.BatchNormalization,
    StochasticBatchNormalization,
    ScaleNorm,
    StochasticScaleNorm,
    NoisyScaleNorm,
    thin=_thin_vectors,
)
def _scaled(trace, layer, channels):
    """Those of a scale of 0 are constant, whatever comes in."""
    channels = _whole(trace.over(channels, axis_of(layer), layer))
    scale = getattr(layer, "gamma", getattr(layer, "scale", None))
    dead = None
    if isinstance(scale, keras.Variable):
        dead = scale.numpy() == 0
    return elementwise(channels, _by_call(layer, channels), dead)


@register(StructuredBayesianPruning, thin=_thin_vectors)
def _noisy(trace, layer, channels):
    """Pruned channels are constant, whatever comes in."""
    channels = _whole(trace.over(channels, axis_of(layer), layer))
    return elementwise(channels, _by_call(layer, channels), ~layer.keep)


def _whole(channels):
    """Channels of which the number is known.

    Raises:
        RefusedError: If it is not.
    """
    if not len(channels.ids):
        raise RefusedError("is given an unknown number of channels")
    return channels


@register(layers.Rescaling, LayerScale, thin=_thin_vectors)
def _rescaled(trace, layer, channels):
    """By numbers, or by vectors over the last axis."""
    if not isinstance(layer, LayerScale):
        sizes = {np.size(layer.scale), np.size(layer.offset)}
        if max(np.ndim(layer.scale), np.ndim(layer.offset)) > 1:
            raise RefusedError("scales positions apart")
        if sizes != {1}:
            channels = trace.over(channels, -1, layer)
    dead = np.broadcast_to(_scale_of(layer) == 0, len(channels.ids))
    return elementwise(channels, _by_call(layer, channels), dead)


def _scale_of(layer):
    if isinstance(layer, LayerScale):
        return layer.gamma.numpy()
    return np.asarray(layer.scale)


@register(layers.Normalization, thin=_thin_vectors)
def _normalized(trace, layer, channels):
    """By the statistics of the channels, or by one of all."""
    axis = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis or ())
    if not axis:
        return elementwise(channels, _by_call(layer, channels))
    if len(axis) > 1:
        raise RefusedError("normalizes several axes apart")
    channels = _whole(trace.over(channels, axis[0], layer))
    return elementwise(channels, _by_call(layer, channels))


def _thin_prelu(layer, removal):
    inputs, _ = removal.channels(layer)
    kept = removal.kept(inputs.ids)
    alpha = layer.alpha.numpy()
    new = copy_of(layer)
    new.build(removal.shape(inputs))
    if alpha.shape[inputs.axis - 1] == len(kept):
        alpha = np.compress(kept, alpha, inputs.axis - 1)
    new.alpha.assign(alpha)
    return [new]


@register(layers.PReLU, thin=_thin_prelu)
def _prelu(trace, layer, channels):
    """The slope is of what is below 0."""
    alpha = layer.alpha.numpy()
    others = tuple(i for i in range(alpha.ndim) if i != channels.axis - 1)
    if any(alpha.shape[i] > 1 for i in others):
        return elementwise(channels, lambda x: np.where(x >= 0, x, np.nan))
    slope = np.broadcast_to(alpha.reshape(-1), len(channels.ids))
    return elementwise(channels, lambda x: np.where(x >= 0, x, slope * x))


# --- without -------------------------------------------------------------------------


def activated(operation, channels, function):
    """Channels behind an activation.

    Raises:
        RefusedError: If it mixes them.
    """
    if not is_elementwise(function, max(2, len(channels.ids))):
        raise RefusedError("has an activation over the channels")
    return elementwise(channels, lambda x: applied(function, x))


@register(layers.Activation)
def _activation(trace, layer, channels):
    return activated(layer, channels, layer.activation)


@register(layers.ReLU, layers.LeakyReLU, layers.ELU)
def _activation_layer(trace, layer, channels):
    return activated(layer, channels, layer)


@register(
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.AlphaDropout,
    layers.ActivityRegularization,
    layers.Identity,
    layers.Masking,
    MonteCarloDropout,
    MonteCarloAlphaDropout,
    MonteCarloGaussianDropout,
    MonteCarloGaussianNoise,
    StochasticDepth,
)
def _same(trace, layer, channels):
    noise_shape = getattr(layer, "noise_shape", None)
    size = noise_shape[channels.axis] if noise_shape else None
    if size not in (None, 1):
        raise RefusedError("has a noise_shape with the number of the channels")
    if isinstance(layer, layers.Masking):
        # It puts 0 at the positions of a mask.
        return channels.only_zeros()
    return channels


@register(CustomScaleLayer)
def _residual_scaled(trace, layer, inputs):
    scale = layer.scale
    return combined(trace, layer, inputs, lambda a, b: a + scale * b)
