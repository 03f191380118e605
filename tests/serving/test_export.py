"""export: the SavedModel as a model server runs it, through TensorFlow's C library."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from scipy import special, stats

import bayesnorm
from bayesnorm.graph import layers_of
from bayesnorm.layers import StochasticScaleNorm, noise_mode
from bayesnorm.prediction.predict import predict
from bayesnorm.serving.export import export
from tests.helpers import randomized, with_training_nodes

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2
else:
    tf = None

needs_tensorflow = pytest.mark.tensorflow
CLIENT = pathlib.Path(__file__).with_name("saved_model_c_api.py")
SAMPLES = 20


def make_model(dense_prediction=False):
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    x = StochasticScaleNorm(initial_stddev=0.5)(x)
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(x))
    x = StochasticScaleNorm(initial_stddev=0.5)(x)
    if not dense_prediction:
        x = keras.layers.GlobalAveragePooling2D()(x) * 3.0
    return keras.Model(inputs, keras.layers.Dense(3)(x), name="small")


class Exported:
    """An exported model, its signatures' tensor names, and a server process a job."""

    def __init__(self, path):
        self.path = path
        saved = saved_model_pb2.SavedModel.FromString(
            (path / "saved_model.pb").read_bytes()
        )
        self.signatures = {
            name: {
                "inputs": {k: v.name for k, v in signature.inputs.items()},
                "outputs": {k: v.name for k, v in signature.outputs.items()},
            }
            for name, signature in saved.meta_graphs[0].signature_def.items()
            if not name.startswith("__")
        }
        self.proto = saved

    def serve(self, *requests, concurrent=False):
        """Answers `(signature, inputs)` requests in a new process."""
        job = {
            "library": str(pathlib.Path(tf.__file__).parent),
            "path": str(self.path),
            "signatures": self.signatures,
            "concurrent": concurrent,
            "requests": [
                {
                    "signature": name,
                    "inputs": {
                        k: (v.ravel().tolist(), v.dtype.name, v.shape)
                        for k, v in inputs.items()
                    },
                }
                for name, inputs in requests
            ],
        }
        done = subprocess.run(
            [sys.executable, str(CLIENT)],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        answers = [
            {k: v if k == "error" else np.array(v) for k, v in answer.items()}
            for answer in json.loads(done.stdout)
        ]
        return answers if len(answers) > 1 else answers[0]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    return make_model()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved_model") / "small" / "1"
    export(model, path, samples=SAMPLES, from_logits=True, chunk_size=25)
    return Exported(path)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(7, 6, 6, 2)).astype("float32")


@needs_tensorflow
def test_signatures_have_the_batch_first(exported):
    graph = exported.proto.meta_graphs[0]
    expected = {
        "serving_default": ["entropy", "mutual_information", "probs"],
        "seeded": ["entropy", "mutual_information", "probs"],
        "samples": ["samples"],
        "mean": ["entropy", "probs"],
    }
    assert {k: sorted(v["outputs"]) for k, v in exported.signatures.items()} == expected
    for name, signature in exported.signatures.items():
        inputs = {"inputs", "seed"} if name == "seeded" else {"inputs"}
        assert set(signature["inputs"]) == inputs
        definition = graph.signature_def[name]
        for info in [*definition.inputs.values(), *definition.outputs.values()]:
            assert info.tensor_shape.dim[0].size == -1
    shape = graph.signature_def["samples"].outputs["samples"].tensor_shape
    assert [d.size for d in shape.dim] == [-1, SAMPLES, 3]


@needs_tensorflow
def test_weights_are_stored_once(exported, model):
    stored = sum(f.stat().st_size for f in (exported.path / "variables").iterdir())
    weights = sum(v.numpy().nbytes for v in model.variables)
    names = {
        name
        for name, _ in tf.train.list_variables(
            str(exported.path / "variables/variables")
        )
    }
    values = [n for n in names if n.endswith("VARIABLE_VALUE")]
    assert len(values) <= len(model.variables)
    assert stored < weights + 10_000


