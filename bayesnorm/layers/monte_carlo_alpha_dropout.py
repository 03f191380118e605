"""Alpha dropout that takes part in the noise switch."""

import keras
from keras import ops

from bayesnorm.layers.entry_noise import EntryNoise, check_rate, kept
from bayesnorm.moments import register

# What SELU goes to at minus infinity: -scale * alpha of Klambauer et al.
_LOW = -1.0507009873554805 * 1.6732632423543772


@keras.saving.register_keras_serializable("bayesnorm")
class MonteCarloAlphaDropout(EntryNoise):
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

    def __init__(self, rate, noise_shape=None, seed=None, **kwargs):
        super().__init__(noise_shape=noise_shape, seed=seed, **kwargs)
        check_rate(rate)
        self.rate = rate

    @property
    def amount(self):
        """The rate."""
        return self.rate

    @property
    def affine(self):
        """The numbers `(a, b)`."""
        a = ((1 - self.rate) * (1 + self.rate * _LOW**2)) ** -0.5
        return a, -a * _LOW * self.rate

    def apply_noise(self, inputs, draws):
        """Returns the inputs, some of them at the lower limit of SELU."""
        a, b = self.affine
        mask = kept(draws, self.rate, inputs.dtype)
        return a * (inputs * mask + _LOW * (1 - mask)) + b

    def get_config(self):
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "rate": self.rate,
            "noise_shape": self.noise_shape,
        }


@register(MonteCarloAlphaDropout)
def _moments(layer, moments):
    (a, b), rate = layer.affine, layer.rate
    mask = (1 - rate) * rate * ops.square(moments.mean - _LOW)
    # What an entry gains is its own; what entries share comes through where it is kept.
    passed = moments.affine(a * (1 - rate), a * rate * _LOW + b)
    return moments.replace(
        mean=passed.mean,
        variance=a**2 * ((1 - rate) * moments.variance + mask),
        shared=passed.shared,
        factor=passed.factor,
    )
