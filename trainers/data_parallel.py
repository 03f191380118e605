"""Runs of which several devices, or machines, train one network."""

import contextlib
import os
import pathlib
import shutil
import tempfile

from bayesnorm import backend


@contextlib.contextmanager
def of(flags, workdir):
    """The place of a run, as its `--data_parallel` says.

    All workers run all of the program: what they train they train together, and the
    rest each of them does by itself, with the same outcome. The first has the working
    directory; the others begin with a copy of it, which is dropped at the end, and
    print nothing.

    Args:
        flags: The flags of the run; gets the `workdir` of this process.
        workdir: The working directory, on a disk that all workers see.

    Raises:
        ValueError: What `backend.data_parallel` raises, if the run is one of several
            processes already, or the workers do not see one directory.
        WorkerLostError: If another worker was lost.
    """
    kind = flags.data_parallel
    several = "runs" in flags and flags.runs
    if kind == "none" or (several and kind == "devices"):
        yield  # Runs of a comparison have the flag.
        return
    if several:
        raise ValueError(
            "--data_parallel=workers is of one run: give the flags of one, or "
            "--data_parallel=devices with --runs."
        )
    if "jobs" in flags and flags.jobs > 1:
        raise ValueError(
            "--jobs trains several networks at a time, --data_parallel one on several "
            f"devices: give one of them. Received: --jobs={flags.jobs}"
        )
    with (
        backend.data_parallel(kind, flags.replicas) as workers,
        tempfile.TemporaryDirectory() as scratch,
        contextlib.ExitStack() as stack,
    ):
        seen = _seen(pathlib.Path(workdir))
        if len(set(workers.gather(seen))) > 1:
            raise ValueError(
                f"The workers see other files in {workdir}: give a --workdir on a disk "
                "that all of them have in common."
            )
        if workers.index:
            flags.workdir = os.path.join(scratch, "run")
            if os.path.isdir(workdir):
                shutil.copytree(workdir, flags.workdir)
            quiet = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(quiet))
        else:
            print(f"{workers.replicas} replicas, {workers.count} workers")
        # The first must not write before the others have read.
        workers.gather(0)
        yield


def _seen(folder):
    """Returns how many files a folder has: what is written in it adds to them."""
    return sum(1 for path in folder.rglob("*") if path.is_file())
