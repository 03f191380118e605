"""Additive Gaussian noise that takes part in the noise switch."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from bayesnorm.arguments import check_number
from bayesnorm.layers.entry_noise import EntryNoise
from bayesnorm.moments import register
from bayesnorm.types import Tensor


@keras.saving.register_keras_serializable("bayesnorm")
class MonteCarloGaussianNoise(EntryNoise):
    """Gaussian noise in training, and in evaluation when asked for noise.

    `y = x + v`, each entry of v from `Normal(0, stddev^2)`, as
    `keras.layers.GaussianNoise` in training, and in the noise switch as
    `MonteCarloDropout`.

    Args:
        stddev: Number from 0, in the units of the input.
        seed: Integer, None for a random one.

    Input shape:
        Any; the sizes of all axes but the batch must be known to sample.

    Output shape:
        The input's.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, stddev: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(seed=seed, **kwargs)
        check_number("stddev", stddev)
        self.stddev = stddev

    @property
    def amount(self) -> float:
        """The standard deviation."""
        return self.stddev

    def apply_noise(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """Returns `inputs + stddev * draws`."""
        return inputs + ops.cast(self.stddev * draws, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "stddev": self.stddev}


@register(MonteCarloGaussianNoise)
def _moments(layer, moments):
    return moments.replace(
        variance=moments.variance + layer.stddev**2,
        shared=moments.shared,
        factor=moments.factor,
    )
