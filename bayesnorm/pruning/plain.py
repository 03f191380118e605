"""A network in the plain layers of Keras, what is masked in it 0.

Factors of channels are folded into the weights of the layers next to them.
"""

import math

import keras
import numpy as np
from keras import layers, ops

from bayesnorm.graph import Finished, Index, copy_of, copy_weights, layers_of, rewrite
from bayesnorm.layers import (
    AnalyticNormalization,
    ScaleNorm,
    StructuredBayesianPruning,
)
from bayesnorm.layers.kernels import (
    LINEAR_LAYERS,
    TRANSPOSED_LAYERS,
    channel_axis,
    filter_norms,
    output_kernel,
)
from bayesnorm.layers.linear import NormalizedLinear
from bayesnorm.pruning.linear import is_plain, pads, resized, summed

_NORMALIZATIONS = (layers.BatchNormalization, ScaleNorm)
# Of which a factor for each input can be folded into the rows of the kernel.
_WITH_ROWS = (
    layers.Dense,
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    *TRANSPOSED_LAYERS,
)


def plain(model, factors, masks):
    """Copies a model without the wrappers, and the pruning layers, of this package.

    Args:
        model: A built Functional or Sequential model.
        factors: Function of a `StructuredBayesianPruning` that returns the factors of
            its channels, `[channels]`; None for these layers to stay.
        masks: Dict from layer to booleans over the channels that it makes, where they
            are multiplied by 1 (a bias comes behind).

    Returns:
        The copy, in which the rows and columns of kernels, and the scales of
        normalizations, are 0 where a mask is False or a factor 0.
    """
    return rewrite(model, _Plain(model, factors, masks).replace)


class _Plain:
    def __init__(self, model, factors, masks):
        self._index, self._masks = Index(model), masks
        # By the identity of a linear layer: factors of its outputs and inputs, with
        # what the layer that they are of adds.
        self._columns, self._rows = {}, {}
        self._folded = set()
        self._factors = factors
        for layer in layers_of(model) if factors else ():
            if isinstance(layer, StructuredBayesianPruning):
                self._fold(layer)

    # --- where a factor goes ------------------------------------------------------

    def _fold(self, layer):
        factors, bias = self._of(layer)
        calls = self._index.calls_of(layer)
        before = self._maker(calls)
        if before is not None and self._feeds_only(before, layer):
            self._columns[id(before)] = factors, bias, layer.use_bias
            self._folded.add(id(layer))
            return
        after = self._takers(layer, calls, bias)
        for other in after or ():
            self._rows[id(other)] = factors, bias
            self._folded.add(id(layer))

    def _maker(self, calls):
        """The one linear layer, without an activation, that makes all inputs."""
        if any(self._index.is_input(call.inputs[0]) for call in calls):
            return None
        found = {
            id(c.operation): c.operation
            for call in calls
            for c in self._index.producers(call.inputs[0])
        }
        if len(found) != 1:
            return None
        (operation,) = found.values()
        linear = isinstance(operation, (*LINEAR_LAYERS, NormalizedLinear))
        unbent = getattr(operation, "activation", None) is keras.activations.linear
        fresh = id(operation) not in self._columns
        fits = linear and unbent and fresh and is_plain(_inner(operation))
        return operation if fits else None

    def _feeds_only(self, operation, layer):
        outputs = [call.outputs[0] for call in self._index.calls_of(operation)]
        takers = {id(c.operation) for x in outputs for c in self._index.consumers(x)}
        if takers != {id(layer)} or any(map(self._index.is_output, outputs)):
            return False
        return _same_axis(layer, operation, outputs[0])

    def _takers(self, layer, calls, bias):
        """The linear layers that alone take what a layer gives, None if others do."""
        outputs = [call.outputs[0] for call in calls]
        if any(map(self._index.is_output, outputs)):
            return None
        found = {
            id(c.operation): c.operation
            for x in outputs
            for c in self._index.consumers(x)
        }
        for operation in found.values():
            inner = _inner(operation)
            taken = [call.inputs[0] for call in self._index.calls_of(operation)]
            sources = {id(c.operation) for x in taken for c in self._index.producers(x)}
            # Where what a constant adds depends on the position it fits no bias.
            uneven = pads(inner) or _is_transposed(inner)
            fits = (
                isinstance(inner, _WITH_ROWS)
                and is_plain(inner)
                and not any(map(self._index.is_input, taken))
                and getattr(inner, "groups", 1) == 1
                and sources == {id(layer)}
                and _same_axis(layer, operation, outputs[0])
                and not (np.any(bias) and uneven)
            )
            if not fits:
                return None
        return list(found.values())

    # --- the layers ---------------------------------------------------------------

    def replace(self, operation):
        """Returns what takes the place of an operation, as for `rewrite`."""
        if isinstance(operation, StructuredBayesianPruning):
            if self._factors is None:
                return None
            folded = id(operation) in self._folded
            return [] if folded else Finished([self._rescaling(operation)])
        mask = self._masks.get(operation)
        if isinstance(operation, _NORMALIZATIONS):
            if mask is None:
                return None
            return Finished([_without_scale(operation, mask, self._shape(operation))])
        changed = (
            mask is not None
            or id(operation) in self._columns
            or id(operation) in self._rows
            or isinstance(operation, NormalizedLinear)
        )
        if not changed or not isinstance(operation, (*LINEAR_LAYERS, NormalizedLinear)):
            return None
        return Finished([self._linear(operation, mask)])

    def _shape(self, operation):
        return tuple(self._index.calls_of(operation)[0].inputs[0].shape)

    def _of(self, layer):
        """The factors and the bias of a pruning layer."""
        factors = np.asarray(self._factors(layer), "float64")
        bias = _values(layer.bias) if layer.use_bias else np.zeros(len(factors))
        return factors, bias

    def _rescaling(self, layer):
        factors, bias = self._of(layer)
        rank = len(self._shape(layer))
        axis = layer.axis % rank
        if axis != rank - 1:
            shape = (-1, *(1,) * (rank - 1 - axis))
            factors, bias = factors.reshape(shape), bias.reshape(shape)
        return layers.Rescaling(
            factors.tolist(), bias.tolist(), name=layer.name, dtype=layer.dtype_policy
        )

    def _linear(self, operation, mask):
        inner = _inner(operation)
        shape = self._shape(operation)
        factors = np.ones(_outputs_of(inner))
        if mask is not None:
            factors *= mask
        bias, biased = np.zeros(len(factors)), operation.use_bias
        if operation is not inner:
            mean, stddev = _statistics(operation, shape)
            factors = factors / stddev
            # Of a kernel that is 0 the mean is 0.
            bias = -mean * factors
            biased = biased or np.any(bias)
        if operation.use_bias:
            bias = bias + _values(operation.bias)
        if id(operation) in self._columns:
            scale, shift, added = self._columns[id(operation)]
            factors, bias = factors * scale, bias * scale + shift
            biased = biased or added
        rows, constant = self._rows.get(id(operation), (None, 0.0))
        biased = bool(biased or np.any(constant))
        new = resized(inner, lambda _: _arguments(operation, biased))
        if not isinstance(operation.activation, keras.Layer):
            new.activation = operation.activation
        new.build(shape)
        _copy_kernels(inner, new)
        variable, vector = output_kernel(new)
        kernel = _values(variable) * factors.reshape(vector)
        if rows is not None:
            swapped = _is_transposed(inner)
            kernel = np.swapaxes(kernel, -1, -2) if swapped else kernel
            bias = bias + constant @ summed(kernel)
            kernel = kernel * rows[:, None]
            kernel = np.swapaxes(kernel, -1, -2) if swapped else kernel
        variable.assign(kernel)
        if biased:
            new.bias.assign(bias)
        return new


