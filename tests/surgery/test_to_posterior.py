"""Trained networks with a posterior on their gains: same outputs, right flags."""

import keras
import numpy as np
import pytest

import bayesnorm
from bayesnorm import GainPosterior, predict, to_posterior
from bayesnorm.graph import layers_of
from tests.helpers import randomized
from tests.layers.test_gain_posterior import Block

L = keras.layers


def backbone():
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(6, 3, use_bias=False)(inputs)
    x = L.ReLU()(L.BatchNormalization(name="bn")(x))
    return keras.Model(inputs, L.GlobalAveragePooling2D()(x), name="backbone")


def network():
    """Nested and shared, with layers that make normalizations in their code."""
    shared, inside = L.LayerNormalization(name="shared"), backbone()
    a, b = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    x, y = shared(inside(a)), shared(inside(b))
    x = L.Reshape((3, 4))(L.Dense(12)(L.Concatenate()([x, y])))
    x = L.Flatten()(Block(name="block")(x))
    model = keras.Model([a, b], L.Dense(3)(x))
    return randomized(model)


def data(n=24):
    rng = np.random.default_rng(1)
    x = [rng.normal(size=(n, 8, 8, 3)).astype("float32") for _ in range(2)]
    return x, rng.integers(0, 3, n)


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def posteriors(model):
    return [x for x in layers_of(model) if isinstance(x, GainPosterior)]


def test_outputs_stay_to_the_bit_and_noise_is_there():
    model, (x, _) = network(), data()
    new = to_posterior(model, initial_stddev=0.1, seed=0)
    np.testing.assert_array_equal(
        new.predict(x, verbose=0), model.predict(x, verbose=0)
    )
    assert [p.layer.name for p in posteriors(new)] == ["bn", "shared", "block"]
    prediction = predict(new, x, samples=8, seed=0, from_logits=True)
    assert prediction.mutual_information.mean() > 1e-4
    again = predict(new, x, samples=8, seed=0, from_logits=True, batch_size=7)
    np.testing.assert_allclose(again.probs, prediction.probs, atol=1e-5)
    # The original keeps what it was.
    assert not posteriors(model)
    with bayesnorm.noise_mode("sample"):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(model(x)), keras.ops.convert_to_numpy(model(x))
        )


def test_the_deviations_alone_are_trained():
    model, (x, y) = network(), data()
    model.get_layer("backbone").trainable = False
    model.compile("adam", LOSS)
    new = to_posterior(model, num_examples=len(y))
    names = sorted(v.name for v in new.trainable_variables)
    assert names == ["rho_0", "rho_0", "rho_0", "rho_1"]
    frozen = [np.array(v) for v in new.non_trainable_variables]
    before = [np.array(v) for v in new.trainable_variables]
    new.fit(x, y, epochs=2, verbose=0)
    for value, variable in zip(before, new.trainable_variables, strict=True):
        assert (np.array(variable) != value).all()
    for value, variable in zip(frozen, new.non_trainable_variables, strict=True):
        if "seed" not in variable.path:
            np.testing.assert_array_equal(np.array(variable), value)


def test_what_was_trainable_stays_so_if_asked():
    model = network()
    model.get_layer("backbone").trainable = False
    model.get_layer("shared").trainable = False
    new = to_posterior(model, freeze=False)
    own = [v for v in new.trainable_variables if not v.name.startswith("rho")]
    assert [tuple(v.shape) for v in own] == [
        tuple(v.shape) for v in model.trainable_variables
    ]
    assert sum(v.name.startswith("rho") for v in new.trainable_variables) == 4


def test_saved_cloned_and_exported(tmp_path):
    model, (x, y) = network(), data()
    new = to_posterior(model, initial_stddev=0.1, seed=0, num_examples=24)
    new.compile("adam", LOSS)
    new.fit(x, y, verbose=0)
    expected = predict(new, x, samples=4, seed=3, from_logits=True).probs
    new.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    cloned = keras.models.clone_model(new)
    cloned.set_weights(new.get_weights())
    for copy in (loaded, cloned):
        np.testing.assert_array_equal(
            copy.predict(x, verbose=0), new.predict(x, verbose=0)
        )
        found = predict(copy, x, samples=4, seed=3, from_logits=True).probs
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_half_precision_and_low_rank_adapters():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model, (x, _) = network(), data()
    new = to_posterior(model, initial_stddev=0.1)
    np.testing.assert_array_equal(
        np.array(new.predict(x, verbose=0), "float32"),
        np.array(model.predict(x, verbose=0), "float32"),
    )
    assert {v.dtype for p in posteriors(new) for v in p.rhos} == {"float32"}
    dense = next(x for x in layers_of(new) if isinstance(x, L.Dense))
    dense.enable_lora(2)
    prediction = predict(new, x, samples=4, seed=0, from_logits=True)
    assert prediction.mutual_information.mean() > 0


