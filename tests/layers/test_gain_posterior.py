"""Posteriors on gains: the law of the outputs, whatever normalizes, and the KL."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import integrate, stats

import bayesnorm
from bayesnorm import GainPosterior, moments, noise_mode
from bayesnorm.layers.gain_posterior import normalizations_in

L = keras.layers


@keras.saving.register_keras_serializable("gain_tests")
class OnePlusScaleNorm(L.Layer):
    """Root mean square normalization whose gain is `1 + scale`, as Gemma's."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=input_shape[-1:], initializer="zeros")

    def call(self, x):
        square = ops.mean(ops.square(x), -1, keepdims=True)
        return x * ops.rsqrt(square + 1e-6) * (1 + self.scale)


@keras.saving.register_keras_serializable("gain_tests")
class Block(L.Layer):
    """Makes normalizations in its own code, and takes a second argument."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = L.LayerNormalization(), OnePlusScaleNorm()
        self.dense, self.drop = L.Dense(4), L.Dropout(0.5)

    def call(self, x, gate=None, training=None):
        y = self.dense(self.first(x))
        y = self.drop(self.second(y), training=training)
        return x + (y if gate is None else gate * y)


NORMALIZATIONS = {
    "batch": (lambda: L.BatchNormalization(), (5, 4), -1),
    "batch-axis1": (lambda: L.BatchNormalization(axis=1), (4, 5), 1),
    "batch-no_scale": (lambda: L.BatchNormalization(scale=False), (5, 4), -1),
    "batch-no_center": (lambda: L.BatchNormalization(center=False), (5, 4), -1),
    "layer": (lambda: L.LayerNormalization(), (5, 4), -1),
    "layer-no_center": (lambda: L.LayerNormalization(center=False), (5, 4), -1),
    "layer-two_axes": (lambda: L.LayerNormalization(axis=[1, 2]), (5, 4), (1, 2)),
    "group": (lambda: L.GroupNormalization(2), (5, 4), -1),
    "group-axis1": (lambda: L.GroupNormalization(2, axis=1), (4, 5), 1),
    "rms": (lambda: L.RMSNormalization(), (5, 4), -1),
    "own": (OnePlusScaleNorm, (5, 4), -1),
}


def randomized(layer, rng):
    """Gives the variables of a layer other values than those they begin with."""
    for weight in layer.weights:
        if "seed" not in weight.path and "rho" not in weight.path:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return layer


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_outputs_are_the_layers_and_noise_is_relative_to_the_gain(kind, rng):
    make, shape, axis = NORMALIZATIONS[kind]
    plain = make()
    plain.build((None, *shape))
    randomized(plain, rng)
    layer = GainPosterior(plain, initial_stddev=0.2, seed=1)
    n = 4000
    x = np.repeat(rng.normal(size=(1, *shape)), n, 0).astype("float32")
    y = ops.convert_to_numpy(plain(x[:1]))
    np.testing.assert_array_equal(layer(x[:1]), y)
    with noise_mode("sample"):
        noisy = ops.convert_to_numpy(layer(x)).astype("float64")
    offset = getattr(plain, "beta", None)
    gained = y[0].astype("float64")
    if offset is not None:
        at = [1] * len(shape)
        for each in (axis,) if isinstance(axis, int) else axis:
            at[each - 1 if each > 0 else each] = -1
        value = ops.convert_to_numpy(offset)
        gained = gained - value.reshape(at if isinstance(axis, int) else value.shape)
    # One draw for a channel and example: what it multiplies is the same everywhere.
    draws = (noisy - y) / gained
    axes = (axis,) if isinstance(axis, int) else axis
    axes = [each % (len(shape) + 1) for each in axes]
    shared = tuple(i for i in range(1, len(shape) + 1) if i not in axes)
    assert np.ptp(draws, axis=shared).max(initial=0.0) < 1e-3 / np.abs(gained).min()
    draws = draws.mean(shared).reshape(n, -1)
    # Means within 5 standard errors, variances within 5 of theirs, channels apart.
    assert np.abs(draws.mean(0)).max() < 5 * 0.2 / np.sqrt(n)
    np.testing.assert_allclose(draws.var(0), 0.04, rtol=5 * np.sqrt(2 / n))
    off = np.corrcoef(draws.T) - np.eye(draws.shape[1])
    assert np.abs(off).max() < 5 / np.sqrt(n)
    assert stats.kstest(draws[:, 0] / 0.2, "norm").pvalue > 1e-4


def test_a_layer_that_makes_normalizations_itself(rng):
    x = rng.normal(size=(6, 3, 4)).astype("float32")
    gate = rng.normal(size=(6, 3, 4)).astype("float32")
    plain = Block()
    plain(x, gate)
    randomized(plain, rng)
    before = ops.convert_to_numpy(plain(x, gate=gate))
    layer = GainPosterior(plain, initial_stddev=0.1)
    np.testing.assert_array_equal(layer(x, gate=gate), before)
    np.testing.assert_array_equal(layer(x, gate), before)
    assert layer.noise_shapes == {"gain_0": (4,), "gain_1": (4,)}
    assert [type(n).__name__ for n in layer.normalizations] == [
        "LayerNormalization",
        "OnePlusScaleNorm",
    ]

    # By hand, with draws of our own: y = x_hat g (1 + s z) + offset.
    z = {key: rng.normal(size=(6, 4)).astype("float32") for key in layer.noise_shapes}
    layer.rho_1.assign(layer.rho_1 + 1.0)
    with noise_mode(lambda layer, name, shape, batch: ops.convert_to_tensor(z[name])):
        noisy = ops.convert_to_numpy(layer(x, gate=gate))
    s = [ops.convert_to_numpy(layer.stddev_of(key)) for key in layer.noise_shapes]
    first = ops.convert_to_numpy(plain.first(x))  # Of a call outside: no noise.
    beta = ops.convert_to_numpy(plain.first.beta)
    first = beta + (first - beta) * (1 + s[0] * z["gain_0"])[:, None]
    second = ops.convert_to_numpy(plain.second(plain.dense(first)))
    second = second * (1 + s[1] * z["gain_1"])[:, None]
    np.testing.assert_allclose(noisy, x + gate * second, rtol=1e-4, atol=1e-5)


def test_training_reaches_the_layer(rng):
    x = rng.normal(size=(64, 3, 4)).astype("float32")
    layer = GainPosterior(Block(), initial_stddev=1e-6)
    layer(x)
    # Half of what dropout lets through is 0 in training alone.
    zeros = [
        float(np.mean(ops.convert_to_numpy(layer(x, training=training)) == x))
        for training in (True, False)
    ]
    assert zeros[0] == pytest.approx(0.5, abs=0.1)
    assert zeros[1] < 0.01


def test_kl_against_quadrature():
    layer = GainPosterior(L.BatchNormalization(), kl_weight=1.0)
    layer.build((None, 3))
    for stddev in (1e-3, 0.05, 0.7, 4.0):
        layer.set_stddev(stddev)
        q, p = stats.norm(1, stddev), stats.norm(1, 10)
        span = 12 * stddev
        truth, _ = integrate.quad(
            lambda t, q=q, p=p: q.pdf(t) * (q.logpdf(t) - p.logpdf(t)),
            1 - span,
            1 + span,
            epsabs=1e-12,
        )
        assert float(layer.kl_divergence()) == pytest.approx(3 * truth, rel=1e-5)
        np.testing.assert_allclose(layer.losses[0], 3 * truth, rtol=1e-5)


def test_moments_are_those_of_samples(rng):
    inputs = keras.Input((6, 4))
    norm = randomized(L.BatchNormalization(), rng)
    layer = GainPosterior(norm, initial_stddev=0.3, seed=2)
    model = keras.Model(inputs, layer(inputs))
    randomized(norm, rng)
    x = rng.normal(size=(2, 6, 4)).astype("float32")
    found = moments.propagate(model, x, np.zeros_like(x))
    sampled = bayesnorm.predict(
        model, x, samples=4000, seed=0, task="regression", keep_samples=True
    )
    scale = np.abs(sampled.mean).max()
    np.testing.assert_allclose(found.mean, sampled.mean, atol=0.03 * scale)
    np.testing.assert_allclose(found.variance, sampled.variance, rtol=0.15)
    np.testing.assert_allclose(found.mean, model(x), rtol=1e-5, atol=1e-5)


def test_moments_inside_a_layer_are_refused(rng):
    inputs = keras.Input((3, 4))
    model = keras.Model(inputs, GainPosterior(Block())(inputs))
    x = rng.normal(size=(2, 3, 4)).astype("float32")
    with pytest.raises(ValueError, match="block"):
        moments.propagate(model, x, np.zeros_like(x))


def test_what_has_no_gain_is_refused():
    for layer in (L.Dense(3), L.LayerNormalization(scale=False), L.ReLU()):
        with pytest.raises(ValueError, match="has no normalization with a gain"):
            GainPosterior(layer)(np.zeros((2, 4), "float32"))
    with pytest.raises(ValueError, match="initial_stddev"):
        GainPosterior(L.BatchNormalization(), initial_stddev=0.0)


def test_which_layers_have_gains():
    model = keras.Sequential(
        [
            keras.Input((6, 4)),
            L.Normalization(mean=0.0, variance=1.0),
            L.UnitNormalization(),
            bayesnorm.ScaleNorm(),
            bayesnorm.StochasticScaleNorm(),
            L.TimeDistributed(L.BatchNormalization(name="inner")),
            L.GroupNormalization(2, scale=False),
            L.SpectralNormalization(L.Dense(4)),
        ]
    )
    assert [layer.name for layer in normalizations_in(model)] == ["inner"]


def own_normalization(name, call, **attributes):
    """Returns a layer of a class of some name, with a vector `scale` of 4."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(4,), initializer="ones")

    methods = {"build": build, "call": call}
    return type(name, (L.Layer,), methods | attributes)()


