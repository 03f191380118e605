"""What is known of the kernels of linear Keras layers: axes, norms, projection."""

import keras
from keras import ops

from bayesnorm.maths.linear import separable_kernel

_LAST = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D) + (
    keras.layers.Conv3D,
)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose) + (
    keras.layers.Conv3DTranspose,
)

# Filters along the last axis but one.
_TRANSPOSED_SHAPE = (-1, 1)

LINEAR_LAYERS = _LAST + _DEPTHWISE + _SEPARABLE + _TRANSPOSED


def is_linear(layer):
    """Whether `layer` is one of `LINEAR_LAYERS` without an activation."""
    linear = keras.activations.linear
    return isinstance(layer, LINEAR_LAYERS) and layer.activation is linear


def output_kernel(layer):
    """Returns the kernel whose filters make the outputs, and a vector's shape.

    A separable layer's is the pointwise one.

    Returns:
        `(variable, shape)`: `[filters]` reshaped to `shape` broadcasts against
        the variable, filter by filter.
    """
    if isinstance(layer, _SEPARABLE):
        return layer.pointwise_kernel, (-1,)
    if isinstance(layer, _DEPTHWISE):
        return layer.kernel, tuple(layer.kernel.shape[-2:])
    if isinstance(layer, _TRANSPOSED):
        return layer.kernel, _TRANSPOSED_SHAPE
    return layer.kernel, (-1,)


def filter_norms(layer):
    """Returns `||w||` of each filter of the linear map, `[filters]`, float32.

    For a separable layer w is the composed kernel,
    `w[k, i, o] = sum_m depthwise[k, i, m] pointwise[i, m, o]`.
    """
    kernel, shape = output_kernel(layer)
    axes = filter_axes(kernel, shape)
    kernel = ops.cast(kernel, "float32")
    if isinstance(layer, _SEPARABLE):
        depthwise = ops.cast(layer.depthwise_kernel, "float32")
        kernel = separable_kernel(depthwise, kernel)
    return ops.sqrt(ops.reshape(ops.sum(ops.square(kernel), axes), (-1,)))


def filter_axes(kernel, shape):
    """Returns the axes of `kernel` that lie within one filter.

    Args:
        kernel: The kernel.
        shape: The shape of a vector over the filters, as of `output_kernel`.
    """
    first = len(kernel.shape) - len(shape)
    inner = (first + 1,) if shape == _TRANSPOSED_SHAPE else ()
    return tuple(range(first)) + inner


def project_kernels(layer):
    """Projects the kernels of `layer` on `||w|| = 1` per filter, from now on.

    The optimizer applies the constraint after each of its steps; this call
    applies it at once, since Keras does not when a layer is built. Of a separable
    layer both kernels are projected; the norms of the depthwise one go over to
    the pointwise one first.

    Args:
        layer: A built linear layer.

    Returns:
        What the outputs were divided by, `[filters]`.
    """
    if isinstance(layer, _SEPARABLE):
        shape = tuple(layer.depthwise_kernel.shape[-2:])
        norms = _project(layer, layer.depthwise_kernel, "depthwise_constraint", shape)
        pointwise = layer.pointwise_kernel
        pointwise.assign(pointwise * ops.reshape(norms, (-1, 1)))
        return _project(layer, pointwise, "pointwise_constraint", (-1,))
    kernel, shape = output_kernel(layer)
    depthwise = isinstance(layer, _DEPTHWISE)
    attribute = "depthwise_constraint" if depthwise else "kernel_constraint"
    return _project(layer, kernel, attribute, shape)


def _project(layer, kernel, attribute, shape):
    axes = filter_axes(kernel, shape)
    norms = ops.sqrt(ops.sum(ops.square(ops.convert_to_tensor(kernel)), axes))
    constraint = keras.constraints.UnitNorm(axis=list(axes))
    kernel.constraint = constraint
    setattr(layer, attribute, constraint)
    kernel.assign(constraint(kernel))
    return ops.reshape(norms, (-1,))
