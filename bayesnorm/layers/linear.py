"""Wrappers that normalize a linear Keras layer by a statistic of its kernel."""

import contextlib

import keras
from keras import ops

from bayesnorm.layers.kernels import LINEAR_LAYERS, output_kernel, project_kernels


class NormalizedLinear(keras.layers.Wrapper):
    """Base: `x_hat = (w.x - mean) / stddev`, with mean and stddev per filter.

    The stored kernel is only read: the layer is called with its kernel divided
    by `stddev` in a `keras.StatelessScope`, so that the division costs as much
    as the kernel is large and the gradient goes through it.

    Args:
        layer: A linear Keras layer, unbuilt, or built without a bias.
        projection: Whether the kernel is projected on `||w|| = 1` per filter
            when it is built and after every step of the optimizer.
    """

    def __init__(self, layer, projection=False, **kwargs):
        if not isinstance(layer, LINEAR_LAYERS):
            names = ", ".join(cls.__name__ for cls in LINEAR_LAYERS)
            raise ValueError(
                f"{type(self).__name__} wraps a linear Keras layer ({names}). "
                f"Received: {layer!r} of type {type(layer).__name__}"
            )
        if layer.activation is not keras.activations.linear:
            raise ValueError(
                f"{type(self).__name__} wraps a linear layer: put the activation "
                "in a layer behind it. Received: a layer with activation="
                f"{keras.activations.serialize(layer.activation)!r}"
            )
        if layer.built and layer.use_bias:
            raise ValueError(
                f"{type(self).__name__} has no use for a bias, and layer "
                f"{layer.name!r} was built with one: make it with use_bias=False "
                "(ScaleNorm or StochasticScaleNorm behind it have a bias)."
            )
        layer.use_bias = False
        super().__init__(layer, **kwargs)
        self.projection = projection
        self.supports_masking = True

    def build(self, input_shape=None):
        """Builds the wrapped layer and projects its kernel, if asked."""
        if not self.layer.built:
            self.layer.build(input_shape)
        if self.projection:
            project_kernels(self.layer)
        self.built = True

    @contextlib.contextmanager
    def kernel_over(self, stddev):
        """In the context the wrapped layer's filters are `w / stddev`, `[filters]`."""
        kernel, shape = output_kernel(self.layer)
        divided = ops.convert_to_tensor(kernel) / ops.reshape(stddev, shape)
        weights = {id(v): (v, ops.convert_to_tensor(v)) for v in self.layer.weights}
        weights[id(kernel)] = (kernel, divided)
        with keras.StatelessScope(
            state_mapping=list(weights.values()), initialize_variables=False
        ):
            yield

    def compute_output_shape(self, input_shape):
        """Returns the wrapped layer's."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self):
        """Returns the constructor's arguments."""
        return {**super().get_config(), "projection": self.projection}
