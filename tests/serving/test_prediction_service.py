"""A client's view: the official stubs against TensorFlow's C library, over gRPC."""

import shutil
import time
from concurrent import futures

import keras
import numpy as np
import pytest

from bayesnorm.prediction.predict import predict
from bayesnorm.serving.export import export
from benchmarks.servers import CLibraryServer
from tests.helpers import randomized
from tests.serving.test_export import SAMPLES, check_seeded, make_model

pytestmark = pytest.mark.tensorflow
apis = pytest.importorskip("tensorflow_serving.apis.get_model_metadata_pb2")
grpc = pytest.importorskip("grpc")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model and its next version, both exported."""
    root = tmp_path_factory.mktemp("prediction_service")
    models = {}
    for version in (1, 2):
        keras.utils.set_random_seed(version)
        models[version] = model = randomized(make_model())
        export(model, root / "ready" / str(version), samples=SAMPLES, from_logits=True)
    return root, models


@pytest.fixture
def folder(models, tmp_path):
    """The model's folder, with version 1."""
    shutil.copytree(models[0] / "ready/1", tmp_path / "small/1")
    return tmp_path / "small"


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(3, 6, 6, 2)).astype("float32")


def add_second_version(models, folder):
    """As `export` does it: whole, at once."""
    shutil.copytree(models[0] / "ready/2", folder / ".draft")
    (folder / ".draft").rename(folder / "2")


def test_noise_is_fresh_and_repeats_with_seeds_also_after_a_restart(models, folder, x):
    seeds, fresh, seeded = np.array([3, 1, 4]), [], []
    same = np.repeat(x[:1], 3, axis=0)
    for _ in range(2):
        with CLibraryServer(folder) as server:
            client = server.client()
            fresh += [client.predict({"inputs": same})[0]["probs"] for _ in range(2)]
            for _ in range(2):
                inputs = {"inputs": x, "seed": seeds}
                seeded.append(client.predict(inputs, "seeded")[0])
            mean, _ = client.predict({"inputs": x}, "mean")
    assert len(np.unique(np.concatenate(fresh)[:, 0])) == 12
    for name, value in seeded[0].items():
        for other in seeded[1:]:
            np.testing.assert_array_equal(other[name], value)
    check_seeded(seeded[0], models[1][1], x, seeds, SAMPLES)
    expected = predict(models[1][1], x, method="mean", from_logits=True)
    np.testing.assert_allclose(mean["probs"], expected.probs, atol=1e-6)


def test_eight_clients_at_once(models, folder, x):
    """Each gets the answer to its own request, with noise of its own."""
    seeds = np.arange(8)

    def work(seed):
        client = server.client()
        own = x[seed % 3 :][:1]
        fresh = [client.predict({"inputs": x[:1]})[0] for _ in range(10)]
        inputs = {"inputs": own, "seed": np.array([seed])}
        return fresh, [client.predict(inputs, "seeded")[0] for _ in range(10)]

    with CLibraryServer(folder) as server, futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, seeds))
    probs = [answer["probs"].tobytes() for fresh, _ in found for answer in fresh]
    assert len(set(probs)) == 80
    for seed, (_, seeded) in zip(seeds, found, strict=True):
        for answer in seeded:
            check_seeded(answer, models[1][1], x[seed % 3 :][:1], [seed], SAMPLES)


def test_versions_side_by_side_one_of_which_comes_later(models, folder, x):
    means = {
        version: predict(model, x, method="mean", from_logits=True).probs
        for version, model in models[1].items()
    }
    assert np.abs(means[1] - means[2]).max() > 0.01
    with CLibraryServer(folder) as server:
        client = server.client()
        assert client.predict({"inputs": x}, "mean")[1] == 1
        with pytest.raises(grpc.RpcError, match="has the versions") as error:
            client.predict({"inputs": x}, "mean", version=2)
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
        add_second_version(models, folder)
        end = time.monotonic() + 60
        while (answered := client.predict({"inputs": x}, "mean")[1]) == 1:
            assert time.monotonic() < end
        assert answered == 2
        for version in (1, 2, None):
            answer, by = client.predict({"inputs": x}, "mean", version)
            assert by == (version or 2)
            np.testing.assert_allclose(answer["probs"], means[by], atol=1e-6)


def test_bad_requests_get_the_status_and_the_server_goes_on(folder, x):
    with CLibraryServer(folder) as server:
        client = server.client()
        for inputs, signature, message in (
            ({"inputs": x[:, :4]}, "mean", "shape"),
            ({"inputs": x.astype("int32")}, "mean", "dtype"),
            ({"x": x}, "mean", "inputs are"),
            ({"inputs": x}, "other", "signatures are"),
            ({"inputs": x, "seed": np.array([1])}, "seeded", "one integer for each"),
        ):
            with pytest.raises(grpc.RpcError, match=message) as error:
                client.predict(inputs, signature)
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        request = apis.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = "small"
        told = client.stub.GetModelMetadata(request, timeout=60)
        signatures = apis.SignatureDefMap()
        assert told.metadata["signature_def"].Unpack(signatures)
        names = {"serving_default", "seeded", "samples", "mean"}
        assert set(signatures.signature_def) == names
        assert client.predict({"inputs": x})[0]["probs"].shape == (3, 3)
