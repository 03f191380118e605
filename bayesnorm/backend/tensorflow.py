"""TensorFlow's part of the backend."""

import tensorflow as tf
import tensorflow_probability as tfp

__all__ = [
    "compiled",
    "fold_in",
    "replica_id",
    "seed_from_int",
    "stateless_normal",
    "tfp",
]

# The default algorithm gives other numbers under XLA than without it.
_ALGORITHM = "philox"


def seed_from_int(seed):
    """Returns the seed tensor `[2]` of a Python integer."""
    return tf.constant([seed & 0x7FFFFFFFFFFFFFFF, 0], "int64")


def fold_in(seed, data):
    """Returns a new seed `[2]`, a function of `seed` and the integer `data`."""
    return tf.random.experimental.stateless_fold_in(
        seed, tf.cast(data, seed.dtype), alg=_ALGORITHM
    )


def stateless_normal(shape, seed):
    """Returns float32 standard normals, a function of `seed` alone."""
    return tf.random.stateless_normal(shape, seed, alg=_ALGORITHM)


def replica_id():
    """Returns this replica's index under `tf.distribute`, else None."""
    if not tf.distribute.has_strategy():
        return None
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return context.replica_id_in_sync_group


def compiled(function, variables):
    """Compiles `function`, which reads (and does not write) `variables`.

    Args:
        function: A function of tensors, in nests, to tensors, in nests.
        variables: The Keras variables that it reads.

    Returns:
        A function of the same signature that sees later assignments.
    """
    del variables  # A graph refers to its variables, whatever their values.
    return tf.function(function)
