"""A temperature of averaged predictions: one formula in predict, export and metrics."""

import keras
import numpy as np
import pytest
from scipy import special, stats

import bayesnorm
from bayesnorm import metrics
from bayesnorm.layers import StochasticScaleNorm
from bayesnorm.prediction.outputs import temper
from bayesnorm.prediction.predict import predict


def model_of(activation="softmax", outputs=4):
    inputs = keras.Input((5,))
    x = StochasticScaleNorm(initial_stddev=0.4)(keras.layers.Dense(16)(inputs))
    return keras.Model(inputs, keras.layers.Dense(outputs, activation=activation)(x))


def several():
    inputs = keras.Input((5,))
    x = StochasticScaleNorm(initial_stddev=0.4)(keras.layers.Dense(16)(inputs))
    outputs = {
        "kind": keras.layers.Dense(3, activation="softmax")(x),
        "tags": keras.layers.Dense(2, activation="sigmoid")(x),
        "age": keras.layers.Dense(1)(x),
    }
    return keras.Model(inputs, outputs)


TASKS = {"kind": "classification", "tags": "multilabel", "age": "regression"}


@pytest.fixture
def x(rng):
    return 2 * rng.normal(size=(30, 5)).astype("float32")


def tempered(probs, temperature):
    return special.softmax(np.log(probs.astype("float64")) / temperature, axis=-1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("method", ["sample", "mean", "moments"])
def test_it_is_of_the_average(x, method, temperature):
    model, arguments = model_of(), dict(samples=20, seed=1, method=method)
    plain = predict(model, x, **arguments)
    got = predict(model, x, temperature=temperature, **arguments)
    expected = tempered(plain.probs, temperature)
    np.testing.assert_allclose(got.probs, expected, rtol=2e-5, atol=1e-6)
    entropy = special.entr(expected).sum(-1)
    np.testing.assert_allclose(got.entropy, entropy, rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(got.mutual_information, plain.mutual_information)
    np.testing.assert_array_equal(got.classes, plain.classes)
    np.testing.assert_allclose(
        got.probs,
        metrics.apply_temperature(np.log(plain.probs), temperature),
        atol=1e-6,
    )


def test_it_is_of_an_ensemble_as_a_whole(x):
    members = [model_of() for _ in range(2)]
    plain = predict(members, x, seed=1)
    got = predict(members, x, seed=1, temperature=0.5)
    np.testing.assert_allclose(got.probs, tempered(plain.probs, 0.5), atol=1e-6)


def test_each_output_has_its_own(x):
    model = several()
    arguments = dict(samples=10, seed=2, task=TASKS)
    plain = predict(model, x, **arguments)
    got = predict(
        model, x, temperature={"kind": 2.0, "tags": 3.0, "age": None}, **arguments
    )
    np.testing.assert_allclose(
        got["kind"].probs, tempered(plain["kind"].probs, 2.0), atol=1e-6
    )
    yes = special.expit(special.logit(plain["tags"].probs.astype("float64")) / 3.0)
    np.testing.assert_allclose(got["tags"].probs, yes, atol=1e-6)
    np.testing.assert_array_equal(got["age"].mean, plain["age"].mean)
    one = predict(model, x, temperature=2.0, **arguments)
    np.testing.assert_array_equal(one["kind"].probs, got["kind"].probs)
    with pytest.raises(ValueError, match="a regression has none"):
        predict(model, x, temperature={"kind": 2, "tags": 2, "age": 2}, **arguments)


def test_errors(x):
    model = model_of()
    for temperature in (0, -1, np.inf, np.nan, "warm"):
        with pytest.raises(ValueError, match="`temperature` must be a finite number"):
            predict(model, x, temperature=temperature)
    with pytest.raises(ValueError, match="a regression has none"):
        predict(model_of(None), x, task="regression", temperature=2.0)


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 10.0])
def test_probabilities_of_any_size(temperature):
    probs = np.array([[1.0, 0.0, 0.0], [1e-30, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3]])
    got, entropy = temper(probs, temperature, np)
    np.testing.assert_allclose(got.sum(-1), 1.0)
    np.testing.assert_allclose(got[0], [1, 0, 0])
    np.testing.assert_allclose(entropy, special.entr(got).sum(-1), atol=1e-12)
    small, _ = temper(np.full((1, 1000), 1e-3), temperature, np)
    np.testing.assert_allclose(small, 1e-3)


def test_the_fitted_one_is_that_of_the_labels():
    """Labels of `softmax(log p / 2)`: the maximum likelihood finds 2."""
    rng, n = np.random.default_rng(0), 20_000
    probs = special.softmax(3 * rng.normal(size=(n, 5)), axis=-1)
    true = metrics.apply_temperature(np.log(probs), 2.0)
    labels = (rng.random((n, 1)) > true.cumsum(-1)).sum(-1).clip(max=4)
    got = metrics.fit_temperature(probs, labels)
    # The deviation of 1 / T from the Fisher information of the exponential family.
    logs = np.log(probs)
    information = n * (true * logs**2).sum(-1).mean()
    information -= n * np.square((true * logs).sum(-1)).mean()
    error = 1 / np.sqrt(information)
    assert abs(1 / got - 0.5) < stats.norm.isf(5e-5) * error
    assert metrics.nll(true, labels) < metrics.nll(probs, labels)
    with_zero = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert metrics.fit_temperature(with_zero, np.array([0, 1, 1])) > 1


@pytest.mark.tensorflow
@pytest.mark.parametrize("ensemble", [False, True])
def test_export_agrees_with_predict(x, tmp_path, ensemble):
    import tensorflow as tf

    model = [several(), several()] if ensemble else several()
    if ensemble:
        model = bayesnorm.WeightSets.of([model[0], keras.models.clone_model(model[0])])
    temperature = {"kind": 0.5, "tags": 3.0, "age": None}
    bayesnorm.export(
        model, tmp_path / "1", samples=8, task=TASKS, temperature=temperature
    )
    loaded = tf.saved_model.load(str(tmp_path / "1"))
    seeds = np.full(len(x), 7, "int64")
    arguments = dict(samples=8, task=TASKS, temperature=temperature)
    served = loaded.signatures["seeded"](inputs=tf.constant(x), seed=tf.constant(seeds))
    assert_served(served, predict(model, x, seed=7, **arguments))
    served = loaded.signatures["mean"](inputs=tf.constant(x))
    assert_served(served, predict(model, x, method="mean", **arguments))
    said = (tmp_path / "1" / "README.md").read_text()
    assert "softmax(log p / T): `kind_probs` 0.5, `tags_probs` 3; mutual" in said


def assert_served(served, predicted):
    for output in ("kind", "tags"):
        for name in ("probs", "entropy"):
            np.testing.assert_allclose(
                served[f"{output}_{name}"], getattr(predicted[output], name), atol=2e-6
            )