@pytest.mark.parametrize("dtype", ["float16", "mixed_bfloat16", "float64"])
@pytest.mark.parametrize(
    "kind",
    [
        L.BatchNormalization,
        L.LayerNormalization,
        lambda dtype: L.GroupNormalization(2, dtype=dtype),
        L.RMSNormalization,
    ],
    ids=["batch", "layer", "group", "rms"],
)
def test_normalizations_with_a_policy_of_their_own(kind, dtype):
    model = keras.Sequential([keras.Input((4,)), kind(dtype=dtype)])
    x = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
    outputs = [
        keras.ops.convert_to_numpy(m(x)).astype("float64")
        for m in (model, to_posterior(model))
    ]
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.applications.MobileNetV2((64, 64, 3), 0.35, weights=None),
        pytest.param(
            lambda: keras.applications.ConvNeXtTiny(
                input_shape=(64, 64, 3), weights=None
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda: keras.applications.InceptionV3(
                input_shape=(96, 96, 3), weights=None
            ),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["mobilenet_v2", "convnext", "inception_v3"],
)
def test_applications(make):
    model = randomized(make())
    new = to_posterior(model, initial_stddev=0.05)
    x = np.random.default_rng(0).normal(size=(3, *model.input_shape[1:]))
    x = x.astype("float32")
    np.testing.assert_array_equal(
        new.predict(x, verbose=0), model.predict(x, verbose=0)
    )
    kinds = (L.BatchNormalization, L.LayerNormalization)
    gains = sum(isinstance(layer, kinds) for layer in layers_of(model))
    assert sum(len(p.normalizations) for p in posteriors(new)) == gains
    spread = predict(new, x, samples=4, seed=0, task="regression").variance
    assert (spread > 0).any()


def test_a_posterior_is_put_on_once():
    first = to_posterior(network(), layers=["bn"], initial_stddev=0.3)
    both = to_posterior(first, initial_stddev=0.1, num_examples=24)
    assert [p.layer.name for p in posteriors(both)] == ["bn", "shared", "block"]
    np.testing.assert_allclose(posteriors(both)[0].stddev_of("gain_0"), 0.3, rtol=1e-5)
    # The deviations of before are some as well, and not frozen.
    assert sum(v.name.startswith("rho") for v in both.trainable_variables) == 4
    assert len(both.trainable_variables) == 4
    with pytest.raises(ValueError, match="has a posterior already"):
        to_posterior(both)


@pytest.mark.parametrize("first", ["stochastic", "posterior"])
def test_noise_of_gains_and_of_statistics_are_both_there(first):
    layers = [keras.Input((6, 4)), L.Dense(4), L.BatchNormalization()]
    model = randomized(keras.Sequential(layers))
    if first == "stochastic":
        model = to_posterior(bayesnorm.to_stochastic(model), initial_stddev=0.3)
    else:
        model = bayesnorm.to_stochastic(to_posterior(model, initial_stddev=0.3))
    ((posterior,), rng) = posteriors(model), np.random.default_rng(0)
    inner = posterior.layer
    assert isinstance(inner, bayesnorm.StochasticBatchNormalization)
    data = rng.normal(size=(40, 6, 4))
    bayesnorm.calibrate(model, data, batch_size=4, frozen=True, seed=0)
    x = rng.normal(size=(5, 6, 4)).astype("float32")
    z = {}

    def draw(layer, name, shape, batch):
        value = rng.uniform(-1, 1, size=shape).astype("float32")
        value = z.setdefault((id(layer), name), value)
        return keras.ops.broadcast_to(value, (batch, *shape))

    with bayesnorm.noise_mode(draw):
        noisy = keras.ops.convert_to_numpy(model(x))
        # Not in the posterior: the noise of the statistics alone.
        of_statistics = keras.ops.convert_to_numpy(inner(model.layers[0](x)))
    assert np.abs(of_statistics - keras.ops.convert_to_numpy(model(x))).max() > 1e-3
    gains = 1 + 0.3 * z[id(posterior), "gain_0"]
    offset = keras.ops.convert_to_numpy(inner.beta)
    by_hand = offset + (of_statistics - offset) * gains
    np.testing.assert_allclose(noisy, by_hand, rtol=1e-4, atol=1e-5)


def test_chosen_layers_and_errors():
    model = network()
    new = to_posterior(model, layers=["shared"])
    assert [p.layer.name for p in posteriors(new)] == ["shared"]
    with pytest.raises(ValueError, match=r"'dens' is not there.*'bn', 'shared'"):
        to_posterior(model, layers=["dens"])
    with pytest.raises(ValueError, match=r"'backbone' has no gain|has no gain"):
        to_posterior(model, layers=[model.layers[-1].name])
    plain = keras.Sequential([keras.Input((3,)), L.Dense(2)])
    with pytest.raises(ValueError, match="no normalization with a gain"):
        to_posterior(plain)
    with pytest.raises(ValueError, match="initial_stddev"):
        to_posterior(model, initial_stddev=-1)
    with pytest.raises(TypeError):
        to_posterior("model")

    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="shows no graph"):
        to_posterior(Own())
