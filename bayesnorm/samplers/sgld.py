"""Stochastic gradient Langevin dynamics."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from bayesnorm.samplers.sampler import Sampler
from bayesnorm.types import LearningRate, Tensor


@keras.saving.register_keras_serializable("bayesnorm")
class SGLD(Sampler):
    """Stochastic gradient Langevin dynamics: the limit of `SGHMC` at high friction.

    A step of size h, elementwise, with g the gradient of U (see `Sampler`) and e
    standard normal:

        theta <- theta - h g + sqrt(2 h T) e

    The target is `exp(-U / T)` as h goes to 0. The noise of a batch's gradient, of
    variance V, comes on top, by a factor of `1 + h V / (2 T)` in the temperature. At
    temperature 0 this is SGD of learning rate `h N`.

    Args:
        num_examples: N, the number of training examples.
        learning_rate: h, a number or a `LearningRateSchedule`. (Welling and Teh's
            epsilon is `2 h`.)
        **kwargs: Those of `Sampler`.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        Welling and Teh, 2011, "Bayesian Learning via Stochastic Gradient Langevin
        Dynamics".
    """

    def __init__(
        self, num_examples: int, learning_rate: LearningRate = 5e-7, **kwargs: Any
    ) -> None:
        super().__init__(num_examples, learning_rate, **kwargs)

    def equivalent_sgd(self) -> tuple[float, float]:
        """Returns `(learning rate, 0)` of SGD on the loss with these steps."""
        return self.initial_rate * self.num_examples, 0.0

    def update_step(
        self, gradient: Tensor, variable: Any, learning_rate: Tensor
    ) -> None:
        """Takes a step of a variable."""
        index = self._index(variable)
        size = ops.cast(learning_rate, variable.dtype)
        gradient = self._energy_gradient(gradient, variable)
        step = -size * gradient
        if self.temperature:
            scale = math.sqrt(2.0 * self.temperature) * ops.sqrt(size)
            step += scale * self._noise(variable, index)
        self._read(index, variable, gradient, step, 0.0)
        self.assign_add(variable, step)