def check_seeded(seeded, model, x, seeds, samples):
    """An example's seed gives the networks that `predict` draws with this seed."""
    for i, seed in enumerate(seeds):
        expected = predict(
            model, x[i : i + 1], samples, seed=int(seed), from_logits=True
        )
        for name, value in seeded.items():
            np.testing.assert_allclose(
                value[i], getattr(expected, name)[0], atol=2e-6, err_msg=name
            )


@needs_tensorflow
def test_answers(exported, model, x):
    """A server's answers against Python's, on batches of several sizes."""
    seeds = np.array([3, 1, 4, 1, 5, 9, 2])
    mean, default, seeded, samples, one = exported.serve(
        ("mean", {"inputs": x}),
        ("serving_default", {"inputs": x}),
        ("seeded", {"inputs": x, "seed": seeds}),
        ("samples", {"inputs": x}),
        ("seeded", {"inputs": x[2:3], "seed": seeds[2:3]}),
    )
    expected = predict(model, x, method="mean", from_logits=True)
    np.testing.assert_allclose(mean["probs"], expected.probs, atol=1e-6)
    np.testing.assert_allclose(mean["entropy"], expected.entropy, atol=1e-6)

    check_seeded(seeded, model, x, seeds, SAMPLES)
    # What else is in the batch changes only the rounding.
    for name, value in one.items():
        np.testing.assert_allclose(value[0], seeded[name][2], atol=2e-6)

    assert samples["samples"].shape == (7, SAMPLES, 3)
    np.testing.assert_allclose(samples["samples"].sum(-1), 1, atol=1e-6)
    entropy = -special.xlogy(default["probs"], default["probs"]).sum(-1)
    np.testing.assert_allclose(default["entropy"], entropy, atol=1e-6)
    assert (default["mutual_information"] > 0).all()


@needs_tensorflow
def test_noise_is_fresh_for_every_call_example_and_process(exported, x):
    same = np.repeat(x[:1], 3, axis=0)
    requests = [("serving_default", {"inputs": same})] * 2
    answers = [*exported.serve(*requests), exported.serve(*requests[:1])]
    probs = np.concatenate([answer["probs"] for answer in answers])
    assert len(np.unique(probs[:, 0])) == 9
    networks = exported.serve(("samples", {"inputs": same}))["samples"]
    assert len(np.unique(networks[..., 0])) == 3 * SAMPLES


@needs_tensorflow
def test_concurrent_requests_differ(exported, x):
    answers = exported.serve(
        *[("serving_default", {"inputs": x[:1]})] * 16, concurrent=True
    )
    assert len({answer["probs"][0, 0] for answer in answers}) == 16


@needs_tensorflow
def test_many_samples_agree_with_predict(exported, model, x):
    """Two Monte Carlo means of the same law, of 100 x 20 and 4000 networks."""
    repeated = np.repeat(x, 100, axis=0)
    got = exported.serve(("samples", {"inputs": repeated}))["samples"]
    got = got.reshape(7, 100 * SAMPLES, 3)
    truth = predict(
        model, x, 4000, seed=0, from_logits=True, keep_samples=True
    ).samples.transpose(1, 0, 2)
    z = (got.mean(1) - truth.mean(1)) / np.sqrt(
        got.var(1) / got.shape[1] + truth.var(1) / truth.shape[1]
    )
    assert np.abs(z).max() < stats.norm.isf(1e-4 / 21 / 2)
    ratio = got.var(1) / truth.var(1)
    np.testing.assert_allclose(ratio, 1, atol=0.25)


@needs_tensorflow
def test_bad_requests_are_answered_with_errors(exported, x):
    """And do not bring the process down, as a convolution of rank 1 does."""
    seeds, rank, size, good = exported.serve(
        ("seeded", {"inputs": x, "seed": np.array([1])}),
        ("serving_default", {"inputs": x[0, 0, 0]}),
        ("serving_default", {"inputs": x[:, :4]}),
        ("serving_default", {"inputs": x}),
    )
    assert "one integer for each example" in seeds["error"]
    assert "shape" in rank["error"]
    assert "shape" in size["error"]
    assert good["probs"].shape == (7, 3)


