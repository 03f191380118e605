"""Load of a served model: requests per second, latency, failures, repeated answers.

```
python -m benchmarks.serving --minutes=30 --output=benchmarks/results/serving
```

Exports an All-CNN whose answers are of 30 networks, and serves it on this machine: by
TensorFlow's C library behind gRPC (`tests/serving/prediction_service.py`, with the
stubs of `tensorflow-serving-api`) and by Ray Serve (`python -m bayesnorm.serving`).
Clients are threads of this process; each sends one example, waits for the answer and
sends the next. A latency is what a client sees, with the making and reading of
messages. Fresh noise never repeats: two equal answers of a server, of whichever
clients, are counted as repeated.
"""

import concurrent.futures
import json
import pathlib
import tempfile
import threading
import time

import numpy as np
from absl import app, flags

from bayesnorm import models
from bayesnorm.serving.export import export
from benchmarks import servers, timing
from trainers.flags import command
from trainers.report import tables

_MINUTES = flags.DEFINE_float("minutes", 30.0, "Time of all loads together.", 0.01)
_CLIENTS = flags.DEFINE_multi_integer("clients", [1, 8], "Clients at once.", 1)
_WIDTH = flags.DEFINE_float("width", 0.25, "Width factor of the All-CNN.", 0.01)
_SAMPLES = flags.DEFINE_integer("samples", 30, "Networks of an answer.", 1)
_REPLICAS = flags.DEFINE_integer("replicas", 1, "Replicas of Ray Serve.", 1)
_BATCH_WAIT_TIMEOUT_MS = flags.DEFINE_float(
    "batch_wait_timeout_ms", 5.0, "How long a batch of Ray Serve waits.", 0.0
)
_THREADS = flags.DEFINE_integer("threads", 0, "TensorFlow's threads in Ray Serve.", 0)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the table.")

# A server that fails at once must not fill the memory with failures.
_PAUSE = 0.1
_WARMUP = 3


class Answers:
    """Counts answers that came before, of all clients of a server."""

    def __init__(self):
        self._lock = threading.Lock()
        self._seen = set()
        self.repeated = 0

    def add(self, outputs):
        """Adds an answer, a dict of arrays."""
        # By hash: of 64 bits, a million answers collide once in 40 million times.
        key = hash(
            tuple(outputs[name].astype("float32").tobytes() for name in sorted(outputs))
        )
        with self._lock:
            self.repeated += key in self._seen
            self._seen.add(key)


def ask(server, inputs, seconds, answers, start):
    """Asks one request after the other.

    Args:
        server: A server.
        inputs: Dict of arrays.
        seconds: How long.
        answers: `Answers`.
        start: `threading.Barrier` of the clients.

    Returns:
        `(latencies, failures)`: seconds of each answer, and texts of errors.
    """
    latencies, failures = [], []
    client = server.client()
    for _ in range(_WARMUP):
        answers.add(client.predict(inputs)[0])
    start.wait()
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        try:
            outputs, _ = client.predict(inputs)
        except Exception as error:
            failures.append(f"{type(error).__name__}: {error}")
            client.close()
            client = server.client()
            time.sleep(_PAUSE)
            continue
        latencies.append(time.perf_counter() - begin)
        answers.add(outputs)
    client.close()
    return latencies, failures


def load(server, clients, inputs, seconds, answers):
    """Returns a row: what `clients` at once see in `seconds`."""
    start, before = threading.Barrier(clients, timeout=120), answers.repeated
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        asked = [
            pool.submit(ask, server, inputs, seconds, answers, start)
            for _ in range(clients)
        ]
        found = [each.result() for each in asked]
    latencies = np.array([t for times, _ in found for t in times])
    failures = [text for _, texts in found for text in texts]
    # Of no answer there is no latency.
    p50, p99 = np.quantile(latencies, (0.5, 0.99)) if len(latencies) else (None, None)
    return {
        "server": server.title,
        "clients": clients,
        "seconds": seconds,
        "requests": len(latencies) + len(failures),
        "per_second": len(latencies) / seconds,
        "p50_ms": p50 and p50 * 1e3,
        "p99_ms": p99 and p99 * 1e3,
        "failed": len(failures),
        "repeated": answers.repeated - before,
        "failures": sorted(set(failures))[:5],
    }


def loads(folder, inputs):
    """Yields a row for each server and number of clients."""
    each = _MINUTES.value * 60 / (2 * len(_CLIENTS.value))
    starts = (
        lambda: servers.CLibraryServer(folder),
        lambda: servers.RayServer(
            folder,
            f"--replicas={_REPLICAS.value}",
            f"--batch_wait_timeout_ms={_BATCH_WAIT_TIMEOUT_MS.value}",
            f"--threads={_THREADS.value}",
        ),
    )
    for start in starts:
        with start() as server:
            answers = Answers()
            for clients in _CLIENTS.value:
                yield load(server, clients, inputs, each, answers)


def table(rows):
    """Returns the rows as a Markdown table."""
    head = ["", "clients", "requests", "requests / s", "p50, ms", "p99, ms"]
    return tables.table(
        [*head, "failed", "repeated"],
        [
            [
                row["server"],
                str(row["clients"]),
                str(row["requests"]),
                f"{row['per_second']:.1f}",
                tables.number(row["p50_ms"], ".1f"),
                tables.number(row["p99_ms"], ".1f"),
                str(row["failed"]),
                str(row["repeated"]),
            ]
            for row in rows
        ],
    )


def main(argv):
    """Runs the loads."""
    del argv
    model = models.all_cnn(
        projection=False, width=_WIDTH.value, seed=0, initial_stddev=0.3
    )
    x = np.random.default_rng(0).normal(size=(1, *model.input_shape[1:]))
    rows = []
    with tempfile.TemporaryDirectory() as root:
        folder = pathlib.Path(root, "all_cnn")
        export(model, folder / "1", samples=_SAMPLES.value, from_logits=True)
        for row in loads(folder, {"inputs": x.astype("float32")}):
            rows.append(row)
            print(table([row]), *row["failures"], sep="\n", flush=True)
    title = (
        f"All-CNN, width {_WIDTH.value:g}, {_SAMPLES.value} networks an answer, one "
        f"example a request ({timing.hardware()})"
    )
    page = f"## {title}\n\n    {command()}\n\n{table(rows)}\n"
    print(page)
    if _OUTPUT.value:
        output = pathlib.Path(_OUTPUT.value)
        output.mkdir(parents=True, exist_ok=True)
        (output / "table.md").write_text(page, "utf-8")
        found = {"title": title, "rows": rows}
        (output / "table.json").write_text(json.dumps(found, indent=2), "utf-8")


if __name__ == "__main__":
    app.run(main)
