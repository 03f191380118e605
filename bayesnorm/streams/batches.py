"""Any data as a stream of batches of one size."""

import itertools

import keras
import numpy as np

from bayesnorm.graph import functional, is_graph
from bayesnorm.streams.arrays import (
    as_arrays,
    cut,
    is_array_nest,
    is_string,
    join,
    rows_of,
    shapes_of,
)
from bayesnorm.streams.elements import check_ends, elements


def stream(x, batch_size, model, steps=None, most=None):
    """Returns the inputs of a model in batches of `batch_size`.

    Args:
        x: Array, or a nest of arrays for several inputs; or batches of them, also
            as `(inputs, labels, ...)` tuples (or lists) whose labels are ignored: a
            `tf.data.Dataset`, a `keras.utils.PyDataset` or any iterable. The
            examples of a batch have one shape, another batch may have another.
        batch_size: Integer; the stream is cut anew, whatever its own batches.
        model: The model, whose input shapes are checked where it shows them.
        steps: Number of batches of `x` to take (of `batch_size` where it is arrays);
            None for all.
        most: Function of a batch that returns how many of its examples a batch may
            have; None for `batch_size`.

    Returns:
        An iterator of nests of NumPy arrays `[batch_size, ...]`, in the order of the
        inputs; the last one before the shape changes or the data end may be shorter.

    Raises:
        ValueError: If the data have no end and `steps` is None, at once; if they are
            empty, hold a value that is not finite, or do not fit the model.
        TypeError: If `x` is no data, at once.
    """
    check_ends(x, steps)
    return _batches(elements(x, batch_size, steps), batch_size, model, most)


def sized_stream(x, batch_size, model, steps=None):
    """Returns the size of the batches of data, and the batches, as `stream` does.

    The data may be without an end.

    Args:
        x: As for `stream`.
        batch_size: Integer; None for the size of the first batch that a stream gives,
            or 32 for arrays.
        model: The model.
        steps: As for `stream`.

    Returns:
        `(batch_size, iterator)`.
    """
    if batch_size is None and is_array_nest(x):
        batch_size = 32  # As in Keras's `fit`.
    found = elements(x, batch_size, steps)
    if batch_size is None:
        first = next(found, None)
        batch_size = 1 if first is None else rows_of(first)
        found = itertools.chain([] if first is None else [first], found)
    return batch_size, _batches(found, batch_size, model)


def reshuffled(x, seed, epoch=0):
    """Returns arrays in a random order, a stream as it is.

    Args:
        x: As for `stream`.
        seed: Integer from 0.
        epoch: Integer from 0; no two of a seed, nor of two seeds, have one order.
    """
    if not is_array_nest(x):
        return x
    arrays = as_arrays(x)
    order = np.random.default_rng([seed, epoch]).permutation(rows_of(arrays))
    return keras.tree.map_structure(lambda array: array[order], arrays)


def number_of_batches(x, batch_size, steps=None, rows=None):
    """Returns the number of batches, None where it is not known beforehand.

    Args:
        x: As for `stream`.
        batch_size: As for `stream`.
        steps: As for `stream`.
        rows: Integer, the most examples that a batch has; None for `batch_size`.
    """
    if not is_array_nest(x):
        return None
    examples = rows_of(as_arrays(x))
    if steps is not None:
        examples = min(examples, steps * batch_size)
    return -(-examples // (rows or batch_size))


def _batches(found, batch_size, model, most=None):
    start = 0
    for batch in recut(_checked(found, model), batch_size, most):
        _check_finite(batch, start)
        start += rows_of(batch)
        yield batch
    if not start:
        raise ValueError(
            "The data are empty: one example or more are needed. (A generator can be "
            "read only once.)"
        )


def _checked(found, model):
    """Yields the batches that have examples, once their shapes are seen to fit."""
    shapes = None
    for batch in found:
        if not rows_of(batch):
            continue
        if shapes_of(batch) != shapes:
            check_inputs(batch, model)
            shapes = shapes_of(batch)
        yield batch


def recut(found, batch_size, most=None):
    """Yields batches cut anew, of `batch_size` until their shape changes or they end.

    Args:
        found: Iterable of nests of arrays.
        batch_size: Integer.
        most: As for `stream`.
    """
    for _, group in itertools.groupby(found, shapes_of):
        yield from _recut_group(group, batch_size, most)


def _recut_group(group, batch_size, most):
    size, waiting, rows = None, [], 0
    for batch in group:
        if size is None:
            size = min(batch_size, most(batch)) if most else batch_size
        waiting.append(batch)
        rows += rows_of(batch)
        if rows < size:
            continue
        joined = join(waiting)
        for start in range(0, rows - rows % size, size):
            yield cut(joined, start, start + size)
        waiting = [cut(joined, rows - rows % size, rows)]
        rows %= size
    if rows:
        yield join(waiting)


def check_inputs(batch, model):
    """Compares a batch with the model's inputs: number, shapes, strings or numbers.

    Args:
        batch: Nest of arrays.
        model: A model.

    Raises:
        ValueError: If they do not fit.
    """
    arrays = keras.tree.flatten(batch)
    if keras.backend.backend() != "tensorflow" and any(map(is_string, arrays)):
        raise ValueError(
            "Strings go through a model with the TensorFlow backend only; this is "
            f"{keras.backend.backend()!r}. Turn them into numbers first, e.g. "
            "keras.layers.TextVectorization(...)(strings), and give the model these."
        )
    if not is_graph(model):
        return
    inputs = functional(model).inputs
    if len(arrays) != len(inputs):
        raise ValueError(
            f"Model {model.name!r} takes {len(inputs)} inputs "
            f"({[x.name for x in inputs]}). Received {len(arrays)} arrays. (A list of "
            "arrays is one array per input; give batches as a generator. Of a batch "
            "that is a tuple or list the first entry counts: several inputs are "
            "((a, b), labels) or ((a, b),).)"
        )
    if isinstance(batch, dict) and all(x.name in batch for x in inputs):
        arrays = [batch[x.name] for x in inputs]
    for x, array in zip(inputs, arrays, strict=True):
        if not _fits(x.shape[1:], array.shape[1:]):
            raise ValueError(
                f"Input {x.name!r} of model {model.name!r} takes arrays of shape "
                f"{('n', *x.shape[1:])}. Received: {('n', *array.shape[1:])}."
                + _hint(x.shape, array.shape)
            )
        if is_string(array) != (x.dtype == "string"):
            raise ValueError(
                f"Input {x.name!r} of model {model.name!r} takes {x.dtype}. Received: "
                f"an array of {'strings' if is_string(array) else array.dtype}."
            )


def _hint(expected, received):
    if len(received) == len(expected) - 1:
        return (
            " The batch axis is missing: x[None] is a batch of one, and "
            "dataset.batch(256) batches a data set."
        )
    return ""


def _fits(expected, received):
    # Keras adds or drops a last axis of 1 itself.
    if len(received) == len(expected) + 1 and received[-1] == 1:
        received = received[:-1]
    elif len(received) == len(expected) - 1 and expected[-1] == 1:
        received = (*received, 1)
    return len(expected) == len(received) and all(
        e in (None, r) for e, r in zip(expected, received, strict=True)
    )


def _check_finite(batch, start):
    for leaf in keras.tree.flatten(batch):
        if not np.issubdtype(leaf.dtype, np.inexact) or np.isfinite(leaf).all():
            continue
        bad = ~np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)
        raise ValueError(
            f"Example {start + int(bad.argmax())} holds NaN or infinity: expected "
            "finite values. Clean the data first, e.g. with numpy.nan_to_num."
        )
