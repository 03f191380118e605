"""Dropout that takes part in the noise switch."""

from __future__ import annotations

import keras

from bayesnorm.layers.entry_noise import MaskNoise, kept, multiplicative_moments
from bayesnorm.moments import register
from bayesnorm.types import Shape, Tensor


@keras.saving.register_keras_serializable("bayesnorm")
class MonteCarloDropout(MaskNoise):
    """Dropout in training, and in evaluation when asked for noise.

    `y = x mask / (1 - rate)`, each entry of the mask 1 with probability `1 - rate`.
    In training every example has its own mask, as in `keras.layers.Dropout`. In
    evaluation the layer is the identity; with noise (`bayesnorm.predict`,
    `noise_mode("sample")`) it drops. A sample of `bayesnorm.predict` is one network:
    one mask for all examples.

    Args:
        rate: Number in [0, 1), the share that is dropped.
        noise_shape: Shape of the mask, as in Keras: the batch first, None for the
            input's size and 1 where the mask is shared; None for the input's shape.
            `(None, 1, 1, None)` drops whole channels of images.
        seed: Integer, None for a random one.

    Input shape:
        Any; the sizes of all axes but the batch must be known to sample.

    Output shape:
        The input's.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        Gal & Ghahramani, 2016, "Dropout as a Bayesian Approximation".
    """

    def train(self, inputs: Tensor, shape: Shape) -> Tensor:
        """Returns the inputs, dropped as by Keras."""
        return keras.random.dropout(inputs, self.rate, shape, self.seed_generator)

    def apply_noise(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """Returns the inputs, some of them dropped."""
        return inputs * kept(draws, self.rate, inputs.dtype) / (1 - self.rate)


register(MonteCarloDropout)(multiplicative_moments)
