"""Variables that are set back."""

import contextlib

import numpy as np
from keras import ops


def changing(model, but=()):
    """Returns the variables that a pass in training changes: all but the weights.

    Moving averages and the states of random generators are among them.

    Args:
        model: A built model.
        but: Variables to leave out.
    """
    out = {id(v) for v in (*model.trainable_variables, *but)}
    return [v for v in model.variables if id(v) not in out]


@contextlib.contextmanager
def restored(variables):
    """Sets variables back at the end."""
    values = _values(variables)
    try:
        yield
    finally:
        _assign(variables, values)


@contextlib.contextmanager
def restored_on_error(variables):
    """Sets variables back if the body raises."""
    values = _values(variables)
    try:
        yield
    except BaseException:
        _assign(variables, values)
        raise


def _values(variables):
    # Copies: JAX's arrays on a CPU share the buffers that a compiled step donates.
    return [np.array(ops.convert_to_numpy(v)) for v in variables]


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
