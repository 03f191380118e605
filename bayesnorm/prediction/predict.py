"""Predictions averaged over the networks of a posterior."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bayesnorm.arguments import check_choice, positive_integer, seed_integer
from bayesnorm.measurement.minibatch import record_statistics
from bayesnorm.prediction.batches import (
    Padding,
    check_finite_outputs,
    check_one_shape,
)
from bayesnorm.prediction.by_need import ByNeed
from bayesnorm.prediction.engine import Ensemble, Plan
from bayesnorm.prediction.members import members_of
from bayesnorm.prediction.networks import check_any_batch
from bayesnorm.prediction.prediction import Prediction
from bayesnorm.prediction.settling import check_error_rate
from bayesnorm.streams.arrays import rows_of
from bayesnorm.streams.batches import number_of_batches, stream
from bayesnorm.streams.progress import Progress
from bayesnorm.types import Inputs, Method, Nest, Task

if TYPE_CHECKING:
    from bayesnorm.prediction.weight_sets import ModelOrSets


_METHODS = ("sample", "mean", "moments", "minibatch")


def predict(
    model: ModelOrSets,
    x: Inputs,
    samples: int = 30,
    method: Method = "sample",
    batch_size: int = 256,
    seed: int | None = None,
    keep_samples: bool = False,
    from_logits: Nest[bool | None] = None,
    task: Nest[Task] = "classification",
    chunk_size: int | None = None,
    verbose: bool | Literal["auto"] = "auto",
    train_data: Inputs | None = None,
    train_batch_size: int | None = None,
    steps: int | None = None,
    tolerance: Nest[float | Literal["class"] | None] = None,
    error_rate: float = 0.01,
    temperature: Nest[float | None] = None,
) -> Prediction | Any:
    """Predicts with the networks of a posterior, and says how far they agree.

    Classification averages the probabilities p of the networks (never logits or
    log-probabilities) and splits the entropy of the average, H(mean p), into the
    mean entropy of a network and their mutual information with the label,
    `H(mean p) - mean H(p)`. A single output is a yes-or-no question and gives
    two classes, "no" and "yes".

    A model of several outputs gives the nest of their predictions, a dict by output
    name where the model gives a list; all are of the same sampled networks.

    The methods are:

    - `"sample"`: Monte Carlo. A sample is one network: its noise is drawn once,
      a function of the seed, the number of the sample and the place of the layer
      in the model alone, and shared by all examples. So a seed gives the same
      prediction whatever the batches. The part of the model before the first
      noise is computed once for all samples.
    - `"minibatch"`: as `"sample"`, but stochastic batch normalizations take the
      statistics of a real training batch for each sample (MCBN), which `"sample"`
      draws from the law that `calibrate` found: joint over layers and channels, or
      independent. Slower, by the passes of these batches, and in need of
      `train_data`.
    - `"mean"`: one pass of the network of mean weights.
    - `"moments"`: one pass that propagates means and variances through the
      layers (`bayesnorm.moments`), then takes the mean of the softmax of
      Gaussian logits. Its mutual information is approximate: the smaller of the
      expansion to the second order, `sum(var p / mean p) / 2`, right where the
      networks nearly agree, and that of the Dirichlet distribution of the same
      mean and total variance, right where they do not (for two classes the latter
      alone). Channels are taken as independent: behind trained convolutions, where
      the same draws reach all of them, it was 0.3 to 0.6 of the sampled one on five
      small networks, and 0.55 to 2.8 of it on untrained ones of `keras.applications`,
      so take its level from `"sample"`.

    Args:
        model: A Keras model, or an ensemble: `bayesnorm.WeightSets`, or a list of
            models and these. The average is over members, each of the same weight,
            and their samples. Members of one architecture are compiled once.
        x: Inputs: an array, a nest of arrays for a model of several inputs, or
            a stream of batches of any length: a `tf.data.Dataset`, a
            `keras.utils.PyDataset` or an iterable; of an element that is a tuple or a
            list, as in `(inputs, labels)`, the first entry counts. Batches may differ
            in the shape of their examples (lengths, image sizes) where the model takes
            them and its outputs have one shape.
        samples: Number of networks, of an ensemble for each member.
        method: `"sample"`, `"minibatch"`, `"mean"` or `"moments"`.
        batch_size: Examples at a time, whatever the batches of `x`.
        seed: Integer from 0; None for new draws at each call.
        keep_samples: Whether to return what each network says, too.
        from_logits: Whether a classifier's outputs are logits; None to read it
            off its last activation, or else off the loss the model was compiled with.
            For several outputs also one for each, as `task`.
        task: `"classification"`; `"multilabel"` for outputs that are independent
            yes-or-no labels, each with its probability, entropy and mutual
            information; `"regression"` for mean and variance of the outputs. For
            several outputs also one for each: a dict by output name, or the nest of
            the outputs.
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
        tolerance: For `"sample"`: when an example's prediction is settled, before all
            samples are drawn. `"class"`: the most probable class (of labels the side of
            1/2 of each) is that of all samples, but for a share `error_rate` of the
            examples at most, whatever the law of the networks: a test by betting, of
            `prediction.settling.Winner`; entropies are then of as few networks. A
            number above 0: the entropy in nats, or the mean of a regression in its
            units, is within it of that of all samples, by its standard error
            (`prediction.settling.Interval`): an approximation, which rare networks
            escape. None: all samples for all. For several outputs also
            one for each, as `task`; an example is settled when all of them are. One
            that stays has the very networks it would have had; each has a multiple of
            8 of them, or all. Of dense predictions and of several labels half of
            `error_rate` is the share of positions that may be open when the example
            leaves.
        error_rate: For `tolerance`: the share of examples (of dense predictions:
            positions) that may differ from those of all samples, on average over seeds:
            examples have their networks in common, so one seed has more than another.
        temperature: T above 0, such as of `metrics.fit_temperature`: `probs` are
            `softmax(log p / T)` of the average p over all networks, and `entropy` is
            theirs. `mutual_information` and `samples` remain those of the networks as
            they are. None: 1. For several outputs also one for each, as `task`.

    Returns:
        A `Prediction`, or a nest of them. The variance of a regression is that over
        the networks (with `samples - 1` in the denominator), 0 for a single one; with
        `"moments"` it is the propagated one. It does not contain the noise of the
        observations, of which a plain regression knows nothing. The samples of an
        ensemble come member by member.

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
        Rahaman & Thiery, 2021, "Uncertainty Quantification and Deep Ensembles" (a
        temperature of the average, not of its parts).
    """
    check_choice("method", method, _METHODS)
    samples = positive_integer("samples", samples)
    batch_size = positive_integer("batch_size", batch_size)
    if chunk_size is not None:
        chunk_size = positive_integer("chunk_size", chunk_size)
    seed = seed_integer(seed)
    members = members_of(model)
    for each in {id(m.model): m.model for m in members}.values():
        check_any_batch(each)
    if keep_samples and method == "moments":
        raise ValueError(
            "method='moments' draws no samples to keep. Pass keep_samples=False, or "
            "method='sample'."
        )
    if method == "minibatch" and train_data is None:
        raise ValueError("method='minibatch' needs training inputs: pass train_data=.")

    _check_tolerance(tolerance, error_rate, method, keep_samples)

    def statistics(i, member):
        if method != "minibatch":
            return None
        return record_statistics(
            member.model,
            train_data,
            samples,
            train_batch_size,
            (seed + i) % 2**32,
            weights=member.weights,
        )

    plan = Plan(
        method, samples, batch_size, chunk_size, keep_samples, seed, temperature
    )
    ensemble = Ensemble(members, plan, task, from_logits, statistics)
    taker: Any = None
    batches = stream(x, batch_size, members[0].model, steps, ensemble.most_examples)
    for count, batch in enumerate(batches, 1):
        if taker is None:
            number = number_of_batches(x, batch_size, steps, rows_of(batch))
            progress = Progress(number, verbose)
            if method == "sample":
                ensemble.warn_deterministic()
            if tolerance is None:
                taker = _All(ensemble, batch_size)
            else:
                tolerances = ensemble.outputs.by_output("tolerance", tolerance)
                taker = ByNeed(ensemble, batch_size, tolerances, error_rate)
        taker.add(batch)
        progress.update(count)
    parts, order = taker.finish()
    progress.finish()
    pieces = zip(*parts, strict=True)
    return ensemble.outputs.pack([_join(of_output, order) for of_output in pieces])


class _All:
    """Predicts examples by all networks, as `ByNeed` does by as many as they need."""

    def __init__(self, ensemble, batch_size):
        self._ensemble, self._padded = ensemble, Padding(batch_size)
        self._parts, self._done = [], 0

    def add(self, batch):
        """Takes a batch, not padded."""
        rows = rows_of(batch)
        self._parts.append(self._ensemble.run(self._padded(batch), rows))
        numbers = np.arange(self._done, self._done + rows)
        for first, part, output in zip(
            self._parts[0], self._parts[-1], self._ensemble.outputs.each, strict=True
        ):
            check_finite_outputs(_values(part), output, numbers)
            check_one_shape(_values(first), _values(part), self._done)
        self._done += rows

    def finish(self):
        """Returns the parts, for each output one, and None: they are in order."""
        return self._parts, None


def _check_tolerance(tolerance, error_rate, method, keep_samples):
    check_error_rate(error_rate)
    if tolerance is None:
        return
    if method != "sample":
        raise ValueError(
            "`tolerance` ends the sampling of an example early, which is "
            f"method='sample' alone. Received: method={method!r}. Leave tolerance= out."
        )
    if keep_samples:
        raise ValueError(
            "With `tolerance` examples differ in the number of their samples, which "
            "are not kept. Pass keep_samples=False, or leave tolerance= out."
        )


def _join(parts, order=None):
    """Puts parts together, their examples in the order of the indices `order`."""

    def joined(name):
        arrays = [getattr(part, name) for part in parts]
        if arrays[0] is None:
            return None
        whole = np.concatenate(arrays, axis=1 if name == "samples" else 0)
        return whole if order is None else whole[order]

    return Prediction(
        **{field.name: joined(field.name) for field in dataclasses.fields(Prediction)}
    )


def _values(part):
    return part.mean if part.probs is None else part.probs
