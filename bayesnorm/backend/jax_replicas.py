"""JAX's data parallelism: one program, partitioned over devices and processes.

Under `keras.distribution.DataParallel` variables are everywhere, and a batch is cut by
its first axis. The program sees the whole batch: nothing has to be summed.
"""

import contextlib
import os

import jax
import keras
import numpy as np
from keras import distribution

from bayesnorm.backend.workers import NO_ACCELERATOR, Workers

__all__ = [
    "averaging",
    "batch_parts",
    "data_parallel",
    "own_rows",
    "replica_id",
    "replicas",
    "replicated",
    "sum_over_replicas",
]


def replica_id():
    """Returns None: JAX partitions one program, whose draws never repeat."""
    return None


def replicas():
    """Returns 1: JAX partitions one program, which sees the whole batch."""
    return 1


def batch_parts():
    """Returns the number of parts that the batch of a step is cut into."""
    found = distribution.distribution()
    return 1 if found is None else found.num_model_replicas


def own_rows(x):
    """Cuts a batch by its first axis; returns it, whole for the program.

    Args:
        x: Tensor `[batch, ...]`; `batch_parts` divides the batch.
    """
    return _laid(x, cut=True)


def sum_over_replicas(values):
    """Returns the values: they are of the whole batch."""
    return values


def replicated(tensors):
    """Puts a nest of tensors on every device."""
    return jax.tree.map(lambda x: _laid(x, cut=False), tensors)


def _laid(x, cut):
    found = distribution.distribution()
    if found is None:
        return x
    axes = [None] * x.ndim
    if cut:
        axes[0] = found.batch_dim_name
    layout = distribution.TensorLayout(axes, found.device_mesh)
    return distribution.distribute_tensor(x, layout)


def averaging(variables):
    """Returns a function that does nothing: there is one value of a variable.

    Args:
        variables: Keras variables.
    """
    del variables
    return lambda: None


@contextlib.contextmanager
def data_parallel(kind, parts=None):
    """Trains in parts of a batch what is built and trained inside of it.

    Args:
        kind: `"devices"` of this machine, or `"workers"`: processes which the
            environment variables of `keras.distribution.initialize` list, each with
            its devices.
        parts: Of `"devices"` their number, by default all accelerators. Without any the
            CPU stands for that many.

    Yields:
        A `Workers`.

    Raises:
        ValueError: If there are no such devices, or the environment lists no processes.
    """
    if kind == "workers":
        _join()
        devices = jax.devices()
    else:
        devices = _devices(parts)
    found = distribution.DataParallel(devices=[_name(d) for d in devices])
    before = distribution.distribution()
    distribution.set_distribution(found)
    try:
        yield Workers(jax.process_index(), jax.process_count(), len(devices), _gather)
        _gather(0)
    finally:
        distribution.set_distribution(before)


def _name(device):
    return f"{device.platform}:{device.id}"


def _devices(parts):
    # Before the first look at the devices, which makes them.
    if parts is not None:
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", parts)
    devices = jax.devices()
    if parts is None and devices[0].platform == "cpu":
        raise ValueError(NO_ACCELERATOR)
    if parts is not None and parts > len(devices):
        raise ValueError(f"There are {len(devices)} devices, fewer than {parts}.")
    return devices[:parts]


def _join():
    name = "KERAS_DISTRIBUTION_JOB_ADDRESSES"
    if name not in os.environ:
        raise ValueError(
            f"Workers are found by the environment variables {name} (HOST:PORT of the "
            "first), KERAS_DISTRIBUTION_NUM_PROCESSES and KERAS_DISTRIBUTION_PROCESS_ID"
            f" (0, 1, ...). {name} is not set."
        )
    distribution.initialize()


def _gather(number):
    if jax.process_count() == 1:
        return [number]
    from jax.experimental import multihost_utils

    gathered = multihost_utils.process_allgather(np.asarray([number], "int32"))
    return keras.ops.convert_to_numpy(gathered).reshape(-1).tolist()
