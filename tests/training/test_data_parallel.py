"""One network on several devices: in processes of their own, with two of them."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import bayesnorm
from bayesnorm import backend, datasets
from bayesnorm.training import Config, Loop, fit, loop
from bayesnorm.training.optimization import make_optimizer

# A process has its devices once, and one strategy.
_SCRIPT = """
import json
from bayesnorm import backend
from tests.training import test_data_parallel as test

found = {}
with backend.data_parallel("devices", 2) as workers:
    assert (workers.index, workers.count, workers.replicas) == (0, 1, 2)
    assert workers.gather(7) == [7]
    found["two"] = test.trained()
    found["parts"] = backend.batch_parts()
    found["refused"] = test.refused()
found["one"] = test.trained()
print(json.dumps(found))
"""
_BATCH, _CLASSES = 8, 3
# What runs differ in: the layer that the inputs meet first, and the configuration.
_RUNS = {
    "plain": (None, {}),
    "batch": (layers.BatchNormalization, {}),
    "normalization_batch": (layers.BatchNormalization, {"normalization_batch": 24}),
    "stochastic": (bayesnorm.StochasticScaleNorm, {}),
}


def splits():
    """Returns random images of which the labels can be learned."""
    rng = np.random.default_rng(0)

    def part(count):
        images = rng.normal(size=(count, 4, 4, 2)).astype("float32")
        return images, images[:, 0, :_CLASSES, 0].argmax(-1)

    return datasets.from_arrays(part(48), part(23), part(8), class_names=list("abc"))


def network(first=None):
    """Returns a small network, of the same weights every time."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            *([first()] if first else []),
            layers.Conv2D(5, 3, activation="tanh"),
            layers.Flatten(),
            layers.Dense(_CLASSES),
        ]
    )


def trained():
    """Returns what two epochs of the runs come to, for JSON."""
    found = {}
    for name, (first, settings) in _RUNS.items():
        model = network(first)
        config = Config(2, _BATCH, learning_rate=0.05, **settings)
        run = Loop(model, make_optimizer("sgd"), splits(), config)
        found[name] = {
            "history": [
                [row[key] for key in ("loss", "nll", "accuracy", "val_nll")]
                for row in fit(run)
            ],
            "weights": [v.numpy().tolist() for v in model.trainable_variables],
            "averages": [
                copies(v) for v in model.non_trainable_variables if "moving" in v.path
            ],
        }
    return found


def copies(variable):
    """Returns the values of a variable on all devices."""
    values = getattr(variable.value, "values", None)
    if values is None:
        return [variable.numpy().tolist()]
    return [value.numpy().tolist() for value in values]


def refused():
    """Returns what is said of a batch that cannot be cut."""
    try:
        Loop(network(), make_optimizer("sgd"), splits(), Config(1, 7))
    except ValueError as error:
        return str(error)


@pytest.fixture(scope="module")
def found():
    run = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_figures_and_weights_are_those_of_one_device(found):
    one, two = found["one"]["plain"], found["two"]["plain"]
    assert found["parts"] == 2
    np.testing.assert_allclose(two["history"], one["history"], rtol=1e-5)
    for ours, theirs in zip(two["weights"], one["weights"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_loss_has_the_divergence_once(found):
    """In the first epoch, in which the noise has not led far apart."""

    def divergence(runs):
        loss, nll, _, _ = runs["stochastic"]["history"][0]
        return loss - nll

    assert divergence(found["one"]) > 0.05
    np.testing.assert_allclose(
        divergence(found["two"]), divergence(found["one"]), rtol=0.05
    )


@pytest.mark.parametrize("name", ["batch", "normalization_batch"])
def test_moving_means_are_those_of_whole_batches(found, name):
    """The mean of the parts' means is the whole's; of variances that does not hold."""
    mean, variance = found["two"][name]["averages"]
    (expected,), (whole,) = found["one"][name]["averages"]
    for copy in mean:
        np.testing.assert_allclose(copy, expected, rtol=1e-4, atol=1e-6)
    for copy in variance:
        np.testing.assert_array_equal(copy, variance[0])
        np.testing.assert_allclose(copy, whole, rtol=0.2)


def test_batches_that_cannot_be_cut_are_refused(found):
    assert "`batch_size` must be a multiple of 2" in found["refused"]


def test_evaluations_take_any_size():
    config = Config(1, 8, eval_batch_size=255)
    assert loop.config_for_parts(config, 2).eval_batch_size == 256
    assert loop.config_for_parts(config, 1) == config


def test_without_devices_nothing_changes():
    x = keras.ops.arange(6)
    assert backend.batch_parts() == 1
    np.testing.assert_array_equal(backend.own_rows(x), np.arange(6))
    (total,) = backend.sum_over_replicas([x])
    np.testing.assert_array_equal(total, np.arange(6))


def test_workers_without_their_list_say_what_is_missing(monkeypatch):
    for name in ("TF_CONFIG", "KERAS_DISTRIBUTION_JOB_ADDRESSES"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(ValueError, match="is not set"),
        backend.data_parallel("workers"),
    ):
        pass
