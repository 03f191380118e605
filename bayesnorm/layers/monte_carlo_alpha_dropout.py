"""Alpha dropout that takes part in the noise switch."""

from __future__ import annotations

import keras
from keras import ops

from bayesnorm.layers.entry_noise import MaskNoise, kept
from bayesnorm.maths.activations import SELU_LIMIT
from bayesnorm.moments import register
from bayesnorm.types import Tensor


@keras.saving.register_keras_serializable("bayesnorm")
class MonteCarloAlphaDropout(MaskNoise):
    """Alpha dropout in training, and in evaluation when asked for noise.

    `y = a (x k + low (1 - k)) + b`, k 1 with probability `1 - rate` and 0 otherwise,
    `low` the lower limit of SELU, a and b such that mean 0 and variance 1 stay so: as
    `keras.layers.AlphaDropout` in training, and in the noise switch as
    `MonteCarloDropout`.

    Args:
        rate: Number in [0, 1), the share that is set to `low`.
        noise_shape: Shape of the mask, as in Keras: the batch first, None for the
            input's size and 1 where the mask is shared; None for the input's shape.
        seed: Integer, None for a random one.

    Input shape:
        Any; the sizes of all axes but the batch must be known to sample.

    Output shape:
        The input's.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        Klambauer et al., 2017, "Self-Normalizing Neural Networks".
    """

    @property
    def affine(self) -> tuple[float, float]:
        """The numbers `(a, b)`."""
        a = ((1 - self.rate) * (1 + self.rate * SELU_LIMIT**2)) ** -0.5
        return a, -a * SELU_LIMIT * self.rate

    def apply_noise(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """Returns the inputs, some of them at the lower limit of SELU."""
        a, b = self.affine
        mask = kept(draws, self.rate, inputs.dtype)
        return a * (inputs * mask + SELU_LIMIT * (1 - mask)) + b


@register(MonteCarloAlphaDropout)
def _moments(layer, moments):
    (a, b), rate = layer.affine, layer.rate
    mask = (1 - rate) * rate * ops.square(moments.mean - SELU_LIMIT)
    # What an entry gains is its own; what entries share comes through where it is kept.
    passed = moments.affine(a * (1 - rate), a * rate * SELU_LIMIT + b)
    return moments.replace(
        mean=passed.mean,
        variance=a**2 * ((1 - rate) * moments.variance + mask),
        shared=passed.shared,
        factor=passed.factor,
    )
