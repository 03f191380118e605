"""Clients of a server, what they wait for, and which answers they get twice."""

import concurrent.futures
import threading
import time

import numpy as np

from trainers.report import tables

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
