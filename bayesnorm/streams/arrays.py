"""Nests of NumPy arrays, the examples along their first axis."""

import keras
import numpy as np


def is_array_nest(x):
    """Whether data are arrays, all there, and not batches of them to go through."""
    if isinstance(x, list | tuple | dict):
        return all(_is_array(leaf) or _is_plain(leaf) for leaf in _leaves(x))
    return _is_array(x)


def as_arrays(x):
    """Returns a nest of arrays, tensors, data frames or lists of numbers as NumPy's.

    A pandas Series becomes a column `[n, 1]`, as in Keras.

    Raises:
        ValueError: If they have no first axis or not the same number of examples, or
            are no dense arrays of numbers or strings.
    """
    if is_plain_list(x):
        strings = any(isinstance(leaf, str | bytes) for leaf in _leaves(x))
        arrays = np.asarray(x, object if strings else "float32")
    else:
        arrays = keras.tree.map_structure(_as_array, x)
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


def is_plain_list(x):
    """Whether data are a list, or lists in a list, of numbers or of strings."""
    leaves = _leaves(x) if isinstance(x, list | tuple) else []
    return bool(leaves) and all(_is_plain(leaf) for leaf in leaves)


def rows_of(batch):
    """Returns the number of examples."""
    leaves = _leaves(batch)
    return len(leaves[0]) if leaves else 0


def shapes_of(batch):
    """Returns the shapes of an example, a tuple for each array."""
    return tuple(x.shape[1:] for x in _leaves(batch))


def join(batches):
    """Puts batches of one shape together."""
    if len(batches) == 1:
        return batches[0]
    return keras.tree.map_structure(lambda *xs: np.concatenate(xs), *batches)


def cut(batch, start, stop):
    """Returns the examples from `start` to before `stop`."""
    return keras.tree.map_structure(lambda x: x[start:stop], batch)


def pad(batch, rows):
    """Repeats the last example so that the batch has `rows` rows."""
    missing = rows - rows_of(batch)
    if missing <= 0:
        return batch
    return keras.tree.map_structure(
        lambda x: np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]), batch
    )


def is_string(array):
    """Whether an array holds strings."""
    return array.dtype.kind in "OSU"


def _leaves(x):
    return keras.tree.flatten(x)


def _is_array(x):
    return hasattr(x, "__array__") or keras.ops.is_tensor(x) or _is_sparse(x)


def _is_plain(x):
    return isinstance(x, int | float | str | bytes)


def _is_sparse(x):
    return hasattr(x, "todense") or hasattr(x, "dense_shape")


def _as_array(x):
    if hasattr(x, "row_splits"):
        raise ValueError(
            "Expected arrays whose examples have one shape. Received a ragged tensor: "
            "give x.to_tensor(), with a mask in the model (keras.layers.Masking, "
            "mask_zero of an Embedding), or a stream of batches of one length each."
        )
    if _is_sparse(x):
        raise ValueError(
            "Expected dense arrays. Received a sparse one, of type "
            f"{type(x).__name__}: give x.toarray() (SciPy) or tf.sparse.to_dense(x), "
            "or a stream of dense batches."
        )
    array = np.asarray(x)
    if array.dtype == object and not all(
        isinstance(e, str | bytes) for e in array.flat
    ):
        kinds = sorted({type(e).__name__ for e in array.flat})
        raise ValueError(
            "Expected arrays of numbers or of strings. Received one of Python objects "
            f"(of type {', '.join(kinds)}): give columns of one type, e.g. "
            "frame.astype('float32'), and examples of several shapes as a stream of "
            "batches of one shape each."
        )
    if array.dtype.kind == "c":
        raise ValueError(
            "Expected arrays of real numbers or of strings. Received one of type "
            f"{array.dtype}, whose imaginary part would be lost: give x.real, or both "
            "parts as channels."
        )
    # A pandas Series, known by what NumPy's arrays have not.
    return array[:, None] if array.ndim == 1 and hasattr(x, "to_frame") else array
