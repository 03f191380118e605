"""Dropout that takes part in the noise switch."""

import keras
from keras import ops
from scipy import special

from bayesnorm.layers.noise import StochasticLayer, current_noise_mode
from bayesnorm.moments import register


@keras.saving.register_keras_serializable("bayesnorm")
class MonteCarloDropout(StochasticLayer):
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

    def __init__(self, rate, noise_shape=None, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        if not 0 <= rate < 1:
            raise ValueError(
                f"`rate` must be from 0 to below 1. Received: rate={rate!r}"
            )
        self.rate = rate
        self.noise_shape = None if noise_shape is None else tuple(noise_shape)
        self.supports_masking = True
        self._rows = self.noise_shape[0] if self.noise_shape else None
        self._mask_shape = None

    def build(self, input_shape):
        """Finds the shape of the mask of an example."""
        mask = self.noise_shape or (None,) * len(input_shape)
        if len(mask) != len(input_shape):
            raise ValueError(
                f"`noise_shape` of layer {self.name!r} must have {len(input_shape)} "
                f"entries, as the input's shape {tuple(input_shape)}. Received: {mask}"
            )
        sizes = zip(mask[1:], input_shape[1:], strict=True)
        self._mask_shape = tuple(n if size is None else size for size, n in sizes)

    @property
    def noise_shapes(self):
        """One draw per entry of the mask of an example."""
        if not self.rate:
            return {}
        if None in self._mask_shape:
            raise ValueError(
                f"Layer {self.name!r} cannot draw one mask for all examples: the size "
                f"of its input is not known, {self._mask_shape} without the batch. "
                "Give the model's Input a fixed shape."
            )
        return {"mask": self._mask_shape}

    def call(self, inputs, training=None):
        """Returns the inputs, some of them dropped."""
        if not self.rate:
            return inputs
        if training and current_noise_mode() == "auto":
            shape = tuple(
                ops.shape(inputs)[i] if n is None else n
                for i, n in enumerate((self._rows, *self._mask_shape))
            )
            return keras.random.dropout(inputs, self.rate, shape, self.seed_generator)
        # A function hands out the draws of several networks, stacked in a batch.
        shared = self._rows and not callable(current_noise_mode())
        rows = self._rows if shared else ops.shape(inputs)[0]
        draws = self.standard_normal("mask", rows, training)
        if draws is None:
            return inputs
        kept = ops.cast(draws < float(special.ndtri(1 - self.rate)), inputs.dtype)
        return inputs * kept / (1 - self.rate)

    def compute_output_shape(self, input_shape):
        """Returns the input's shape."""
        return input_shape

    def get_config(self):
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "rate": self.rate,
            "noise_shape": self.noise_shape,
        }


@register(MonteCarloDropout)
def _moments(layer, moments):
    if not layer.rate:
        return moments
    ratio = layer.rate / (1 - layer.rate)
    mask, shape = layer._mask_shape, moments.shape[1:]
    if len(shape) > 1 and mask == (*(1,) * (len(shape) - 1), shape[-1]):
        ones = ops.ones(shape[-1:], "float32")
        return moments.scaled(ones, ratio * ones)
    variance = moments.variance * (1 + ratio) + ratio * ops.square(moments.mean)
    # What an entry gains is its own; what entries share passes unchanged.
    return moments.replace(
        mean=moments.mean,
        variance=variance,
        shared=moments.shared,
        factor=moments.factor,
    )
