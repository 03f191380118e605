"""A plain scale and bias per channel."""

from __future__ import annotations

from typing import Any

import keras
from keras import initializers, ops, regularizers

from bayesnorm.layers.axes import add_along, broadcast_shape, canonical_axis
from bayesnorm.moments import register
from bayesnorm.types import Initializer, Regularizer, Shape, Tensor


@keras.saving.register_keras_serializable("bayesnorm")
class ScaleNorm(keras.layers.Layer):
    """Scale and bias after a normalization: `y = (x + bias) * scale`.

    The bias stands inside, as in `StochasticScaleNorm`, so that the two layers
    have the same weights and the same mean function.

    Args:
        axis: Integer, the channel axis. Defaults to -1.
        bias_initializer: Initializer of the bias. Defaults to zeros.
        scale_initializer: Initializer of the scale. Defaults to ones.
        bias_regularizer: Regularizer of the bias, such as a prior of
            `bayesnorm.priors`; None for none.
        scale_regularizer: Regularizer of the scale, likewise.

    Input shape:
        `[batch, ..., channels]` (channels at `axis`).

    Output shape:
        The input's.

    Raises:
        ValueError: If `axis` is not a channel axis of the input.

    Reference:
        Shekhovtsov & Flach, 2018, "Stochastic Normalizations as Bayesian
        Learning", eq. (17) without noise.
    """

    def __init__(
        self,
        axis: int = -1,
        bias_initializer: Initializer = "zeros",
        scale_initializer: Initializer = "ones",
        bias_regularizer: Regularizer = None,
        scale_regularizer: Regularizer = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.axis = axis
        self.bias_initializer = initializers.get(bias_initializer)
        self.scale_initializer = initializers.get(scale_initializer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.scale_regularizer = regularizers.get(scale_regularizer)
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        """Makes `bias` and `scale`, float32 vectors over the channels."""
        channels = input_shape[canonical_axis(self, self.axis, input_shape)]
        self.input_spec = keras.layers.InputSpec(
            ndim=len(input_shape), axes={self.axis: channels}
        )
        self.bias = self._vector(
            "bias", channels, self.bias_initializer, self.bias_regularizer
        )
        self.scale = self._vector(
            "scale", channels, self.scale_initializer, self.scale_regularizer
        )

    def _vector(self, name, size, initializer, regularizer=None):
        # float32 and no autocast: in half precision a small step would be lost.
        return self.add_weight(
            name=name,
            shape=(size,),
            initializer=initializer,
            regularizer=regularizer,
            dtype="float32",
            autocast=False,
        )

    def _scaled(self, x, scale, batch=1):
        """Returns `(x + bias) * scale` with `scale` of `[C]` or `[batch, C]`."""
        axis = canonical_axis(self, self.axis, x.shape)
        shape = broadcast_shape(axis, len(x.shape), x.shape[axis], batch)
        scale = ops.cast(ops.reshape(scale, shape), x.dtype)
        return add_along(x, ops.convert_to_tensor(self.bias), axis) * scale

    def call(self, inputs: Tensor) -> Tensor:
        """Returns `(inputs + bias) * scale`."""
        return self._scaled(inputs, ops.convert_to_tensor(self.scale))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Returns the input's shape."""
        canonical_axis(self, self.axis, input_shape)
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "axis": self.axis,
            "bias_initializer": initializers.serialize(self.bias_initializer),
            "scale_initializer": initializers.serialize(self.scale_initializer),
            "bias_regularizer": regularizers.serialize(self.bias_regularizer),
            "scale_regularizer": regularizers.serialize(self.scale_regularizer),
        }


@register(ScaleNorm)
def _moments(layer, moments):
    return moments.scaled(
        ops.convert_to_tensor(layer.scale),
        bias=ops.convert_to_tensor(layer.bias),
        axis=layer.axis,
    )
