"""JAX's part of the backend."""

import jax
import jax.numpy as jnp
import keras
from tensorflow_probability.substrates import jax as tfp

__all__ = [
    "compiled",
    "fold_in",
    "replica_id",
    "seed_from_int",
    "stateless_normal",
    "tfp",
]


def seed_from_int(seed):
    """Returns the seed tensor `[2]` of a Python integer."""
    return jnp.array([(seed >> 32) & 0xFFFFFFFF, seed & 0xFFFFFFFF], "uint32")


def _key(seed):
    return jax.random.wrap_key_data(seed.astype("uint32"), impl="threefry2x32")


def fold_in(seed, data):
    """Returns a new seed `[2]`, a function of `seed` and the integer `data`."""
    return jax.random.key_data(jax.random.fold_in(_key(seed), data))


def stateless_normal(shape, seed):
    """Returns float32 standard normals, a function of `seed` alone."""
    return jax.random.normal(_key(seed), shape, "float32")


def replica_id():
    """Returns None: JAX partitions one program, whose draws never repeat."""
    return None


def compiled(function, variables):
    """Compiles `function`, which reads (and does not write) `variables`.

    Args:
        function: A function of tensors, in nests, to tensors, in nests.
        variables: The Keras variables that it reads.

    Returns:
        A function of the same signature that sees later assignments.
    """
    variables = list(variables)

    @jax.jit
    def run(values, args, kwargs):
        # A jitted closure would hold the variables' values as constants.
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return function(*args, **kwargs)

    def call(*args, **kwargs):
        return run([v.value for v in variables], args, kwargs)

    return call
