"""What data come in: arrays, data sets, generators, as Keras takes them."""

import itertools
import warnings

import keras

from bayesnorm.arguments import positive_integer
from bayesnorm.streams.arrays import (
    as_arrays,
    cut,
    is_array_nest,
    is_plain_list,
    rows_of,
)

_INFINITE = -1  # tf.data.INFINITE_CARDINALITY


def elements(x, batch_size, steps=None):
    """Yields the inputs in the batches that data come in, arrays as one.

    Args:
        x: As for `bayesnorm.streams.batches.stream`.
        batch_size: Integer, of a step of arrays.
        steps: Number of batches to take, and no one more is read; None for all.

    Yields:
        Nests of NumPy arrays, of any number of rows.

    Raises:
        ValueError, TypeError: If `steps` is no integer from 1, or `x` no data; at once.
    """
    if steps is not None:
        steps = positive_integer("steps", steps)
    if is_array_nest(x):
        return iter([_first_steps(as_arrays(x), batch_size, steps)])
    if isinstance(x, keras.utils.PyDataset):
        return _inputs(items(x), steps)
    if hasattr(x, "__iter__") and not isinstance(x, str | bytes):
        return _inputs(x, steps)
    raise TypeError(
        "`x` must be an array, a nest of arrays, a tf.data.Dataset, a "
        "keras.utils.PyDataset or an iterable of batches. Received: "
        f"{type(x).__name__}"
    )


def check_ends(x, steps):
    """Raises a ValueError if data are known to go on for ever, and `steps` is None.

    That of a generator is not known.
    """
    if steps is None and is_endless(x):
        raise ValueError(
            f"The {type(x).__name__} has no end (repeat() without a number, or "
            "num_batches=None). Pass steps=, the number of its batches to take, or "
            "give a data set with an end."
        )


def is_endless(x):
    """Whether data are known to go on for ever; of a generator it is not known."""
    if isinstance(x, keras.utils.PyDataset):
        return _num_batches(x) is None
    cardinality = getattr(x, "cardinality", None)
    return callable(cardinality) and int(cardinality()) == _INFINITE


def _num_batches(dataset):
    try:
        return dataset.num_batches
    except NotImplementedError:  # Keras goes through it as if it were None.
        return None


def items(dataset):
    """Yields the items of a `PyDataset` in their order, perhaps for ever."""
    number = _num_batches(dataset)
    numbers = itertools.count() if number is None else range(number)
    yield from (dataset[i] for i in numbers)


def _inputs(batches, steps):
    taken = 0
    for batch in itertools.islice(batches, steps):
        taken += 1
        yield as_arrays(_inputs_of(batch))
    _warn_short(taken, steps)


def _inputs_of(element):
    """Returns the inputs of `(inputs, labels, ...)`: a tuple, or as in Keras a list."""
    several = isinstance(element, list | tuple) and not is_plain_list(element)
    if not several:
        return element
    if not element:
        raise ValueError("Expected batches. Received an empty tuple or list.")
    return element[0]


def _first_steps(arrays, batch_size, steps):
    if steps is None:
        return arrays
    rows = rows_of(arrays)
    _warn_short(-(-rows // batch_size), steps)
    return cut(arrays, 0, min(rows, steps * batch_size))


def _warn_short(taken, steps):
    if steps is not None and taken < steps:
        warnings.warn(
            f"The data ended after {taken} of steps={steps} batches.", stacklevel=3
        )
