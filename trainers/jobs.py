"""Independent jobs through joblib, on this machine or on a cluster."""

import importlib

import joblib

from trainers import flags as trainer_flags
from trainers.program import prepare


def parallel(flags, function, arguments, waits=False):
    """Calls a function for each of `arguments`, `--jobs` at a time.

    With `--jobs=1` in this process, one after the other.

    Args:
        flags: The flags of the run.
        function: Function of a module.
        arguments: List of tuples.
        waits: Whether the function only waits for a process that it starts: on this
            machine threads do then.

    Returns:
        List of what it returned, in order.

    Raises:
        ImportError: If the cluster's package is not installed.
    """
    if flags.jobs == 1:
        return [function(*args) for args in arguments]
    backend = flags.parallel
    _register(backend)
    if waits and backend == "loky":
        backend = "threading"
    with joblib.parallel_config(backend=backend, n_jobs=flags.jobs):
        return joblib.Parallel()(joblib.delayed(function)(*args) for args in arguments)


def run(program, name, flags, arguments):
    """Calls a function for each of `arguments`, in processes of their own.

    With `--jobs=1` nothing is called: the caller does the work itself, one after the
    other. They must write what they do to disk.

    Args:
        program: The `Program`.
        name: Name of the function in its module, of the flags and an entry of
            `arguments`.
        flags: The flags of the run.
        arguments: List of tuples.

    Raises:
        ImportError: If the cluster's package is not installed.
    """
    if flags.jobs > 1 and len(arguments) > 1:
        values = trainer_flags.texts(flags)
        jobs = [(program.module, name, values, args) for args in arguments]
        parallel(flags, _call, jobs)


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
    module = importlib.import_module(module)
    flags = module.PROGRAM.flags(values)
    prepare(flags)
    getattr(module, name)(flags, *arguments)