@needs_tensorflow
def test_global_seeds_do_not_fix_the_noise(model, x, tmp_path):
    keras.utils.set_random_seed(3)
    with noise_mode("sample"):  # Nor does the mode at the time of the export.
        export(model, tmp_path / "1", samples=2, from_logits=True)
    served = Exported(tmp_path / "1")
    first, mean = served.serve(
        ("serving_default", {"inputs": x}), ("mean", {"inputs": x})
    )
    second = served.serve(("serving_default", {"inputs": x}))
    assert np.abs(first["probs"] - second["probs"]).max() > 1e-4
    expected = predict(model, x, method="mean", from_logits=True)
    np.testing.assert_allclose(mean["probs"], expected.probs, atol=1e-6)


@needs_tensorflow
def test_networks_are_those_of_inference(tmp_path):
    """Augmentation and `training=True` in a node: what `model.predict` does."""
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")
    model = bayesnorm.to_stochastic(randomized(with_training_nodes()), seed=0)
    bayesnorm.calibrate(model, x, batch_size=16, verbose=False)
    x, seeds = x[:5], np.full(5, 3)
    export(model, tmp_path / "noisy", samples=4, chunk_size=10)
    served = tf.saved_model.load(tmp_path / "noisy").signatures
    first, second = (served["seeded"](inputs=x, seed=seeds) for _ in range(2))
    expected = predict(model, x, 4, seed=3, verbose=False)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
        np.testing.assert_allclose(value, getattr(expected, name), atol=2e-6)
    for layer in layers_of(model):
        if isinstance(layer, bayesnorm.StochasticBatchNormalization):
            layer.fix()
    expected = model.predict(x, verbose=0)
    export(model, tmp_path / "fixed", samples=4, chunk_size=10)
    served = tf.saved_model.load(tmp_path / "fixed").signatures
    answers = {
        "seeded": served["seeded"](inputs=x, seed=seeds)["probs"],
        "serving_default": served["serving_default"](inputs=x)["probs"],
        "mean": served["mean"](inputs=x)["probs"],
    } | {
        f"sample {i}": values
        for i, values in enumerate(
            np.swapaxes(served["samples"](inputs=x)["samples"], 0, 1)
        )
    }
    for name, value in answers.items():
        np.testing.assert_allclose(value, expected, atol=1e-6, err_msg=name)


@needs_tensorflow
def test_layers_have_the_joint_law_in_common(tmp_path):
    """Of two layers that follow one direction, with opposite signs."""
    inputs = keras.Input((3,))
    norms = [bayesnorm.StochasticBatchNormalization(law_rank=1) for _ in range(2)]
    # Of zeros a normalization makes minus the mean that it draws.
    model = keras.Model(inputs, [norm(0.0 * inputs) for norm in norms])
    for norm, sign in zip(norms, (1.0, -1.0), strict=True):
        norm.mu_variance.assign(np.full(3, 0.5))
        norm.statistics_count.assign(1e6)
        norm.law_factor.assign(np.full((1, 2, 3), 0.9 * sign))
    task = "regression"
    export(model, tmp_path / "joint", samples=500, task=task)
    served = tf.saved_model.load(tmp_path / "joint").signatures
    x = np.zeros((4, 3), "float32")
    names = model.output_names
    samples = served["samples"](inputs=x)
    first, second = (samples[f"{n}_samples"].numpy().reshape(-1, 3) for n in names)
    # 2,000 networks, and a correlation of -0.9^2: 5 standard errors.
    between = np.corrcoef(first.T, second.T)[:3, 3:]
    np.testing.assert_allclose(between, -0.81, atol=5 * (1 - 0.81**2) / 2000**0.5)
    variances = [y.var(0, ddof=1) for y in (first, second)]
    np.testing.assert_allclose(variances, 0.5, rtol=5 * (2 / 2000) ** 0.5)

    answers = served["seeded"](inputs=x, seed=np.full(4, 3))
    expected = predict(model, x, 500, seed=3, task=task, verbose=False)
    for name in names:
        for figure in ("mean", "variance"):
            value = getattr(expected[name], figure)
            np.testing.assert_allclose(answers[f"{name}_{figure}"], value, atol=2e-5)


