"""export_onnx, export_litert: what other runtimes answer, against Keras."""

import keras
import numpy as np
import pytest

import bayesnorm
from tests.serving.networks import NETWORKS

pytestmark = pytest.mark.tensorflow
SAMPLES, SEED = 4, 3
FIELDS = ("probs", "entropy", "mutual_information", "mean", "variance")


CASES = [
    (name, method)
    for name in NETWORKS
    for method in ("mean", "moments", "sample")
    if (name, method) != ("pruned", "sample")  # It draws no noise.
]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def case(request):
    """A network, inputs and noise by name, what it is exported with, and the truth."""
    keras.utils.set_random_seed(1)
    name, method = request.param
    model, x, arguments = NETWORKS[name]()
    names = [v.name for v in model.inputs] if isinstance(x, list) else ["inputs"]
    given = dict(zip(names, keras.tree.flatten(x), strict=True))

    def expected(rows):
        inputs = keras.tree.map_structure(lambda a: a[:rows], x)
        predictions = bayesnorm.predict(
            *(model, inputs, SAMPLES, method),
            seed=SEED,
            verbose=False,
            **arguments,
        )
        if not isinstance(predictions, dict):
            predictions = {None: predictions}
        return {
            field if output is None else f"{output}_{field}": getattr(found, field)
            for output, found in predictions.items()
            for field in FIELDS
            if getattr(found, field) is not None
            and (method != "mean" or field not in ("mutual_information", "variance"))
        }

    def inputs(rows):
        fed = {name: value[:rows] for name, value in given.items()}
        if method == "sample":
            fed["noise"] = bayesnorm.draw_noise(model, SAMPLES, SEED)
        return fed

    return model, inputs, {"method": method, **arguments}, expected


def check(run, inputs, expected):
    """Several batch sizes, odd ones too, to 1e-4."""
    for rows in (7, 1, 2):
        answer, truth = run(inputs(rows)), expected(rows)
        assert answer.keys() == truth.keys()
        for name, value in truth.items():
            assert answer[name].shape == value.shape
            np.testing.assert_allclose(answer[name], value, atol=1e-4, err_msg=name)


def test_onnx(case, tmp_path):
    pytest.importorskip("tf2onnx")
    runtime = pytest.importorskip("onnxruntime")
    openvino = pytest.importorskip("openvino")
    model, inputs, arguments, expected = case
    path = tmp_path / "model.onnx"
    bayesnorm.export_onnx(model, path, **arguments)

    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(path, options)
    names = [output.name for output in session.get_outputs()]
    assert session.get_outputs()[0].shape[0] == "batch"
    check(
        lambda fed: dict(zip(names, session.run(names, fed), strict=True)),
        inputs,
        expected,
    )
    compiled = openvino.compile_model(
        path, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )
    check(
        lambda fed: {k.any_name: v for k, v in compiled(fed).items()}, inputs, expected
    )


def test_litert(case, tmp_path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    model, inputs, arguments, expected = case
    path = tmp_path / "model.tflite"
    bayesnorm.export_litert(model, path, **arguments)
    run = interpreter.Interpreter(str(path)).get_signature_runner("serving_default")
    check(lambda fed: run(**fed), inputs, expected)
