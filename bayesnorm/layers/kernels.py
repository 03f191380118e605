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
        return layer.kernel, (-1, 1)
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
    """Returns the axes of `kernel` that lie within one filter."""
    first = len(kernel.shape) - len(shape)
    inner = [first + i for i, size in enumerate(shape) if size == 1]
    return tuple(range(first)) + tuple(inner)


def _constrained(layer):
    """Yields `(variable, attribute of its constraint, axes of one filter)`."""
    if isinstance(layer, _SEPARABLE):
        depthwise = layer.depthwise_kernel
        yield (
            depthwise,
            "depthwise_constraint",
            filter_axes(depthwise, tuple(depthwise.shape[-2:])),
        )
    variable, shape = output_kernel(layer)
    attribute = {_SEPARABLE: "pointwise_constraint", _DEPTHWISE: "depthwise_constraint"}
    for types, name in attribute.items():
        if isinstance(layer, types):
            yield variable, name, filter_axes(variable, shape)
            return
    yield variable, "kernel_constraint", filter_axes(variable, shape)


def project_kernels(layer):
    """Projects the kernels of `layer` on `||w|| = 1` per filter, from now on.

    The optimizer applies the constraint after each of its steps; this call
    applies it at once, since Keras does not when a layer is built.

    Args:
        layer: A built linear layer.
    """
    for variable, attribute, axes in _constrained(layer):
        constraint = keras.constraints.UnitNorm(axis=list(axes))
        variable.constraint = constraint
        setattr(layer, attribute, constraint)
        variable.assign(constraint(variable))
