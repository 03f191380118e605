"""The posterior of a network's batch statistics, from training data."""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Collection
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from bayesnorm.arguments import check_choice, positive_integer
from bayesnorm.graph import apply, build, compiled_for
from bayesnorm.layers.noise import noise_mode
from bayesnorm.layers.posterior import uncounted
from bayesnorm.layers.stochastic_batch_norm import (
    batch_statistics,
    stochastic_batch_normalizations,
)
from bayesnorm.measurement.joint_law import PassUpdate, law_restored_on_error
from bayesnorm.measurement.state import changing, restored, restored_on_error
from bayesnorm.streams.arrays import rows_of
from bayesnorm.streams.batches import number_of_batches, reshuffled, sized_stream
from bayesnorm.streams.elements import check_ends
from bayesnorm.streams.progress import Progress
from bayesnorm.types import Inputs

# Standard errors that a difference from the moving averages may come of, and what is
# far beyond those: standard deviations, or the logarithm of their ratio.
_ERRORS, _FAR = 3.0, 0.4
_LAWS = ("joint", "independent")
# Of the factor of the joint law: see benchmarks/results/laws.
_RANK = 16


def calibrate(
    model: keras.Model,
    dataset: Inputs,
    batch_size: int | None = None,
    shuffle: bool = True,
    seed: int = 0,
    reset: bool = True,
    verbose: bool | Literal["auto"] = "auto",
    frozen: bool = False,
    steps: int | None = None,
    law: Literal["joint", "independent"] = "joint",
    rank: int | None = None,
) -> keras.Model:
    """Computes the law of the batch statistics in one pass over training data.

    Each batch goes through the network as in training, normalized by its own
    statistics (dropout and augmentation layers of the model active too), and every
    `StochasticBatchNormalization` averages the mean and `log(variance + epsilon)` that
    it meets, and their variances over batches: exact averages, by updates that are
    stable in float32. Weights and moving averages stay as they are, and so does the
    deterministic output.

    With `law="joint"` it also finds how they vary together, means and log variances of
    all channels of all layers: a factor of their correlations, kept up batch by batch
    in the memory of `rank` batches' statistics. Variances are those of
    `law="independent"`, where each is drawn by itself as in the paper; of what moves
    together in a real batch most then cancels, and with it the networks' mutual
    information. The joint law is that of layers that were calibrated together:
    calibrate a model as a whole.

    Layers that are frozen (`trainable=False`), or that the code of a layer or of a
    subclassed model calls with `training=False`, were not trained on batch statistics:
    they keep their moving averages, without noise, and a warning names them;
    `frozen=True` measures there too, as if they had been thawed. A `training=False` in
    a node of a Functional graph is none of these: Keras hands the `training=True` of
    `fit` over it, and so does this.

    Batches smaller than `batch_size` (the last one, or the last before the examples
    have another shape) are left out: their statistics follow another law.

    Args:
        model: A model with stochastic batch normalizations (`to_stochastic`).
        dataset: Training inputs: an array, a nest of arrays, or a stream of batches,
            also of tuples whose first entry counts, as for `bayesnorm.predict`.
        batch_size: Integer, what the network was trained with: it is part of the
            posterior. None: that of the stream's first batch; 32 for arrays, as in
            `fit`.
        shuffle: Whether arrays are shuffled first. Streams are taken as they come;
            they should be in random order.
        seed: Seed of the order.
        reset: Whether to start anew; False goes on counting from the last
            calibration, with more data.
        verbose: Whether to show a progress bar; `"auto"`: on a terminal.
        frozen: Whether frozen layers take part: those of a backbone that was trained
            by batches once, and stood still while a head was. Their statistics are
            then those of `dataset`, which may be another one than the backbone's.
        steps: Number of the stream's batches to take, as in Keras (of arrays: batches
            of `batch_size`); None for all, which a stream without an end does not have.
            Whether a generator ends is not known beforehand: with None it is read until
            it does.
        law: `"joint"` or `"independent"`.
        rank: Integer, of the factor of the joint law: directions in which statistics
            vary together. None: 16, or all where there are fewer batches; with
            `reset=False` that of the last calibration.

    Returns:
        `model`.

    Raises:
        ValueError: If the model has no stochastic batch normalization, if the data
            are empty, not finite, without an end (and `steps=None`), or of fewer than 2
            full batches, if `rank` is given and there are no more batches, or fewer
            statistics, than that, if statistics are not finite, if all layers are
            frozen, or if with `reset=False` the last calibration was of another batch
            size or law. The layers then keep the law that they had.

    Warns:
        UserWarning: Names the frozen layers; those that are called in a loop, of which
            the joint law knows nothing; and those whose batch statistics lie far
            from their moving averages: in the median of the channels 0.4 standard
            deviations between the means, or a factor exp(0.4) = 1.5 between the
            standard deviations, beyond three standard errors of both averages. The
            data were then perhaps scaled otherwise in training.

    Reference:
        Atanov et al., 2018, "Uncertainty Estimation via Stochastic Batch
        Normalization" (independent); Teye et al., 2018, "Bayesian Uncertainty
        Estimation for Batch Normalized Deep Networks", whose draws of real batches
        the joint law follows.
    """
    layers = stochastic_batch_normalizations(model)
    check_has_layers(model, layers)
    if batch_size is not None:
        positive_integer("batch_size", batch_size)
    check_choice("law", law, _LAWS)
    if rank is not None:
        positive_integer("rank", rank)
        if law == "independent":
            raise ValueError(
                "`rank` is of the joint law. Give law='joint', or no rank. Received: "
                f"law='independent', rank={rank!r}"
            )
    check_ends(dataset, steps)
    data = reshuffled(dataset, seed) if shuffle else dataset
    size, batches = sized_stream(data, batch_size, model, steps)
    first = next(batches)
    build(model, first)
    layers = [layer for layer in layers if layer.built]
    most = sum(2 * math.prod(layer.moving_mean.shape) for layer in layers)
    if rank is not None and rank > most:
        raise ValueError(
            f"`rank` must be at most {most}, the number of the layers' means and "
            f"variances. Received: rank={rank}"
        )
    if not reset:
        _check_goes_on(layers, size, frozen, law, rank)
    progress = Progress(number_of_batches(dataset, size, steps), verbose)
    with contextlib.ExitStack() as stack:
        stack.enter_context(law_restored_on_error(layers))
        if reset:
            for layer in layers:
                layer.set_law_rank((rank or _RANK) if law == "joint" else 0)
        statistics = [v for layer in layers for v in layer.statistics_variables]
        stack.enter_context(restored_on_error(statistics))
        stack.enter_context(restored(changing(model, statistics)))
        if reset:
            for variable in statistics:
                variable.assign(np.zeros(variable.shape, "float32"))
        step = compiled_for(model).get(_observing, frozen, writes=True)
        count = 0
        for batch in itertools.chain([first], batches):
            if rows_of(batch) == size:
                step(batch)
                count += 1
                progress.update(count)
        progress.finish()
        if count < 2 and reset:
            raise ValueError(
                "Calibration needs 2 or more batches to see how their statistics "
                f"differ. Received: {count} full batches of {size} examples of one "
                "shape. Give more data, or the batch size of the training if that is "
                "smaller."
            )
        if rank is not None and rank >= count and reset:
            raise ValueError(
                f"A joint law of rank {rank} needs the statistics of {rank + 1} or "
                f"more batches. Received: {count} full batches of {size} examples. "
                f"Give more data, rank={count - 1} or less, or no rank, which takes "
                "what there is."
            )
        unmet = [layer for layer in layers if not _count(layer)]
        _check(model, layers, unmet)
        for layer in unmet:
            layer.fix()
    for layer in layers:
        layer.calibration_batch_size = size
    _warn_of_far(layers)
    _warn_of_loops(layers)
    return model


