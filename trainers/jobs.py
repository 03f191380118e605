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
    if FLAGS.jobs == 1 or len(arguments) < 2:
        return
    _register(FLAGS.parallel)
    values = all_flags()
    with joblib.parallel_config(backend=FLAGS.parallel, n_jobs=FLAGS.jobs):
        joblib.Parallel()(
            joblib.delayed(_call)(module, name, values, args) for args in arguments
        )


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
