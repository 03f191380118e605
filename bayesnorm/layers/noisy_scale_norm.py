"""A scale and bias with fixed noise: regularization as by batch normalization."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from bayesnorm.layers.axes import add_along, broadcast_shape, canonical_axis
from bayesnorm.layers.noise import StochasticLayer
from bayesnorm.layers.scale_norm import ScaleNorm
from bayesnorm.moments import register
from bayesnorm.types import ArrayLike, Initializer, Shape, Tensor


@keras.saving.register_keras_serializable("bayesnorm")
class NoisyScaleNorm(StochasticLayer, ScaleNorm):
    """Scale and bias with the noise that batch normalization would have.

    `y = (x + V) U scale + bias`, with `V ~ Normal(0, shift_stddev^2)` and
    `U ~ Normal(1, scale_stddev^2)`, one draw of each for an example and channel, shared
    by all positions. In evaluation V = 0 and U = 1, unless noise is asked for
    (`noise_mode`). Behind a normalization without batch statistics it regularizes as
    these would; `bayesnorm.batch_noise` measures the two deviations in a network with
    batch normalization.

    Args:
        scale_stddev: Standard deviation of U: a number from 0, or a vector over the
            channels.
        shift_stddev: Standard deviation of V, likewise.
        axis: Integer, the channel axis. Defaults to -1.
        seed: Integer, None for a random one.
        bias_initializer: Initializer of the bias. Defaults to zeros.
        scale_initializer: Initializer of the scale. Defaults to ones.
        **kwargs: `bias_regularizer`, `scale_regularizer`, and arguments of every layer.

    Input shape:
        `[batch, ..., channels]` (channels at `axis`).

    Output shape:
        The input's.

    Raises:
        ValueError: If a deviation is negative, not finite or of another size than the
            channels, or if `axis` is not a channel axis of the input.

    Reference:
        Shekhovtsov & Flach, 2018, "Stochastic Normalizations as Bayesian Learning",
        section 3.2, eq. (18).
    """

    def __init__(
        self,
        scale_stddev: ArrayLike,
        shift_stddev: ArrayLike,
        axis: int = -1,
        seed: int | None = None,
        bias_initializer: Initializer = "zeros",
        scale_initializer: Initializer = "ones",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            seed=seed,
            axis=axis,
            bias_initializer=bias_initializer,
            scale_initializer=scale_initializer,
            **kwargs,
        )
        self.scale_stddev = _deviation("scale_stddev", scale_stddev)
        self.shift_stddev = _deviation("shift_stddev", shift_stddev)

    def build(self, input_shape: Shape) -> None:
        """Makes `bias` and `scale`, and checks the deviations against them."""
        super().build(input_shape)
        (channels,) = self.scale.shape
        for name in ("scale_stddev", "shift_stddev"):
            size = np.size(getattr(self, name))
            if size not in (1, channels):
                raise ValueError(
                    f"`{name}` of layer {self.name!r} must be a number or a vector "
                    f"over the {channels} channels. Received: {size} numbers"
                )

    @property
    def noise_shapes(self) -> dict[str, Any]:
        """Two draws per channel."""
        channels = tuple(self.scale.shape)
        return {"scale": channels, "shift": channels}

    def _deviations(self):
        """Standard deviations of U and V, `[channels]`, float32."""
        return tuple(
            ops.broadcast_to(ops.convert_to_tensor(value, "float32"), self.scale.shape)
            for value in (self.scale_stddev, self.shift_stddev)
        )

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Returns `(inputs + V) U scale + bias`."""
        batch = ops.shape(inputs)[0]
        axis = canonical_axis(self, self.axis, inputs.shape)
        scale, shift = ops.convert_to_tensor(self.scale), None
        u = self.standard_normal("scale", batch, training)
        if u is not None:
            scale_stddev, shift_stddev = self._deviations()
            v = self.standard_normal("shift", batch, training)
            scale = scale * (1.0 + scale_stddev * u)
            shift = shift_stddev * v * scale
        rows = 1 if u is None else batch
        shape = broadcast_shape(axis, len(inputs.shape), inputs.shape[axis], rows)
        outputs = inputs * ops.cast(ops.reshape(scale, shape), inputs.dtype)
        if shift is not None:
            outputs = outputs + ops.cast(ops.reshape(shift, shape), inputs.dtype)
        return add_along(outputs, ops.convert_to_tensor(self.bias), axis)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "scale_stddev": self.scale_stddev,
            "shift_stddev": self.shift_stddev,
        }


def _deviation(name, value):
    array = np.asarray(value, "float64")
    if array.ndim > 1 or not np.isfinite(array).all() or (array < 0).any():
        raise ValueError(
            f"`{name}` must be a finite number from 0, or a vector of them. Received: "
            f"{name}={value!r}"
        )
    return array.tolist()


@register(NoisyScaleNorm)
def _moments(layer, moments):
    scale, bias = (ops.convert_to_tensor(v) for v in (layer.scale, layer.bias))
    x = moments.over(layer.axis)
    if x.stationary:
        # The data set's statistics are those of the mean network.
        return x.affine(x.along(scale), x.along(bias))
    scale_stddev, shift_stddev = layer._deviations()
    x = x.with_common_noise(ops.square(shift_stddev), layer.axis)
    x = x.scaled(scale, ops.square(scale * scale_stddev), axis=layer.axis)
    return x.affine(1.0, x.along(bias, layer.axis))
