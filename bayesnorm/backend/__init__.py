"""What Keras leaves to the backend: one module for each, same names.

`keras.ops` and `keras.random` cover the layers. The rest (the substrate of
TensorFlow Probability, counter-based noise, replicas, compiling a function
that reads variables) stands here. With the JAX backend nothing imports
TensorFlow.
"""

import keras

from bayesnorm.backend.workers import EXIT_WORKER_LOST, WorkerLostError

if keras.backend.backend() == "tensorflow":
    from bayesnorm.backend.tensorflow import (
        MEMORY_OVERHEAD,
        add_bias,
        apply_gradients,
        compiled,
        compiled_loop,
        compiled_loops,
        compiled_step,
        current_graph,
        devices,
        distributions,
        erf,
        erfc,
        fold_in,
        fused,
        input_gradient,
        operations,
        read,
        scalar_writer,
        scan,
        seed_from_int,
        stateless_normal,
        total,
        value_and_gradients,
    )
    from bayesnorm.backend.tensorflow_replicas import (
        averaging,
        batch_parts,
        data_parallel,
        own_rows,
        replica_id,
        replicas,
        replicated,
        sum_over_replicas,
    )
elif keras.backend.backend() == "jax":
    from bayesnorm.backend.jax import (
        MEMORY_OVERHEAD,
        add_bias,
        apply_gradients,
        compiled,
        compiled_loop,
        compiled_loops,
        compiled_step,
        current_graph,
        devices,
        distributions,
        erf,
        erfc,
        fold_in,
        fused,
        input_gradient,
        operations,
        read,
        scalar_writer,
        scan,
        seed_from_int,
        stateless_normal,
        total,
        value_and_gradients,
    )
    from bayesnorm.backend.jax_replicas import (
        averaging,
        batch_parts,
        data_parallel,
        own_rows,
        replica_id,
        replicas,
        replicated,
        sum_over_replicas,
    )
else:
    raise ImportError(
        "bayesnorm runs on the TensorFlow and JAX backends of Keras. Received: "
        f"{keras.backend.backend()!r}. Set the environment variable "
        "KERAS_BACKEND to 'tensorflow' or 'jax' before Keras is imported."
    )

__all__ = [
    "EXIT_WORKER_LOST",
    "MEMORY_OVERHEAD",
    "WorkerLostError",
    "add_bias",
    "apply_gradients",
    "averaging",
    "batch_parts",
    "compiled",
    "compiled_loop",
    "compiled_loops",
    "compiled_step",
    "current_graph",
    "data_parallel",
    "devices",
    "distributions",
    "erf",
    "erfc",
    "fold_in",
    "fused",
    "input_gradient",
    "operations",
    "own_rows",
    "read",
    "replica_id",
    "replicas",
    "replicated",
    "scalar_writer",
    "scan",
    "seed_from_int",
    "stateless_normal",
    "sum_over_replicas",
    "total",
    "value_and_gradients",
]
