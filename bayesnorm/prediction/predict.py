"""Predictions averaged over the networks of a posterior."""

import contextlib
import dataclasses
import warnings

import keras
import numpy as np
from keras import ops

from bayesnorm import backend
from bayesnorm.arguments import check_choice, positive_integer, seed_integer
from bayesnorm.graph import apply, build, compiled_for
from bayesnorm.layers.noise import noise_mode, stochastic_layers
from bayesnorm.layers.stochastic_batch_norm import batch_statistics
from bayesnorm.measurement.minibatch import record_statistics, source_of
from bayesnorm.moments import propagate
from bayesnorm.prediction.average import average_networks, samples_a_pass
from bayesnorm.prediction.batches import Padding, check_one_shape
from bayesnorm.prediction.memory import rows_that_fit
from bayesnorm.prediction.networks import Noise, check_any_batch, single_output
from bayesnorm.prediction.outputs import (
    entropy_and_information,
    find_from_logits,
    finish,
    finish_moments,
    unbiased,
)
from bayesnorm.prediction.prediction import Prediction
from bayesnorm.prediction.sampling import SamplingModel
from bayesnorm.streams.arrays import rows_of
from bayesnorm.streams.batches import number_of_batches, stream
from bayesnorm.streams.progress import Progress

_METHODS = ("sample", "mean", "moments", "minibatch")
_SAMPLING = ("sample", "minibatch")
_TASKS = ("classification", "regression")
_ROWS = 1024  # Of a pass, by default: large enough to keep the cores busy.