def _count(layer):
    return float(ops.convert_to_numpy(layer.statistics_count))


def _check_goes_on(layers, size, frozen, law, rank):
    learning = [layer for layer in layers if frozen or not layer.is_fixed()]
    sizes = {layer.calibration_batch_size for layer in learning}
    if sizes != {size} or not all(layer.has_exact_moments() for layer in learning):
        raise ValueError(
            f"reset=False goes on with a calibration of batches of {size}, after which "
            "the network was not trained. Received: layers whose latest calibration "
            f"had batches of {sorted(map(str, sizes))}; calibrate with reset=True."
        )
    ranks = {layer.law_rank for layer in learning}
    same = len(ranks) == 1 and all(bool(r) == (law == "joint") for r in ranks)
    if not same or rank not in (None, *ranks):
        raise ValueError(
            "reset=False goes on with a calibration of the same law and rank. "
            f"Received: law={law!r}, rank={rank!r}, and layers whose latest "
            f"calibration was {_laws(ranks)}. Ask for that one, or calibrate with "
            "reset=True."
        )


def _laws(ranks):
    said = [f"law='joint', rank={r}" if r else "law='independent'" for r in ranks]
    return " and ".join(sorted(said))


def _observing(model, frozen):
    def step(batch):
        update = PassUpdate()

        def observe(layer, inputs, mask, by_batch):
            if not (by_batch or frozen):
                return None
            statistics, change = layer.observe(inputs, mask)
            if layer.law_rank:
                update.add(layer, *change)
            return statistics

        # Dropout and the like as in training, whatever the caller has set.
        with batch_statistics(observe), noise_mode("auto"), uncounted():
            apply(model(), batch, training=True)
        update.finish()

    return step


