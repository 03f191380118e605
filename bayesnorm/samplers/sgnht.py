"""The stochastic gradient Nosé-Hoover thermostat."""

from __future__ import annotations

import math
from typing import Any

import keras

from bayesnorm.samplers.momentum import ThermostatSampler
from bayesnorm.types import LearningRate


@keras.saving.register_keras_serializable("bayesnorm")
class SGNHT(ThermostatSampler):
    """Stochastic gradient Nosé-Hoover thermostat, one thermostat for each weight.

    A step of size h, elementwise, with g the gradient of U (see `Sampler`) and e
    standard normal, for Gaussian momenta:

        b     = D + xi
        p     <- e^{-b h} p - (1 - e^{-b h}) / b g + sqrt(T D m (1 - e^{-2 b h}) / b) e
        theta <- theta + h p / m
        xi    <- xi + h / mu (p^2 / m - T)

    the last two with the new p. (xi + D is the xi of Ding et al.) The target is
    `exp(-U / T)`, whatever the size of the gradient's noise: xi settles at `h V / (2
    m)` for a gradient of variance V. Beside `ATMC` the noise added is always the same,
    so that friction is `D + xi`, and grows with the gradient's noise.

    `friction` and `mass` left at None, and the translation to SGD, are those of `ATMC`.

    Args:
        num_examples: N, the number of training examples.
        learning_rate: h, a number or a `LearningRateSchedule`.
        speed_limit: c of hyperbolic momenta, None for that of `ATMC`.
        **kwargs: The other arguments of `ATMC`.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        Ding et al., 2014, "Bayesian Sampling Using Stochastic Gradient Thermostats".
    """

    def __init__(
        self,
        num_examples: int,
        learning_rate: LearningRate = 0.001,
        speed_limit: float | None = math.inf,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_examples, learning_rate, speed_limit=speed_limit, **kwargs)

    def _diffusion(self, thermostat):
        return self.friction
