"""Wrappers that normalize a linear Keras layer by a statistic of its kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from bayesnorm.layers.axes import add_along
from bayesnorm.layers.kernels import (
    LINEAR_LAYERS,
    channel_axis,
    kernel_variable,
    output_kernel,
    project_kernels,
)
from bayesnorm.moments.activation_rules import activate
from bayesnorm.types import Shape, Tensor

if TYPE_CHECKING:
    from bayesnorm.moments.moments import Moments


class NormalizedLinear(keras.layers.Wrapper):
    """Base: `activation(x_hat + bias)`, `x_hat = (w.x - mean) / stddev` per filter.

    The stored kernel is only read: the layer is called with its kernel divided
    by `stddev` in a `keras.StatelessScope`, so that the division costs as much
    as the kernel is large and the gradient goes through it. The wrapper takes the
    activation over from the layer, and a bias, for both stand behind the division.

    Args:
        layer: A linear Keras layer, unbuilt, or built without a bias.
        projection: Whether the kernel is projected on `||w|| = 1` per filter
            when it is built and after every step of the optimizer.
        use_bias: Whether to add a bias, `[filters]`, made as the layer would make its
            own. None: where the layer has an activation as the layer says, for no
            other layer comes between; otherwise not.
        activation: Function or its name; None for the layer's.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        projection: bool = False,
        use_bias: bool | None = None,
        activation: Callable[[Tensor], Tensor] | str | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(layer, LINEAR_LAYERS):
            names = ", ".join(cls.__name__ for cls in LINEAR_LAYERS)
            raise ValueError(
                f"{type(self).__name__} wraps a linear Keras layer ({names}). "
                f"Received: {layer!r} of type {type(layer).__name__}"
            )
        has_activation = layer.activation is not keras.activations.linear
        if has_activation and activation is not None:
            raise ValueError(
                f"{type(self).__name__} was given an activation beside that of layer "
                f"{layer.name!r}: give one of the two. Received: "
                f"activation={activation!r}"
            )
        if layer.built and layer.use_bias:
            raise ValueError(
                f"{type(self).__name__} normalizes before a bias is added, and layer "
                f"{layer.name!r} was built with one: make it with use_bias=False. "
                "(The wrapper has a bias with use_bias=True; ScaleNorm or "
                "StochasticScaleNorm behind it have one.)"
            )
        if getattr(layer, "quantization_mode", None):
            raise ValueError(_unquantized(type(self).__name__, layer))
        super().__init__(layer, **kwargs)
        if use_bias is None:
            use_bias = has_activation and layer.use_bias
        self.use_bias = use_bias
        self.activation = keras.activations.get(
            layer.activation if activation is None else activation
        )
        layer.use_bias, layer.activation = False, keras.activations.linear
        # Model.quantize goes into wrappers, and asks the layer alone.
        layer.quantize = self._refuse_to_quantize
        self.bias = None
        self.projection = projection
        self.supports_masking = True

    def _refuse_to_quantize(self, *args, **kwargs):
        # What Keras's quantization of a model reports as a warning, and leaves out.
        raise NotImplementedError(_unquantized(repr(self.name), self.layer))

    def build(self, input_shape: Shape | None = None) -> None:
        """Builds the wrapped layer and projects its kernel, if asked."""
        if not self.layer.built:
            self.layer.build(input_shape)
        if self.projection:
            project_kernels(self.layer)
        if self.use_bias:
            shape = self.layer.compute_output_shape(input_shape)
            self.bias = self.add_weight(
                name="bias",
                shape=(shape[self.channel_axis],),
                initializer=self.layer.bias_initializer,
                regularizer=self.layer.bias_regularizer,
                constraint=self.layer.bias_constraint,
            )
        self.built = True

    @property
    def channel_axis(self) -> int:
        """The channel axis of the inputs and outputs, 1 or -1."""
        return channel_axis(self.layer)

    def normalized(self, inputs: Tensor) -> Tensor:
        """Returns `x_hat`."""
        raise NotImplementedError

    def call(self, inputs: Tensor) -> Tensor:
        """Returns `activation(x_hat + bias)`."""
        outputs = self.normalized(inputs)
        if self.use_bias:
            axis = self.channel_axis % len(outputs.shape)
            outputs = add_along(outputs, self.bias, axis)
        return self.activation(outputs)

    def output_moments(self, moments: Moments) -> Moments:
        """Returns the moments of the outputs from those of `x_hat`."""
        if self.use_bias:
            moments = moments.over(self.channel_axis)
            shift = moments.along(self.bias, self.channel_axis)
            moments = moments.affine(1.0, shift)
        return activate(self.activation, moments)

    @contextlib.contextmanager
    def kernel_over(self, stddev: Tensor) -> Iterator[None]:
        """In the context the wrapped layer's filters are `w / stddev`, `[filters]`."""
        kernel, shape = output_kernel(self.layer)
        whole, variable = ops.convert_to_tensor(kernel), kernel_variable(self.layer)
        value = whole / ops.reshape(stddev, shape)
        if variable is not kernel:
            # The layer adds to the variable what makes the whole.
            value = value - (whole - ops.convert_to_tensor(variable))
        weights = {id(v): (v, ops.convert_to_tensor(v)) for v in self.layer.weights}
        weights[id(variable)] = (variable, value)
        with keras.StatelessScope(
            state_mapping=list(weights.values()), initialize_variables=False
        ):
            yield

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Returns the wrapped layer's."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "projection": self.projection,
            "use_bias": self.use_bias,
            "activation": keras.activations.serialize(self.activation),
        }


def _unquantized(wrapper, layer):
    return (
        f"Layer {layer.name!r} in the wrapper {wrapper} stays in floating point: its "
        "kernel is divided by a statistic whenever it is called, which integers cannot "
        "be. For a quantized one put a plain layer with the divided kernel in the "
        "wrapper's place."
    )
