"""What a chain says of itself: temperatures, steps, noise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from bayesnorm import backend
from bayesnorm.samplers.sampler import READINGS, Sampler, unwrapped
from bayesnorm.training.loop import DivergenceError, has_finite_weights
from bayesnorm.types import StrPath

# Of the temperature, within which it is taken for right.
_TOLERANCE = 0.1


@dataclasses.dataclass(frozen=True)
class Reading:
    """Means over the steps since the last reset, of a variable or of all.

    Attributes:
        name: Path of the variable.
        size: Number of its weights.
        steps: Number of the steps.
        kinetic: Kinetic temperature, the mean of `p K'(p)`; None without momentum.
        configurational: Configurational temperature, the mean of `theta dU/dtheta`.
        step: Root mean square of a weight's step.
        thermostat: Mean of the thermostats now; None where there are none.
        gradient_noise: Variance of the gradient of U that they have found, `2 m xi /
            h` at the first learning rate; None where there are none.
    """

    name: str
    size: int
    steps: int
    kinetic: float | None
    configurational: float
    step: float
    thermostat: float | None
    gradient_noise: float | None


def read(optimizer: keras.optimizers.Optimizer) -> list[Reading]:
    """Returns what a sampler's variables say, a list of `Reading`s.

    Both temperatures are the sampler's in equilibrium, of each variable. The
    configurational one needs a chain that forgot where it began: before that it says
    how far the weights still have to go. It is exact for priors and likelihoods that
    are smooth and vanish at infinity.

    Args:
        optimizer: A sampler, built, or a `LossScaleOptimizer` of one.

    Raises:
        TypeError: If it is none.

    Reference:
        Wenzel et al., 2020, "How Good is the Bayes Posterior in Deep Neural Networks
        Really?", section 4.2 and appendix I.
    """
    sampler = _sampler(optimizer)
    found = []
    for i, ((name, size), readings) in enumerate(
        zip(sampler.sampled, sampler.readings, strict=True)
    ):
        values = dict(zip(READINGS, _numpy(readings).tolist(), strict=True))
        steps = max(1.0, values["steps"])
        thermostat = noise = None
        if hasattr(sampler, "thermostats"):
            thermostat = float(_numpy(sampler.thermostats[i]).mean())
            noise = 2 * sampler.mass * thermostat / sampler.initial_rate
        found.append(
            Reading(
                name=name,
                size=size,
                steps=int(values["steps"]),
                kinetic=(
                    values["kinetic"] / steps if hasattr(sampler, "momenta") else None
                ),
                configurational=values["configurational"] / steps,
                step=math.sqrt(values["squared_step"] / steps),
                thermostat=thermostat,
                gradient_noise=noise,
            )
        )
    return found


def reset(optimizer: keras.optimizers.Optimizer) -> None:
    """Lets the means of `read` begin anew."""
    for readings in _sampler(optimizer).readings:
        readings.assign(np.zeros(len(READINGS), "float32"))


def whole(readings: Sequence[Reading]) -> Reading:
    """Returns the `Reading` of all weights."""
    sizes = np.array([r.size for r in readings], "float64")
    share = sizes / sizes.sum()

    def mean(values):
        return None if None in values else float(np.dot(share, values))

    columns = dict(
        zip(
            (f.name for f in dataclasses.fields(Reading)),
            zip(*map(dataclasses.astuple, readings), strict=True),
            strict=True,
        )
    )
    squares = [step**2 for step in columns["step"]]
    return Reading(
        name="all",
        size=int(sizes.sum()),
        steps=max(columns["steps"]),
        step=math.sqrt(mean(squares)),
        **{
            name: mean(columns[name])
            for name in ("kinetic", "configurational", "thermostat", "gradient_noise")
        },
    )


def verdict(
    optimizer: keras.optimizers.Optimizer, readings: Sequence[Reading] | None = None
) -> str:
    """Returns what the readings mean, a sentence or two.

    Args:
        optimizer: The sampler.
        readings: What `read` returned; None to read.
    """
    sampler = _sampler(optimizer)
    target = sampler.temperature
    readings = readings or read(sampler)
    total = whole(readings)
    if not total.steps:
        return "No step was taken."
    if target == 0:
        return "At temperature 0 this is an optimizer, not a sampler."
    said = []
    if total.kinetic is not None:
        ratio = total.kinetic / target
        if ratio > 1 + _TOLERANCE:
            mend = (
                "the thermostats have not settled: more steps, or a smaller "
                "`thermostat_mass`"
                if total.thermostat is not None
                else "the noise of the gradients heats it: larger batches, `mass` 4 "
                "times as large for steps of half the size, or ATMC or SGNHT"
            )
            hottest = max(readings, key=lambda reading: reading.kinetic or 0.0)
            said.append(
                f"Too hot: the kinetic temperature is {total.kinetic:.3g}, "
                f"not {target:g}, that of {hottest.name!r} {hottest.kinetic:.3g}; "
                f"{mend}."
            )
        elif ratio < 1 - _TOLERANCE:
            said.append(
                f"Too cold: the kinetic temperature is {total.kinetic:.3g}, not "
                f"{target:g}; momenta or thermostats have not settled: more steps."
            )
        else:
            said.append(f"The kinetic temperature is {total.kinetic:.3g}, as it is to.")
    ratio = total.configurational / target
    if abs(ratio - 1) > 2 * _TOLERANCE:
        said.append(
            f"The configurational temperature is {total.configurational:.3g}, not "
            f"{target:g}: the weights are not yet where the target has them; more "
            "steps, or, where it stays, smaller ones."
        )
    else:
        said.append(
            f"The configurational temperature is {total.configurational:.3g}, as it is "
            "to."
        )
    return " ".join(said)


def check_finite(model: keras.Model, kept: str = "") -> None:
    """Checks that a chain has not left the finite range.

    Args:
        model: The model that is trained.
        kept: What there is to go back to, a sentence.

    Raises:
        bayesnorm.training.DivergenceError: Names the variable that did so first.
    """
    if has_finite_weights(model):
        return
    optimizer = unwrapped(getattr(model, "optimizer", None))
    why = optimizer.divergence() if isinstance(optimizer, Sampler) else None
    raise DivergenceError(f"{why or 'Weights are not finite.'} {kept}".rstrip())


class SamplerDiagnostics(keras.callbacks.Callback):
    """Adds a chain's temperatures and steps to the logs of each epoch.

    `kinetic_temperature` (for samplers with momentum), `configurational_temperature`,
    `rms_step` and `thermostat` (where there are thermostats), means over the epoch and
    all weights. For TensorBoard those of each variable as well.

    Args:
        log_dir: Folder of TensorBoard's files (with TensorFlow); None for none.
        optimizer: The sampler; None for that of the model which is trained.
        verbose: Whether the verdict on the last epoch is printed at the end.

    Raises:
        bayesnorm.training.DivergenceError: While training, if weights are not finite.
    """

    def __init__(
        self,
        log_dir: StrPath | None = None,
        optimizer: keras.optimizers.Optimizer | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        self._optimizer = optimizer
        self._verbose = verbose
        self._log = None if log_dir is None else backend.scalar_writer(log_dir)
        self._last: list[Reading] | None = None

    @property
    def optimizer(self) -> keras.optimizers.Optimizer:
        """The sampler."""
        return self._optimizer or self.model.optimizer

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begins the means."""
        if self.optimizer.built:
            reset(self.optimizer)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds to the logs."""
        check_finite(self.model)
        readings = self._last = read(self.optimizer)
        if logs is not None:
            logs |= _figures(whole(readings))
        if self._log is not None:
            for reading in readings:
                scalars = {
                    f"{name}/{reading.name}": value
                    for name, value in _figures(reading).items()
                }
                self._log(epoch + 1, scalars)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Prints the verdict."""
        if self._verbose and self._last is not None:
            print(verdict(self.optimizer, self._last))


def figures(optimizer: keras.optimizers.Optimizer) -> dict[str, float]:
    """Returns the figures of all weights by name, as `SamplerDiagnostics` logs them."""
    return _figures(whole(read(optimizer)))


def _figures(reading):
    found = {
        "kinetic_temperature": reading.kinetic,
        "configurational_temperature": reading.configurational,
        "rms_step": reading.step,
        "thermostat": reading.thermostat,
    }
    return {name: value for name, value in found.items() if value is not None}


def _sampler(optimizer):
    sampler = unwrapped(optimizer)
    if not isinstance(sampler, Sampler):
        raise TypeError(
            "`optimizer` must be a sampler of bayesnorm.samplers. Received: "
            f"{type(sampler).__name__}"
        )
    return sampler


def _numpy(variable):
    return np.asarray(variable.numpy(), "float64")
