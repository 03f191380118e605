"""What all samplers share: the target, the noise, the readings."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from bayesnorm import backend
from bayesnorm.arguments import check_number, positive_integer, seed_integer
from bayesnorm.types import LearningRate

# What Keras's optimizers take, and would have a chain leave its target by.
_FOREIGN = {
    "weight_decay": "a prior says it: kernel_regularizer=bayesnorm.priors.Normal(N)",
    "clipnorm": "ATMC limits its speed: `speed_limit`",
    "clipvalue": "ATMC limits its speed: `speed_limit`",
    "global_clipnorm": "ATMC limits its speed: `speed_limit`",
    "use_ema": "average predictions of samples: bayesnorm.samplers.PosteriorSamples",
}
# The figures that a variable's readings sum up.
READINGS = ("steps", "finite", "kinetic", "configurational", "squared_step")


class Sampler(keras.optimizers.Optimizer):
    """An optimizer of Keras whose weights, in the long run, are draws of a posterior.

    The target is, at temperature T, `exp(-U / T)` with

        U = N * (mean NLL + regularizers),

    `N = num_examples` and the bracket the loss that is minimized: with the regularizers
    of `bayesnorm.priors` `U` is `-log p(theta, data)`, and T = 1 the Bayesian
    posterior. Its gradient is N times that of a batch's loss.

    The noise of a step is a function of the seed, the number of the step and the
    variable: a chain that goes on from saved variables draws what it would have drawn,
    and all replicas of a strategy draw the same.

    State is float32 (float64 for variables of that), as the variables have to be: under
    a mixed policy they are.

    Args:
        num_examples: N, the number of training examples, times that of the labels of
            each where the loss is their mean, too (segmentation).
        learning_rate: Number, or a `LearningRateSchedule`.
        temperature: T, a number from 0.
        seed: Integer; None for a random one.
        verbose: Whether `build` prints the SGD that takes the same steps.
        name: Name.
        **kwargs: `gradient_accumulation_steps` and `loss_scale_factor` of Keras's
            optimizers.

    Raises:
        ValueError: If an argument is out of range, or one of Keras's would change the
            target.
    """

    def __init__(
        self,
        num_examples: int,
        learning_rate: LearningRate,
        temperature: float = 1.0,
        seed: int | None = None,
        verbose: bool = True,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        for key, mend in _FOREIGN.items():
            if kwargs.get(key):
                raise ValueError(
                    f"{type(self).__name__} does not take `{key}`, which would change "
                    f"what it samples; {mend}. Received: {key}={kwargs[key]!r}"
                )
        if isinstance(learning_rate, int):
            learning_rate = float(learning_rate)
        super().__init__(learning_rate, name=name, **kwargs)
        self.initial_rate = _first(learning_rate)
        self.schedule = None if isinstance(learning_rate, float) else learning_rate
        self.num_examples = positive_integer("num_examples", num_examples)
        check_number("temperature", temperature)
        self.temperature = float(temperature)
        self.seed = seed_integer(seed)
        self.verbose = verbose

    def equivalent_sgd(self) -> tuple[float, float]:
        """Returns `(learning rate, momentum)` of SGD on the loss with these steps."""
        raise NotImplementedError

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Makes the readings; prints the equivalent SGD.

        Raises:
            ValueError: If a variable is of half precision.
        """
        super().build(variables)
        for variable in variables:
            dtype = keras.backend.standardize_dtype(variable.dtype)
            if dtype not in ("float32", "float64"):
                raise ValueError(
                    f"Variable {variable.path!r} is {dtype}, in which the steps of a "
                    "sampler are lost. Expected float32: take a mixed policy, such as "
                    f"'mixed_{dtype}', which computes in {dtype}."
                )
            if getattr(variable, "constraint", None) is not None:
                warnings.warn(
                    f"Variable {variable.path!r} has a constraint, to which each step "
                    f"of {self.name!r} is taken back: what is sampled is not the "
                    "posterior. Remove it, or say it by a prior.",
                    stacklevel=2,
                )
        self.sampled = [(v.path, math.prod(v.shape)) for v in variables]
        # Whose sums a callback reads and sets back.
        self.readings = [
            self.add_variable((len(READINGS),), dtype="float32", name="readings")
            for _ in variables
        ]
        if self.verbose:
            rate, momentum = self.equivalent_sgd()
            print(
                f"{self.name}: SGD of learning rate {rate:.3g} and momentum "
                f"{momentum:.3g}, with noise of temperature {self.temperature:g}"
            )

    def divergence(self) -> str | None:
        """Returns which variable left the finite range first, a sentence, or None."""
        counts = [readings.numpy()[:2].tolist() for readings in self.readings]
        bad = [finite for steps, finite in counts if finite < steps]
        if not bad:
            return None
        first = min(bad)
        names = [
            repr(name)
            for (name, _), (steps, finite) in zip(self.sampled, counts, strict=True)
            if finite < steps and finite == first
        ]
        others = f" (and those of {len(names) - 1} others)" if names[1:] else ""
        return (
            f"The steps of variable {names[0]}{others} left the finite range after "
            f"{first:.0f} of {counts[0][0]:.0f} steps: they are too long. A `mass` 4 "
            "times as large halves them, as half the learning rate does."
        )

    def _index(self, variable):
        return self._get_variable_index(variable)

    def _noise(self, variable, index):
        """Returns standard normals of a variable's shape, those of this step."""
        seed = backend.fold_in(backend.seed_from_int(self.seed), self.iterations)
        noise = backend.stateless_normal(variable.shape, backend.fold_in(seed, index))
        return ops.cast(noise, variable.dtype)

    def _energy_gradient(self, gradient, variable):
        """Returns the gradient of U of the gradient of the loss."""
        gradient = ops.multiply(gradient, float(self.num_examples))
        # Of an embedding it may have some rows alone: a sum has all.
        zeros = ops.zeros(variable.shape, variable.dtype)
        return ops.add(zeros, ops.cast(gradient, variable.dtype))

    def _read(self, index, variable, gradient, step, kinetic):
        """Adds a step to the readings.

        Args:
            index: The variable's number.
            variable: The variable, before the step.
            gradient: That of U there.
            step: What is added to the variable.
            kinetic: Mean of `p K'`, 0 where there is no momentum.
        """
        squared_step = ops.mean(ops.square(step))
        values = (
            1.0,
            ops.isfinite(squared_step),
            kinetic,
            ops.mean(ops.convert_to_tensor(variable) * gradient),
            squared_step,
        )
        values = ops.stack([ops.cast(value, "float32") for value in values])
        self.assign_add(self.readings[index], values)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "num_examples": self.num_examples,
            "temperature": self.temperature,
            "seed": self.seed,
            "verbose": self.verbose,
        }


def unwrapped(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Returns the optimizer that a `LossScaleOptimizer` wraps, or the given one."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def _first(learning_rate):
    """Returns the learning rate of the first step, a number."""
    if isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule):
        learning_rate = learning_rate(0)
    elif callable(learning_rate):
        learning_rate = learning_rate()
    return float(ops.convert_to_numpy(learning_rate))
