"""Rules of operations of `keras.ops` on numbers: arithmetic and activations."""

import functools
import math

import keras
from keras import activations, ops

from bayesnorm.graph.internals import ReluOperation, math_ops
from bayesnorm.graph.internals import core_ops as core
from bayesnorm.graph.internals import nn_ops as nn
from bayesnorm.graph.internals import numpy_ops as numpy
from bayesnorm.maths.activations import (
    elu_moments,
    leaky_relu_moments,
    safe_sqrt,
)
from bayesnorm.maths.products import power_moments, product_moments
from bayesnorm.moments.activation_rules import (
    activate,
    by_quadrature,
    elementwise,
    log_soften,
    rectify,
    rectify_limited,
    soften,
)
from bayesnorm.moments.merge_rules import combine, larger, multiply, smaller
from bayesnorm.moments.moments import Moments
from bayesnorm.moments.op_shape_rules import split_moments
from bayesnorm.moments.registry import refuse_stationary, register

# --- arithmetic --------------------------------------------------------------------


def _is_moments(x):
    return isinstance(x, Moments)


def _constant(x, moments):
    """A constant of the graph, checked to go with the level of the moments."""
    x = ops.cast(ops.convert_to_tensor(x), moments.mean.dtype)
    rank, sizes = len(moments.shape), tuple(x.shape)
    if not moments.stationary or math.prod(sizes) == 1:
        return ops.reshape(x, ()) if math.prod(sizes) == 1 else x
    axes = [i for i, n in enumerate(sizes, rank - len(sizes)) if n > 1]
    if axes != [moments.channel_axis]:
        raise ValueError(
            "At data-set level a constant of the graph must be a number or a vector "
            f"over the channels (axis {moments.channel_axis} of an activation of "
            f"shape {moments.shape}). Received a constant of shape {sizes}."
        )
    return ops.reshape(x, (-1,))


@register(numpy.Add)
def _add(operation, a, b):
    if not _is_moments(a):
        a, b = b, a
    if not _is_moments(b):
        return a.affine(1.0, _constant(b, a))
    return a.affine(2.0) if a is b else combine([a, b], [1.0, 1.0])


@register(numpy.Subtract)
def _subtract(operation, a, b):
    if not _is_moments(a):
        return b.affine(-1.0, _constant(a, b))
    if not _is_moments(b):
        return a.affine(1.0, -_constant(b, a))
    return a.affine(0.0) if a is b else combine([a, b], [1.0, -1.0])


@register(numpy.Multiply)
def _multiply(operation, a, b):
    if not _is_moments(a):
        a, b = b, a
    return multiply(a, b) if _is_moments(b) else a.affine(_constant(b, a))


def _power_of(moments, exponent):
    return elementwise(functools.partial(power_moments, exponent=exponent), moments)


def _divide(operation, a, b):
    """Behind a division by an activation, `power_moments` of exponent -1."""
    if not _is_moments(b):
        return a.affine(1.0 / _constant(b, a))
    if a is b:
        return a.affine(0.0, 1.0)
    inverse = _power_of(b, -1.0)
    if _is_moments(a):
        return multiply(a, inverse)
    return inverse.affine(_constant(a, b))


for _operation in (numpy.Divide, numpy.TrueDivide):
    register(_operation)(_divide)


@register(numpy.Power)
def _power(operation, base, exponent):
    """Exact for 0, 1, 2, ..., else to the second order (`power_moments`)."""
    if _is_moments(exponent) or not isinstance(exponent, int | float):
        raise ValueError(
            "Moments pass through powers of an activation with a number as exponent."
        )
    if exponent == 2:
        return multiply(base, base)
    if exponent >= 0 and exponent == int(exponent):
        return by_quadrature(lambda x: ops.power(x, exponent), base)
    return _power_of(base, exponent)


for _operation, _exponent in {
    math_ops.Rsqrt: -0.5,
    numpy.Reciprocal: -1.0,
    numpy.Log: 0,
}.items():
    register(_operation)(lambda operation, x, p=_exponent: _power_of(x, p))


@register(numpy.Square)
def _square(operation, moments):
    return multiply(moments, moments)


@register(numpy.Sqrt)
def _sqrt(operation, moments):
    """Of what is not negative: the Gaussian tail below 0 counts as 0."""
    return by_quadrature(lambda x: safe_sqrt(ops.maximum(x, 0.0)), moments, 0.0)


@register(numpy.Absolute)
def _absolute(operation, moments):
    # Not as a map of `rectify`, where at variance 0 squares would have to cancel.
    mean, variance, gain = leaky_relu_moments(
        moments.mean, moments.variance, -1.0, with_gain=True
    )
    shared, factor = moments.shared, moments.factor
    return moments.replace(
        mean=mean,
        variance=variance,
        shared=None if shared is None else shared * ops.square(gain),
        factor=None if factor is None else factor * gain,
    )


@register(numpy.Clip)
def _clip(operation, moments):
    low, high = operation.x_min, operation.x_max
    if not all(isinstance(v, int | float) for v in (low, high)):
        raise ValueError("Moments pass through a clip at numbers.")
    return by_quadrature(operation.call, moments, (float(low), float(high)))


