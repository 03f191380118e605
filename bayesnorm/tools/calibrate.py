"""The posterior of a network's batch statistics, from training data."""

import itertools
import weakref

import keras
import numpy as np
from keras import ops

from bayesnorm import backend
from bayesnorm.arguments import positive_integer
from bayesnorm.layers.stochastic_batch_norm import (
    batch_statistics,
    stochastic_batch_normalizations,
)
from bayesnorm.tools.batches import number_of_batches, reshuffled, sized_stream
from bayesnorm.tools.progress import Progress
from bayesnorm.tools.state import changing, restored, restored_on_error


def calibrate(
    model, dataset, batch_size=None, shuffle=True, seed=0, reset=True, verbose="auto"
):
    """Computes the moments of the batch statistics in one pass over training data.

    Each batch goes through the network as in training, normalized by its own
    statistics (dropout and augmentation layers of the model active too), and every
    `StochasticBatchNormalization` averages the mean and `log(variance + epsilon)` that
    it meets, and their variances over batches: exact averages, by updates that are
    stable in float32. Weights and moving averages stay as they are, and so does the
    deterministic output.

    Batches smaller than `batch_size` (the last one) are left out: their statistics
    follow another law.

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

    Returns:
        `model`.

    Raises:
        ValueError: If the model has no stochastic batch normalization, if the data
            are empty, not finite, or of fewer than 2 full batches, or if statistics
            are not finite. The layers then keep the moments that they had.
    """
    layers = stochastic_batch_normalizations(model)
    check_has_layers(model, layers)
    if batch_size is not None:
        positive_integer("batch_size", batch_size)
    size, batches = sized_stream(
        reshuffled(dataset, seed) if shuffle else dataset, batch_size, model
    )
    earlier = {layer.calibration_batch_size for layer in layers}
    if not reset and earlier != {size}:
        raise ValueError(
            "reset=False goes on with batches of the same size as before. Received: "
            f"batches of {size}, where the layers' calibration had {sorted(earlier)}."
            if None not in earlier
            else "reset=False goes on with an earlier calibration, and there is none."
        )
    first = next(batches)
    build(model, first)
    statistics = [v for layer in layers for v in layer.statistics_variables]
    progress = Progress(number_of_batches(dataset, size), verbose)
    with restored_on_error(statistics), restored(changing(model, statistics)):
        if reset:
            for variable in statistics:
                variable.assign(ops.zeros_like(variable.value))
        step = _step(model)
        count = 0
        for batch in itertools.chain([first], batches):
            if len(keras.tree.flatten(batch)[0]) == size:
                step(0, 1, [], batch)
                count += 1
                progress.update(count)
        progress.finish()
        if count < 2 and reset:
            raise ValueError(
                "Calibration needs 2 or more batches to see how their statistics "
                f"differ. Received: {count} full batches of {size} examples. Give "
                "more data, or the batch size of the training if that is smaller."
            )
        _check(layers)
    for layer in layers:
        layer.calibration_batch_size = size
    return model


_compiled = weakref.WeakKeyDictionary()


def _step(model):
    """Returns the compiled pass of a batch, in which the layers observe it."""
    variables, step = _compiled.get(model, ((), None))
    if [id(v) for v in variables] != [id(v) for v in model.variables]:
        variables = list(model.variables)
        step = backend.compiled_loop(_observing(weakref.ref(model)), variables)
        _compiled[model] = variables, step
    return step


def _observing(model):
    def step(i, carry, batch):
        del i
        with batch_statistics(lambda layer, x, mask: layer.observe(x, mask)):
            model()(batch, training=True)
        return carry

    return step


def check_has_layers(model, layers):
    """Raises a ValueError if `layers` is empty."""
    if not layers:
        raise ValueError(
            f"Model {model.name!r} has no StochasticBatchNormalization. "
            "bayesnorm.to_stochastic(model) makes a copy that has one for every "
            "BatchNormalization; a network without those has no batch statistics."
        )


def _check(layers):
    for layer in layers:
        seen = float(ops.convert_to_numpy(layer.statistics_count.value))
        if not seen:
            raise ValueError(
                f"Layer {layer.name!r} was not called in a pass of the model: is it "
                "on no path from the inputs to the outputs?"
            )
        values = [ops.convert_to_numpy(v.value) for v in layer.statistics_variables]
        if not all(np.isfinite(value).all() for value in values):
            raise ValueError(
                f"The batch statistics of layer {layer.name!r} are not finite: the "
                "weights may have diverged, or activations overflow (try float32 or "
                "mixed_bfloat16)."
            )


def build(model, batch):
    """Builds a model that is not built yet by calling it on an example."""
    if not model.built:
        model(keras.tree.map_structure(lambda x: x[:1], batch), training=False)