def predict(
    model,
    x,
    samples=30,
    method="sample",
    batch_size=256,
    seed=None,
    keep_samples=False,
    from_logits=None,
    task="classification",
    chunk_size=None,
    verbose="auto",
    train_data=None,
    train_batch_size=None,
    steps=None,
):
    """Predicts with the networks of a posterior, and says how far they agree.

    Classification averages the probabilities p of the networks (never logits or
    log-probabilities) and splits the entropy of the average, H(mean p), into the
    mean entropy of a network and their mutual information with the label,
    `H(mean p) - mean H(p)`. A single output is a yes-or-no question and gives
    two classes, "no" and "yes".

    The methods are:

    - `"sample"`: Monte Carlo. A sample is one network: its noise is drawn once,
      a function of the seed, the number of the sample and the place of the layer
      in the model alone, and shared by all examples. So a seed gives the same
      prediction whatever the batches. The part of the model before the first
      noise is computed once for all samples.
    - `"minibatch"`: as `"sample"`, but stochastic batch normalizations take the
      joint statistics of a real training batch for each sample (MCBN), which the
      draws of `"sample"` approximate independently for each layer and channel.
      Slower, by the passes of these batches, and in need of `train_data`.
    - `"mean"`: one pass of the network of mean weights.
    - `"moments"`: one pass that propagates means and variances through the
      layers (`bayesnorm.moments`), then takes the mean of the softmax of
      Gaussian logits. Its mutual information is approximate: the smaller of the
      expansion to the second order, `sum(var p / mean p) / 2`, right where the
      networks nearly agree, and that of the Dirichlet distribution of the same
      mean and total variance, right where they do not (for two classes the latter
      alone).

    Args:
        model: A Keras model with one output, or a list of them, an ensemble: the
            average is over members and their samples.
        x: Inputs: an array, a nest of arrays for a model of several inputs, or
            a stream of batches of any length: a `tf.data.Dataset`, a
            `keras.utils.PyDataset` or an iterable; of an element that is a tuple or a
            list, as in `(inputs, labels)`, the first entry counts. Batches may differ
            in the shape of their examples (lengths, image sizes) where the model takes
            them and its outputs have one shape.
        samples: Number of networks.
        method: `"sample"`, `"minibatch"`, `"mean"` or `"moments"`.
        batch_size: Examples at a time, at most, whatever the batches of `x`.
        seed: Integer from 0; None for new draws at each call.
        keep_samples: Whether to return what each network says, too.
        from_logits: Whether a classifier's outputs are logits; None to read it
            off the loss the model was compiled with, or else off its last
            activation.
        task: `"classification"`, or `"regression"` for mean and variance of the
            outputs.
        chunk_size: Rows (samples times examples) of one pass through the network,
            which bounds the memory; at least the batch. None: 1024 or the batch, but
            no more than take about 1 GiB above the model, its inputs and the result,
            by the sizes of all tensors of the network for one such example; where these
            are large, fewer examples than `batch_size` go in at a time.
        verbose: Whether to show a progress bar; `"auto"`: on a terminal.
        train_data: For `"minibatch"`: the training inputs, arrays (gone through in a
            random order, which follows from the seed) or a stream with enough batches,
            of which no more are read than samples need.
        train_batch_size: For `"minibatch"`: what the network was trained with. None
            for that of its calibration, or else of the stream; 32 for arrays.
        steps: Number of the batches of `x` to take, as in Keras (of arrays: batches of
            `batch_size`); None for all, which a stream without an end does not have.
            Whether a generator ends is not known beforehand: with None it is read until
            it does.

    Returns:
        A `Prediction`. The variance of a regression is that over the networks
        (with `samples - 1` in the denominator), 0 for a single one; with
        `"moments"` it is the propagated one. The samples of an ensemble come
        member by member.

    Raises:
        ValueError: If an argument is not as above, the data are empty, not finite
            or of another shape than the model's inputs, or without an end (and
            `steps=None`), or the outputs are not finite or of different shapes.
        TypeError: If `x` is no data.

    Reference:
        Houlsby et al., 2011, "Bayesian Active Learning for Classification and
        Preference Learning" (the mutual information). Teye et al., 2018, "Bayesian
        Uncertainty Estimation for Batch Normalized Deep Networks" (`"minibatch"`, in
        which the statistics of the sampled batch replace the moving averages).
    """
    check_choice("method", method, _METHODS)
    check_choice("task", task, _TASKS)
    samples = positive_integer("samples", samples)
    batch_size = positive_integer("batch_size", batch_size)
    if chunk_size is not None:
        chunk_size = positive_integer("chunk_size", chunk_size)
    seed = seed_integer(seed)
    members = _members(model)
    for member in members:
        check_any_batch(member)
    if keep_samples and method == "moments":
        raise ValueError(
            "method='moments' draws no samples to keep. Pass keep_samples=False, or "
            "method='sample'."
        )
    if task == "regression":
        kinds = [None] * len(members)
    else:
        kinds = [find_from_logits(member, from_logits) for member in members]
    plan = _Plan(method, samples, batch_size, chunk_size, keep_samples)
    engines = []

    def most(batch):
        if not engines:
            made = zip(members, kinds, recorded, strict=True)
            for i, (member, kind, statistics) in enumerate(made):
                build(member, batch)
                engines.append(_Engine(member, plan, kind, seed, i, statistics))
        return min(engine.most_examples(batch) for engine in engines)

    batches = stream(x, batch_size, members[0], steps, most)
    recorded = [None] * len(members)
    if method == "minibatch":
        if train_data is None:
            raise ValueError(
                "method='minibatch' needs training inputs: pass train_data=."
            )
        recorded = [
            record_statistics(
                member, train_data, samples, train_batch_size, (seed + i) % 2**32
            )
            for i, member in enumerate(members)
        ]
    parts, done, padded = [], 0, Padding(batch_size)
    for batch in batches:
        rows = rows_of(batch)
        if not parts:
            number = number_of_batches(x, batch_size, steps, rows)
            progress = Progress(number, verbose)
            if method == "sample":
                _warn_deterministic(members, engines)
        results = [engine.run(padded(batch), rows) for engine in engines]
        parts.append(_combine(results, task, method))
        _check_outputs(parts[-1], done)
        check_one_shape(_values(parts[0]), _values(parts[-1]), done)
        done += rows
        progress.update(len(parts))
    progress.finish()
    return _join(parts)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How each batch is worked through."""

    method: str
    samples: int
    batch_size: int
    chunk_size: int | None
    keep_samples: bool


@dataclasses.dataclass(frozen=True)
class _Result:
    """One model's word on a batch.

    `values` are mean probabilities or outputs; `spread` the mean entropy of a
    network, or the outputs' variance over the networks; `networks` their number.
    """

    values: np.ndarray
    spread: np.ndarray
    samples: np.ndarray | None
    networks: int


class _Engine:
    """Works through batches with one model.

    `kind` is the `from_logits` of a classifier's outputs, None for regression.
    """

    def __init__(self, model, plan, kind, seed, member, recorded=None):
        self._model, self._plan, self._kind = model, plan, kind
        self._get = compiled_for(model).get
        self.noise = Noise(model)
        if plan.method in ("sample", "moments"):
            for layer in stochastic_layers(model):
                layer.check_noise()
        self._samples = plan.method in _SAMPLING and bool(self.noise.size)
        self._recorded, self._arguments = None, ()
        if self._samples:
            draws = self._get(_draws, plan.samples)(backend.seed_from_int(seed), member)
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
        one = [draws[:1] for draws in self._arguments]
        fit = rows_that_fit(self._model, *self._step(1, 1, False), batch, *one)
        return min(fit, max(_ROWS, plan.batch_size))

    def _step(self, samples, each, keep_samples):
        """Returns the function that makes a step, and its arguments."""
        if self._samples:
            return _sample_step, (
                self._kind,
                samples,
                each,
                keep_samples,
                self._recorded,
            )
        moments = self._plan.method == "moments"
        return _moments_step if moments else _mean_step, (self._kind,)

    def run(self, batch, rows):
        """Returns the `_Result` of the first `rows` examples of a batch."""
        plan = self._plan
        most = max(1, self._rows(batch) // rows_of(batch))
        each = samples_a_pass(plan.samples, most)
        make, arguments = self._step(plan.samples, each, plan.keep_samples)
        values, spread, samples = (
            None if y is None else ops.convert_to_numpy(y)
            for y in self._get(make, *arguments)(batch, *self._arguments)
        )
        networks = plan.samples if self._samples else 1
        if plan.keep_samples and not self._samples:
            repeats = plan.samples if plan.method in _SAMPLING else 1
            samples = np.broadcast_to(values, (repeats, *values.shape))
        samples = None if samples is None else samples[:, :rows]
        return _Result(values[:rows], spread[:rows], samples, networks)


def _mean_step(model, kind):
    def step(batch):
        with noise_mode("mean"):
            outputs = single_output(model(), apply(model(), batch))
        values, spread = finish(outputs, kind)
        return values, ops.zeros_like(values) if spread is None else spread, None

    return step


def _moments_step(model, kind):
    def step(batch):
        moments = single_output(model(), propagate(model(), batch, 0.0))
        return *finish_moments(moments.mean, moments.variance, kind), None

    return step


def _draws(model, networks):
    noise = Noise(model())

    def draws(seed, member):
        return noise.draw(backend.fold_in(seed, member), ops.arange(networks))

    return draws


def _sample_step(model, kind, samples, each, keep_samples, recorded):
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

        return average_networks(model(), batch, mode, samples, each, kind, keep_samples)

    return step


def _combine(results, task, method):
    """Puts the members of an ensemble together, each with the same weight."""
    values = np.stack([r.values for r in results]).astype("float64")
    spread = np.stack([r.spread for r in results]).mean(axis=0, dtype="float64")
    mean = values.mean(axis=0)
    samples = None
    if results[0].samples is not None:
        samples = np.concatenate([r.samples for r in results])
    if task == "regression":
        variance = spread + values.var(axis=0)
        if method != "moments":
            variance *= unbiased(sum(r.networks for r in results))
        return Prediction(
            mean=_float32(mean), variance=_float32(variance), samples=samples
        )
    entropy, information = entropy_and_information(mean, spread, np)
    return Prediction(
        probs=_float32(mean),
        entropy=_float32(entropy),
        mutual_information=_float32(information),
        samples=samples,
    )


def _float32(x):
    return x.astype("float32")


def _join(parts):
    def joined(name):
        arrays = [getattr(part, name) for part in parts]
        if arrays[0] is None:
            return None
        return np.concatenate(arrays, axis=1 if name == "samples" else 0)

    return Prediction(
        **{field.name: joined(field.name) for field in dataclasses.fields(Prediction)}
    )


def _values(part):
    return part.mean if part.probs is None else part.probs


def _check_outputs(part, done):
    values = _values(part)
    if np.isfinite(values).all():
        return
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    raise ValueError(
        f"The outputs for example {done + int(bad.argmax())} are not finite"
        + (
            ". Expected finite outputs: the model's weights may have diverged."
            if part.probs is None
            else ", or not probabilities where from_logits=False. Pass "
            "from_logits=True if the model ends without a softmax or sigmoid; else "
            "its weights may have diverged."
        )
    )


def _warn_deterministic(members, engines):
    if len(members) == 1 and not engines[0].noise.size:
        warnings.warn(
            f"Model {members[0].name!r} has no layer that draws noise: all its samples "
            "are equal, and it is run once.",
            stacklevel=3,
        )


def _members(model):
    models = list(model) if isinstance(model, list | tuple) else [model]
    for member in models:
        if not isinstance(member, keras.Model):
            raise TypeError(
                "`model` must be a keras.Model or a list of them. Received: "
                f"{type(member).__name__}"
            )
    if not models:
        raise ValueError("`model` is an empty list: give one model or more.")
    return [m.model if isinstance(m, SamplingModel) else m for m in models]