def check_has_layers(model: keras.Model, layers: Collection[Any]) -> None:
    """Raises a ValueError if `layers` is empty."""
    if not layers:
        raise ValueError(
            f"Model {model.name!r} has no StochasticBatchNormalization. "
            "bayesnorm.to_stochastic(model) makes a copy that has one for every "
            "BatchNormalization; a network without those has no batch statistics."
        )


def _check(model, layers, unmet):
    if len(unmet) == len(layers):
        raise ValueError(
            f"All {len(layers)} stochastic batch normalizations of model "
            f"{model.name!r} are frozen or not called in training mode, so no batch "
            "statistics reach them. If the network was trained by them, calibrate with "
            "frozen=True."
        )
    for layer in layers:
        values = [ops.convert_to_numpy(v) for v in layer.statistics_variables]
        if not all(np.isfinite(value).all() for value in values):
            raise ValueError(
                f"The batch statistics of layer {layer.name!r} are not finite: the "
                "weights may have diverged, or activations overflow (try float32 or "
                "mixed_bfloat16)."
            )
    if unmet:
        warnings.warn(
            "These batch normalizations are frozen, or called with training=False by "
            "the code of a layer, and keep their moving averages, without noise: "
            f"{_names(unmet)}. frozen=True measures there too.",
            stacklevel=3,
        )


def _warn_of_far(layers):
    far = [x for x in layers if not x.is_fixed() and _distance(x) > _FAR]
    if far:
        warnings.warn(
            "The batch statistics of these batch normalizations lie far from their "
            f"moving averages: {_names(far)}. Sampled networks normalize by the "
            "former, the deterministic one by the latter. Give the data scaled as in "
            "training. If they are, the moving averages are those of other data (of a "
            "frozen backbone) or of a training too short for their momentum.",
            stacklevel=3,
        )


def _warn_of_loops(layers):
    apart = [layer for layer in layers if layer.law_rank and not _in_joint_law(layer)]
    if apart:
        warnings.warn(
            "These batch normalizations are called in a loop (by a recurrent cell, "
            f"say), out of which no statistics come: {_names(apart)}. Theirs are drawn "
            "independently; the joint law is that of the others.",
            stacklevel=3,
        )


def _in_joint_law(layer):
    _, mean_stddev, _, log_stddev = map(_array, layer.statistics_moments())
    varies = (mean_stddev > 0).any() or (log_stddev > 0).any()
    return not varies or _array(layer.law_factor).any()


def _distance(layer):
    """Returns how far the statistics of batches lie from the moving averages.

    Per channel the larger of the difference of the means in standard deviations and of
    the logarithm of the ratio of these, each beyond what the standard errors explain;
    of this the median over the channels, of which a few may be dead.
    """
    mean, mean_stddev, log_variance, log_stddev = map(
        _array, layer.statistics_moments()
    )
    moving = np.log(_array(layer.moving_variance) + layer.epsilon)
    # Of an exponential average of independent terms, and of one of `count`.
    keep = layer.momentum
    error = _ERRORS * np.sqrt((1.0 - keep) / (1.0 + keep) + 1.0 / _count(layer))
    shift = np.abs(mean - _array(layer.moving_mean)) - error * mean_stddev
    shift = shift / np.exp(0.5 * np.maximum(log_variance, moving))
    # The logarithm of a mean variance is between the mean of the logarithms and, at
    # most about, what that of a log-normal law is.
    low = log_variance - error * log_stddev
    high = log_variance + 0.5 * log_stddev**2 + error * log_stddev
    ratio = 0.5 * np.maximum(low - moving, moving - high)
    return float(np.median(np.maximum(shift, ratio)))


def _array(tensor):
    return np.asarray(ops.convert_to_numpy(tensor), "float64")


def _names(layers):
    return ", ".join(layer.name for layer in layers)
