"""Serves an exported model over HTTP, with Ray Serve.

```
pip install "bayesnorm[serve]"
python -m bayesnorm.serving models/digits --replicas=2
curl http://127.0.0.1:8000/v1/models/digits:predict -d '{"inputs": ...}'
```

The folder is that of the model, with a folder for each version (or that of one
version). The latest version answers, also one that appears while the server runs.
"""

import os
import pathlib
import signal
import threading

from absl import app, flags

_NAME = flags.DEFINE_string("name", None, "The model's name; that of its folder.")
_VERSION = flags.DEFINE_multi_integer(
    "version", [], "Versions to serve, and no others; the latest if left out.", 0
)
_KEEP = flags.DEFINE_integer("keep", 1, "How many of the latest versions to serve.", 1)
_REPLICAS = flags.DEFINE_integer("replicas", 1, "Processes that answer.", 1)
_MAX_BATCH_SIZE = flags.DEFINE_integer(
    "max_batch_size", 32, "Most examples of a batch of several requests.", 1
)
_BATCH_WAIT_TIMEOUT_MS = flags.DEFINE_float(
    "batch_wait_timeout_ms", 5.0, "How long a batch waits for more requests.", 0.0
)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen at.", 1, 65535)
_POLL_SECONDS = flags.DEFINE_float(
    "poll_seconds", 2.0, "Time between looks for new versions; 0 for none.", 0.0
)
_MAX_REQUEST_MB = flags.DEFINE_float(
    "max_request_mb", 16.0, "Longest body of a request, in MiB.", 0.001
)
_THREADS = flags.DEFINE_integer(
    "threads", 0, "TensorFlow's threads in a replica; 0 for its own choice.", 0
)
_GPUS = flags.DEFINE_float("gpus", 0.0, "GPUs of a replica, or a share of one.", 0.0)
_RAY_ADDRESS = flags.DEFINE_string(
    "ray_address", None, "A cluster of Ray (`auto`: the one here); none: start one."
)


def _options(ray_serve):
    return ray_serve.Options(
        versions=tuple(_VERSION.value),
        keep=_KEEP.value,
        max_batch_size=_MAX_BATCH_SIZE.value,
        batch_wait_timeout_ms=_BATCH_WAIT_TIMEOUT_MS.value,
        poll_seconds=_POLL_SECONDS.value,
        max_request_bytes=int(_MAX_REQUEST_MB.value * 2**20),
        threads=_THREADS.value,
    )


def main(argv):
    """Serves until it is told to stop."""
    if len(argv) != 2:
        raise app.UsageError(f"Expected the folder of one model. Received: {argv[1:]}")
    # Ray reports its use to its makers unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        from bayesnorm.serving import ray_serve
    except ModuleNotFoundError as error:
        raise app.UsageError(
            f'{error}. Serving needs Ray: pip install "bayesnorm[serve]"'
        ) from error
    path, over = pathlib.Path(argv[1]).absolute(), threading.Event()
    try:
        address = ray_serve.start(
            path,
            _NAME.value,
            _REPLICAS.value,
            _options(ray_serve),
            _HOST.value,
            _PORT.value,
            _GPUS.value,
            _RAY_ADDRESS.value,
        )
        # After Ray's own handlers.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: over.set())
        print(f"Serving at {address}:predict", flush=True)
        over.wait()
    finally:
        ray_serve.stop(path, _NAME.value)


if __name__ == "__main__":
    app.run(main)
