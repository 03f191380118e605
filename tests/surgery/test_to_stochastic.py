"""Networks whose noise of training takes part in sampling."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import bayesnorm
from bayesnorm.layers.noise import stochastic_layers

TWINS = {
    layers.Dropout: bayesnorm.MonteCarloDropout,
    layers.SpatialDropout2D: bayesnorm.MonteCarloDropout,
    layers.AlphaDropout: bayesnorm.MonteCarloAlphaDropout,
    layers.GaussianDropout: bayesnorm.MonteCarloGaussianDropout,
    layers.GaussianNoise: bayesnorm.MonteCarloGaussianNoise,
}


def numpy(x):
    return ops.convert_to_numpy(x)


def network(*noise):
    """A network with a batch normalization, and layers of noise behind it."""
    return keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            layers.Conv2D(3, 3),
            layers.BatchNormalization(),
            *noise,
            layers.Flatten(),
            layers.Dense(3, "softmax"),
        ]
    )


@pytest.mark.parametrize("kind", TWINS, ids=lambda kind: kind.__name__)
def test_dropout_alone_needs_no_calibration(rng, kind):
    model = network(kind(0.4, name="noise"))
    converted = bayesnorm.to_stochastic(model, noise=None, dropout=True, seed=1)
    assert type(converted.get_layer("noise")) is TWINS[kind]
    assert len(stochastic_layers(converted)) == 1
    x = rng.normal(size=(5, 4, 4, 2)).astype("float32")
    expected = model.predict(x, verbose=0)
    np.testing.assert_array_equal(converted.predict(x, verbose=0), expected)

    def samples(seed, model=converted):
        return bayesnorm.predict(model, x, 4, seed=seed, keep_samples=True).samples

    first = samples(0)
    assert np.ptp(first, axis=0).max() > 1e-3
    np.testing.assert_array_equal(samples(0), first)
    assert not np.allclose(samples(1), first)
    # One network for all examples: alone, each has what it has among the others.
    alone = bayesnorm.predict(converted, x[3:4], 4, seed=0, keep_samples=True)
    np.testing.assert_allclose(alone.samples[:, 0], first[:, 3], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "kind", [layers.AlphaDropout, layers.GaussianDropout, layers.GaussianNoise]
)
def test_the_noise_of_training_is_that_of_keras(kind):
    """Mean and variance of n = 40,000 entries: z-scores below 5."""
    x, n = np.full((400, 100), 0.7, "float32"), 40000
    theirs, ours = (
        numpy(cls(0.3, seed=4)(x, training=True)).astype("float64")
        for cls in (kind, TWINS[kind])
    )
    assert abs(theirs.mean() - ours.mean()) < 5 * theirs.std() * (2 / n) ** 0.5
    squares = (theirs - theirs.mean()) ** 2
    assert abs(theirs.var() - ours.var()) < 5 * squares.std() * (2 / n) ** 0.5
    if kind is layers.AlphaDropout:
        np.testing.assert_allclose(np.unique(ours), np.unique(theirs), rtol=1e-5)


def test_sizes_that_are_open_train_and_predict():
    for cls in set(TWINS.values()):
        inputs = keras.Input((None, 3))
        model = keras.Model(inputs, cls(0.4)(inputs))
        model.compile("sgd", "mse")
        x = np.ones((4, 5, 3), "float32")
        assert model.fit(x, x, verbose=0).history["loss"][0] > 0
        np.testing.assert_array_equal(model.predict(x, verbose=0), x)
        with pytest.raises(ValueError, match="fixed shape"):
            bayesnorm.predict(model, x, task="regression")


@keras.saving.register_keras_serializable("test_to_stochastic")
class OwnDropout(layers.Dropout):
    pass


@keras.saving.register_keras_serializable("test_to_stochastic")
class OwnBlock(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = layers.Dropout(0.1, name="dropout_in_block")

    def call(self, x, training=None):
        return self.dropout(x, training=training)


LEFT = {
    "lstm": lambda name: layers.LSTM(3, dropout=0.2, name=name),
    "gru": lambda name: layers.GRU(3, recurrent_dropout=0.2, name=name),
    "backward_rnn, forward_rnn": lambda _: layers.Bidirectional(
        layers.SimpleRNN(3, dropout=0.2, name="rnn")
    ),
    "own": lambda name: OwnDropout(0.5, name=name),
    "dropout_in_block": lambda _: OwnBlock(),
}


@pytest.mark.parametrize("name", LEFT)
def test_noise_that_stays_out_of_sampling_is_named(name):
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, LEFT[name](name)(layers.Dropout(0.1)(inputs)))
    with pytest.warns(UserWarning, match=rf"deterministic in sampling: {name}\b"):
        bayesnorm.to_stochastic(model, noise=None, dropout=True)
    alone = keras.Model(inputs, LEFT[name](name)(inputs))
    with pytest.raises(ValueError, match=rf"no dropout that could.* {name}\b"):
        bayesnorm.to_stochastic(alone, noise=None, dropout=True)


def test_attention_with_dropout_is_named_by_its_own_name():
    inputs = keras.Input((5, 4))
    x = layers.Dropout(0.1)(inputs)
    x = layers.MultiHeadAttention(2, 3, dropout=0.2, name="heads")(x, x)
    x = layers.Attention(dropout=0.2, name="dots")([x, x])
    with pytest.warns(UserWarning, match=r"^2 layers .* sampling: heads, dots\."):
        bayesnorm.to_stochastic(keras.Model(inputs, x), noise=None, dropout=True)


def test_what_was_not_asked_for_is_left_in_silence(recwarn):
    model = network(OwnDropout(0.5), layers.Dropout(0.1))
    converted = bayesnorm.to_stochastic(model)
    kinds = [type(layer) for layer in stochastic_layers(converted)]
    assert kinds == [bayesnorm.StochasticBatchNormalization]
    assert not [w for w in recwarn if "sampling" in str(w.message)]
    with pytest.raises(ValueError, match="give dropout=True"):
        bayesnorm.to_stochastic(model, noise=None)
    with pytest.raises(ValueError, match="`noise` must be one of"):
        bayesnorm.to_stochastic(model, noise="layer")
