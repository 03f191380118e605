"""The engines of `predict`: a batch through the networks of each member."""

import contextlib
import dataclasses
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from bayesnorm import backend
from bayesnorm.graph import build, compiled_for
from bayesnorm.layers.noise import noise_mode, stochastic_layers
from bayesnorm.layers.stochastic_batch_norm import batch_statistics
from bayesnorm.measurement.minibatch import source_of
from bayesnorm.moments import propagate
from bayesnorm.prediction.average import (
    average_networks,
    mean_network,
    samples_a_pass,
)
from bayesnorm.prediction.draws import draws_of
from bayesnorm.prediction.members import with_shared_models
from bayesnorm.prediction.memory import ROWS, rows_that_fit
from bayesnorm.prediction.networks import Noise
from bayesnorm.prediction.outputs import (
    entropy_and_information,
    finish_moments,
    temper,
    told,
    unbiased,
)
from bayesnorm.prediction.prediction import Prediction
from bayesnorm.prediction.settling import BLOCK
from bayesnorm.prediction.tasks import outputs_of, temperatures_of
from bayesnorm.streams.arrays import rows_of, shapes_of

SAMPLING = ("sample", "minibatch")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How each batch is worked through: arguments of `predict`."""

    method: str
    samples: int
    batch_size: int
    chunk_size: int | None
    keep_samples: bool
    seed: int
    temperature: Any = None


class Ensemble:
    """The engines of all members, made when a first batch shows what they take.

    Args:
        members: List of `Member`s.
        plan: The `Plan`.
        task: As of `predict`.
        from_logits: As of `predict`.
        statistics: Function `(i, member)` that returns the `RecordedStatistics` of a
            member, or None for other methods than `"minibatch"`.

    Attributes:
        outputs: The `Outputs`, from the first batch on.
        temperatures: The temperature of each output, from then on.
    """

    def __init__(self, members, plan, task, from_logits, statistics):
        self._members, self._plan = members, plan
        self._task, self._from_logits = task, from_logits
        self._statistics = statistics
        self._engines = []
        self.outputs = self.temperatures = None

    @property
    def samples(self):
        """The number of networks of a member; 1 if no member draws any noise."""
        return self._plan.samples if any(e.samples for e in self._engines) else 1

    def _start(self, batch):
        example = keras.tree.map_structure(lambda x: x[:1], batch)
        found = []
        models = list({id(m.model): m.model for m in self._members}.values())
        for model in models:
            build(model, batch)
            with noise_mode("mean"):
                found.append(outputs_of(model, example, self._task, self._from_logits))
        _check_same(models, found)
        self.outputs = found[0]
        self.temperatures = temperatures_of(self.outputs, self._plan.temperature)
        each = {id(m): outputs.each for m, outputs in zip(models, found, strict=True)}
        own = [each[id(member.model)] for member in self._members]
        self._engines = [
            _Engine(member, self._plan, outputs, i, self._statistics(i, member))
            for i, (member, outputs) in enumerate(
                zip(with_shared_models(self._members), own, strict=True)
            )
        ]

    def most_examples(self, batch):
        """Returns how many examples like those of a batch may go in at a time."""
        if not self._engines:
            self._start(batch)
        return min(engine.most_examples(batch) for engine in self._engines)

    def warn_deterministic(self):
        """Warns the caller of `predict` of a model that has nothing to sample."""
        if len(self._engines) == 1 and not self._engines[0].samples:
            name = self._members[0].model.name
            warnings.warn(
                f"Model {name!r} has no layer that draws noise: all its samples are "
                "equal, and it is run once.",
                stacklevel=3,
            )

    def run(self, batch, rows):
        """Returns a `Prediction` of the first `rows` examples for each output."""
        results = [engine.run(batch, rows) for engine in self._engines]
        return self._combined(zip(*results, strict=True))

    def networks(self, batch, rows, first, number):
        """Returns what some networks say of the first `rows` examples.

        Args:
            batch: Nest of arrays.
            rows: Number of examples.
            first: Number of the first network, a multiple of `BLOCK`.
            number: Number of networks, `BLOCK` at most.

        Returns:
            For each output `[members, number, rows, ...]`, the same numbers of the
            networks of each member.
        """
        found = [e.networks(batch, rows, first, number) for e in self._engines]
        return [np.stack(of_output) for of_output in zip(*found, strict=True)]

    def averaged(self, averages, samples):
        """Returns a `Prediction` of averages over some networks, for each output.

        Args:
            averages: For each output `(mean, spread)`, `[n, members, ...]`, as
                `average_networks` returns them.
            samples: The number of networks of each member, that were averaged.
        """
        results = [
            [
                _Result(mean[:, i], spread[:, i], None, samples if e.samples else 1)
                for i, e in enumerate(self._engines)
            ]
            for mean, spread in averages
        ]
        used = np.full(len(averages[0][0]), samples, "int64")
        return [
            dataclasses.replace(part, samples_used=used)
            for part in self._combined(results)
        ]

    def _combined(self, results):
        return [
            _combine(of_members, output, self._plan.method, temperature)
            for of_members, output, temperature in zip(
                results, self.outputs.each, self.temperatures, strict=True
            )
        ]


def _check_same(models, found):
    names = [[output.name for output in outputs.each] for outputs in found]
    if any(other != names[0] for other in names):
        raise ValueError(
            "The members of an ensemble must have the same outputs. Received: "
            + "; ".join(
                f"{model.name!r} with {own}"
                for model, own in zip(models, names, strict=True)
            )
        )


@dataclasses.dataclass(frozen=True)
class _Result:
    """What one model says of an output for a batch.

    `values` are mean probabilities or numbers; `spread` the mean entropy of a
    network, or the outputs' variance over the networks; `networks` their number.
    """

    values: np.ndarray
    spread: np.ndarray
    samples: np.ndarray | None
    networks: int


class _Engine:
    """Works through batches with one member, number `number` of the ensemble."""

    def __init__(self, member, plan, outputs, number, recorded):
        model = member.model
        self._model, self._plan, self._outputs = model, plan, outputs
        self._compiled = compiled_for(model)
        self._state = None if member.weights is None else member.state()
        self._fit = {}  # By the shapes of an example: the rows that fit.
        noise = Noise(model)
        if plan.method in ("sample", "moments"):
            with member.scope():
                for layer in stochastic_layers(model):
                    layer.check_noise()
        self.samples = plan.method in SAMPLING and bool(noise.size)
        self._recorded, self._arguments = None, ()
        if self.samples:
            draw = self._compiled.get(draws_of, plan.samples)
            # An array: TensorFlow would compile anew for each Python number.
            number = np.array(number, "int32")
            draws = draw(backend.seed_from_int(plan.seed), number)
            if recorded is not None:
                draws = ops.concatenate([draws, recorded.values], axis=1)
                self._recorded = recorded.layers
            self._arguments = (draws,)

    def most_examples(self, batch):
        """Returns how many examples like those of a batch may go in at a time."""
        if self._plan.chunk_size is not None:
            return self._plan.batch_size
        return self._rows(batch)

    def _rows(self, batch):
        """Returns the rows of a pass."""
        plan = self._plan
        if plan.chunk_size is not None:
            return plan.chunk_size
        shapes = shapes_of(batch)
        if shapes not in self._fit:
            step = self._step(1, 1, False)
            self._fit[shapes] = rows_that_fit(
                self._model, self._compiled, *step, batch, *self._arguments
            )
        return min(self._fit[shapes], max(ROWS, plan.batch_size))

    def _step(self, samples, each, keep_samples):
        """Returns the function that makes a step, and its arguments."""
        if self.samples:
            return _sample_step, (
                self._outputs,
                samples,
                each,
                keep_samples,
                self._recorded,
            )
        moments = self._plan.method == "moments"
        return _moments_step if moments else _mean_step, (self._outputs,)

    def run(self, batch, rows):
        """Returns a `_Result` of the first `rows` examples for each output."""
        plan = self._plan
        most = max(1, self._rows(batch) // rows_of(batch))
        each = samples_a_pass(plan.samples, most)
        make, arguments = self._step(plan.samples, each, plan.keep_samples)
        said = self._call(make, arguments, batch, *self._arguments)
        return [self._result(*of_output, rows) for of_output in said]

    def networks(self, batch, rows, first, number):
        """As of `Ensemble`, `[number, rows, ...]`."""
        if not self.samples:
            found = [result.values for result in self.run(batch, rows)]
            return [np.broadcast_to(x, (number, *x.shape)) for x in found]
        (draws,) = self._arguments
        # The last block is filled up with its last network.
        numbers = np.minimum(first + np.arange(BLOCK), first + number - 1)
        each = samples_a_pass(BLOCK, max(1, self._rows(batch) // rows_of(batch)))
        make, arguments = self._step(BLOCK, each, True)
        said = self._call(make, arguments, batch, ops.take(draws, numbers, axis=0))
        kept = [ops.convert_to_numpy(samples) for *_, samples in said]
        return [x[:number, :rows] for x in kept]

    def _call(self, make, arguments, *given):
        if self._state is None:
            return self._compiled.get(make, *arguments)(*given)
        said, _ = self._compiled.get_stateless(make, *arguments)(self._state, *given)
        return said

    def _result(self, values, spread, samples, rows):
        plan = self._plan
        values, spread, samples = (
            None if y is None else ops.convert_to_numpy(y)
            for y in (values, spread, samples)
        )
        if plan.keep_samples and not self.samples:
            repeats = plan.samples if plan.method in SAMPLING else 1
            samples = np.broadcast_to(values, (repeats, *values.shape))
        samples = None if samples is None else samples[:, :rows]
        networks = plan.samples if self.samples else 1
        return _Result(values[:rows], spread[:rows], samples, networks)


def _mean_step(model, outputs):
    def step(batch):
        with noise_mode("mean"):
            return mean_network(model(), batch, outputs)

    return step


def _moments_step(model, outputs):
    def step(batch):
        said = keras.tree.flatten(propagate(model(), batch, 0.0))
        return [
            (*finish_moments(moments.mean, moments.variance, output), None)
            for moments, output in zip(said, outputs, strict=True)
        ]

    return step


def _sample_step(model, outputs, samples, each, keep_samples, recorded):
    """Behind the draws of a network stand the statistics of the layers `recorded`."""
    noise = Noise(model())

    def step(batch, draws):
        @contextlib.contextmanager
        def mode(numbers):
            rows = ops.take(draws, numbers, axis=0)
            statistics = contextlib.nullcontext()
            if recorded is not None:
                source = source_of(recorded, rows[:, noise.size :])
                statistics = batch_statistics(source)
            with noise.mode(rows), statistics:
                yield

        return average_networks(
            model(), batch, mode, samples, each, outputs, keep_samples
        )

    return step


def _combine(results, output, method, temperature):
    """Puts the members of an ensemble together, each with the same weight."""
    values = np.stack([r.values for r in results]).astype("float64")
    spread = np.stack([r.spread for r in results]).mean(axis=0, dtype="float64")
    mean = values.mean(axis=0)
    samples = None
    if results[0].samples is not None:
        samples = np.concatenate([r.samples for r in results])
    if output.task == "regression":
        variance = spread + values.var(axis=0)
        if method != "moments":
            variance *= unbiased(sum(r.networks for r in results))
        return Prediction(
            mean=_float32(mean), variance=_float32(variance), samples=samples
        )
    entropy, information = entropy_and_information(mean, spread, np)
    if temperature != 1.0:
        mean, entropy = temper(mean, temperature, np)
    if samples is not None:
        samples = told(samples, output)
    return Prediction(
        probs=_float32(told(mean, output)),
        entropy=_float32(entropy),
        mutual_information=_float32(information),
        samples=samples,
    )


def _float32(x):
    return x.astype("float32")
