"""Rules of activation functions and activation layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import activations, layers, ops

from bayesnorm import backend
from bayesnorm.maths import activations as maths
from bayesnorm.maths.softmax import log_softmax_moments, softmax_moments
from bayesnorm.moments.registry import register, rule_for
from bayesnorm.types import F

_ACTIVATIONS = {}


def register_activation(function: Callable[..., Any]) -> Callable[[F], F]:
    """Decorator that registers the moments of an activation function.

    ```python
    @bayesnorm.moments.register_activation(my_square)
    def square(mean, variance):
        return mean**2 + variance, 2 * variance**2 + 4 * mean**2 * variance
    ```

    Args:
        function: The function that layers are given as `activation=`; it works
            element by element.

    Returns:
        The decorator, which returns the function unchanged.
    """

    def decorator(rule):
        _ACTIVATIONS[function] = rule
        return rule

    return decorator


def activate(function, moments):
    """Moments of `function(x)`, `function` an activation of Keras or registered.

    Raises:
        ValueError: If the function is not known.
    """
    function = _TWINS.get(function, function)
    if function is None or function is activations.linear:
        return moments
    if isinstance(function, layers.Layer):
        return rule_for(function)(function, moments)
    if function in _SLOPES:
        return rectify(moments, _SLOPES[function])
    if function in (activations.softmax, activations.log_softmax):
        return _OF_SOFTMAX[function](moments, -1)
    if function not in _ACTIVATIONS:
        name = getattr(function, "__name__", repr(function))
        raise ValueError(
            f"No rule takes means and variances through the activation {name!r}. "
            f"Register one with @bayesnorm.moments.register_activation({name}), a "
            "function (mean, variance) -> (mean, variance)."
        )
    return elementwise(_ACTIVATIONS[function], moments)


def elementwise(rule, moments):
    """Applies a function `(mean, variance) -> (mean, variance)`."""
    mean, variance = rule(moments.mean, moments.variance)
    return moments.replace(mean=mean, variance=variance)


def by_quadrature(function, moments, kink=None):
    """Moments of a function that works element by element."""
    return elementwise(
        functools.partial(maths.elementwise_moments, function, kink=kink), moments
    )


def rectify_limited(moments, function, slope, limit, threshold):
    """Moments of the ReLU of Keras with all its arguments, `function`."""
    if limit is None and not threshold:
        return rectify(moments, float(slope))
    kinks = (float(threshold),) if limit is None else (float(threshold), float(limit))
    return by_quadrature(function, moments, kinks)


def along_channels(function, moments, axis):
    """Applies `(mean, variance) -> (mean, variance)` over the last axis at `axis`."""
    rank = len(moments.shape)
    moments = moments.over(axis)
    place = 0 if moments.stationary else axis % rank
    mean, variance = (
        ops.moveaxis(x, place, -1) for x in (moments.mean, moments.variance)
    )
    mean, variance = (ops.moveaxis(x, -1, place) for x in function(mean, variance))
    return moments.replace(mean=mean, variance=variance)


_SLOPES = {activations.relu: 0.0, activations.leaky_relu: 0.2}


def rectify(moments, slope):
    """Moments of the leaky ReLU of a slope.

    Per example, only the linear part of the shared noise stays shared: what the
    kink adds is different at each position.
    """
    if moments.stationary:
        mean, variance = maths.leaky_relu_moments(moments.mean, moments.variance, slope)
        return moments.replace(mean=mean, variance=variance)
    mean, variance, shared, factor = _rectify_maps(
        moments.mean, moments.variance, moments.shared, moments.factor, slope
    )
    return moments.replace(mean=mean, variance=variance, shared=shared, factor=factor)


@backend.fused
def _rectify_maps(mean, variance, shared, factor, slope):
    mean, variance, gain = maths.leaky_relu_map_moments(mean, variance, slope)
    shared = None if shared is None else shared * ops.square(gain)
    return mean, variance, shared, None if factor is None else factor * gain


def soften(moments, axis):
    """Moments of the softmax over an axis: exact integrals at data-set level."""
    method = "exact" if moments.stationary else "auto"
    function = functools.partial(softmax_moments, method=method)
    return along_channels(function, moments, axis)


def log_soften(moments, axis):
    """Moments of the log-softmax over an axis."""
    return along_channels(log_softmax_moments, moments, axis)


_OF_SOFTMAX = {activations.softmax: soften, activations.log_softmax: log_soften}

_ACTIVATIONS.update(
    {
        activations.elu: maths.elu_moments,
        activations.selu: maths.selu_moments,
        activations.gelu: maths.gelu_moments,
        activations.sigmoid: maths.sigmoid_moments,
        activations.tanh: maths.tanh_moments,
        activations.softplus: maths.softplus_moments,
        activations.silu: maths.silu_moments,
    }
)
# Smooth ones by Gauss-Hermite, the others cut at their kinks.
KINKS = {
    activations.mish: None,
    activations.softsign: 0.0,
    activations.celu: 0.0,
    activations.log_sigmoid: None,
    activations.squareplus: None,
    activations.tanh_shrink: None,
    activations.relu6: (0.0, 6.0),
    activations.hard_sigmoid: (-3.0, 3.0),
    activations.hard_tanh: (-1.0, 1.0),
    activations.hard_silu: (-3.0, 3.0),
    activations.hard_shrink: (-0.5, 0.5),
    activations.soft_shrink: (-0.5, 0.5),
    activations.sparse_plus: (-1.0, 1.0),
    activations.sparse_sigmoid: (-1.0, 1.0),
}
for _function, _kink in KINKS.items():
    _ACTIVATIONS[_function] = functools.partial(
        maths.elementwise_moments, _function, kink=_kink
    )


# Functions of `keras.ops` that are what the activation of their name is.
_TWINS = {
    getattr(ops, function.__name__): function
    for function in [*_SLOPES, *_OF_SOFTMAX, *_ACTIVATIONS]
    if hasattr(ops, function.__name__)
}
# That of `keras.ops` approximates unless told otherwise.
del _TWINS[ops.gelu]
_ACTIVATIONS[ops.gelu] = functools.partial(
    maths.elementwise_moments, ops.gelu, kink=None
)


@register_activation(activations.exponential)
def _exponential(mean, variance):
    first = ops.exp(mean + 0.5 * variance)
    return first, ops.square(first) * ops.expm1(variance)


@register(layers.Activation)
def _activation(layer, moments):
    return activate(layer.activation, moments)


@register(layers.ReLU)
def _relu(layer, moments):
    return rectify_limited(
        moments, layer.call, layer.negative_slope, layer.max_value, layer.threshold
    )


@register(layers.LeakyReLU)
def _leaky_relu(layer, moments):
    return rectify(moments, float(layer.negative_slope))


@register(layers.PReLU)
def _prelu(layer, moments):
    slope = moments.constant(layer.alpha)
    if moments.stationary:
        if max((1, *slope.shape[:-1])) > 1:
            raise ValueError(
                f"Layer {layer.name!r} has a slope for each position, and moments at "
                "data-set level are the same at all positions: share its slopes with "
                "PReLU(shared_axes=...) over the positions."
            )
        moments, slope = moments.over(-1), ops.reshape(slope, (-1,))
    return rectify(moments, slope)


@register(layers.ELU)
def _elu(layer, moments):
    return elementwise(
        functools.partial(maths.elu_moments, alpha=float(layer.alpha)), moments
    )


@register(layers.Softmax)
def _softmax(layer, moments):
    axis = layer.axis
    if keras.tree.is_nested(axis):
        if len(axis) != 1:
            raise ValueError(
                f"Softmax {layer.name!r} goes over several axes: {axis}. Expected one."
            )
        (axis,) = axis
    if moments.stationary and axis % len(moments.shape) != moments.channel_axis:
        raise ValueError(
            f"Softmax {layer.name!r} goes over axis {axis}. At data-set level it must "
            f"go over the channels, axis {moments.channel_axis}."
        )
    return soften(moments, axis)
