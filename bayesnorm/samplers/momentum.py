"""The step that the samplers with momentum share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from bayesnorm.arguments import check_number
from bayesnorm.maths import langevin
from bayesnorm.samplers.sampler import Sampler
from bayesnorm.types import LearningRate, Tensor

# Of a step at the first learning rate: what is left of the momentum, the root mean
# square of the step at temperature 1, and its largest.
_MOMENTUM, _ROOT_MEAN_SQUARE, _LARGEST = 0.9, 3e-4, 1e-3


class MomentumSampler(Sampler):
    """A sampler with momenta, which start at 0.

    See `bayesnorm.maths.langevin` for the dynamics, and the subclasses for their steps.

    Args:
        num_examples: N.
        learning_rate: Step size h, or its schedule.
        friction: D.
        mass: m.
        speed_limit: c; `math.inf` for Gaussian momenta, None for the paper's.
        exact_kick: Whether the gradient weighs `h (1 + e^{-b h}) / 2`.
        **kwargs: Those of `Sampler`.
    """

    def __init__(
        self,
        num_examples: int,
        learning_rate: LearningRate = 0.001,
        friction: float | None = None,
        mass: float | None = None,
        speed_limit: float | None = math.inf,
        exact_kick: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_examples, learning_rate, **kwargs)
        known = None not in (friction, mass, speed_limit)
        if not 0 < self.initial_rate < math.inf and not known:
            raise ValueError(
                "`friction`, `mass` and `speed_limit` follow from the first learning "
                "rate, which must be above 0: give them, or another rate. Received: "
                f"{self.initial_rate!r}"
            )
        if friction is None:
            friction = -math.log(_MOMENTUM) / self.initial_rate
        if mass is None:
            mass = (self.initial_rate / _ROOT_MEAN_SQUARE) ** 2
        if speed_limit is None:
            speed_limit = _LARGEST / self.initial_rate
        check_number("friction", friction)
        check_number("mass", mass, positive=True)
        if speed_limit != math.inf:
            check_number("speed_limit", speed_limit, positive=True)
        self.friction = float(friction)
        self.mass = float(mass)
        self.speed_limit = float(speed_limit)
        self.exact_kick = exact_kick

    def equivalent_sgd(self) -> tuple[float, float]:
        """Returns `(learning rate, momentum)` of SGD on the loss with these steps.

        Of `v <- momentum v - rate grad`, `theta <- theta + v`: at the first learning
        rate, with thermostats at 0 and speeds far below their limit. At temperature 0
        with Gaussian momenta these are the sampler's steps.
        """
        h = self.initial_rate
        exponent = self.friction * h
        decay = math.exp(-exponent)
        if self.exact_kick:
            weight = (1.0 + decay) / 2
        else:
            weight = -math.expm1(-exponent) / exponent if exponent else 1.0
        return h * h * weight * self.num_examples / self.mass, decay

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Makes the momenta."""
        super().build(variables)
        self.momenta = self.add_optimizer_variables(variables, "momentum")

    def _thermostat(self, index):
        """Returns xi of a variable."""
        return 0.0

    def _diffusion(self, thermostat):
        """Returns alpha."""
        return self.friction

    def _regulate(self, index, momentum, step):
        """Takes the step of the thermostats of a variable."""

    def update_step(
        self, gradient: Tensor, variable: Any, learning_rate: Tensor
    ) -> None:
        """Takes a step of a variable."""
        index = self._index(variable)
        size = ops.cast(learning_rate, variable.dtype)
        gradient = self._energy_gradient(gradient, variable)
        thermostat = self._thermostat(index)
        diffusion = self._diffusion(thermostat)
        momentum = langevin.kick(
            ops.convert_to_tensor(self.momenta[index]),
            gradient,
            size,
            diffusion,
            diffusion + thermostat,
            self.mass,
            self._noise(variable, index) if self.temperature else 0.0,
            self.speed_limit,
            self.temperature,
            self.exact_kick,
        )
        speed = langevin.velocity(momentum, self.mass, self.speed_limit)
        step = size * speed
        self._read(index, variable, gradient, step, ops.mean(momentum * speed))
        self.assign(self.momenta[index], momentum)
        self._regulate(index, momentum, size)
        self.assign_add(variable, step)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, those by default as numbers."""
        config = super().get_config()
        names = ("friction", "mass", "speed_limit", "exact_kick")
        return config | {name: getattr(self, name) for name in names}


class ThermostatSampler(MomentumSampler):
    """A sampler with momenta and thermostats, one of each for each weight.

    Both start at 0.

    Args:
        num_examples: N.
        learning_rate: Step size h, or its schedule.
        friction: D.
        mass: m.
        speed_limit: c; `math.inf` for Gaussian momenta, None for the paper's.
        thermostat_mass: mu.
        virial: Whether the thermostat reads `p K'`.
        exact_kick: Whether the gradient weighs `h (1 + e^{-b h}) / 2`.
        **kwargs: Those of `Sampler`.
    """

    def __init__(
        self,
        num_examples: int,
        learning_rate: LearningRate = 0.001,
        friction: float | None = None,
        mass: float | None = None,
        speed_limit: float | None = None,
        thermostat_mass: float = 0.1,
        virial: bool = False,
        exact_kick: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_examples,
            learning_rate,
            friction,
            mass,
            speed_limit,
            exact_kick,
            **kwargs,
        )
        check_number("thermostat_mass", thermostat_mass, positive=True)
        self.thermostat_mass = float(thermostat_mass)
        self.virial = virial

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Makes momenta and thermostats."""
        super().build(variables)
        self.thermostats = self.add_optimizer_variables(variables, "thermostat")

    def _thermostat(self, index):
        return ops.convert_to_tensor(self.thermostats[index])

    def _regulate(self, index, momentum, step):
        # Without noise there is no heat to take out: friction would grow for ever.
        if self.temperature:
            rate = langevin.thermostat_rate(
                momentum, self.mass, self.speed_limit, self.temperature, self.virial
            )
            self.assign_add(self.thermostats[index], step / self.thermostat_mass * rate)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = super().get_config()
        names = ("thermostat_mass", "virial")
        return config | {name: getattr(self, name) for name in names}
