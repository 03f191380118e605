"""TensorFlow's data parallelism: a copy of the network for each part of a batch.

Under a strategy of `tf.distribute` the body of a step runs once for each replica, with
variables that they have in common: gradients are summed by Keras's optimizers.
"""

import contextlib
import os

import tensorflow as tf

from bayesnorm.backend.workers import NO_ACCELERATOR, WorkerLostError, Workers

__all__ = [
    "averaging",
    "batch_parts",
    "data_parallel",
    "own_rows",
    "replica_id",
    "replicas",
    "replicated",
    "spread",
    "sum_over_replicas",
]


def replica_id():
    """Returns this replica's index under `tf.distribute`, else None."""
    if not tf.distribute.has_strategy():
        return None
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return context.replica_id_in_sync_group


def replicas():
    """Returns the number of replicas in sync under `tf.distribute`, else 1."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def batch_parts():
    """Returns the number of parts that the batch of a step is cut into."""
    return replicas()


def own_rows(x):
    """Returns the rows of a batch that this replica computes.

    Args:
        x: Tensor `[batch, ...]`; `batch_parts` divides the batch.
    """
    replica = replica_id()
    if replica is None:
        return x
    rows = x.shape[0] // replicas()
    return tf.reshape(x, (replicas(), rows, *x.shape[1:]))[replica]


def sum_over_replicas(values):
    """Returns the sums of a list of tensors over the replicas, which get all of it."""
    if replica_id() is None:
        return values
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def replicated(tensors):
    """Puts tensors on the device of every replica; returns what `spread` takes."""
    if not tf.distribute.has_strategy():
        return tensors
    strategy = tf.distribute.get_strategy()
    return [
        strategy.experimental_distribute_values_from_function(
            lambda context, x=x: tf.identity(x)
        )
        for x in tensors
    ]


def spread(body):
    """Returns `body` of a step run by every replica.

    Args:
        body: A function `(i, carry, *tensors) -> carry` that returns the same in all
            replicas.
    """
    # Of a single replica variables are read in its context alone, too.
    if not tf.distribute.has_strategy():
        return body
    strategy = tf.distribute.get_strategy()

    def run(i, carry, *tensors):
        carries = strategy.run(body, args=(i, carry, *tensors))
        return tf.nest.map_structure(
            lambda x: strategy.experimental_local_results(x)[0], carries
        )

    return run


def averaging(variables):
    """Returns a function that gives variables their mean over the replicas.

    Args:
        variables: Keras variables that each replica wrote by itself, such as the moving
            averages of its parts of the batches. Integers are left alone.
    """
    values = [v.value for v in variables if v.value.dtype.is_floating]
    if replicas() == 1 or not values:
        return lambda: None
    strategy = tf.distribute.get_strategy()

    def average():
        read = strategy.run(lambda: [tf.convert_to_tensor(value) for value in values])
        for value, copies in zip(values, read, strict=True):
            value.assign(strategy.reduce("MEAN", copies, axis=None))

    return tf.function(average, autograph=False)


@contextlib.contextmanager
def data_parallel(kind, parts=None):
    """Trains in parts of a batch what is built and trained inside of it.

    Args:
        kind: `"devices"` of this machine, or `"workers"`: processes which the
            environment variable `TF_CONFIG` lists, each with its devices.
        parts: Of `"devices"` their number, by default all accelerators. Without any the
            CPU stands for that many.

    Yields:
        A `Workers`.

    Raises:
        ValueError: If there are no such devices, or no `TF_CONFIG`.
        WorkerLostError: If another worker was lost.
    """
    strategy = _of_workers() if kind == "workers" else _of_devices(parts)
    resolver = strategy.cluster_resolver
    index = resolver.task_id if kind == "workers" else 0
    count = len(resolver.cluster_spec().job_tasks("worker")) if kind == "workers" else 1
    local = strategy.num_replicas_in_sync // count

    @tf.function(autograph=False)
    def gathered(number):
        def of_replica(number):
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            own = number * tf.one_hot(replica // local, count, dtype="int32")
            return sum_over_replicas([own])[0]

        return strategy.run(of_replica, args=(number,))

    def gather(number):
        sums = strategy.experimental_local_results(gathered(tf.constant(number)))
        # Each of a worker's replicas brought its number.
        return (sums[0].numpy() // local).tolist()

    lost = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.InternalError)
    try:
        with strategy.scope():
            yield Workers(index, count, strategy.num_replicas_in_sync, gather)
            gather(0)
    except lost as error:
        if kind != "workers":
            raise
        raise WorkerLostError(error.message.splitlines()[0]) from error


def _of_devices(parts):
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        if parts is not None and parts > len(gpus):
            raise ValueError(f"There are {len(gpus)} GPUs, fewer than {parts}.")
        return tf.distribute.MirroredStrategy(
            [f"GPU:{i}" for i in range(parts or len(gpus))]
        )
    if parts is None:
        raise ValueError(NO_ACCELERATOR)
    (cpu,) = tf.config.list_physical_devices("CPU")
    logical = [tf.config.LogicalDeviceConfiguration()] * parts
    try:
        tf.config.set_logical_device_configuration(cpu, logical)
    except RuntimeError as error:
        raise ValueError(
            "TensorFlow has begun to compute, and its devices are what they are: begin "
            "with data_parallel."
        ) from error
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(parts)])


def _of_workers():
    if "TF_CONFIG" not in os.environ:
        raise ValueError(
            "Workers are found by the environment variable TF_CONFIG. It is not set: "
            'for two of them {"cluster": {"worker": ["HOST0:PORT", "HOST1:PORT"]}'
            ', "task": {"type": "worker", "index": 0}}, and index 1 on the second.'
        )
    return tf.distribute.MultiWorkerMirroredStrategy()