def test_what_is_no_normalization_by_its_name():
    def shifted(self, x):
        return x + self.scale

    x = np.ones((2, 4), "float32")
    for name, found in (
        ("NormalShift", 0),
        ("LogNormal", 0),
        ("RmsNorm", 1),
        ("Normalizer", 1),
        ("ChannelNormalisation", 1),
    ):
        layer = own_normalization(name, shifted)
        layer(x)
        assert len(normalizations_in(layer)) == found
    noisy = bayesnorm.StochasticScaleNorm()
    noisy(x)
    assert not normalizations_in(noisy)


@pytest.mark.parametrize("positions", [4, 5, 1])
def test_gains_of_channels_first(positions, rng):
    def call(self, x):
        return x * self.scale[None, :, None]

    layer = own_normalization("OwnNorm", call, data_format="channels_first")
    posterior = GainPosterior(layer, initial_stddev=0.3)
    x = rng.normal(size=(3, 4, positions)).astype("float32")
    posterior(x)
    z = rng.normal(size=(3, 4)).astype("float32")
    with noise_mode(lambda *_: ops.convert_to_tensor(z)):
        noisy = ops.convert_to_numpy(posterior(x))
    np.testing.assert_allclose(noisy, x * (1 + 0.3 * z)[:, :, None], atol=1e-5)


