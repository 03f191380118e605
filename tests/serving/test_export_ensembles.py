"""export of ensembles: one graph that answers as `predict` of the ensemble does."""

import keras
import numpy as np
import pytest
from keras import layers
from scipy import stats

from bayesnorm.prediction.predict import predict
from bayesnorm.prediction.weight_sets import WeightSets
from bayesnorm.serving.export import export
from tests.serving.test_export import Exported, check_seeded, make_model

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

pytestmark = pytest.mark.tensorflow
MEMBERS, SAMPLES = 3, 4


@pytest.fixture(scope="module")
def sets():
    keras.utils.set_random_seed(1)
    sets = WeightSets.of([make_model() for _ in range(MEMBERS)])
    # The weights that are served are those of the sets.
    sets.model.set_weights([np.full_like(w, 7) for w in sets[0]])
    return sets


@pytest.fixture(scope="module")
def exported(sets, tmp_path_factory):
    path = tmp_path_factory.mktemp("ensembles") / "1"
    export(sets, path, samples=SAMPLES, from_logits=True, chunk_size=9)
    return Exported(path)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(5, 6, 6, 2)).astype("float32")


def test_answers_are_those_of_predict(exported, sets, x):
    seeds = np.array([3, 1, 4, 1, 5])
    padded = np.concatenate([x[2:3], np.zeros_like(x[:3])])
    mean, seeded, alone, samples, default = exported.serve(
        ("mean", {"inputs": x}),
        ("seeded", {"inputs": x, "seed": seeds}),
        ("seeded", {"inputs": padded, "seed": np.array([4, 9, 9, 9])}),
        ("samples", {"inputs": np.repeat(x[:1], 150, axis=0)}),
        ("serving_default", {"inputs": x}),
    )
    expected = predict(sets, x, method="mean", from_logits=True)
    assert set(mean) == {"probs", "entropy", "mutual_information"}
    for name, value in mean.items():
        np.testing.assert_allclose(value, getattr(expected, name), atol=1e-6)
    check_seeded(seeded, sets, x, seeds, SAMPLES)
    for name, value in alone.items():
        np.testing.assert_allclose(value[0], seeded[name][2], atol=2e-6)
    assert set(default) == {"probs", "entropy", "mutual_information"}
    assert np.abs(default["probs"] - seeded["probs"]).max() > 1e-4

    # Member by member, of which each has its own law and 600 fresh draws.
    got = samples["samples"]
    assert got.shape == (150, MEMBERS * SAMPLES, 3)
    # Of so many float32 numbers two are the same in one run of five.
    assert len(np.unique(got[..., 0])) > 150 * MEMBERS * SAMPLES - 5
    truth = predict(
        sets, x[:1], 2000, seed=0, from_logits=True, keep_samples=True
    ).samples.reshape(MEMBERS, 2000, 3)
    got = got.reshape(150, MEMBERS, SAMPLES, 3).swapaxes(0, 1).reshape(MEMBERS, -1, 3)
    z = (got.mean(1) - truth.mean(1)) / np.sqrt(
        got.var(1) / got.shape[1] + truth.var(1) / truth.shape[1]
    )
    assert np.abs(z).max() < stats.norm.isf(1e-4 / 9 / 2)


def test_weights_are_stored_once(exported, sets):
    stored = sum(f.stat().st_size for f in (exported.path / "variables").iterdir())
    weights = sum(stack.nbytes for stack in sets.stacked())
    assert weights < stored < weights + 10_000
    assert "4 of each of 3 members" in (exported.path / "README.md").read_text()


def test_networks_without_noise_and_several_outputs(tmp_path):
    """A deep ensemble: one network of each member, and what they disagree in."""

    def make():
        inputs = keras.Input((4,))
        x = layers.BatchNormalization()(layers.Dense(5, activation="tanh")(inputs))
        kind = layers.Dense(3, activation="softmax", name="kind")(x)
        return keras.Model(inputs, [kind, layers.Dense(1, name="age")(x)])

    models = [make() for _ in range(3)]
    tasks = {"kind": "classification", "age": "regression"}
    export(models, tmp_path / "1", samples=5, task=tasks)
    served = tf.saved_model.load(tmp_path / "1").signatures
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    expected = predict(models, x, task=tasks, method="mean")
    answers = {
        "mean": served["mean"](inputs=x),
        "serving_default": served["serving_default"](inputs=x),
        "seeded": served["seeded"](inputs=x, seed=np.arange(6)),
    }
    for signature, answer in answers.items():
        assert len(answer) == 5, signature
        for name, value in answer.items():
            output, _, field = name.partition("_")
            np.testing.assert_allclose(
                value, getattr(expected[output], field), atol=1e-6, err_msg=name
            )
    samples = served["samples"](inputs=x)
    assert samples["kind_samples"].shape == (6, 3, 3)
    for i, model in enumerate(models):
        outputs = model.predict(x, verbose=0)
        for name, value in zip(("kind", "age"), outputs, strict=True):
            got = samples[f"{name}_samples"][:, i]
            np.testing.assert_allclose(got, value, atol=1e-6)


def test_one_set_is_a_model(sets, tmp_path, x):
    export(sets[1:2], tmp_path / "1", samples=2, from_logits=True)
    served = tf.saved_model.load(tmp_path / "1").signatures
    expected = predict(sets[1:2], x, method="mean", from_logits=True)
    np.testing.assert_allclose(served["mean"](inputs=x)["probs"], expected.probs, 1e-5)
    assert served["samples"](inputs=x)["samples"].shape == (5, 2, 3)


def test_what_is_no_ensemble_is_refused(tmp_path):
    models = [make_model(), make_model(dense_prediction=True)]
    with pytest.raises(ValueError, match="not of one architecture"):
        export(models, tmp_path / "1", from_logits=True)
    with pytest.raises(ValueError, match="empty"):
        export([], tmp_path / "1", from_logits=True)
    with pytest.raises(TypeError, match="Received: int"):
        export([3], tmp_path / "1", from_logits=True)
    inputs = keras.Input((4,))
    models = [keras.Model(inputs, layers.Dense(3)(inputs)) for _ in range(2)]
    for model, from_logits in zip(models, (True, False), strict=True):
        loss = keras.losses.CategoricalCrossentropy(from_logits=from_logits)
        model.compile(loss=loss)
    with pytest.raises(ValueError, match="same outputs"):
        export(models, tmp_path / "1")
    assert not list(tmp_path.iterdir())
