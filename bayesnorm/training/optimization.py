"""Optimizers by name, and schedules of the learning rate."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from bayesnorm.types import Schedule

SCHEDULES = ("constant", "cosine", "exponential", "linear")
OPTIMIZERS = {
    name.lower(): kind
    for name, kind in vars(keras.optimizers).items()
    if inspect.isclass(kind)
    and issubclass(kind, keras.optimizers.Optimizer)
    and name not in ("Optimizer", "LossScaleOptimizer")
}


def make_optimizer(
    optimizer: str | keras.optimizers.Optimizer,
    learning_rate: float = 0.01,
    rate_factors: Sequence[tuple[Sequence[keras.Variable], float]] = (),
    **arguments: Any,
) -> keras.optimizers.Optimizer:
    """Returns an optimizer, unbuilt if it is made here.

    Args:
        optimizer: Name of one of `keras.optimizers` in lower case, `"sgd"` being
            Nesterov's of momentum 0.9 and others Keras's defaults; or an optimizer,
            which is returned.
        learning_rate: Learning rate of one that is made.
        rate_factors: List of `(variables, factor)`: variables whose learning rate is
            `factor` times that of the others.
        **arguments: Further arguments of one that is made; None for its default.

    Raises:
        ValueError: If there is none of the name, it has no such argument, or there are
            arguments or factors for one that is given.
    """
    arguments = {k: v for k, v in arguments.items() if v is not None}
    if isinstance(optimizer, keras.optimizers.Optimizer):
        if arguments or rate_factors:
            raise ValueError(
                "`rate_factors` and further arguments are of an optimizer that is made "
                f"here, by its name. Received: {optimizer!r}"
            )
        return optimizer
    if optimizer not in OPTIMIZERS:
        raise ValueError(
            "`optimizer` must be a Keras optimizer or one of "
            f"{tuple(sorted(OPTIMIZERS))}. Received: {optimizer!r}"
        )
    momentum = {"momentum": 0.9, "nesterov": True} if optimizer == "sgd" else {}
    kind = OPTIMIZERS[optimizer]
    foreign = arguments.keys() - inspect.signature(kind).parameters.keys()
    if foreign:
        raise ValueError(
            f"{optimizer!r} has no argument {sorted(foreign)}. Received: {arguments}"
        )
    if rate_factors:
        kind = type(kind.__name__, (_RateFactors, kind), {})
    made = kind(learning_rate, **(momentum | arguments))
    if rate_factors:
        made.set_rate_factors(rate_factors)
    return made


class _RateFactors:
    """What an optimizer gains that takes some variables at a rate of their own.

    Every optimizer of Keras takes its steps by `update_step`, and is given the rate
    there. A factor of the gradient would change nothing under Adam.
    """

    def set_rate_factors(self, rate_factors):
        """Takes a list of `(variables, factor)`."""
        self._rate_factors = tuple(
            (variable, factor)
            for variables, factor in rate_factors
            for variable in variables
        )

    def update_step(self, gradient, variable, learning_rate):
        """Takes the step of a variable, at the rate times its factor."""
        for other, factor in self._rate_factors:
            # With TensorFlow it is given the variable that Keras's holds.
            if variable is other or variable is other.value:
                learning_rate = learning_rate * factor
        super().update_step(gradient, variable, learning_rate)


def check_schedule(schedule: Any) -> None:
    """Raises a ValueError if it is neither a name in `SCHEDULES` nor a function."""
    if schedule not in SCHEDULES and not callable(schedule):
        raise ValueError(
            f"`schedule` must be one of {SCHEDULES}, a "
            "keras.optimizers.schedules.LearningRateSchedule or another function of "
            f"the step. Received: {schedule!r}"
        )


def step_rates(
    schedule: Schedule,
    initial: float,
    decay: float,
    over: int,
    epoch: int,
    steps: int,
    start: int = 0,
) -> list[float]:
    """Returns the learning rates of an epoch's steps, a list of numbers.

    Args:
        schedule: One of

            - `"constant"`: `initial`;
            - `"exponential"`: `initial * decay ** (epoch / over)`, one for an epoch;
            - `"linear"`: to 0, `initial * (1 - epoch / over)`, one for an epoch;
            - `"cosine"`: to 0, `initial * (1 + cos(pi * step / (over * steps))) / 2`;
            - a `keras.optimizers.schedules.LearningRateSchedule` or another function
              of the step, an integer from 0 at the first step of the first epoch, to
              the rate. It alone says the rates, and is called on the host.
        initial: Learning rate of the first step.
        decay: Number, see above.
        over: Epochs of the schedule.
        epoch: Integer from 0.
        steps: Steps of an epoch.
        start: Epochs at the rate `initial` before a schedule by name begins, which
            then runs over the `over - start` others.

    Raises:
        ValueError: If a rate is not a finite number from 0.
    """
    if not callable(schedule):
        epoch, over = max(0, epoch - start), max(1, over - start)
    if schedule == "linear":
        return [initial * max(0.0, 1.0 - epoch / over)] * steps
    if schedule == "exponential":
        return [initial * decay ** (epoch / over)] * steps
    if schedule == "constant":
        return [initial] * steps
    numbers = range(epoch * steps, (epoch + 1) * steps)
    if schedule == "cosine":
        part = np.minimum(np.array(numbers) / (over * steps), 1.0)
        return (initial * (1 + np.cos(np.pi * part)) / 2).tolist()
    rates = [float(schedule(step)) for step in numbers]
    for step, rate in zip(numbers, rates, strict=True):
        if not 0 <= rate < float("inf"):
            raise ValueError(
                "`schedule` must return a finite number from 0 for every step. "
                f"Received: {rate!r} for step {step}"
            )
    return rates
