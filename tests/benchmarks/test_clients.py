"""The load of served models: failures and repeated answers are counted."""

import itertools
import threading

import numpy as np

from benchmarks import clients


class Fake:
    """A server that fails each fifth time and then says what it has said before."""

    title = "fake"

    def __init__(self):
        self._numbers, self._lock = itertools.count(1), threading.Lock()
        self.failed = self.repeated = 0

    def client(self):
        return self

    def close(self):
        pass

    def predict(self, inputs):
        with self._lock:
            number = next(self._numbers)
            # Not while the clients warm up, who must not fail.
            if number > 20 and number % 5 == 0:
                self.failed += 1
                raise ConnectionError("gone")
            repeats = number > 20 and number % 5 == 1
            self.repeated += repeats
            value = 1 if repeats else number
        return {"probs": np.array([value, 0.5])}, None


def test_failures_and_repeats_are_counted():
    server = Fake()
    row = clients.load(server, 3, {}, 0.5, clients.Answers())
    assert row["failed"] == server.failed > 0
    assert row["repeated"] == server.repeated > 0
    # Three requests of each client are before the time.
    assert row["requests"] == next(server._numbers) - 1 - 9
    assert row["failures"] == ["ConnectionError: gone"]
    assert 0 < row["p50_ms"] <= row["p99_ms"] < 500
    assert "| fake | 3 |" in clients.table([row])


def test_without_answers_there_is_no_latency():
    server = Fake()
    row = clients.load(server, 1, {}, 1e-9, clients.Answers())
    assert (row["requests"], row["p50_ms"], row["repeated"]) == (0, None, 0)
    assert "| - | - |" in clients.table([row])
