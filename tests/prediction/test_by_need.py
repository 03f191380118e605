"""predict(tolerance=): the same networks for those who stay, fewer rows for all."""

import keras
import numpy as np
import pytest
from scipy import special, stats

import bayesnorm
from bayesnorm.layers import StochasticScaleNorm
from bayesnorm.prediction import engine
from bayesnorm.prediction.predict import predict

FIELDS = ("probs", "entropy", "mutual_information", "mean", "variance")
NEVER = 1e-30


def classifier(outputs=4, stddev=0.4, activation="softmax"):
    inputs = keras.Input((5,))
    x = StochasticScaleNorm(initial_stddev=stddev)(keras.layers.Dense(16)(inputs))
    x = keras.layers.Dense(outputs, activation=activation)(keras.layers.ReLU()(x))
    return keras.Model(inputs, x)


def segmenter():
    inputs = keras.Input((None, None, 2))
    x = keras.layers.Conv2D(6, 3, padding="same")(inputs)
    x = StochasticScaleNorm(initial_stddev=0.3)(x)
    x = keras.layers.Conv2D(3, 1, activation="softmax")(keras.layers.ReLU()(x))
    return keras.Model(inputs, x)


@pytest.fixture
def x(rng):
    return 2 * rng.normal(size=(100, 5)).astype("float32")


def assert_same(got, expected, rows=slice(None)):
    for name in FIELDS:
        a, b = getattr(got, name), getattr(expected, name)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a[rows], b[rows], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("samples", [1, 5, 20, 50])
@pytest.mark.parametrize("task", ["classification", "regression", "multilabel"])
def test_who_never_leaves_has_the_plain_prediction(x, samples, task):
    activation = {"classification": "softmax", "multilabel": "sigmoid"}.get(task)
    model = classifier(activation=activation)
    arguments = dict(samples=samples, seed=4, task=task)
    got = predict(model, x, tolerance=NEVER, batch_size=32, **arguments)
    assert_same(got, predict(model, x, **arguments))
    np.testing.assert_array_equal(got.samples_used, np.full(100, samples))
    assert got.samples_used.dtype == "int64"
    assert predict(model, x[:1], **arguments).samples_used is None


@pytest.mark.parametrize("batch_size", [7, 64, 256])
@pytest.mark.parametrize("tolerance", ["class", 0.1])
def test_who_leaves_has_the_average_of_its_first_networks(x, batch_size, tolerance):
    model = classifier()
    everything = predict(model, x, samples=96, seed=1, keep_samples=True)
    got = predict(
        model, x, samples=96, seed=1, tolerance=tolerance, batch_size=batch_size
    )
    assert len(set(got.samples_used)) > 1
    for i, used in enumerate(got.samples_used):
        mean = everything.samples[:used, i].mean(0, dtype="float64")
        np.testing.assert_allclose(got.probs[i], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got.entropy[i], special.entr(mean).sum(), atol=1e-5)
    # The same whatever the batches.
    again = predict(model, x, samples=96, seed=1, tolerance=tolerance, batch_size=20)
    np.testing.assert_array_equal(again.samples_used, got.samples_used)
    assert_same(again, got)


def test_the_classes_of_a_network_are_those_of_all_samples(rng):
    model = classifier()
    x = 2 * rng.normal(size=(2000, 5)).astype("float32")
    arguments = dict(samples=200, seed=2)
    got = predict(model, x, tolerance="class", error_rate=0.05, **arguments)
    wrong = (got.classes != predict(model, x, **arguments).classes).sum()
    # One noise for all examples: errors come together, seen here as up to twice.
    assert wrong <= 2 * stats.binom.isf(1e-4, 2000, 0.05)
    assert got.samples_used.mean() < 100


def test_fewer_rows_go_through_the_network(rng, monkeypatch):
    model = classifier(stddev=0.1)
    x = 10 * rng.normal(size=(1000, 5)).astype("float32")
    rows = []
    plain = engine._Engine.networks

    def counted(self, batch, *args):
        rows.append(len(batch) * engine.BLOCK)
        return plain(self, batch, *args)

    monkeypatch.setattr(engine._Engine, "networks", counted)
    got = predict(model, x, samples=200, seed=0, tolerance="class", batch_size=128)
    used = got.samples_used.sum()
    assert used <= sum(rows) < 1.3 * used
    assert sum(rows) < 0.3 * 200 * len(x)
    assert len(set(rows)) <= 5


def test_a_stream_and_its_order(x):
    model = classifier()
    arguments = dict(samples=64, seed=3, tolerance="class")
    expected = predict(model, x, **arguments)
    sizes = [30, 1, 60, 9]
    batches = (part for part in np.split(x, np.cumsum(sizes)[:-1]))
    got = predict(model, batches, batch_size=16, **arguments)
    assert_same(got, expected)
    np.testing.assert_array_equal(got.samples_used, expected.samples_used)


def test_an_ensemble(x):
    members = [classifier() for _ in range(3)]
    arguments = dict(samples=40, seed=5)
    got = predict(members, x, tolerance=NEVER, **arguments)
    assert_same(got, predict(members, x, **arguments))
    early = predict(members, x, tolerance="class", batch_size=32, **arguments)
    kept = predict(members, x, keep_samples=True, **arguments).samples
    kept = kept.reshape(3, 40, 100, 4)
    for i, used in enumerate(early.samples_used):
        mean = kept[:, :used, i].mean((0, 1), dtype="float64")
        np.testing.assert_allclose(early.probs[i], mean, rtol=1e-5, atol=1e-6)
    assert early.samples_used.mean() < 38


