"""Weights of a plain network for the same code with stochastic layers."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import bayesnorm
from bayesnorm import models
from tests.helpers import randomized


class Network(keras.Model):
    """Layers in lists, and a weight of the model's own."""

    def __init__(self, normalization, width=4, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [[layers.Dense(width), normalization()] for _ in range(2)]
        self.head = layers.Dense(2)
        self.offset = self.add_weight(shape=(), name="offset")

    def call(self, x, training=None):
        for dense, norm in self.blocks:
            x = norm(dense(x), training=training)
        return self.head(x) + self.offset


@pytest.fixture
def trained():
    x = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
    model = Network(layers.BatchNormalization)
    model.compile("sgd", "mse")
    model.fit(x, x[:, :2], epochs=2, verbose=0)
    model.offset.assign(0.7)
    return model, x


def test_a_file_of_a_plain_network_serves_a_stochastic_one(trained, tmp_path):
    model, x = trained
    model.save_weights(tmp_path / "trained.weights.h5")
    plain = Network(layers.BatchNormalization)
    plain(x[:1])
    plain.load_weights(tmp_path / "trained.weights.h5")
    stochastic = Network(bayesnorm.StochasticBatchNormalization)
    stochastic(x[:1])
    assert bayesnorm.copy_weights(plain, stochastic) is stochastic
    np.testing.assert_allclose(
        ops.convert_to_numpy(stochastic(x)), ops.convert_to_numpy(model(x)), atol=1e-6
    )
    bayesnorm.calibrate(stochastic, x, batch_size=8, verbose=False)
    found = bayesnorm.predict(stochastic, x, 4, task="regression", verbose=False)
    assert found.variance.mean() > 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: Network(bayesnorm.StochasticBatchNormalization, 5),
            r"weights \[\(3, 5",
        ),
        (lambda: Network(layers.LayerNormalization), "LayerNormalization"),
        (lambda: keras.Sequential([layers.Dense(2)]), "6 and 3 layers"),
    ],
)
def test_another_structure_is_refused(trained, make, said):
    model, x = trained
    other = make()
    other(x[:1])
    before = [ops.convert_to_numpy(v) for v in other.variables]
    with pytest.raises(ValueError, match=said):
        bayesnorm.copy_weights(model, other)
    for then, now in zip(before, other.variables, strict=True):
        np.testing.assert_array_equal(then, ops.convert_to_numpy(now))


def test_a_network_that_is_not_built_is_refused():
    model = Network(layers.BatchNormalization)
    with pytest.raises(ValueError, match="`source` is not built"):
        bayesnorm.copy_weights(model, model)


@pytest.mark.parametrize(
    ("build", "arguments"),
    [
        (models.lenet5, {"norm": None}),
        (models.lenet5, {"norm": "batch"}),
        (models.lenet5, {"norm": "weight"}),
        (models.mlp, {"width": 0.1}),
        (models.resnet, {"width": 0.5, "depth": 8}),
    ],
)
def test_pruning_starts_from_a_trained_network(build, arguments, rng):
    shape = {"input_shape": (28, 28, 1), **arguments}
    source = randomized(build(**shape, seed=1))
    for w in source.weights:
        if w.name == "bias":
            w.assign(rng.normal(size=w.shape))
    target = bayesnorm.start_pruning(source, build(**shape, scale="pruning", seed=2))
    x = rng.random((8, 28, 28, 1)).astype("float32")
    # theta of every channel is half a per cent under 1.
    expected = np.asarray(source(x))
    np.testing.assert_allclose(
        np.asarray(target(x)), expected, atol=0.03 * np.abs(expected).max()
    )
    layer = target.get_layer(
        "block0_0_conv0_pruning" if build is models.resnet else "dense0_pruning"
    )
    np.testing.assert_array_equal(np.asarray(layer.log_stddev), -5.0)
    # What was pruned in part goes on as it is.
    layer.log_stddev.assign(rng.normal(size=layer.log_stddev.shape))
    again = bayesnorm.start_pruning(target, build(**shape, scale="pruning", seed=3))
    np.testing.assert_array_equal(np.asarray(again(x)), np.asarray(target(x)))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (lambda: models.mlp(units=(500,), width=0.1), "no layer 'dense1'"),
        (lambda: models.mlp(width=0.2), "weights of layer 'dense0'"),
        (lambda: models.mlp(norm="batch", width=0.1), "no layer 'dense0_norm'"),
    ],
)
def test_pruning_does_not_start_from_another_network(source, said):
    target = models.mlp(scale="pruning", width=0.1)
    before = [np.array(w) for w in target.get_weights()]
    with pytest.raises(ValueError, match=said):
        bayesnorm.start_pruning(source(), target)
    for a, b in zip(before, target.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_pruning_starts_from_models_alone():
    with pytest.raises(TypeError, match=r"keras\.Model"):
        bayesnorm.start_pruning(models.mlp(width=0.1), layers.Dense(2))
