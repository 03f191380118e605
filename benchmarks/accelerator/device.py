"""The accelerator: precision, compiled programs on disk, what it can do at most."""

import contextlib
import time

import jax
import jax.numpy as jnp
import keras

# The first is what JAX does by itself on an accelerator that has it.
PRECISIONS = ("tf32", "float32", "bfloat16")
_MATMUL = {"tf32": "tensorfloat32", "float32": "highest", "bfloat16": "default"}
_CHAIN, _TURNS = 8, 5


def keep_programs(directory):
    """Keeps compiled programs in a directory, where later calls find them."""
    jax.config.update("jax_compilation_cache_dir", str(directory))
    # Also the many small ones that make a network's initial weights.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def is_accelerator():
    """Whether computations run on something other than the CPU."""
    return jax.default_backend() != "cpu"


@contextlib.contextmanager
def precision(name):
    """Holds the precision of matrix products and convolutions.

    Args:
        name: `"tf32"` (float32 whose products may be of TensorFloat-32), `"float32"`,
            or `"bfloat16"` (Keras's policy `mixed_bfloat16`: weights, statistics,
            posteriors and losses stay float32).
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if name == "bfloat16" else "float32")
    try:
        with jax.default_matmul_precision(_MATMUL[name]):
            yield
    finally:
        keras.config.set_dtype_policy(policy)


def ceiling():
    """Returns what large matrix products reach now, in floating-point operations/s."""
    size = 8192 if is_accelerator() else 1024
    dtype = keras.config.dtype_policy().compute_dtype
    matrix = jnp.full((size, size), 1 / size, dtype)

    @jax.jit
    def chain(x):
        for _ in range(_CHAIN):
            x = x @ matrix
        return x

    chain(matrix).block_until_ready()
    seconds = []
    for _ in range(_TURNS):
        start = time.perf_counter()
        chain(matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 * _CHAIN / min(seconds)


def forward_flops(model, image_shape):
    """Returns the floating-point operations of a forward pass of one image."""
    variables = model.variables

    def forward(values, images):
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return model(images, training=False)

    images = jax.ShapeDtypeStruct((1, *image_shape), "float32")
    lowered = jax.jit(forward).lower([v.value for v in variables], images)
    return float(lowered.cost_analysis()["flops"])
