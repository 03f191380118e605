"""Ensembles of one architecture: as their members one by one, compiled once."""

import concurrent.futures

import keras
import numpy as np
import pytest
from keras import layers, ops

import bayesnorm
from bayesnorm import backend
from bayesnorm.prediction import engine
from bayesnorm.prediction.networks import Noise
from bayesnorm.prediction.predict import predict
from bayesnorm.prediction.weight_sets import WeightSets
from bayesnorm.storage import ArchiveError, write_archive
from tests.helpers import long
from tests.prediction.test_predict import (
    Counter,
    Subclassed,
    branched,
    nested,
    own_call,
    scale_norm,
)

TASKS = {"kind": "classification", "age": "regression"}


@pytest.fixture
def x(rng):
    return rng.normal(size=(9, 4)).astype("float32")


def batch_normalized(x):
    """Two outputs, calibrated, with a dropout that draws masks in training."""
    inputs = keras.Input((4,))
    h = bayesnorm.StochasticBatchNormalization()(layers.Dense(6)(inputs))
    h = layers.Dropout(0.3, seed=1)(layers.ReLU()(h))
    h = bayesnorm.StochasticBatchNormalization()(layers.Dense(5)(h))
    kind = layers.Dense(3, activation="softmax", name="kind")(h)
    model = keras.Model(inputs, [kind, layers.Dense(1, name="age")(h)])
    return bayesnorm.calibrate(model, x, batch_size=3, verbose=False)


def values(model):
    return [np.array(ops.convert_to_numpy(v)) for v in model.variables]


def sets_of(models):
    """Their weights, in a model that has none of them itself."""
    sets = WeightSets(models[0], [model.get_weights() for model in models])
    models[0].set_weights([np.full_like(w, 7) for w in models[0].get_weights()])
    return sets


def fields(prediction):
    return {
        (key, name): value
        for key, each in (
            prediction.items() if isinstance(prediction, dict) else [("", prediction)]
        )
        for name, value in vars(each).items()
        if value is not None
    }


def assert_same(got, expected):
    got, expected = fields(got), fields(expected)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(got[key], value, atol=1e-6, err_msg=str(key))


@pytest.mark.parametrize("make", [branched, own_call, long(nested), long(Subclassed)])
def test_networks_are_those_of_the_members(make, x):
    """Each sample is what a member itself computes with its draws."""
    models = [make() for _ in range(2)]
    expected = []
    for i, model in enumerate(models):
        model(x)
        noise, seed = Noise(model), backend.fold_in(backend.seed_from_int(5), i)
        for k in range(2):
            with noise.mode(noise.network(seed, k)[None]):
                expected.append(ops.convert_to_numpy(model(x, training=False)))
    arguments = dict(samples=2, seed=5, task="regression", keep_samples=True)
    for ensemble in (list, sets_of):
        got = predict(ensemble(models), x, **arguments)
        np.testing.assert_allclose(got.samples, expected, atol=1e-5)
        mean = np.mean(expected, axis=0)
        np.testing.assert_allclose(got.mean, mean, atol=1e-5)
        variance = np.var(expected, axis=0, ddof=1)
        np.testing.assert_allclose(got.variance, variance, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "method", ["sample", "minibatch", long("mean"), long("moments")]
)
def test_every_method_is_that_of_single_models(method, x, monkeypatch):
    models = [batch_normalized(x) for _ in range(2)]
    before = [values(model) for model in models]
    arguments = dict(samples=4, seed=3, method=method, task=TASKS, batch_size=4)
    if method != "moments":
        arguments["keep_samples"] = True
    if method == "minibatch":
        arguments["train_data"] = np.concatenate([x, 2 * x])
    got = predict(models, x, **arguments)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "with_shared_models", lambda members: members)
        expected = predict(models, x, **arguments)
    assert_same(got, expected)
    for model, old in zip(models, before, strict=True):
        for a, b in zip(values(model), old, strict=True):
            np.testing.assert_array_equal(a, b)
    sets = sets_of(models)
    before = values(models[0])
    assert_same(predict(sets, x, **arguments), expected)
    for a, b in zip(values(models[0]), before, strict=True):
        np.testing.assert_array_equal(a, b)


def counted():
    counter = Counter()
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3)(counter(scale_norm()(inputs))))
    counter.calls = []
    return model, counter


def test_compiles_once(x):
    models, counters = zip(*(counted() for _ in range(4)), strict=True)
    arguments = dict(samples=2, from_logits=True)
    predict(list(models), x, **arguments)
    traces = len(counters[0].calls)
    assert traces
    assert [len(counter.calls) for counter in counters] == [traces, 0, 0, 0]
    # As often as for two members, or with other weights, or in weight sets.
    alone, counter = counted()
    predict([alone, models[1]], x, **arguments)
    assert len(counter.calls) == traces
    models[2].layers[1].scale.assign(2 * models[2].layers[1].scale)
    predict(list(models), x, **arguments)
    weights = [model.get_weights() for model in models]
    predict(WeightSets(models[0], weights), x, **arguments)
    assert [len(counter.calls) for counter in counters] == [traces, 0, 0, 0]


def test_sees_new_weights(x):
    models = [branched(), branched()]
    arguments = dict(samples=2, seed=0, task="regression", keep_samples=True)
    before = predict(models, x, **arguments).samples
    models[1].layers[-1].bias.assign(models[1].layers[-1].bias + 1.0)
    after = predict(models, x, **arguments).samples
    np.testing.assert_allclose(after[:2], before[:2], atol=1e-6)
    np.testing.assert_allclose(after[2:], before[2:] + 1, atol=1e-5)


