"""Independent jobs through joblib, on this machine or on a cluster."""

import importlib

import joblib
from absl import flags as absl_flags

from trainers.flags import FLAGS, all_flags

absl_flags.DEFINE_integer("jobs", 1, "Networks trained at a time.", 1)
absl_flags.DEFINE_enum(
    "parallel",
    "loky",
    ["loky", "ray", "dask"],
    "What runs the jobs: processes on this machine, or a Ray or Dask cluster, which "
    "must be installed and, for Dask, started by the caller.",
)


def parallel(function, arguments, waits=False):
    """Calls a function for each of `arguments`, `--jobs` at a time.

    With `--jobs=1` in this process, one after the other.

    Args:
        function: Function of a module.
        arguments: List of tuples.
        waits: Whether the function only waits for a process that it starts: on this
            machine threads do then.

    Returns:
        List of what it returned, in order.

    Raises:
        ImportError: If the cluster's package is not installed.
    """
    if FLAGS.jobs == 1:
        return [function(*args) for args in arguments]
    _register(FLAGS.parallel)
    backend = FLAGS.parallel
    if waits and backend == "loky":
        backend = "threading"
    with joblib.parallel_config(backend=backend, n_jobs=FLAGS.jobs):
        return joblib.Parallel()(joblib.delayed(function)(*args) for args in arguments)


def run(module, name, arguments):
    """Calls a function for each of `arguments`, in processes of their own.

    With `--jobs=1` nothing is called: the caller does the work itself, one after the
    other. The processes get this one's flags. They must write what they do to disk.

    Args:
        module: Name of the module of the function.
        name: Name of the function.
        arguments: List of tuples.

    Raises:
        ImportError: If the cluster's package is not installed.
    """
    if FLAGS.jobs > 1 and len(arguments) > 1:
        values = all_flags()
        parallel(_call, [(module, name, values, args) for args in arguments])


def _register(name):
    package = {"ray": "ray", "dask": "distributed"}.get(name)
    try:
        if name == "ray":
            from ray.util.joblib import register_ray

            register_ray()
        elif name == "dask":
            import distributed  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"--parallel={name} needs a package that is not installed: "
            f"`pip install {package}`."
        ) from error


def _call(module, name, values, arguments):
    """Runs in the other process."""
    function = getattr(importlib.import_module(module), name)
    # In the order of definition nothing depends on another: all values are given.
    FLAGS(["job", *(f"--{flag}={value}" for flag, value in values.items())])
    function(*arguments)