def test_outputs_that_a_gain_does_not_multiply_are_refused():
    x = np.ones((2, 4, 1), "float32")
    last = own_normalization("LastNorm", lambda self, x: x * self.scale[:, None])
    two = own_normalization("AddNorm", lambda self, x: (x * self.scale[:, None], x))
    for layer, found in ((last, r"shape \(2, 4, 1\)"), (two, "tuple")):
        with pytest.raises(ValueError, match=f"{layer.name}.*returned: {found}"):
            GainPosterior(layer)(x)


def test_shared_layers_have_the_noise_of_who_calls_them(rng):
    norm = L.LayerNormalization()
    x = rng.normal(size=(3, 4)).astype("float32")
    plain = ops.convert_to_numpy(norm(x))
    first, second = (GainPosterior(norm, initial_stddev=s) for s in (0.1, 0.5))
    first(x), second(x)
    z = rng.normal(size=(3, 4)).astype("float32")
    with noise_mode(lambda *_: ops.convert_to_tensor(z)):
        for layer, stddev in ((first, 0.1), (second, 0.5)):
            np.testing.assert_allclose(layer(x), plain * (1 + stddev * z), atol=1e-5)
        np.testing.assert_array_equal(norm(x), plain)
    with pytest.raises(ValueError, match="has no normalization"):
        GainPosterior(keras.Sequential([keras.Input((4,)), first]))(x)


@keras.saving.register_keras_serializable("gain_tests")
class NormedCell(L.Layer):
    """A recurrent cell, `h = norm(h + x)`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.state_size = 4
        self.norm = L.LayerNormalization()

    def build(self, input_shape):
        self.norm.build((input_shape[0], 4))

    def call(self, inputs, states):
        h = self.norm(states[0] + inputs)
        return h, [h]


@keras.saving.register_keras_serializable("gain_tests")
class Folded(L.Layer):
    """Normalizes positions as rows of the batch."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = L.LayerNormalization()

    def call(self, inputs):
        shape = ops.shape(inputs)
        return ops.reshape(self.norm(ops.reshape(inputs, (-1, 4))), shape)


