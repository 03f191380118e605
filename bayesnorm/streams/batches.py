"""Any data as a stream of batches of one size."""

import itertools

import keras
import numpy as np

from bayesnorm.graph import functional, is_graph


def stream(x, batch_size, model):
    """Yields the inputs of a model in batches of `batch_size`.

    Args:
        x: Array, or a nest of arrays for several inputs; or batches of them, also
            as `(inputs, labels, ...)` tuples whose labels are ignored: a
            `tf.data.Dataset`, a `keras.utils.PyDataset` or any iterable.
        batch_size: Integer; the stream is cut anew, whatever its own batches.
        model: The model, whose input shapes are checked where it shows them.

    Yields:
        Nests of NumPy arrays `[batch_size, ...]`; the last one may be shorter.

    Raises:
        ValueError: If the data are empty, hold a value that is not finite, or do
            not fit the model.
    """
    start = 0
    for batch in _recut(_elements(x), batch_size):
        if not start:
            check_inputs(batch, model)
        _check_finite(batch, start)
        start += _rows(batch)
        yield batch
    if not start:
        raise ValueError(
            "The data are empty: one example or more are needed. (A generator can be "
            "read only once.)"
        )


def sized_stream(x, batch_size, model):
    """Returns the size of the batches of data, and the batches, as `stream` does.

    Args:
        x: As for `stream`.
        batch_size: Integer; None for the size of the first batch that a stream gives,
            or 32 for arrays.
        model: The model.

    Returns:
        `(batch_size, iterator)`.
    """
    if batch_size is None and _is_array_nest(x):
        batch_size = 32  # As in Keras's `fit`.
    if batch_size is None:
        elements = _elements(x)
        first = next(elements, None)
        if first is None:
            batch_size, x = 1, []
        else:
            # Tuples, of which the first entry counts: an element may be a tuple.
            rest = ((element,) for element in elements)
            batch_size, x = _rows(first), itertools.chain([(first,)], rest)
    return batch_size, stream(x, batch_size, model)


def reshuffled(x, seed, epoch=0):
    """Returns arrays in a random order, a stream as it is.

    Args:
        x: As for `stream`.
        seed: Integer from 0.
        epoch: Integer from 0; no two of a seed, nor of two seeds, have one order.
    """
    if not _is_array_nest(x):
        return x
    arrays = _as_arrays(x)
    order = np.random.default_rng([seed, epoch]).permutation(_rows(arrays))
    return keras.tree.map_structure(lambda array: array[order], arrays)


def number_of_batches(x, batch_size):
    """Returns the number of batches, None where it is not known beforehand."""
    if not _is_array_nest(x):
        return None
    return -(-_rows(_as_arrays(x)) // batch_size)


def pad(batch, rows):
    """Repeats the last example so that the batch has `rows` rows."""

    def padded(x):
        missing = [(0, rows - len(x))] + [(0, 0)] * (x.ndim - 1)
        return np.pad(x, missing, mode="edge")

    short = _rows(batch) < rows
    return keras.tree.map_structure(padded, batch) if short else batch


def _elements(x):
    """Yields nests of NumPy arrays, of any number of rows."""
    if _is_array_nest(x):
        yield _as_arrays(x)
    elif isinstance(x, keras.utils.PyDataset):
        if x.num_batches is None:
            raise ValueError("Expected a PyDataset with an end: num_batches is None.")
        for i in range(x.num_batches):
            yield _inputs_of(x[i])
    elif hasattr(x, "__iter__") and not isinstance(x, str | bytes):
        for element in x:
            yield _inputs_of(element)
    else:
        raise TypeError(
            "`x` must be an array, a nest of arrays, a tf.data.Dataset, a "
            "keras.utils.PyDataset or an iterable of batches. Received: "
            f"{type(x).__name__}"
        )


def _inputs_of(element):
    return _as_arrays(element[0] if isinstance(element, tuple) else element)


def _is_array(x):
    return hasattr(x, "__array__") or keras.ops.is_tensor(x)


def _is_array_nest(x):
    if isinstance(x, list | tuple | dict):
        return all(_is_array(leaf) or _is_number(leaf) for leaf in _leaves(x))
    return _is_array(x)


def _is_number(x):
    return isinstance(x, int | float)


def _leaves(x):
    return keras.tree.flatten(x)


def _as_arrays(x):
    leaves = _leaves(x)
    if isinstance(x, list | tuple) and all(_is_number(leaf) for leaf in leaves):
        return np.asarray(x, "float32")
    arrays = keras.tree.map_structure(np.asarray, x)
    for leaf in _leaves(arrays):
        if leaf.ndim == 0:
            raise ValueError(
                "Expected arrays with the examples along the first axis. Received a "
                "scalar; batch the data set first, e.g. dataset.batch(256)."
            )
    rows = {len(leaf) for leaf in _leaves(arrays)}
    if len(rows) > 1:
        raise ValueError(
            "All inputs must have the same number of examples. Received arrays of "
            f"{sorted(rows)} rows."
        )
    return arrays


def _rows(batch):
    leaves = _leaves(batch)
    return len(leaves[0]) if leaves else 0


def _recut(elements, size):
    waiting, rows = [], 0
    for element in elements:
        waiting.append(element)
        rows += _rows(element)
        if rows < size:
            continue
        joined = _join(waiting)
        for start in range(0, rows - rows % size, size):
            yield _cut(joined, start, start + size)
        waiting = [_cut(joined, rows - rows % size, rows)]
        rows %= size
    if rows:
        yield _join(waiting)


def _join(batches):
    if len(batches) == 1:
        return batches[0]
    shapes = {tuple(x.shape[1:] for x in _leaves(batch)) for batch in batches}
    if len(shapes) > 1:
        raise ValueError(
            "All examples must have the same shape. Received batches of examples of "
            f"shapes {sorted(shapes)}."
        )
    return keras.tree.map_structure(lambda *xs: np.concatenate(xs), *batches)


def _cut(batch, start, stop):
    return keras.tree.map_structure(lambda x: x[start:stop], batch)


def check_inputs(batch, model):
    """Compares the shapes of a batch with the model's inputs.

    Args:
        batch: Nest of arrays or `keras.KerasTensor`s.
        model: A model.

    Raises:
        ValueError: If they do not fit.
    """
    if not is_graph(model):
        return
    inputs, arrays = functional(model).inputs, _leaves(batch)
    if len(arrays) != len(inputs):
        raise ValueError(
            f"Model {model.name!r} takes {len(inputs)} inputs "
            f"({[x.name for x in inputs]}). Received {len(arrays)} arrays. (A list of "
            "arrays is one array per input; give batches as a generator.)"
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
    for leaf in _leaves(batch):
        if not np.issubdtype(leaf.dtype, np.inexact) or np.isfinite(leaf).all():
            continue
        bad = ~np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)
        raise ValueError(
            f"Example {start + int(bad.argmax())} holds NaN or infinity: expected "
            "finite values. Clean the data first, e.g. with numpy.nan_to_num."
        )
