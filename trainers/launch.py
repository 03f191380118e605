"""Starts the workers of a run on this machine, and again those of one that was lost.

    python -m trainers.launch --workers=2 -- trainers.all_cnn --epochs=20
    KERAS_BACKEND=jax python -m trainers.launch --workers=2 -- trainers.all_cnn

Runs the command as so many processes, `--data_parallel=workers`, that know of each
other. If one of them dies, whatever of, the rest are stopped, and all begin again from
the last checkpoint. On a cluster its scheduler does the same: it runs the command on
every machine with the environment variables that this program sets, and restarts all
of them where one fails.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time

import keras
from absl import app, flags

from bayesnorm.backend import EXIT_WORKER_LOST

_WORKERS = flags.DEFINE_integer("workers", 2, "Processes.", 1)
_RESTARTS = flags.DEFINE_integer("restarts", 3, "How often all may begin again.", 0)

_POLL_SECONDS = 0.2
# What a worker needs to see for itself that another one is gone.
_PATIENCE_SECONDS = 5.0


def environment(index, addresses):
    """Returns the variables by which a worker finds the others.

    Args:
        index: Its number, from 0.
        addresses: `HOST:PORT` of each worker.
    """
    if keras.backend.backend() == "jax":
        prefix = "KERAS_DISTRIBUTION"
        return {
            f"{prefix}_JOB_ADDRESSES": addresses[0],
            f"{prefix}_NUM_PROCESSES": str(len(addresses)),
            f"{prefix}_PROCESS_ID": str(index),
        }
    task = {"type": "worker", "index": index}
    return {"TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task})}


def free_addresses(count):
    """Returns addresses of this machine with ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for own in sockets:
            own.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{own.getsockname()[1]}" for own in sockets]
    finally:
        for own in sockets:
            own.close()


def run_once(command, workers):
    """Runs the command in all workers.

    Returns:
        `(codes, said)`: the exit code of each worker, as of `subprocess`, and what
        those after the first wrote.
    """
    addresses = free_addresses(workers)
    with contextlib.ExitStack() as stack:
        logs = [
            stack.enter_context(tempfile.TemporaryFile("w+"))
            for _ in range(workers - 1)
        ]
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", *command, "--data_parallel=workers"],
                env=os.environ | environment(i, addresses),
                stdout=log,
                stderr=log and subprocess.STDOUT,
            )
            for i, log in enumerate([None, *logs])
        ]
        try:
            # Until one has failed, or all have ended.
            while {process.poll() for process in processes} <= {None, 0}:
                if all(process.poll() == 0 for process in processes):
                    break
                time.sleep(_POLL_SECONDS)
            codes = _stopped(processes)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        for log in logs:
            log.seek(0)
        return codes, [log.read() for log in logs]


def _stopped(processes):
    """Waits a little for processes, kills what still runs; returns the exit codes.

    A worker that waits for a lost one for ever is no failure of its own: its code is
    `EXIT_WORKER_LOST`.
    """
    codes = []
    until = time.monotonic() + _PATIENCE_SECONDS
    for process in processes:
        try:
            codes.append(process.wait(max(0.0, until - time.monotonic())))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            codes.append(EXIT_WORKER_LOST)
    return codes


def may_begin_again(codes):
    """Whether a worker was lost, rather than refused its flags or its data.

    Args:
        codes: Exit codes of the workers, one or more of them not 0.
    """
    killed = any(code < 0 for code in codes)
    return killed or set(codes) - {0} == {EXIT_WORKER_LOST}


def main(argv):
    """Runs the command, and again while workers are lost."""
    command = argv[1:]
    if not command:
        raise app.UsageError(
            "Give the module and its flags behind --: python -m trainers.launch "
            "--workers=2 -- trainers.all_cnn --epochs=20"
        )
    for attempt in range(_RESTARTS.value + 1):
        codes, said = run_once(command, _WORKERS.value)
        if not any(codes):
            return
        if not may_begin_again(codes) or attempt == _RESTARTS.value:
            break
        print(f"a worker was lost (exit codes {codes}): all begin again", flush=True)
    for i, (code, text) in enumerate(zip(codes[1:], said, strict=True), 1):
        if code:
            print(f"--- worker {i}, exit code {code}\n{text[-2000:]}", file=sys.stderr)
    sys.exit(f"error: the workers ended with exit codes {codes}")


if __name__ == "__main__":
    app.run(main)
