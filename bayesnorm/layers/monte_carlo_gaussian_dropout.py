"""Gaussian dropout that takes part in the noise switch."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from bayesnorm.layers.entry_noise import (
    EntryNoise,
    check_rate,
    multiplicative_moments,
)
from bayesnorm.moments import register
from bayesnorm.types import Tensor


@keras.saving.register_keras_serializable("bayesnorm")
class MonteCarloGaussianDropout(EntryNoise):
    """Gaussian dropout in training, and in evaluation when asked for noise.

    `y = x m`, each entry of m from `Normal(1, rate / (1 - rate))`, as
    `keras.layers.GaussianDropout` in training, and in the noise switch as
    `MonteCarloDropout`.

    Args:
        rate: Number in [0, 1).
        seed: Integer, None for a random one.

    Input shape:
        Any; the sizes of all axes but the batch must be known to sample.

    Output shape:
        The input's.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        Srivastava et al., 2014, "Dropout: A Simple Way to Prevent Neural Networks from
        Overfitting", section 10; Kingma et al., 2015, "Variational Dropout and the
        Local Reparameterization Trick".
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(seed=seed, **kwargs)
        check_rate(rate)
        self.rate = rate

    @property
    def amount(self) -> float:
        """The rate."""
        return self.rate

    def apply_noise(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """Returns `inputs * (1 + stddev * draws)`."""
        stddev = math.sqrt(self.rate / (1 - self.rate))
        return inputs * ops.cast(1.0 + stddev * draws, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "rate": self.rate}


register(MonteCarloGaussianDropout)(multiplicative_moments)
