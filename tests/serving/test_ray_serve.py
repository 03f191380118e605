"""`python -m bayesnorm.serving`: one server of two replicas, asked over HTTP."""

import shutil
import time
from concurrent import futures

import keras
import numpy as np
import pytest

from bayesnorm.prediction.predict import predict
from bayesnorm.serving import rest
from bayesnorm.serving.export import export
from benchmarks.servers import RayServer
from tests.helpers import randomized
from tests.serving.test_export import SAMPLES, check_seeded, make_model

pytestmark = pytest.mark.tensorflow
pytest.importorskip("ray.serve")
MOST = 8  # Examples of a batch.


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder of exported versions, and the models."""
    folder, models = tmp_path_factory.mktemp("ray_serve"), {}
    for version in (1, 2):
        keras.utils.set_random_seed(version)
        models[version] = model = randomized(make_model())
        export(model, folder / str(version), samples=SAMPLES, from_logits=True)
    return folder, models


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "small"
    shutil.copytree(models[0] / "1", folder / "1")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    flags = ["--replicas=2", f"--max_batch_size={MOST}", "--batch_wait_timeout_ms=50"]
    flags += ["--poll_seconds=0.5", "--keep=2", "--max_request_mb=0.25", "--threads=1"]
    with RayServer(folder, *flags) as server:
        yield server


@pytest.fixture
def client(server):
    client = server.client()
    yield client
    client.close()


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(20, 6, 6, 2)).astype("float32")


def at_once(server, work, items):
    """Runs `work(client, item)` for each item, each with a connection."""

    def run(item):
        client = server.client()
        try:
            return work(client, item)
        finally:
            client.close()

    with futures.ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(run, items))


@pytest.mark.slow
def test_answers(client, models, x):
    model = models[1][1]
    # More examples than go into a batch, too.
    for examples in (3, 20):
        mean, _ = client.predict({"inputs": x[:examples]}, "mean", version=1)
        expected = predict(model, x[:examples], method="mean", from_logits=True)
        np.testing.assert_allclose(mean["probs"], expected.probs, atol=1e-6)
    seeds = np.array([2**63 - 1, 4, 7])
    seeded, _ = client.predict({"inputs": x[:3], "seed": seeds}, "seeded", version=1)
    check_seeded(seeded, model, x[:3], seeds, SAMPLES)
    status, content = client.ask(
        "POST",
        "/versions/1:predict",
        {
            "signature_name": "mean",
            "instances": [{"inputs": each.tolist()} for each in x[:3]],
        },
    )
    assert status == 200
    rows = [row["probs"] for row in content["predictions"]]
    np.testing.assert_allclose(rows, mean["probs"][:3], atol=1e-6)


@pytest.mark.slow
def test_clients_at_once_get_their_own_answers_and_noise(server, models, x):
    """Requests of several lengths and signatures, some of them wrong, go together."""
    model = models[1][1]

    def work(client, i):
        own, found = x[i : i + 1 + i % 3], []
        for _ in range(5):
            seeds = np.full(len(own), i)
            inputs = {"inputs": own, "seed": seeds}
            seeded, _ = client.predict(inputs, "seeded", version=1)
            check_seeded(seeded, model, own, seeds, SAMPLES)
            fresh, _ = client.predict({"inputs": np.repeat(x[:1], 2, axis=0)})
            found += fresh["probs"].tolist()
            bad = client.ask("POST", ":predict", {"inputs": own[:, :4].tolist()})
            assert bad[0] == 400
        return found

    found = at_once(server, work, range(8))
    assert len(np.unique(np.concatenate(found)[:, 0])) == 8 * 5 * 2


@pytest.mark.slow
def test_bad_requests_are_told_what_is_wrong(client, x):
    good = x[:1].tolist()
    for method, path, body, status, message in (
        ("POST", ":predict", b"{", 400, "Expected JSON"),
        ("POST", ":predict", {"inputs": x[:1, :4].tolist()}, 400, "[1, 4, 6, 2]"),
        ("POST", ":predict", {"inputs": "a"}, 400, "float32"),
        ("POST", ":predict", {"inputs": good, "signature_name": "a"}, 400, "one of"),
        ("POST", ":predict", b" " * 300_000, 413, "--max_request_mb"),
        ("POST", "/versions/7:predict", {"inputs": good}, 404, "not served"),
        ("POST", ":regress", {}, 404, "Expected /v1/models"),
        ("GET", ":predict", None, 405, "Expected POST"),
        ("POST", ":predict", {"inputs": good}, 200, ""),
    ):
        got, content = client.ask(method, path, body)
        assert got == status, content
        assert message in content.get("error", "")
    client.name = "other"
    status, content = client.ask("GET", "")
    assert status == 404
    assert "'small'" in content["error"]


@pytest.mark.slow
def test_metadata_and_health(client):
    status, content = client.ask("GET", "/versions/1/metadata")
    assert status == 200
    assert content["model_spec"]["version"] == "1"
    signatures = content["metadata"]["signature_def"]["signature_def"]
    assert set(signatures) == {"serving_default", "seeded", "samples", "mean"}
    inputs = signatures["seeded"]["inputs"]
    assert inputs["seed"]["dtype"] == "DT_INT64"
    sizes = [dim["size"] for dim in inputs["inputs"]["tensor_shape"]["dim"]]
    assert sizes == ["-1", "6", "6", "2"]
    client._connection.request("GET", "/-/healthz")
    answer = client._connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"success")


@pytest.mark.slow
def test_a_new_version_is_served_beside_the_old_one(server, client, models, folder, x):
    means = {
        version: predict(model, x[:3], method="mean", from_logits=True).probs
        for version, model in models[1].items()
    }
    status = client.ask("GET", "")[1]["model_version_status"]
    assert [(each["version"], each["state"]) for each in status] == [("1", "AVAILABLE")]
    shutil.copytree(models[0] / "2", folder / "draft")
    (folder / "draft").rename(folder / "2")
    end, row = time.monotonic() + 60, 0
    while row < 20:  # Both replicas have it.
        assert time.monotonic() < end
        status = client.ask("GET", "")[1]["model_version_status"]
        row = row + 1 if [each["version"] for each in status] == ["2", "1"] else 0
    for version in (1, 2, None):
        answer, _ = client.predict({"inputs": x[:3]}, "mean", version)
        np.testing.assert_allclose(answer["probs"], means[version or 2], atol=1e-6)


class Counting:
    """Doubles what it gets, and refuses zeros, as a graph that checks its values."""

    def __init__(self):
        self.batches = []

    def run(self, signature, inputs):
        self.batches.append((signature, len(inputs["inputs"])))
        if not inputs["inputs"].all():
            raise ValueError("zeros")
        return {"doubled": 2 * inputs["inputs"]}


def test_batches_are_of_one_kind_and_fail_alone():
    from bayesnorm.serving.ray_serve import _Call, run_together

    def call(signature, *values):
        x = np.array(values, "float32")
        return _Call(servable, rest.Request(signature, {"inputs": x}, False))

    servable = Counting()
    calls = [call("a", 1, 2), call("b", 3), call("a", 4), call("a", [5, 6])]
    found = [outputs["doubled"].tolist() for outputs in run_together(calls)]
    assert found == [[2, 4], [6], [8], [[10, 12]]]
    assert servable.batches == [("a", 3), ("b", 1), ("a", 1)]
    first, second, third = run_together([call("a", 1), call("a", 0), call("a", 2)])
    assert (first["doubled"].tolist(), third["doubled"].tolist()) == ([2], [4])
    assert isinstance(second, ValueError)


def test_what_cannot_be_served_is_said(tmp_path):
    from bayesnorm.serving import ray_serve

    with pytest.raises(ValueError, match=r"folder for each version.*versions \[\]"):
        ray_serve.start(tmp_path)
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "saved_model.pb").touch()
    with pytest.raises(ValueError, match=r"versions \[3\] and without \[1\]"):
        ray_serve.start(tmp_path, options=ray_serve.Options(versions=(1, 3)))
    assert not ray_serve.ray.is_initialized()