@needs_tensorflow
def test_dense_prediction_of_any_size(tmp_path):
    inputs = keras.Input((None, None, 2))
    y = StochasticScaleNorm(initial_stddev=0.3)(keras.layers.Conv2D(3, 3)(inputs))
    model = keras.Model(inputs, keras.layers.Softmax()(y))
    export(model, tmp_path / "1", samples=3, chunk_size=2)
    loaded = tf.saved_model.load(tmp_path / "1")
    x = np.random.default_rng(0).normal(size=(2, 7, 5, 2)).astype("float32")
    got = loaded.signatures["seeded"](inputs=x, seed=np.array([4, 4]))
    expected = predict(model, x, 3, seed=4)
    for name, value in got.items():
        np.testing.assert_allclose(value, getattr(expected, name), atol=2e-6)
    samples = loaded.signatures["samples"](inputs=x)["samples"]
    assert samples.shape == (2, 3, 5, 3, 3)


@needs_tensorflow
def test_regression_and_several_inputs(tmp_path):
    a, b = keras.Input((3,), name="a"), keras.Input((1,), name="b")
    y = keras.layers.Concatenate()([StochasticScaleNorm(initial_stddev=0.3)(a), b])
    model = keras.Model({"a": a, "b": b}, keras.layers.Dense(2)(y))
    export(model, tmp_path / "1", samples=4, task="regression")
    x = np.random.default_rng(0).normal(size=(2, 3)).astype("float32")
    inputs = {"a": x, "b": x[:, :1]}
    served = Exported(tmp_path / "1")
    got = served.serve(("seeded", {**inputs, "seed": np.array([7, 7])}))
    expected = predict(model, inputs, 4, seed=7, task="regression")
    assert set(got) == {"mean", "variance"}
    np.testing.assert_allclose(got["mean"], expected.mean, atol=1e-6)
    np.testing.assert_allclose(got["variance"], expected.variance, rtol=1e-4)


@needs_tensorflow
def test_subclassed_models(tmp_path):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)
            self.scale = StochasticScaleNorm(initial_stddev=0.3)

        def call(self, inputs):
            return self.scale(self.dense(inputs))

    model = Net()
    with pytest.raises(ValueError, match="not built"):
        export(model, tmp_path / "1", from_logits=True)
    x = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    model(x)
    export(model, tmp_path / "1", samples=4, from_logits=True)
    loaded = tf.saved_model.load(tmp_path / "1")
    got = loaded.signatures["seeded"](inputs=x, seed=np.array([7, 7]))
    expected = predict(model, x, 4, seed=7, from_logits=True)
    np.testing.assert_allclose(got["probs"], expected.probs, atol=2e-6)


@needs_tensorflow
def test_folder_is_complete_and_never_overwritten(exported, model):
    assert {p.name for p in exported.path.iterdir()} >= {"README.md", "saved_model.pb"}
    assert [p.name for p in exported.path.parent.iterdir()] == ["1"]
    readme = (exported.path / "README.md").read_text()
    assert "tensorflow_model_server" in readme
    assert "`inputs`: float32 `[batch, 6, 6, 2]`" in readme
    before = (exported.path / "saved_model.pb").read_bytes()
    with pytest.raises(ValueError, match="not overwritten"):
        export(model, exported.path, from_logits=True)
    assert (exported.path / "saved_model.pb").read_bytes() == before


@needs_tensorflow
def test_lookup_tables_come_along(tmp_path):
    words = keras.layers.TextVectorization(output_sequence_length=5)
    words.adapt(["a b c d", "e f g"])
    text = keras.Input((1,), dtype="string", name="text")
    number = keras.Input((1,), dtype="int64", name="number")
    x = keras.layers.Concatenate()(
        [
            keras.layers.GlobalAveragePooling1D()(
                keras.layers.Embedding(9, 4)(words(text))
            ),
            keras.layers.Flatten()(
                keras.layers.Embedding(4, 4)(
                    keras.layers.IntegerLookup(vocabulary=[3, 5, 7])(number)
                )
            ),
        ]
    )
    x = StochasticScaleNorm(initial_stddev=0.3)(x)
    model = keras.Model([text, number], keras.layers.Dense(3, "softmax")(x))
    inputs = [tf.constant([["a b"], ["g x"]]), tf.constant([[5], [9]], "int64")]
    export(model, tmp_path / "1", samples=4)
    served = tf.saved_model.load(tmp_path / "1").signatures
    expected = model.predict(inputs, verbose=0)
    arguments = {"text": inputs[0], "number": inputs[1]}
    got = served["mean"](**arguments)["probs"]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert served["samples"](**arguments)["samples"].shape == (2, 4, 3)