@keras.saving.register_keras_serializable("gain_tests")
class NormedTable(L.Layer):
    """Adds a normalized table of positions, which has no batch axis of its own."""

    def __init__(self, rows=1, **kwargs):
        super().__init__(**kwargs)
        self.rows = rows
        self.norm = L.LayerNormalization()

    def build(self, input_shape):
        shape = (self.rows, *input_shape[1:])
        self.table = self.add_weight(shape=shape, initializer="random_normal")
        self.norm.build(shape)

    def call(self, inputs):
        table = self.norm(self.table)
        return inputs + (table if self.rows == 1 else ops.sum(table, 0))

    def get_config(self):
        return {**super().get_config(), "rows": self.rows}


REPEATED = {
    "time": (lambda: L.TimeDistributed(L.LayerNormalization()), 6),
    "unknown_time": (lambda: L.TimeDistributed(L.LayerNormalization()), None),
    "folded": (Folded, 6),
    "table": (NormedTable, 6),
}


@pytest.mark.parametrize("kind", REPEATED)
def test_one_draw_for_an_example_at_all_positions(kind, rng):
    make, length = REPEATED[kind]
    inputs = keras.Input((length, 4))
    layer = GainPosterior(make(), initial_stddev=0.3, seed=0)
    model = keras.Model(inputs, layer(inputs))
    (norm,) = layer.normalizations
    randomized(norm, rng)
    x = rng.normal(size=(1, 6, 4)).astype("float32").repeat(50, 0)
    plain = ops.convert_to_numpy(model(x))
    added = x if kind == "table" else 0.0
    beta = ops.convert_to_numpy(norm.beta)
    gained = plain - added - beta

    def draws(outputs):
        # Where what they multiply is not small.
        z = (ops.convert_to_numpy(outputs) - added - beta) / gained - 1
        return np.where(np.abs(gained) > 0.1, z / 0.3, np.nan)

    with noise_mode("sample"):
        eager = draws(model(x))
    predicted = bayesnorm.predict(
        model, x[:2], samples=25, seed=0, task="regression", keep_samples=True
    ).samples.reshape(50, 6, 4)
    of_predict = draws(predicted)
    for z in (eager, of_predict):
        assert np.nanmax(np.nanmax(z, 1) - np.nanmin(z, 1)) < 1e-3
    # Examples have their own; in `predict` networks, each the same for all examples.
    means = np.nanmean(eager, 1)
    assert 0.7 < means.std() < 1.3
    assert len(np.unique(means[:, 0].round(3))) > 40
    of_networks = np.nanmean(of_predict, 1).reshape(25, 2, 4)
    np.testing.assert_allclose(of_networks[:, 0], of_networks[:, 1], atol=1e-3)
    assert of_networks[:, 0].std(0).min() > 0.4


def test_rows_that_are_no_examples_are_refused(rng):
    layer = GainPosterior(NormedTable(rows=3))
    x = rng.normal(size=(2, 6, 4)).astype("float32")
    layer(x)
    with noise_mode("sample"), pytest.raises(ValueError, match=r"3 rows"):
        layer(x)


def test_recurrent_cells_keep_their_draw(rng):
    inputs = keras.Input((None, 4))
    layer = GainPosterior(
        L.Bidirectional(L.RNN(NormedCell(), return_sequences=True)),
        initial_stddev=0.2,
        num_examples=3,
    )
    model = keras.Model(inputs, layer(inputs))
    x = rng.normal(size=(3, 5, 4)).astype("float32")
    keys = list(layer.noise_shapes)
    z = {key: rng.normal(size=(3, 4)).astype("float32") for key in keys}
    with noise_mode(lambda layer, name, *_: ops.convert_to_tensor(z[name])):
        noisy = ops.convert_to_numpy(model(x))
    h = np.zeros((3, 4))
    for t in range(5):
        s = h + x[:, t]
        s = (s - s.mean(-1, keepdims=True)) / np.sqrt(s.var(-1, keepdims=True) + 1e-3)
        h = s * (1 + 0.2 * z[keys[0]])
        np.testing.assert_allclose(noisy[:, t, :4], h, atol=1e-4)
    # Draws made inside a loop would leak out of its trace.
    model.compile("sgd", "mse")
    model.fit(x, noisy, verbose=0)
