"""What stands beside an exported SavedModel: warm-up, batching, the page."""

import io
import json
import os
import re
import urllib.request
from concurrent import futures

import keras
import numpy as np
import pytest
from absl import flags
from keras import layers

import bayesnorm
from bayesnorm.layers import StochasticScaleNorm
from tests.serving.test_export import make_model

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    from bayesnorm.serving import tune_batching

pytestmark = pytest.mark.tensorflow
REQUESTS = "assets.extra/tf_serving_warmup_requests"
SIGNATURES = ["mean", "samples", "seeded", "serving_default"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    keras.utils.set_random_seed(1)
    path = tmp_path_factory.mktemp("warmup") / "small" / "3"
    bayesnorm.export(make_model(), path, 4, from_logits=True, batch_sizes=(1, 3))
    return path


def requests_of(path):
    """The `PredictRequest`s of the file, as a server reads them."""
    logs = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    records = tf.data.TFRecordDataset(str(path / REQUESTS)).as_numpy_iterator()
    found = []
    for record in records:
        log = logs.PredictionLog.FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
        found.append(log.predict_log.request)
    return found


def answered(served, request):
    """The outputs of a request, a dict of tensors."""
    inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
    signature = served.signatures[request.model_spec.signature_name]
    return signature(**{k: tf.constant(v) for k, v in inputs.items()})


def parameters_of(path):
    """`batching.txt`, read as the message that a server reads.

    Of TensorFlow Serving's session_bundle_config.proto, which no package has.
    """
    from google.protobuf import (
        descriptor_pb2,
        descriptor_pool,
        message_factory,
        text_format,
        wrappers_pb2,
    )

    file = descriptor_pb2.FileDescriptorProto(
        name="batching.proto",
        package="batching",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    message = file.message_type.add(name="BatchingParameters")
    field = descriptor_pb2.FieldDescriptorProto
    for number, name in enumerate(
        (
            "max_batch_size",
            "batch_timeout_micros",
            "max_enqueued_batches",
            "num_batch_threads",
        ),
        1,
    ):
        message.field.add(
            name=name,
            number=number,
            type=field.TYPE_MESSAGE,
            label=field.LABEL_OPTIONAL,
            type_name=".google.protobuf.Int64Value",
        )
    message.field.add(
        name="allowed_batch_sizes",
        number=6,
        type=field.TYPE_INT64,
        label=field.LABEL_REPEATED,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    kind = message_factory.GetMessageClass(
        pool.FindMessageTypeByName("batching.BatchingParameters")
    )
    return text_format.Parse((path / "batching.txt").read_text(), kind())


def test_requests_of_every_signature_and_size(folder):
    requests = requests_of(folder)
    kinds = [
        (request.model_spec.signature_name, tf.make_ndarray(request.inputs["inputs"]))
        for request in requests
    ]
    assert [(name, x.shape) for name, x in kinds] == [
        (name, (size, 6, 6, 2)) for name in SIGNATURES for size in (1, 3)
    ]
    served = tf.saved_model.load(folder)
    for request in requests:
        assert request.model_spec.name == "small"
        seeded = request.model_spec.signature_name == "seeded"
        assert set(request.inputs) == {"inputs"} | ({"seed"} if seeded else set())
        rows = request.inputs["inputs"].tensor_shape.dim[0].size
        for value in answered(served, request).values():
            assert value.shape[0] == rows
    # Tensors of one value take no room, whatever their size.
    assert (folder / REQUESTS).stat().st_size < 2000


def test_shapes_that_are_open_need_an_example(tmp_path):
    inputs = keras.Input((None, 2), dtype="float32", name="signal")
    words = keras.Input((1,), dtype="string", name="words")
    hashed = layers.Hashing(5, output_mode="one_hot")(words)
    x = layers.Concatenate()([layers.GlobalAveragePooling1D()(inputs), hashed])
    x = layers.Dense(3)(StochasticScaleNorm(initial_stddev=0.3)(x))
    model = keras.Model([inputs, words], x)
    bayesnorm.export(model, tmp_path / "1", 2, from_logits=True)
    assert not (tmp_path / "1" / REQUESTS).exists()
    assert "No warmup data file found" in (tmp_path / "1" / "README.md").read_text()
    with pytest.raises(ValueError, match="warmup_inputs="):
        tune_batching.measure(tmp_path / "1")

    signal = np.random.default_rng(0).normal(size=(4, 9, 2))
    example = [signal, np.array([["a"], ["b"], ["c"], ["d"]])]
    bayesnorm.export(
        *(model, tmp_path / "2", 2),
        from_logits=True,
        batch_sizes=[2],
        warmup_inputs=example,
    )
    requests = requests_of(tmp_path / "2")
    assert len(requests) == 4
    served = tf.saved_model.load(tmp_path / "2")
    for request in requests:
        found = tf.make_ndarray(request.inputs["signal"])
        np.testing.assert_array_equal(found, [signal[0].astype("float32")] * 2)
        assert tf.make_ndarray(request.inputs["words"]).tolist() == [[b"a"]] * 2
        answered(served, request)
    for wrong, match in (
        (example[:1], "2 inputs"),
        ([signal[..., :1], *example[1:]], "signal"),
    ):
        with pytest.raises(ValueError, match=match):
            bayesnorm.export(
                *(model, tmp_path / "3", 2), from_logits=True, warmup_inputs=wrong
            )


@pytest.mark.parametrize("sizes", [(), (3, 1), (1, 1), (0, 1), range(1, 300)])
def test_sizes_increase(tmp_path, sizes):
    with pytest.raises(ValueError, match="`batch_sizes`"):
        bayesnorm.export(
            make_model(), tmp_path / "1", from_logits=True, batch_sizes=sizes
        )


def test_batching_parameters(folder):
    parameters = parameters_of(folder)
    assert list(parameters.allowed_batch_sizes) == [1, 3]
    assert parameters.max_batch_size.value == 3
    assert parameters.num_batch_threads.value == os.cpu_count()


def test_sizes_are_those_that_pay():
    seconds = {1: 0.010, 2: 0.012, 4: 0.020, 8: 0.039}
    assert tune_batching.settle(seconds) == ([1, 2, 4], 10_000)
    assert tune_batching.settle({1: 0.0031, 2: 0.0062}) == ([1], 3100)


def test_batching_is_measured_where_it_serves(tmp_path, monkeypatch):
    path = tmp_path / "measured" / "1"
    bayesnorm.export(make_model(), path, 4, from_logits=True)
    monkeypatch.setattr(tune_batching, "_SECONDS", 0.02)
    flags.FLAGS(["tune_batching", "--most=4"])
    tune_batching.main(["tune_batching", str(path)])
    parameters = parameters_of(path)
    sizes = list(parameters.allowed_batch_sizes)
    assert sizes == [1, 2, 4][: len(sizes)]
    assert parameters.max_batch_size.value == sizes[-1]
    assert 0 < parameters.batch_timeout_micros.value <= 10_000
    assert "# batch 1: " in (path / "batching.txt").read_text()
    requests = requests_of(path)
    assert {r.inputs["inputs"].tensor_shape.dim[0].size for r in requests} == set(sizes)
    assert len(requests) == 4 * len(sizes)


def blocks(folder, title, language="python"):
    text = (folder / "README.md").read_text().split(f"## {title}\n")[1]
    return re.findall(rf"```{language}\n(.*?)```", text.split("\n## ")[0], re.S)


def test_the_page_leads_with_what_repeats(folder):
    text = (folder / "README.md").read_text()
    places = [text.index(f"| `{name}` |") for name in SIGNATURES]
    mean, samples, seeded, default = places
    assert seeded < mean < default < samples
    assert "Number of warmup records read: 8." in text
    (serve, docker) = blocks(folder, "Serve", "shell")
    assert "--enable_batching" in serve
    assert "/models/small/3/batching.txt" in docker


def test_rest_client_of_the_page(folder, monkeypatch, capsys):
    """The JSON that it sends, answered by the graph."""
    served = tf.saved_model.load(folder)

    def urlopen(url, body):
        assert url == "http://localhost:8501/v1/models/small:predict"
        sent = json.loads(body)
        signature = served.signatures[sent["signature_name"]]
        types = signature.structured_input_signature[1]
        inputs = {k: tf.constant(v, types[k].dtype) for k, v in sent["inputs"].items()}
        answer = {k: v.numpy().tolist() for k, v in signature(**inputs).items()}
        return io.StringIO(json.dumps({"outputs": answer}))

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    (client,) = blocks(folder, "REST")
    exec(client, {})
    assert "mutual_information" in capsys.readouterr().out


def test_grpc_client_of_the_page(folder, capsys):
    """What it sends over a channel, answered by the graph."""
    grpc = pytest.importorskip("grpc")
    apis = pytest.importorskip("tensorflow_serving.apis.prediction_service_pb2_grpc")
    from tensorflow_serving.apis import predict_pb2

    served = tf.saved_model.load(folder)

    class Service(apis.PredictionServiceServicer):
        def Predict(self, request, context):  # noqa: N802
            answer = predict_pb2.PredictResponse()
            for key, value in answered(served, request).items():
                answer.outputs[key].CopyFrom(tf.make_tensor_proto(value))
            return answer

    server = grpc.server(futures.ThreadPoolExecutor(1))
    apis.add_PredictionServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        (client,) = blocks(folder, "gRPC")
        exec(client.replace("localhost:8500", f"localhost:{port}"), {})
    finally:
        server.stop(None)
    assert "mutual_information" in capsys.readouterr().out