def test_an_ensemble_of_regressions_has_the_variance_over_all(x):
    members = [classifier(1, activation=None) for _ in range(2)]
    arguments = dict(samples=48, seed=5, task="regression")
    kept = predict(members, x, keep_samples=True, **arguments).samples
    kept = kept.reshape(2, 48, 100, 1)
    # As wide as the interval of half of the examples after 32 samples of 48.
    tolerance = 0.35 * float(np.median(kept.mean(0).std(0)))
    got = predict(members, x, tolerance=tolerance, **arguments)
    assert len(set(got.samples_used)) > 1
    for i, used in enumerate(got.samples_used):
        variance = kept[:, :used, i].astype("float64").var((0, 1), ddof=1)
        np.testing.assert_allclose(got.variance[i], variance, rtol=1e-4)


def test_a_member_without_noise_is_the_same_each_time(x):
    inputs = keras.Input((5,))
    plain = keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(inputs))
    members, arguments = [classifier(), plain], dict(samples=20, seed=5)
    got = predict(members, x, tolerance=NEVER, **arguments)
    assert_same(got, predict(members, x, **arguments))
    with pytest.warns(UserWarning, match="no layer that draws noise"):
        alone = predict(plain, x, tolerance="class", **arguments)
    np.testing.assert_array_equal(alone.samples_used, np.ones(100))


def test_several_outputs_leave_together(x):
    inputs = keras.Input((5,))
    h = StochasticScaleNorm(initial_stddev=0.4)(keras.layers.Dense(16)(inputs))
    outputs = {
        "kind": keras.layers.Dense(3, activation="softmax")(h),
        "age": keras.layers.Dense(1)(h),
    }
    model = keras.Model(inputs, outputs)
    tasks = {"kind": "classification", "age": "regression"}
    arguments = dict(samples=96, seed=6, task=tasks)

    def used(**tolerances):
        got = predict(model, x, tolerance=tolerances, **arguments)
        np.testing.assert_array_equal(got["kind"].samples_used, got["age"].samples_used)
        return got["kind"].samples_used

    both = used(kind="class", age=1.0)
    loose = 1e6  # Settled at once.
    alone = np.maximum(used(kind="class", age=loose), used(kind=loose, age=1.0))
    np.testing.assert_array_equal(both, alone)
    with pytest.raises(ValueError, match="output 'age' is a regression"):
        predict(model, x, tolerance="class", **arguments)


def test_dense_predictions_and_shapes(rng):
    model = segmenter()
    shapes = [(8, 8), (4, 6), (8, 8)]
    batches = [10 * rng.normal(size=(3, *s, 2)).astype("float32") for s in shapes]
    arguments = dict(samples=64, seed=7)
    whole = predict(model, batches[0], **arguments)
    got = predict(model, batches[0], tolerance="class", error_rate=0.2, **arguments)
    assert got.samples_used.shape == (3,)
    assert got.samples_used.max() < 64
    assert (got.classes != whole.classes).mean() < 0.2
    with pytest.raises(ValueError, match="one shape for each shape of the examples"):
        predict(model, iter(batches), tolerance="class", **arguments)


def test_texts_of_several_lengths(rng):
    inputs = keras.Input((None, 3))
    h = keras.layers.GlobalAveragePooling1D()(keras.layers.Dense(8)(inputs))
    h = StochasticScaleNorm(initial_stddev=0.5)(h)
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(h))
    lengths = [4, 7, 4, 4, 7]
    batches = [rng.normal(size=(6, n, 3)).astype("float32") for n in lengths]
    arguments = dict(samples=48, seed=8, batch_size=8)
    got = predict(model, iter(batches), tolerance=NEVER, **arguments)
    assert_same(got, predict(model, iter(batches), **arguments))
    early = predict(model, iter(batches), tolerance="class", **arguments)
    assert len(set(early.samples_used)) > 1


def test_a_temperature_is_of_the_entropy_that_is_settled(x):
    model = classifier()
    arguments = dict(samples=200, seed=9, temperature=3.0)
    whole = predict(model, x, **arguments)
    got = predict(model, x, tolerance=0.05, **arguments)
    assert np.abs(got.entropy - whole.entropy).max() < 0.05
    # Close to even chances there is little to be settled.
    assert (
        got.samples_used.mean()
        < predict(model, x, samples=200, seed=9, tolerance=0.05).samples_used.mean()
    )


def test_errors(x):
    model = classifier()
    with pytest.raises(ValueError, match=r"method='sample' alone.*'mean'"):
        predict(model, x, tolerance="class", method="mean")
    with pytest.raises(ValueError, match=r"not kept\. Pass keep_samples=False"):
        predict(model, x, tolerance="class", keep_samples=True)
    with pytest.raises(ValueError, match="`error_rate` must lie between 0 and 1"):
        predict(model, x, tolerance="class", error_rate=1.5)
    for tolerance in (0, -1, np.nan, "entropy", {"other": "class"}):
        with pytest.raises(ValueError, match="must be 'class'"):
            predict(model, x, tolerance=tolerance)


def test_outputs_that_are_not_finite_are_named(x):
    model = classifier(activation=None)
    model.layers[-1].bias.assign([np.nan] * 4)
    with pytest.raises(ValueError, match="for example 0 are not finite"):
        bayesnorm.predict(model, x, tolerance="class", from_logits=True)
