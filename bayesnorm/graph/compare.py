"""Whether two models of one structure compute the same."""

import keras
import numpy as np
from keras import ops

from bayesnorm.graph.internals import functional, is_graph
from bayesnorm.graph.run import enters, run

_BATCH = 2
# Size of an axis that the model leaves open, in a batch made up for it.
_OPEN_AXIS = 8


def first_difference(old, new, tolerance=1e-5):
    """Compares the outputs of two models in evaluation, on a batch of random inputs.

    Args:
        old: A model.
        new: A model whose graph makes as many calls, in the same order.
        tolerance: Largest difference that counts as rounding, relative to the largest
            output.

    Returns:
        The layer of `old` whose output differs first; None if the outputs agree, or
        nothing can be said: the models show no graph, or the inputs made up are none
        that the old one takes.
    """
    if not (is_graph(old) and is_graph(new)):
        return None
    inputs = _made_up(functional(old).inputs)
    if inputs is None:
        return None
    try:
        expected = _run(old, inputs)
    except Exception:
        # Such as an index out of the range of an embedding.
        return None
    if _agree(expected, _run(new, inputs), tolerance):
        return None
    theirs, ours = [], []
    _run(old, inputs, theirs)
    _run(new, inputs, ours)
    for (layer, x), (_, y) in zip(theirs, ours, strict=False):
        if not _agree(x, y, tolerance):
            return layer
    return theirs[-1][0]


def _made_up(tensors):
    """Returns random inputs for symbolic ones, None where these are no numbers."""
    rng = np.random.default_rng(0)
    found = []
    for x in tensors:
        shape = [_OPEN_AXIS if size is None else size for size in x.shape]
        if x.shape[0] is None:
            shape[0] = _BATCH
        if keras.backend.is_float_dtype(x.dtype):
            values = rng.normal(size=shape)
        elif x.dtype == "string":
            return None
        else:
            values = rng.integers(0, 2, shape)
        found.append(ops.convert_to_tensor(values, x.dtype))
    return found


def _run(model, inputs, record=None):
    """Returns the outputs, a list of arrays; `record` gets those of each call."""

    def call(operation, *args, **kwargs):
        if enters(operation, args, kwargs):
            return run(operation, args[0], call)
        outputs = operation(*args, **kwargs)
        if record is not None:
            record.append((operation, _arrays(outputs)))
        return outputs

    return _arrays(run(model, inputs, call, standardized=True))


def _arrays(outputs):
    flat = keras.tree.flatten(outputs)
    return [np.asarray(ops.convert_to_numpy(x), "float64") for x in flat]


def _agree(first, second, tolerance):
    return len(first) == len(second) and all(
        x.shape == y.shape
        and np.allclose(x, y, rtol=0, atol=tolerance * _size(x), equal_nan=True)
        for x, y in zip(first, second, strict=True)
    )


def _size(x):
    finite = np.abs(x[np.isfinite(x)])
    return max(1.0, finite.max()) if finite.size else 1.0
