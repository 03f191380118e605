"""export_onnx, export_litert: what other runtimes answer, against Keras."""

import keras
import numpy as np
import pytest
from keras import layers

import bayesnorm
from bayesnorm.layers import StochasticScaleNorm

pytestmark = pytest.mark.tensorflow
SAMPLES, SEED = 4, 3
FIELDS = ("probs", "entropy", "mutual_information", "mean", "variance")


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def scaled():
    """Convolutions, poolings, batch normalization, stochastic scales; two inputs."""
    inputs = keras.Input((8, 8, 2), name="image")
    number = keras.Input((1,), name="number")
    x = layers.Conv2D(4, 3, padding="same")(inputs)
    x = layers.LeakyReLU(0.1)(StochasticScaleNorm(initial_stddev=0.5)(x))
    x = layers.MaxPooling2D()(x)
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(x))
    x = layers.ReLU()(StochasticScaleNorm(initial_stddev=0.5)(x))
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(x) * 3.0, number])
    model = keras.Model([inputs, number], layers.Dense(3)(x))
    return model, [normal(7, 8, 8, 2), normal(7, 1)], {"from_logits": True}


def batch_normalized(law):
    x = normal(64, 8, 8, 1)
    model = bayesnorm.models.lenet5(
        (8, 8, 1), 5, norm="batch", width=0.2, padding="same"
    )
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, np.arange(64) % 5, batch_size=8, epochs=15, verbose=0)
    model = bayesnorm.to_stochastic(model)
    bayesnorm.calibrate(model, x, batch_size=8, law=law, verbose=False)
    return model, x[:7], {"from_logits": True}


def wide():
    """Logits so uncertain that their softmax is integrated."""
    inputs = keras.Input((4,))
    x = StochasticScaleNorm(initial_stddev=1.0)(layers.Dense(6)(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.Activation("tanh")(x)))
    model.layers[-1].kernel.assign(5.0 * normal(6, 3))
    return model, normal(7, 4), {"from_logits": True}


def several_outputs():
    inputs = keras.Input((4,))
    x = StochasticScaleNorm(initial_stddev=0.5)(layers.Dense(5)(inputs))
    outputs = [
        layers.Dense(3, activation="softmax", name="kind")(x),
        layers.Dense(2, activation="sigmoid", name="tags")(x),
        layers.Dense(1, name="age")(x),
    ]
    tasks = {"kind": "classification", "tags": "multilabel", "age": "regression"}
    temperature = {"kind": 2.0, "tags": 0.5, "age": None}
    arguments = {"task": tasks, "temperature": temperature}
    return keras.Model(inputs, outputs), normal(7, 4), arguments


def regression():
    inputs = keras.Input((4,))
    x = bayesnorm.MonteCarloDropout(0.3)(layers.Dense(8, activation="elu")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x))
    return model, normal(7, 4), {"task": "regression"}


def segmentation():
    inputs = keras.Input((None, None, 2))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    x = StochasticScaleNorm(initial_stddev=0.5)(x)
    x = layers.AveragePooling2D(3, 1, padding="same")(x)
    model = keras.Model(inputs, layers.Softmax()(layers.Conv2D(3, 1)(x)))
    return model, normal(7, 6, 9, 2), {}


def yes_or_no():
    inputs = keras.Input((4,))
    x = StochasticScaleNorm(initial_stddev=0.5)(layers.Dense(5)(inputs))
    model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))
    return model, normal(7, 4), {}


def thinned(prune):
    """Structured Bayesian pruning as trained, and the network that is left."""
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(6, 3, use_bias=False)(inputs)
    x = layers.ReLU()(bayesnorm.StructuredBayesianPruning(use_bias=True)(x))
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    theta = model.layers[2]
    theta.mu.assign(np.array([0, -1, -9, 0, -12, -0.5], "float32"))
    theta.log_sigma.assign(np.array([-1, -0.5, 1.0, -3, 1.5, 0.0], "float32"))
    if prune:
        model, report = bayesnorm.prune(model)
        assert report.macs[1] < report.macs[0]
    return model, normal(7, 8, 8, 1), {"from_logits": True}


NETWORKS = {
    "scaled": scaled,
    "joint law": lambda: batch_normalized("joint"),
    "independent law": lambda: batch_normalized("independent"),
    "wide": wide,
    "several outputs": several_outputs,
    "regression": regression,
    "segmentation": segmentation,
    "yes or no": yes_or_no,
    "pruning": lambda: thinned(False),
    "pruned": lambda: thinned(True),
}
CASES = [
    (name, method)
    for name in NETWORKS
    for method in ("mean", "moments", "sample")
    if (name, method) != ("pruned", "sample")  # It draws no noise.
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
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
