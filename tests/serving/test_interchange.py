"""export_onnx, export_litert: what other runtimes answer, against Keras."""

import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

import bayesnorm
from tests.serving.networks import ENSEMBLES, NETWORKS

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

needs_tensorflow = pytest.mark.tensorflow
SAMPLES, SEED = 4, 3
OF_SEVERAL = ("mutual_information", "variance")
FIELDS = ("probs", "entropy", "mutual_information", "mean", "variance")


# Converters take half a minute for the integrals of a softmax.
SHORT = ("regression", "yes or no", "ensemble")
CASES = [
    pytest.param(
        (name, method),
        marks=[pytest.mark.slow] * (method == "moments" and name not in SHORT),
        id=f"{name}-{method}",
    )
    for name in (*NETWORKS, *ENSEMBLES)
    for method in ("mean", "moments", "sample")
    if (name, method) != ("pruned", "sample")  # It draws no noise.
]


@pytest.fixture(params=CASES)
def case(request):
    """A network, inputs and noise by name, what it is exported with, and the truth."""
    keras.utils.set_random_seed(1)
    name, method = request.param
    model, x, arguments = (NETWORKS | ENSEMBLES)[name]()
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
            and (name in ENSEMBLES or method != "mean" or field not in OF_SEVERAL)
        }

    def inputs(rows):
        fed = {name: value[:rows] for name, value in given.items()}
        if method == "sample":
            fed["noise"] = bayesnorm.draw_noise(model, SAMPLES, SEED)
        return fed

    # The larger of two variables is a matter of the square root of their variances,
    # which behind a ReLU may be of the size of rounding.
    atol = 5e-4 if method == "moments" and name.endswith("law") else 1e-4

    def check(run):
        """Several batch sizes, odd ones too."""
        for rows in (7, 1, 2):
            answer, truth = run(inputs(rows)), expected(rows)
            assert answer.keys() == truth.keys()
            for field, value in truth.items():
                assert answer[field].shape == value.shape
                np.testing.assert_allclose(answer[field], value, atol=atol)

    return model, {"method": method, **arguments}, check


@needs_tensorflow
def test_onnx(case, tmp_path):
    pytest.importorskip("tf2onnx")
    runtime = pytest.importorskip("onnxruntime")
    openvino = pytest.importorskip("openvino")
    model, arguments, check = case
    path = tmp_path / "model.onnx"
    bayesnorm.export_onnx(model, path, **arguments)

    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(path, options)
    names = [output.name for output in session.get_outputs()]
    assert {output.shape[0] for output in session.get_outputs()} == {"batch"}
    check(lambda fed: dict(zip(names, session.run(names, fed), strict=True)))
    compiled = openvino.compile_model(
        path, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )
    check(lambda fed: {k.any_name: v for k, v in compiled(fed).items()})


@needs_tensorflow
def test_litert(case, tmp_path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    model, arguments, check = case
    path = tmp_path / "model.tflite"
    bayesnorm.export_litert(model, path, **arguments)
    run = interpreter.Interpreter(str(path)).get_signature_runner("serving_default")
    check(lambda fed: run(**fed))


EXPORTS = [bayesnorm.export_onnx, bayesnorm.export_litert]


def needs(export):
    if export is bayesnorm.export_onnx:
        pytest.importorskip("tf2onnx")


@needs_tensorflow
@pytest.mark.parametrize("export", EXPORTS)
def test_operations_that_a_runtime_lacks_name_their_layer(export, tmp_path):
    needs(export)

    class Jitter(layers.Layer):
        def call(self, x):
            return x + tf.random.stateless_normal(tf.shape(x), [1, 2])

    inputs = keras.Input((3,))
    # Names as Keras makes them, and TensorFlow again.
    x = Jitter(name="jitter")(layers.Dense(4, name="jitter_1")(inputs))
    model = keras.Model(inputs, x, name="shaky")
    with pytest.raises(ValueError, match="layers jitter need in method='mean'") as info:
        export(model, tmp_path / "model.tflite", task="regression")
    assert "StatelessRandomNormal" in str(info.value)
    assert not list(tmp_path.iterdir())


@needs_tensorflow
@pytest.mark.parametrize("export", EXPORTS)
def test_logarithms_of_little_and_much(export, tmp_path):
    """log(1 + x) and exp(x) - 1, which users have and ONNX does not."""
    needs(export)
    inputs = keras.Input((1,))
    model = keras.Model(inputs, [ops.log1p(inputs), ops.expm1(inputs)])
    export(model, tmp_path / "model.tflite", task="regression")
    x = np.array([[1e-30], [1e-6], [1e-3], [0.5], [30.0], [80.0]], "float32")
    if export is bayesnorm.export_onnx:
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession(tmp_path / "model.tflite")
        found = session.run(None, {"inputs": x})
        # Relative, and LiteRT's own are right to 1e-7 of 1.
        limits = {"rtol": 2e-6}
        names = [output.name for output in session.get_outputs()]
    else:
        interpreter = pytest.importorskip("ai_edge_litert.interpreter")
        run = interpreter.Interpreter(str(tmp_path / "model.tflite"))
        answer = run.get_signature_runner("serving_default")(inputs=x)
        names, found = answer.keys(), answer.values()
        limits = {"rtol": 2e-6, "atol": 2e-7}
    for name, value in zip(names, found, strict=True):
        truth = np.log1p if "log1p" in name else np.expm1
        np.testing.assert_allclose(value, truth(x.astype("float64")), **limits)


@needs_tensorflow
@pytest.mark.parametrize("export", EXPORTS)
def test_bad_arguments(export, tmp_path):
    model, _, _ = NETWORKS["yes or no"]()
    path = tmp_path / "model"
    with pytest.raises(ValueError, match="`method` must be one of"):
        export(model, path, "minibatch")
    with pytest.raises(ValueError, match="is a folder"):
        export(model, tmp_path)
    with pytest.raises(TypeError, match="Received: int"):
        export([3], path)
    quiet = keras.Model(model.input, layers.Softmax()(layers.Dense(3)(model.input)))
    with pytest.raises(ValueError, match="method='mean'"):
        export(quiet, path, "sample")
    assert bayesnorm.draw_noise(quiet, 3, seed=0).shape == (3, 0)
    assert not path.exists()


@needs_tensorflow
def test_what_is_not_installed_is_said(tmp_path, monkeypatch):
    model, _, _ = NETWORKS["yes or no"]()
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    monkeypatch.delitem(sys.modules, "bayesnorm.serving.to_onnx", raising=False)
    monkeypatch.delattr("bayesnorm.serving.to_onnx", raising=False)
    with pytest.raises(ImportError, match=r"bayesnorm\[onnx\]"):
        bayesnorm.export_onnx(model, tmp_path / "model.onnx")


@needs_tensorflow
def test_noise_is_new_without_a_seed():
    model, _, _ = NETWORKS["yes or no"]()
    one, other = (bayesnorm.draw_noise(model, 2) for _ in range(2))
    assert one.shape == (2, 5)
    assert np.abs(one - other).max() > 1e-3
    first = bayesnorm.draw_noise(model, 1, seed=4)
    np.testing.assert_array_equal(bayesnorm.draw_noise(model, 3, seed=4)[:1], first)


@pytest.mark.jax
@pytest.mark.parametrize("export", EXPORTS)
def test_other_backends_say_what_to_do(export, tmp_path):
    with pytest.raises(ValueError, match="KERAS_BACKEND=tensorflow"):
        export(keras.Sequential([keras.Input((3,)), layers.Dense(1)]), tmp_path / "1")
