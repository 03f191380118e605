"""What a replica of Ray Serve does, without Ray: a SavedModel behind HTTP requests."""

import asyncio
import json
import types

import keras
import numpy as np
import pytest

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    from bayesnorm.serving.servable import Servable

pytestmark = pytest.mark.tensorflow


def write(path, factor=2.0):
    """A model that multiplies numbers, refuses zeros, and tells texts' lengths."""

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 2], name="inputs")])
        def multiply(self, inputs):
            tf.debugging.assert_none_equal(inputs, 7.0, message="A seven came.")
            return {
                "product": factor * inputs,
                "batch": 0 * inputs[:, 0] + size(inputs),
            }

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
        def length(self, text):
            return {"length": tf.strings.length(text)}

    def size(x):
        return tf.cast(tf.shape(x)[0], tf.float32)

    module = Module()
    signatures = {"serving_default": module.multiply, "length": module.length}
    tf.saved_model.save(module, str(path), signatures)


def test_a_servable_runs_its_signatures(tmp_path):
    write(tmp_path / "1")
    servable = Servable(tmp_path / "1")
    specs = {
        name: spec
        for each in servable.signatures.values()
        for name, spec in each.items()
    }
    assert {name: str(spec) for name, spec in specs.items()} == {
        "inputs": "float32 [batch, 2]",
        "text": "string [batch]",
    }
    found = servable.run("serving_default", {"inputs": np.ones((3, 2), "float32")})
    np.testing.assert_array_equal(found["product"], np.full((3, 2), 2))
    found = servable.run("length", {"text": np.array([b"abc", b""], object)})
    assert found["length"].tolist() == [3, 0]
    with pytest.raises(ValueError, match="A seven came"):
        servable.run("serving_default", {"inputs": np.full((1, 2), 7, "float32")})
    assert set(servable.definitions()) == {"serving_default", "length"}
    servable.probe()


class Client:
    """Asks a replica as its server would."""

    def __init__(self, replica):
        self.replica = replica

    async def ask(self, method, path, body=b""):
        """Returns `(status, content)`."""
        from starlette.requests import Request

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        scope = {"type": "http", "method": method, "path": path, "headers": []}
        answer = await self.replica(
            Request(scope | {"query_string": b"", "server": ("localhost", 80)}, receive)
        )
        return answer.status_code, json.loads(answer.body)

    async def multiply(self, *rows):
        content = {"inputs": rows}
        return await self.ask(
            "POST", "/v1/models/m:predict", json.dumps(content).encode()
        )


@pytest.fixture
def replica(tmp_path, monkeypatch):
    serve = pytest.importorskip("ray.serve")
    # A queue of batches asks its deployment how many requests it lets in.
    config = types.SimpleNamespace(max_ongoing_requests=16)
    context = types.SimpleNamespace(_deployment_config=config)
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    from bayesnorm.serving.ray_serve import Options, Replica

    write(tmp_path / "m/1")
    options = Options(
        max_batch_size=4,
        batch_wait_timeout_ms=2000,
        poll_seconds=0.05,
        max_request_bytes=100,
    )
    return Replica("m", tmp_path / "m", options)


def test_requests_that_wait_together_run_together(replica):
    """The fourth example fills a batch, which else waits two seconds."""

    async def work():
        client = Client(replica)
        return await asyncio.gather(
            client.multiply([1, 2]),
            client.multiply([3]),  # Refused before it joins.
            client.multiply([3, 4], [5, 6]),
            client.multiply([8, 9]),
        )

    first, bad, second, third = asyncio.run(work())
    assert bad[0] == 400
    assert "[batch, 2]" in bad[1]["error"]
    assert first == (200, {"outputs": {"batch": [4], "product": [[2, 4]]}})
    assert second[1]["outputs"]["product"] == [[6, 8], [10, 12]]
    assert third[1]["outputs"] == {"batch": [4], "product": [[16, 18]]}


def test_values_that_the_graph_refuses_fail_alone(replica):
    async def work():
        client = Client(replica)
        rows = ([1, 1], [2, 2], [7, 7], [3, 3])
        return await asyncio.gather(*map(client.multiply, rows))

    first, second, bad, third = asyncio.run(work())
    assert bad[0] == 400
    assert "A seven came" in bad[1]["error"]
    products = [answer[1]["outputs"]["product"] for answer in (first, second, third)]
    assert products == [[[2, 2]], [[4, 4]], [[6, 6]]]


def test_requests_larger_than_a_batch_and_than_the_limit(replica):
    async def work():
        client = Client(replica)
        large = await client.multiply(*[[1, 1]] * 5)
        return large, await client.multiply(*[[1.25, 1.25]] * 10)

    large, refused = asyncio.run(work())
    assert large[1]["outputs"]["batch"] == [5] * 5
    assert refused[0] == 413


def test_a_new_version_takes_over_and_a_broken_one_does_not(replica, tmp_path):
    async def statuses(client, wanted):
        for _ in range(600):
            _, content = await client.ask("GET", "/v1/models/m")
            found = {
                each["version"]: each["state"]
                for each in content["model_version_status"]
            }
            if found == wanted:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(found)

    async def work():
        client = Client(replica)
        await statuses(client, {"1": "AVAILABLE"})
        (tmp_path / "m/2").mkdir()
        (tmp_path / "m/2/saved_model.pb").write_text("no model")
        await statuses(client, {"1": "AVAILABLE", "2": "END"})
        await replica.check_health()
        rows = [[1, 1]] * 5
        first = await client.multiply(*rows)
        write(tmp_path / "draft", factor=3.0)
        (tmp_path / "draft").rename(tmp_path / "m/3")
        await statuses(client, {"3": "AVAILABLE"})
        gone, _ = await client.ask("GET", "/v1/models/m/versions/1/metadata")
        return first, await client.multiply(*rows), gone

    first, second, gone = asyncio.run(work())
    assert first[1]["outputs"]["product"] == [[2, 2]] * 5
    assert second[1]["outputs"]["product"] == [[3, 3]] * 5
    assert gone == 404


def test_a_replica_that_cannot_answer_is_unhealthy(replica, monkeypatch):
    asyncio.run(replica.check_health())
    _, servable = replica._versions.get()

    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(servable, "run", fail)

    async def work():
        with pytest.raises(RuntimeError, match="no memory"):
            await replica.check_health()
        return await Client(replica).multiply(*[[1, 1]] * 5)

    status, content = asyncio.run(work())
    assert status == 500
    assert "no memory" in content["error"]
