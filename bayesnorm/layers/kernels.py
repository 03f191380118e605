"""What is known of the kernels of linear Keras layers: axes, norms, projection."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from bayesnorm.maths.linear import separable_kernel
from bayesnorm.types import Shape, Tensor

_LAST = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D) + (
    keras.layers.Conv3D,
)
DEPTHWISE_LAYERS = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
SEPARABLE_LAYERS = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
TRANSPOSED_LAYERS = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose) + (
    keras.layers.Conv3DTranspose,
)

# Filters along the last axis but one.
_TRANSPOSED_SHAPE = (-1, 1)

LINEAR_LAYERS = _LAST + DEPTHWISE_LAYERS + SEPARABLE_LAYERS + TRANSPOSED_LAYERS


def channel_axis(layer: keras.layers.Layer) -> int:
    """Returns the channel axis of a linear layer's inputs and outputs, 1 or -1."""
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    return 1 if first else -1


def is_linear(layer: Any) -> bool:
    """Whether `layer` is one of `LINEAR_LAYERS` without an activation."""
    linear = keras.activations.linear
    return isinstance(layer, LINEAR_LAYERS) and layer.activation is linear


def output_kernel(layer: keras.layers.Layer) -> tuple[Tensor, tuple[int, ...]]:
    """Returns the kernel whose filters make the outputs, and a vector's shape.

    A separable layer's is the pointwise one.

    Returns:
        `(variable, shape)`: `[filters]` reshaped to `shape` broadcasts against
        the variable, filter by filter.
    """
    if isinstance(layer, SEPARABLE_LAYERS):
        return layer.pointwise_kernel, (-1,)
    if isinstance(layer, DEPTHWISE_LAYERS):
        return layer.kernel, tuple(layer.kernel.shape[-2:])
    if isinstance(layer, TRANSPOSED_LAYERS):
        return layer.kernel, _TRANSPOSED_SHAPE
    return layer.kernel, (-1,)


def kernel_variable(layer: keras.layers.Layer) -> keras.Variable:
    """Returns the variable behind the kernel of `output_kernel`.

    With LoRA the kernel is a sum, of this variable and a product of two small ones.
    """
    if getattr(layer, "lora_enabled", False):
        return next(v for v in layer.weights if v.name == "kernel")
    return output_kernel(layer)[0]


def filter_norms(layer: keras.layers.Layer) -> Tensor:
    """Returns `||w||` of each filter of the linear map, `[filters]`, float32.

    For a separable layer w is the composed kernel,
    `w[k, i, o] = sum_m depthwise[k, i, m] pointwise[i, m, o]`.
    """
    kernel, shape = output_kernel(layer)
    axes = filter_axes(kernel, shape)
    kernel = ops.cast(kernel, "float32")
    if isinstance(layer, SEPARABLE_LAYERS):
        depthwise = ops.cast(layer.depthwise_kernel, "float32")
        kernel = separable_kernel(depthwise, kernel)
    squared = ops.reshape(ops.sum(ops.square(kernel), axes), (-1,))
    # From 0, where a filter is 0: its output is then 0, not NaN.
    return ops.sqrt(ops.maximum(squared, 1e-30))


def filter_axes(kernel: Tensor, shape: Shape) -> tuple[int, ...]:
    """Returns the axes of `kernel` that lie within one filter.

    Args:
        kernel: The kernel.
        shape: The shape of a vector over the filters, as of `output_kernel`.
    """
    first = len(kernel.shape) - len(shape)
    inner = (first + 1,) if tuple(shape) == _TRANSPOSED_SHAPE else ()
    return tuple(range(first)) + inner


def kernel_norms(layer: keras.layers.Layer) -> Tensor:
    """Returns what `project_kernels` divides the outputs of `layer` by, `[filters]`.

    `||w||` per filter; of a separable layer, that of the pointwise kernel once it
    has taken over the norms of the depthwise one.
    """
    if isinstance(layer, SEPARABLE_LAYERS):
        return _norms(_rescaled_pointwise(layer), (-1,))
    return _norms(*output_kernel(layer))


def project_kernels(layer: keras.layers.Layer) -> None:
    """Projects the kernels of `layer` on `||w|| = 1` per filter, from now on.

    The optimizer applies the constraint after each of its steps; this call
    applies it at once, since Keras does not when a layer is built. Of a separable
    layer both kernels are projected; the norms of the depthwise one go over to
    the pointwise one first.

    Args:
        layer: A built linear layer.
    """
    if isinstance(layer, SEPARABLE_LAYERS):
        layer.pointwise_kernel.assign(_rescaled_pointwise(layer))
        depthwise = layer.depthwise_kernel
        _constrain(layer, depthwise, "depthwise_constraint", depthwise.shape[-2:])
        _constrain(layer, layer.pointwise_kernel, "pointwise_constraint", (-1,))
        return
    kernel, shape = output_kernel(layer)
    depthwise = isinstance(layer, DEPTHWISE_LAYERS)
    attribute = "depthwise_constraint" if depthwise else "kernel_constraint"
    _constrain(layer, kernel, attribute, shape)


def _rescaled_pointwise(layer):
    depthwise = layer.depthwise_kernel
    norms = _norms(depthwise, depthwise.shape[-2:])
    return layer.pointwise_kernel * ops.reshape(norms, (-1, 1))


def _norms(kernel, shape):
    squared = ops.square(ops.convert_to_tensor(kernel))
    return ops.sqrt(ops.reshape(ops.sum(squared, filter_axes(kernel, shape)), (-1,)))


def _constrain(layer, kernel, attribute, shape):
    constraint = keras.constraints.UnitNorm(axis=list(filter_axes(kernel, shape)))
    kernel.constraint = constraint
    setattr(layer, attribute, constraint)
    kernel.assign(constraint(kernel))