def _values(variable):
    return np.asarray(ops.convert_to_numpy(ops.convert_to_tensor(variable)), "float64")


def _inner(operation):
    return operation.layer if isinstance(operation, NormalizedLinear) else operation


def _is_transposed(layer):
    return isinstance(layer, TRANSPOSED_LAYERS)


def _outputs_of(layer):
    variable, shape = output_kernel(layer)
    if _is_transposed(layer):
        return variable.shape[-2]
    return variable.shape[-1] if len(shape) == 1 else math.prod(shape)


def _same_axis(layer, operation, tensor):
    rank = len(tensor.shape)
    return layer.axis % rank == channel_axis(_inner(operation)) % rank


def _statistics(wrapper, shape):
    """Mean and deviation by which a wrapper normalizes, `[filters]` each."""
    if isinstance(wrapper, AnalyticNormalization):
        return [_values(x) for x in wrapper.statistics(shape)]
    stddev = _values(filter_norms(wrapper.layer))
    return np.zeros(len(stddev)), stddev


def _arguments(operation, use_bias):
    """The arguments of the plain layer in the place of a linear one, or a wrapper."""
    arguments = {"name": operation.name, "use_bias": use_bias}
    if isinstance(operation.activation, keras.Layer):
        # A part of the layer, which takes none once it is built.
        arguments["activation"] = operation.activation
    return arguments


def _copy_kernels(old, new):
    """Copies the weights but the bias, which may be there in one of the two alone."""
    for name in ("kernel", "depthwise_kernel", "pointwise_kernel"):
        if hasattr(old, name):
            getattr(new, name).assign(ops.convert_to_tensor(getattr(old, name)))


def _without_scale(layer, mask, shape):
    """A copy of a normalization with a scale of 0 where a mask is False."""

    def scaled(config):
        arguments = {
            k: None if k == "gamma_constraint" else v
            for k, v in config["config"].items()
        }
        if "scale" in arguments:
            arguments["scale"] = True
        return {**config, "config": arguments}

    new = copy_of(layer, scaled)
    new.build(shape)
    if len(new.weights) == len(layer.weights):
        copy_weights(layer, new)
    else:
        given = {v.name: v for v in new.weights}
        for variable in layer.weights:
            given[variable.name].assign(ops.convert_to_tensor(variable))
    scale = new.gamma if isinstance(layer, layers.BatchNormalization) else new.scale
    scale.assign(_values(scale) * mask)
    return new