def _extreme(sign):
    """The rule of the larger (sign 1) or smaller (-1) of two."""

    def rule(operation, a, b):
        if not _is_moments(a):
            a, b = b, a
        if _is_moments(b):
            return larger(a, b) if sign > 0 else smaller(a, b)
        # max(x, c) = c + relu(x - c)
        constant = _constant(b, a)
        x = rectify(a.affine(sign, -sign * constant), 0.0)
        return x.affine(sign, constant)

    return rule


register(numpy.Maximum)(_extreme(1.0))
register(numpy.Minimum)(_extreme(-1.0))


@register(numpy.Where)
def _where(operation, condition, a, b):
    if _is_moments(condition):
        raise ValueError(
            "No rule takes means and variances through a choice that depends on an "
            "activation. Expected a constant condition of `where`."
        )
    known = a if _is_moments(a) else b
    refuse_stationary(operation, known)
    parts = [x if _is_moments(x) else _fixed(x, known) for x in (a, b)]

    def choose(values):
        if all(v is None for v in values):
            return None
        return ops.where(condition, *(0.0 if v is None else v for v in values))

    shape = operation.compute_output_spec(
        condition, *(keras.KerasTensor(x.shape) for x in parts)
    ).shape
    return known.replace(
        **{
            name: choose([getattr(x, name) for x in parts])
            for name in ("mean", "variance", "shared", "factor")
        },
        shape=tuple(shape),
    )


def _fixed(value, like):
    """A constant as moments of variance 0."""
    mean = like.constant(value)
    return like.replace(
        mean=mean,
        variance=ops.zeros_like(mean),
        shared=None,
        factor=None,
        shape=tuple(mean.shape),
    )


def _times(contract):
    """The rule of a contraction of two operands, of which one may be constant.

    `contract(operation, a, b)` is bilinear. The elements of an activation count as
    independent, so do two activations.
    """

    def rule(operation, a, b):
        known = a if _is_moments(a) else b
        refuse_stationary(operation, known)
        x, y = (v if _is_moments(v) else _fixed(v, known) for v in (a, b))
        mean, variance = product_moments(
            x.mean,
            x.variance,
            y.mean,
            y.variance,
            lambda *values: contract(operation, *values),
        )
        shape = operation.compute_output_spec(
            *(keras.KerasTensor(v.shape) for v in (x, y))
        ).shape
        return known.replace(
            mean=mean, variance=variance, shared=None, factor=None, shape=tuple(shape)
        )

    return rule


register(numpy.Matmul)(_times(lambda operation, a, b: ops.matmul(a, b)))
register(numpy.Einsum)(
    _times(lambda operation, a, b: ops.einsum(operation.subscripts, a, b))
)


@register(numpy.Negative)
def _negative(operation, moments):
    return moments.affine(-1.0)


@register(core.Cast, accepts_unknown=True)
@register(core.StopGradient, accepts_unknown=True)
def _same(operation, moments):
    return moments


# --- activations -------------------------------------------------------------------

for _operation, _function in {
    nn.Relu: activations.relu,
    nn.Relu6: activations.relu6,
    nn.Selu: activations.selu,
    nn.Sigmoid: activations.sigmoid,
    nn.Softplus: activations.softplus,
    nn.Softsign: activations.softsign,
    nn.Silu: activations.silu,
    nn.HardSigmoid: activations.hard_sigmoid,
    nn.HardTanh: activations.hard_tanh,
    nn.HardSilu: activations.hard_silu,
    nn.LogSigmoid: activations.log_sigmoid,
    nn.Squareplus: activations.squareplus,
    nn.TanhShrink: activations.tanh_shrink,
    nn.SparsePlus: activations.sparse_plus,
    nn.SparseSigmoid: activations.sparse_sigmoid,
    numpy.Tanh: activations.tanh,
    numpy.Exp: activations.exponential,
}.items():
    register(_operation)(lambda operation, moments, f=_function: activate(f, moments))


# Those with an argument of their own.
for _operation, _kinks in {
    nn.Celu: lambda operation: 0.0,
    nn.HardShrink: lambda operation: (-operation.threshold, operation.threshold),
    nn.SoftShrink: lambda operation: (-operation.threshold, operation.threshold),
    nn.Threshold: lambda operation: float(operation.threshold),
}.items():
    register(_operation)(
        lambda operation, moments, kinks=_kinks: by_quadrature(
            operation.call, moments, kinks(operation)
        )
    )


@register(nn.Gelu)
def _gelu(operation, moments):
    if operation.approximate:
        return by_quadrature(operation.call, moments)
    return activate(activations.gelu, moments)


@register(ReluOperation)
def _relu(operation, moments):
    return rectify_limited(
        moments,
        operation.call,
        operation.negative_slope,
        operation.max_value,
        operation.threshold,
    )


@register(nn.Glu)
def _glu(operation, moments):
    a, b = split_moments(moments, 2, operation.axis)
    return multiply(a, activate(activations.sigmoid, b))


@register(nn.LeakyRelu)
def _leaky_relu(operation, moments):
    return rectify(moments, float(operation.negative_slope))


@register(nn.Elu)
def _elu(operation, moments):
    return elementwise(functools.partial(elu_moments, alpha=operation.alpha), moments)


@register(nn.Softmax)
def _softmax(operation, moments):
    return soften(moments, operation.axis)


@register(nn.LogSoftmax)
def _log_softmax(operation, moments):
    return log_soften(moments, operation.axis)
