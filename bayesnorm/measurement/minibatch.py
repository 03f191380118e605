"""Statistics of real training batches: the sampler that SBN approximates."""

import dataclasses

import keras
import numpy as np
from keras import ops

from bayesnorm.graph import apply, build, compiled_for, state_of
from bayesnorm.layers.noise import noise_mode
from bayesnorm.layers.posterior import uncounted
from bayesnorm.layers.stochastic_batch_norm import (
    batch_statistics,
    stochastic_batch_normalizations,
)
from bayesnorm.measurement.calibrate import check_has_layers
from bayesnorm.streams.arrays import rows_of
from bayesnorm.streams.batches import reshuffled, sized_stream


@dataclasses.dataclass(frozen=True)
class RecordedStatistics:
    """What the normalizations of a model met in a number of batches.

    Attributes:
        layers: The stochastic batch normalizations, in the order of their calls in a
            pass of the model; one that is used twice stands there twice.
        values: `[batches, size]`, for each call mean and `log(variance + epsilon)`,
            each of the layer's channels.
    """

    layers: tuple
    values: np.ndarray

    def by_call(self):
        """Yields `(layer, mean, log_variance)`, arrays `[batches, channels]`."""
        start = 0
        for layer in self.layers:
            (channels,) = layer.moving_mean.shape
            mean, log_variance = np.split(
                self.values[:, start : start + 2 * channels], 2, axis=1
            )
            start += 2 * channels
            yield layer, mean, log_variance


def record_statistics(
    model, data, number, batch_size=None, seed=0, steps=None, weights=None
):
    """Records the batch statistics of `number` random training batches.

    The model's variables keep their values.

    Args:
        model: A model with stochastic batch normalizations.
        data: Training inputs, as for `bayesnorm.calibrate`. Arrays are gone through in
            a random order, data sets in theirs, as often as needed; an iterator once.
            No more is read than it takes, so a stream may be without an end.
        number: Integer.
        batch_size: Integer; None for that of the calibration.
        seed: Integer from 0, of the order.
        steps: Number of the stream's batches to go through before it is started anew;
            None for all.
        weights: Tensors in the place of those of `model.weights`; None for these.

    Returns:
        The `RecordedStatistics`.

    Raises:
        ValueError: If the model has no stochastic batch normalization, or if a stream
            ends before `number` full batches.
    """
    layers = stochastic_batch_normalizations(model)
    check_has_layers(model, layers)
    batch_size = batch_size or layers[0].calibration_batch_size
    batches = _full_batches(model, data, number, batch_size, seed, steps)
    first = next(batches)
    build(model, first)
    state, calls = state_of(model, weights), []
    mapping = zip(model.variables, state, strict=True)
    with keras.StatelessScope(mapping, collect_losses=True) as scope:
        # Not compiled: it finds the order of the calls.
        rows = [_statistics(model, first, calls)]
    # The next batches have the random states that this one left.
    state = [scope.get_current_value(v) for v in model.variables]
    step = compiled_for(model).get_stateless(_recording)
    for batch in batches:
        row, state = step(state, batch)
        rows.append(row)
    return RecordedStatistics(
        tuple(calls), np.stack([ops.convert_to_numpy(row) for row in rows])
    )


def _recording(model):
    return lambda batch: _statistics(model(), batch)


def _statistics(model, batch, calls=None):
    """Returns what the layers meet in a batch, `[size]`; `calls` gets the layers."""
    met = []

    def record(layer, inputs, mask, by_batch):
        if not by_batch:
            return None
        statistics = layer.batch_statistics(inputs, mask)
        met.extend(ops.cast(value, "float32") for value in statistics)
        if calls is not None:
            calls.append(layer)
        return statistics

    # Dropout and the like as in training, whatever the caller has set.
    with batch_statistics(record), noise_mode("auto"), uncounted():
        apply(model, batch, training=True)
    if not met:
        raise ValueError(
            f"All stochastic batch normalizations of model {model.name!r} are frozen, "
            "or called with training=False by the code of a layer: there are no batch "
            "statistics to record."
        )
    return ops.concatenate(met)


def _full_batches(model, data, number, batch_size, seed, steps=None):
    taken, passes = 0, 0
    while True:
        before = taken
        order = reshuffled(data, seed, passes)
        size, batches = sized_stream(order, batch_size, model, steps)
        for batch in batches:
            if rows_of(batch) == size:
                taken += 1
                yield batch
            if taken == number:
                return
        passes += 1
        once = hasattr(data, "__next__")  # An iterator, which has an end.
        if once or taken == before:
            break
    raise ValueError(
        f"{number} samples need as many training batches. Received: {taken} full "
        "batches. Give arrays, a longer stream or a smaller train_batch_size."
    )


def source_of(layers, values):
    """Returns the source of statistics for `batch_statistics`.

    Args:
        layers: Those of `RecordedStatistics`.
        values: Rows of its `values`, `[networks, size]`; the rows of a layer's inputs
            belong to the networks in equal, consecutive parts.
    """
    calls, start = iter(layers), 0
    recorded = set(map(id, layers))

    def take(networks, rows, channels):
        nonlocal start
        taken = values[:, start : start + channels]
        start += channels
        taken = ops.repeat(taken[:, None], rows // networks, axis=1)
        return ops.reshape(taken, (rows, channels))

    def source(layer, inputs, mask, by_batch):
        del mask, by_batch
        if id(layer) not in recorded:
            return None  # Frozen: its moving averages.
        if next(calls, None) is not layer:
            raise ValueError(
                f"Layer {layer.name!r} was called in another order than when the "
                "statistics of batches were recorded: the model's calls must not "
                "depend on the data or on chance."
            )
        networks, rows = ops.shape(values)[0], ops.shape(inputs)[0]
        (channels,) = layer.moving_mean.shape
        return take(networks, rows, channels), take(networks, rows, channels)

    return source