@needs_tensorflow
def test_several_outputs_have_entries_by_name(tmp_path):
    inputs = keras.Input((4,))
    x = StochasticScaleNorm(initial_stddev=0.5)(keras.layers.Dense(5)(inputs))
    kind = keras.layers.Dense(3, activation="softmax", name="kind")(x)
    tags = keras.layers.Dense(2, activation="sigmoid", name="tags")(x)
    age = keras.layers.Dense(1, name="age")(x)
    model = keras.Model(inputs, [kind, tags, age])
    tasks = {"kind": "classification", "tags": "multilabel", "age": "regression"}
    export(model, tmp_path / "1", samples=4, task=tasks, chunk_size=6)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    served = Exported(tmp_path / "1")
    seeded, samples, mean = served.serve(
        ("seeded", {"inputs": x, "seed": np.full(5, 7)}),
        ("samples", {"inputs": x}),
        ("mean", {"inputs": x}),
    )
    expected = predict(model, x, 4, seed=7, task=tasks, verbose=False)
    names = {
        f"{output}_{name}"
        for output, prediction in expected.items()
        for name in ("probs", "entropy", "mutual_information", "mean", "variance")
        if getattr(prediction, name) is not None
    }
    assert set(seeded) == names
    for name, value in seeded.items():
        output, _, field = name.partition("_")
        np.testing.assert_allclose(
            value, getattr(expected[output], field), atol=2e-6, err_msg=name
        )
    shapes = {name: value.shape for name, value in samples.items()}
    assert shapes == {
        "kind_samples": (5, 4, 3),
        "tags_samples": (5, 4, 2),
        "age_samples": (5, 4, 1),
    }
    assert set(mean) == {
        *("kind_probs", "kind_entropy", "tags_probs", "tags_entropy", "age_mean")
    }
    readme = (tmp_path / "1" / "README.md").read_text()
    assert "`tags_mutual_information`, `age_mean`" in readme


@needs_tensorflow
def test_a_failed_export_leaves_nothing(tmp_path):
    class Fails(keras.layers.Layer):
        fails = False

        def call(self, x):
            if self.fails:
                raise TypeError("not in a SavedModel")
            return x

    model = keras.Sequential([keras.Input((3,)), Fails()])
    model.layers[0].fails = True
    with pytest.raises(TypeError, match="not in a SavedModel"):
        export(model, tmp_path / "1", task="regression")
    assert not list(tmp_path.iterdir())


@needs_tensorflow
@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (dict(samples=0), "`samples`"),
        (dict(task="ranking"), "`task`"),
        (dict(chunk_size=0), "`chunk_size`"),
        (dict(), "from_logits=True"),
    ],
)
def test_bad_arguments(model, tmp_path, arguments, match):
    with pytest.raises(ValueError, match=match):
        export(model, tmp_path / "1", **arguments)


@pytest.mark.jax
def test_other_backends_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="KERAS_BACKEND=tensorflow"):
        export(make_model(), tmp_path / "1", from_logits=True)


@needs_tensorflow
def test_rows_of_a_pass_follow_the_size_of_an_example(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        "bayesnorm.serving.saved_model.write", lambda *args: written.append(args[-1])
    )
    monkeypatch.setattr("bayesnorm.serving.warmup.write_requests", lambda *args: 0)
    for i, shape in enumerate([(4,), (512, 512, 24), (None, 24)]):
        inputs = keras.Input(shape)
        model = keras.Model(inputs, bayesnorm.StochasticScaleNorm()(inputs))
        export(model, tmp_path / str(i), from_logits=True)
    small, large, open_ = written
    assert small == open_ == 1024
    assert large in (4, 8)  # One tensor of an example takes 24 MiB.
