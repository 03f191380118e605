"""The noise of batch normalization: measured, and put in by a layer."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from scipy import special

import bayesnorm


def numpy(x):
    return ops.convert_to_numpy(x)


def test_noisy_scale_has_the_moments_of_its_formula(rng):
    layer = bayesnorm.NoisyScaleNorm([0.3, 0.1], 0.5, seed=1)
    layer.build((None, 3, 2))
    layer.scale.assign([2.0, -1.0])
    layer.bias.assign([0.5, 1.0])
    x = np.tile([[1.0, 3.0]], (20000, 3, 1)).astype("float32")
    y = numpy(layer(x, training=True))
    assert np.ptp(y, axis=1).max() < 1e-5  # one draw for all positions
    y = y[:, 0]
    # (x + V) U s + b: mean x s + b, variance s^2 ((x^2 + v^2)(1 + u^2) - x^2).
    x0, s, u, v = np.array([1.0, 3.0]), np.array([2.0, -1.0]), np.array([0.3, 0.1]), 0.5
    mean = x0 * s + [0.5, 1.0]
    variance = s**2 * ((x0**2 + v**2) * (1 + u**2) - x0**2)
    assert (np.abs(y.mean(0) - mean) < 5 * np.sqrt(variance / len(y))).all()
    np.testing.assert_allclose(y.var(0), variance, rtol=0.06)
    still = numpy(layer(x, training=False))
    np.testing.assert_allclose(still[0, 0], mean, rtol=1e-6)
    inputs = keras.Input((3, 2))
    model = keras.Model(inputs, layer(inputs))
    got = bayesnorm.moments.propagate(model, x[:1], 0.0)
    np.testing.assert_allclose(numpy(got.mean)[0, 0], mean, rtol=1e-6)
    np.testing.assert_allclose(numpy(got.variance)[0, 0], variance, rtol=1e-5)


@pytest.mark.parametrize("value", [-0.1, float("nan"), [[0.1]], [0.1, 0.2, 0.3]])
def test_wrong_deviations_are_refused(value):
    with pytest.raises(ValueError, match="scale_stddev"):
        bayesnorm.NoisyScaleNorm(value, 0.1).build((None, 2))


class _Repeated:
    """A stream of one batch, over and over."""

    def __init__(self, batch):
        self.batch = batch

    def __iter__(self):
        return iter([self.batch])


def plain_net(shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layers.BatchNormalization(epsilon=1e-6)(inputs))


@pytest.mark.parametrize("batch_size", [8, 32])
def test_noise_of_independent_gaussians_is_that_of_theory(rng, batch_size):
    x = rng.normal(3.0, 2.0, size=(40000, 6)).astype("float32")
    (noise,) = bayesnorm.batch_noise(plain_net((6,)), x, batch_size, batches=1000)
    n = batch_size
    # U = sqrt(n) / chi with n - 1 degrees of freedom, V ~ Normal(0, 1 / n).
    first = np.sqrt(n / 2) * np.exp(
        special.gammaln((n - 2) / 2) - special.gammaln((n - 1) / 2)
    )
    variance = n / (n - 3) - first**2
    assert noise.positions == 1
    assert noise.shift_stddev == pytest.approx(n**-0.5, rel=0.05)
    assert noise.scale_stddev == pytest.approx(variance**0.5, rel=0.15)
    assert noise.effective_from_shift == pytest.approx(n, rel=0.1)
    assert noise.chi_square_p > 0.05


def test_correlated_positions_are_worth_less(rng):
    # Half of the variance is common to the 9 positions of an example.
    common = rng.normal(size=(20000, 1, 1, 4))
    own = rng.normal(size=(20000, 3, 3, 4))
    x = (np.sqrt(0.5) * (common + own)).astype("float32")
    (noise,) = bayesnorm.batch_noise(plain_net((3, 3, 4)), x, 8, batches=500)
    assert noise.positions == 9
    # By V: n / (1 + rho (positions - 1)) = 72 / 5 exactly.
    assert noise.effective_from_shift == pytest.approx(14.4, rel=0.1)
    assert 17 < noise.effective_from_scale < 27
    assert noise.chi_square_p < 1e-3


def test_every_normalization_of_a_deep_net_is_measured(rng):
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(3, 3)(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="first")(x))
    x = layers.BatchNormalization(name="second")(layers.Conv2D(4, 3)(x))
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    before = model.get_weights()
    data = rng.normal(size=(400, 8, 8, 2)).astype("float32")
    by_size = {
        size: bayesnorm.batch_noise(model, data, size, batches=50) for size in (4, 16)
    }
    names = [noise.layer for noise in by_size[4]]
    assert names == ["first", "second"]
    assert [noise.positions for noise in by_size[4]] == [36, 16]
    for small, large in zip(by_size[4], by_size[16], strict=True):
        # Variances fall as 1 / batch.
        assert 1.5 < small.shift_stddev / large.shift_stddev < 2.7
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_errors(rng):
    inputs = keras.Input((4,))
    dense = keras.Model(inputs, layers.Dense(2)(inputs))
    with pytest.raises(ValueError, match="no BatchNormalization"):
        bayesnorm.batch_noise(dense, np.zeros((8, 4), "float32"), 4)
    with pytest.raises(ValueError, match="batches"):
        bayesnorm.batch_noise(plain_net((4,)), np.zeros((8, 4), "float32"), 4, 1)
    with pytest.raises(ValueError, match=r"two batches or more.*\n?.*Received: 7"):
        bayesnorm.batch_noise(plain_net((4,)), np.zeros((7, 4), "float32"), 4)
    same = _Repeated(np.arange(16, dtype="float32").reshape(4, 4))
    with pytest.raises(ValueError, match="hold the same examples"):
        bayesnorm.batch_noise(plain_net((4,)), same, 4, 3)
    with pytest.raises(ValueError, match="constant"):
        bayesnorm.batch_noise(plain_net((4,)), np.zeros((40, 4), "float32"), 4, 5)


def test_a_stochastic_normalization_does_not_speak_for_plain_ones(rng):
    inputs = keras.Input((6,))
    x = bayesnorm.StochasticBatchNormalization(name="a")(inputs)
    model = keras.Model(inputs, layers.BatchNormalization(name="b")(x))
    x = rng.normal(size=(400, 6)).astype("float32")
    assert [n.layer for n in bayesnorm.batch_noise(model, x, 8, 20)] == ["a", "b"]