def test_other_architectures_and_sets_mix(x):
    def other():
        return keras.Sequential([keras.Input((4,)), scale_norm(), layers.Dense(3)])

    chains = [sets_of([branched(), branched()]), sets_of([other(), other()])]
    members = [chains[0], other(), chains[1], branched()]
    arguments = dict(samples=3, task="regression", method="mean")
    got = predict(members, x, **arguments).mean
    single = [predict(member, x, **arguments).mean for member in members]
    np.testing.assert_allclose(got, np.average(single, 0, [2, 1, 2, 1]), atol=1e-6)


def test_threads_do_not_meet(x):
    models = [branched() for _ in range(4)]
    sets = sets_of(models)
    arguments = dict(samples=3, seed=1, from_logits=True)
    parts = [sets[:2], sets[2:], sets[1:3]] * 3
    expected = [predict(part, x, **arguments).probs for part in parts[:3]] * 3
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda part: predict(part, x, **arguments).probs, parts))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_is_a_sequence_of_sets():
    models = [branched() for _ in range(3)]
    weights = [model.get_weights() for model in models]
    sets = WeightSets.of([bayesnorm.sampling_model(models[0]), *models[1:]])
    assert len(sets) == 3
    for arrays, expected in zip(sets, weights, strict=True):
        for a, b in zip(arrays, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert len(sets[1:]) == 2
    np.testing.assert_array_equal(sets[1:][0][0], weights[1][0])
    np.testing.assert_array_equal(sets[-1][0], weights[2][0])
    with pytest.raises(IndexError):
        sets[3]
    with pytest.raises(ValueError, match="read-only"):
        sets[0][0][:] = 0
    assert sets.assign(2) is models[0]
    for a, b in zip(models[0].get_weights(), weights[2], strict=True):
        np.testing.assert_array_equal(a, b)
    # What was given is not looked at again.
    np.testing.assert_array_equal(sets[0][0], weights[0][0])


def test_save_and_load(x, tmp_path):
    sets = sets_of([branched(), branched()])
    sets.save(tmp_path / "sets.npz")
    loaded = WeightSets.load(tmp_path / "sets.npz", branched())
    arguments = dict(samples=2, seed=0, from_logits=True)
    np.testing.assert_array_equal(
        predict(loaded, x, **arguments).probs, predict(sets, x, **arguments).probs
    )
    with np.load(tmp_path / "sets.npz", allow_pickle=False) as file:
        assert file["weight_0"].shape == (2, 4, 6)


def test_half_precision_is_stored_as_it_is(tmp_path):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, dtype="bfloat16")])
    sets = WeightSets(model, [model.get_weights()] * 2)
    sets.save(tmp_path / "sets.npz")
    loaded = WeightSets.load(tmp_path / "sets.npz", model)
    assert loaded[1][0].dtype == model.weights[0].numpy().dtype
    np.testing.assert_array_equal(loaded[1][0], model.get_weights()[0])


def test_damaged_files_and_other_models(tmp_path):
    path = tmp_path / "sets.npz"
    sets = WeightSets.of([branched(), branched()])
    sets.save(path)
    with pytest.raises(ValueError, match=r"array 14 .*kernel.*\(5, 3\).*\(5, 2\)"):
        WeightSets.load(path, branched(2))
    plain = keras.Sequential([keras.Input((4,)), layers.Dense(6)])
    with pytest.raises(ValueError, match="Expected the 2 weights of model 'sequential"):
        WeightSets.load(path, plain)
    norms = [
        keras.Sequential([keras.Input((4,)), layers.BatchNormalization(**arguments)])
        for arguments in ({"scale": False}, {"center": False})
    ]
    WeightSets.of(norms[:1]).save(path)
    with pytest.raises(ValueError, match=r"array 0 .*beta.* Expected .*gamma"):
        WeightSets.load(path, norms[1])
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="cannot be read"):
        WeightSets.load(path, norms[0])
    write_archive(path, {"weight_0": np.ones(3)}, {"kind": "other"})
    with pytest.raises(ArchiveError, match="no weight sets"):
        WeightSets.load(path, plain)


def test_bad_sets(x):
    model = branched()
    weights = model.get_weights()
    with pytest.raises(ValueError, match="empty"):
        WeightSets(model, [])
    with pytest.raises(ValueError, match="empty"):
        WeightSets.of([])
    with pytest.raises(ValueError, match="Set 1 has 2 arrays"):
        WeightSets(model, [weights, weights[:2]])
    with pytest.raises(ValueError, match=r"Array 0 of set 0 .*\(6, 4\).*kernel"):
        WeightSets(model, [[weights[0].T, *weights[1:]]])
    with pytest.raises(TypeError, match=r"keras\.Model"):
        WeightSets(len, [weights])
    with pytest.raises(ValueError, match="not built"):
        WeightSets(Subclassed(), [weights])
    with pytest.raises(ValueError, match="not of one architecture"):
        WeightSets.of([model, branched(2)])
    growing = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    sets = WeightSets.of([growing])
    growing.add(layers.Dense(3))
    with pytest.raises(ValueError, match="other weights than when the sets were made"):
        predict(sets, x, from_logits=True)


def test_a_set_that_is_not_calibrated_is_refused(x):
    model = batch_normalized(x)
    calibrated = model.get_weights()
    sets = WeightSets(model, [calibrated, [np.zeros_like(w) for w in calibrated]])
    with pytest.raises(ValueError, match="cannot sample"):
        predict(sets, x, task=TASKS)
