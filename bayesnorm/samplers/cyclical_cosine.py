"""The learning rate of cycles."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from bayesnorm.arguments import check_number, positive_integer
from bayesnorm.types import Tensor


@keras.saving.register_keras_serializable("bayesnorm")
class CyclicalCosine(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that falls to 0 in each cycle: `h0 / 2 (1 + cos(pi t / n))`.

    `t` is the number of the step modulo n. A posterior sample is taken at the end of a
    cycle, where steps are small; the next cycle takes the chain elsewhere.

    Args:
        initial_learning_rate: h0, above 0.
        cycle_steps: n, the number of steps of a cycle.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        Zhang et al., 2020, "Cyclical Stochastic Gradient MCMC for Bayesian Deep
        Learning", eq. (1); Heek & Kalchbrenner, 2019 (whose formula lacks the `/ n`).
    """

    def __init__(self, initial_learning_rate: float, cycle_steps: int) -> None:
        check_number("initial_learning_rate", initial_learning_rate, positive=True)
        self.initial_learning_rate = float(initial_learning_rate)
        self.cycle_steps = positive_integer("cycle_steps", cycle_steps)

    def __call__(self, step: Tensor) -> Tensor:
        """Returns the rate of a step, an integer from 0."""
        # An integer's remainder: float32 does not count steps beyond 2**24.
        step = ops.mod(ops.cast(step, "int32"), self.cycle_steps)
        part = ops.cast(step, "float32") / self.cycle_steps
        return 0.5 * self.initial_learning_rate * (1.0 + ops.cos(math.pi * part))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "cycle_steps": self.cycle_steps,
        }
