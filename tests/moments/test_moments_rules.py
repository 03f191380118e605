"""Rules of the stock layers, at both levels, against Monte Carlo.

Each comparison is a z-score of a mean over independent examples, and fails beyond
5.5: with the about 3000 comparisons of this file, by chance once in 9000 seeds.
"""

import zlib

import keras
import numpy as np
import pytest
from keras import layers, ops

from bayesnorm.moments import Moments, propagate, rule_for

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def draws_of_a_test(request, monkeypatch):
    """Gives each test draws of its own, whichever ran before it."""
    seed = zlib.crc32(request.node.name.encode())
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(seed))


def z_scores(samples, mean, variance):
    """Z-scores of first and second moments; `samples` [n, ...] independent in n."""
    n = len(samples)
    second = samples**2
    scores = []
    for values, truth in ((samples, mean), (second, variance + mean**2)):
        error = values.std(0, ddof=1) / n**0.5
        # Rounding in float32, where there is no noise to speak of.
        floor = 3e-6 * (np.abs(truth) + 1.0)
        scores.append((values.mean(0) - truth) / np.hypot(error, floor))
    return np.abs(np.stack(scores))


def draw(mean, variance, shape):
    return RNG.normal(mean, np.sqrt(variance), size=shape).astype("float32")


def randomize(model):
    for variable in model.weights:
        if variable.dtype != "float32":
            continue
        if "variance" in variable.name:
            values = RNG.uniform(0.5, 2.0, variable.shape)
        else:
            values = 0.5 * RNG.normal(size=variable.shape) + 0.1
        variable.assign(values.astype("float32"))


def single(layer, shape):
    model = keras.Sequential([keras.Input(shape), layer])
    randomize(model)
    return model


LINEAR = {
    "dense": ((5,), lambda: layers.Dense(4)),
    "dense-positions": ((3, 5), lambda: layers.Dense(4)),
    "conv1d": ((9, 3), lambda: layers.Conv1D(4, 3, dilation_rate=2)),
    "conv1d-causal": ((9, 3), lambda: layers.Conv1D(4, 3, padding="causal")),
    "conv2d": ((7, 6, 2), lambda: layers.Conv2D(3, (3, 2), strides=2)),
    "conv2d-same": ((5, 4, 2), lambda: layers.Conv2D(3, 3, padding="same")),
    "conv2d-same-strided": (
        (7, 6, 2),
        lambda: layers.Conv2D(3, 3, strides=2, padding="same"),
    ),
    "conv2d-same-dilated": (
        (6, 6, 2),
        lambda: layers.Conv2D(3, 3, dilation_rate=2, padding="same"),
    ),
    "conv2d-groups": (
        (5, 5, 4),
        lambda: layers.Conv2D(6, 3, groups=2, padding="same"),
    ),
    "conv3d": ((4, 4, 3, 2), lambda: layers.Conv3D(3, 2, padding="same")),
    "depthwise1d": ((8, 3), lambda: layers.DepthwiseConv1D(3, padding="same")),
    "depthwise2d": (
        (5, 5, 3),
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
    ),
    "separable1d": ((8, 3), lambda: layers.SeparableConv1D(4, 3, padding="same")),
    "separable2d": ((6, 6, 3), lambda: layers.SeparableConv2D(4, 3, strides=2)),
    "separable2d-multiplier": (
        (5, 5, 3),
        lambda: layers.SeparableConv2D(4, 3, depth_multiplier=2, padding="same"),
    ),
    "transpose1d": (
        (6, 3),
        lambda: layers.Conv1DTranspose(4, 4, strides=3, padding="same"),
    ),
    "transpose2d": ((4, 5, 2), lambda: layers.Conv2DTranspose(3, 3, strides=2)),
    "transpose2d-same": (
        (4, 5, 2),
        lambda: layers.Conv2DTranspose(3, 3, strides=2, padding="same"),
    ),
    "transpose2d-output-padding": (
        (4, 4, 2),
        lambda: layers.Conv2DTranspose(
            2, 3, strides=2, padding="same", output_padding=1
        ),
    ),
    "transpose3d": (
        (3, 3, 2, 2),
        lambda: layers.Conv3DTranspose(2, 2, strides=2, padding="same"),
    ),
    "batch-normalization": ((4, 3), lambda: layers.BatchNormalization()),
    "batch-normalization-plain": (
        (4, 3),
        lambda: layers.BatchNormalization(scale=False, center=False),
    ),
    "normalization": (
        (4, 3),
        lambda: layers.Normalization(mean=[1.0, 2.0, 0.5], variance=[1.0, 4.0, 2.0]),
    ),
    "rescaling": ((4, 3), lambda: layers.Rescaling(0.5, offset=1.0)),
    "flatten": ((2, 3, 2), lambda: layers.Flatten()),
    "reshape": ((2, 3, 2), lambda: layers.Reshape((3, 4))),
    "reshape-channels-kept": ((2, 3, 2), lambda: layers.Reshape((6, 2))),
    "permute": ((2, 3, 2), lambda: layers.Permute((2, 1, 3))),
    "repeat": ((3,), lambda: layers.RepeatVector(2)),
    "zero-padding": ((3, 4, 2), lambda: layers.ZeroPadding2D((1, 2))),
    "cropping": ((4, 5, 2), lambda: layers.Cropping2D(1)),
    "up-sampling": ((2, 3, 2), lambda: layers.UpSampling2D(2)),
    "average-pool": ((4, 4, 2), lambda: layers.AveragePooling2D(2)),
    "average-pool-1d": ((6, 2), lambda: layers.AveragePooling1D(3, 3)),
    "global-average": ((3, 4, 2), lambda: layers.GlobalAveragePooling2D()),
    "global-average-3d": ((3, 2, 2, 2), lambda: layers.GlobalAveragePooling3D()),
    "identity": ((3,), lambda: layers.Identity()),
    "random-flip": ((3, 3, 2), lambda: layers.RandomFlip()),
}
NONLINEAR = {
    "relu": ((3, 2), lambda: layers.ReLU()),
    "relu-slope": ((3, 2), lambda: layers.ReLU(negative_slope=0.3)),
    "leaky-relu": ((3, 2), lambda: layers.LeakyReLU(0.01)),
    "prelu": ((3, 2), lambda: layers.PReLU(shared_axes=[1])),
    "elu": ((3, 2), lambda: layers.ELU(0.7)),
    "selu": ((3, 2), lambda: layers.Activation("selu")),
    "gelu": ((3, 2), lambda: layers.Activation("gelu")),
    "sigmoid": ((3, 2), lambda: layers.Activation("sigmoid")),
    "tanh": ((3, 2), lambda: layers.Activation("tanh")),
    "softplus": ((3, 2), lambda: layers.Activation("softplus")),
    "silu": ((3, 2), lambda: layers.Activation("silu")),
    "exponential": ((3, 2), lambda: layers.Activation("exponential")),
    "linear": ((3, 2), lambda: layers.Activation("linear")),
    "softmax": ((2, 4), lambda: layers.Softmax()),
    "fused-relu": ((5,), lambda: layers.Dense(4, activation="relu")),
    "max-pool": ((4, 4, 2), lambda: layers.MaxPooling2D((2, 1))),
    "global-max-of-two": ((2, 3), lambda: layers.GlobalMaxPooling1D()),
}
CASES = {**LINEAR, **NONLINEAR}


@pytest.mark.parametrize("name", CASES)
def test_data_set_level(name):
    """Independent stationary inputs, all positions of all examples pooled."""
    if name.startswith("batch-normalization"):
        pytest.skip("its own offset and scale, whatever the input: test_layers")
    shape, make = CASES[name]
    model = single(make(), shape)
    channels = shape[-1]
    mean = RNG.uniform(-1.0, 1.0, size=channels)
    variance = RNG.uniform(0.3, 1.5, size=channels)
    if name == "softmax":
        variance = variance + 1.0  # exact integrals
    got = propagate(model, mean, variance, correlation=0.0)
    assert got.stationary
    assert got.shape == tuple(model.outputs[0].shape)
    y = np.array(model(draw(mean, variance, (6000, *shape)), training=False))
    predicted = np.array(got.mean), np.array(got.variance)
    assert predicted[0].shape == (y.shape[-1],)
    positions = tuple(range(1, y.ndim - 1))
    first, second = y.mean(positions), (y**2).mean(positions)
    for values, truth in ((first, predicted[0]), (second, sum_square(predicted))):
        error = values.std(0, ddof=1) / len(y) ** 0.5
        floor = 3e-6 * (np.abs(truth) + 1.0)
        score = np.abs(values.mean(0) - truth) / np.hypot(error, floor)
        assert score.max() < 5.5, (score, truth, values.mean(0))


def sum_square(predicted):
    return predicted[1] + predicted[0] ** 2


@pytest.mark.parametrize("name", CASES)
def test_per_example(name):
    shape, make = CASES[name]
    model = single(make(), shape)
    mean = RNG.uniform(-1.0, 1.0, size=(2, *shape)).astype("float32")
    variance = RNG.uniform(0.3, 1.5, size=mean.shape).astype("float32")
    if name == "softmax":
        variance = variance + 1.0
    if name == "exponential":
        # Of squares of log-normal variables 6000 tell little, of such wide ones.
        variance = 0.2 * variance
    got = propagate(model, mean, variance)
    assert not got.stationary
    for i in range(2):
        y = np.array(model(draw(mean[i], variance[i], (6000, *shape)), training=False))
        predicted = np.array(got.mean[i]), np.array(got.variance[i])
        assert predicted[0].shape == y.shape[1:]
        assert z_scores(y, *predicted).max() < 5.5
    # Variance 0 is the model itself.
    got = propagate(model, mean, 0.0)
    np.testing.assert_allclose(
        got.mean, model(mean, training=False), rtol=2e-5, atol=2e-6
    )
    np.testing.assert_allclose(got.variance, 0.0, atol=1e-6)


def test_interior_of_wide_maps():
    """From 32 positions on, the border is left out."""
    model = single(layers.Conv2D(2, 3, padding="same"), (32, 40, 2))
    wide = propagate(model, [1.0, 2.0], [1.0, 1.0])
    kernel = np.array(model.layers[0].kernel)
    truth = np.einsum("hwio,i->o", kernel, [1.0, 2.0]) + np.array(model.layers[0].bias)
    np.testing.assert_allclose(wide.mean, truth, rtol=1e-5)
    np.testing.assert_allclose(wide.variance, (kernel**2).sum((0, 1, 2)), rtol=1e-5)


def test_border_literal():
    """'same' 2x2 kernels, stride 2, on a 5x5 map."""
    w = [0.189, -0.523, -0.413, -2.441, 1.8, 1.144, -0.325, 0.774]
    w += [0.281, -0.554, 0.978, -0.311, -0.329, -0.792, 0.455, -0.099]
    kernel = np.reshape(w, (2, 2, 2, 2))
    for shape, strides, padding, mean, variance in (
        ((5, 5, 2), 2, "same", [0.5905, 2.0355], [3.6569967, 4.5718666111]),
        ((5, 5, 2), 1, "valid", [0.3755, 1.8145], [4.7313888, 5.6853656]),
    ):
        layer = layers.Conv2D(2, 2, strides=strides, padding=padding)
        model = keras.Sequential([keras.Input(shape), layer])
        layer.set_weights([kernel, np.full(2, 0.1)])
        got = propagate(model, [0.5, -1.0], [1.2, 0.4])
        np.testing.assert_allclose(got.mean, mean, rtol=1e-5)
        np.testing.assert_allclose(got.variance, variance, rtol=1e-5)
    layer = layers.Conv2DTranspose(2, 2, strides=2, use_bias=False)
    model = keras.Sequential([keras.Input((5, 5, 2)), layer])
    # A transposed kernel stores its filters before its channels.
    layer.set_weights([kernel.swapaxes(2, 3)])
    got = propagate(model, [0.5, -1.0], [1.2, 0.4])
    np.testing.assert_allclose(got.mean, [0.068875, 0.428625], rtol=1e-5)
    np.testing.assert_allclose(got.variance, [1.8889453719, 2.4577193218], rtol=1e-5)


def test_dropout_and_noise():
    for layer in (layers.Dropout(0.3), layers.SpatialDropout1D(0.3)):
        got = propagate(single(layer, (4, 1)), [0.4], [1.69])
        np.testing.assert_allclose(got.mean, [0.4], rtol=1e-6)
        np.testing.assert_allclose(got.variance, [2.482857142857143], rtol=1e-6)
    for layer in (
        layers.Dropout(0.4, seed=0),
        layers.GaussianDropout(0.4, seed=0),
        layers.GaussianNoise(0.7, seed=0),
        layers.AlphaDropout(0.4, seed=0),
    ):
        model = single(layer, (3,))
        got = propagate(model, [0.4, -1.0, 2.0], [1.0, 0.5, 2.0])
        x = draw([0.4, -1.0, 2.0], [1.0, 0.5, 2.0], (20_000, 3))
        y = np.array(layer(ops.convert_to_tensor(x), training=True))
        assert z_scores(y, np.array(got.mean), np.array(got.variance)).max() < 5.5
        # Inference drops nothing.
        got = propagate(model, x[:2], 0.5)
        np.testing.assert_array_equal(got.mean, x[:2])
        np.testing.assert_allclose(got.variance, 0.5)


def test_pooling_of_correlated_positions():
    shared = propagate(single(layers.AveragePooling2D(2), (4, 4, 2)), 1.0, 2.0)
    np.testing.assert_allclose(shared.variance, 2.0)
    model = single(layers.MaxPooling2D(2), (4, 4, 2))
    got = propagate(model, 0.5, 1.44, correlation=0.6)
    np.testing.assert_allclose(got.mean, 1.2812409790347237, rtol=1e-6)
    np.testing.assert_allclose(got.variance, 1.1472279764398587, rtol=1e-6)
    np.testing.assert_allclose(propagate(model, 0.5, 1.44).mean, 0.5)


def test_average_pool_of_a_padded_border():
    model = single(layers.AveragePooling2D(3, strides=2, padding="same"), (5, 5, 1))
    mean = RNG.normal(size=(1, 5, 5, 1)).astype("float32")
    variance = RNG.uniform(0.5, 1.5, mean.shape).astype("float32")
    got = propagate(model, mean, variance)
    y = np.array(model(draw(mean[0], variance[0], (6000, 5, 5, 1))))
    assert z_scores(y, np.array(got.mean[0]), np.array(got.variance[0])).max() < 5.5


@pytest.mark.parametrize(
    "make",
    [
        lambda f: layers.Conv2D(3, 3, padding="same", data_format=f),
        lambda f: layers.MaxPooling2D((2, 1), data_format=f),
        lambda f: layers.AveragePooling2D(2, data_format=f),
        lambda f: layers.GlobalAveragePooling2D(data_format=f),
        lambda f: layers.BatchNormalization(axis=1 if f == "channels_first" else -1),
        lambda f: layers.UpSampling2D(2, data_format=f),
        lambda f: layers.Flatten(data_format=f),
    ],
)
def test_channels_first_equals_channels_last(make):
    """At data-set level, where nothing but the rule runs (CPUs lack the kernels)."""
    last, first = single(make("channels_last"), (4, 6, 2)), None
    first = keras.Sequential([keras.Input((2, 4, 6)), make("channels_first")])
    first.set_weights(last.get_weights())
    truth = propagate(last, [0.5, -1.0], [1.0, 2.0], correlation=0.3)
    got = propagate(first, [0.5, -1.0], [1.0, 2.0], correlation=0.3, axis=1)
    np.testing.assert_allclose(got.mean, truth.mean, rtol=1e-6)
    np.testing.assert_allclose(got.variance, truth.variance, rtol=1e-6)
    if isinstance(first.layers[0], layers.Conv2D):
        assert got.channel_axis == 1
        with pytest.raises(ValueError, match="data_format"):
            propagate(first, np.zeros(6), np.ones(6))


def test_shared_noise_survives_pooling():
    """(x + b) S, then leaky ReLU and a global average: one S for all positions."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(1, 4, 4, 2)).astype("float32")
    start = Moments(ops.convert_to_tensor(x), ops.zeros_like(x), x.shape, False)
    scale, stddev, bias = [1.0, -0.7], [0.3, 0.2], [1.0, 2.0]
    got = start.scaled(
        *map(ops.convert_to_tensor, (scale, np.square(stddev, dtype="f"), bias))
    )
    model = single(layers.GlobalAveragePooling2D(), (4, 4, 2))
    pooled = rule_for(model.layers[0])(model.layers[0], got)
    S = rng.normal(scale, stddev, size=(40_000, 1, 1, 2))
    y = ((x + bias) * S).mean((1, 2))
    np.testing.assert_allclose(pooled.mean[0], y.mean(0), rtol=0.02)
    np.testing.assert_allclose(pooled.variance[0], y.var(0), rtol=0.1)
    # Taken as independent, the variance would be several times too small.
    assert np.all(np.array(got.variance).mean((0, 1, 2)) / 16 < 0.3 * y.var(0))


def test_fused_activations_are_the_layers():
    for name in ("softmax", "elu", "leaky_relu"):
        fused = single(layers.Dense(4, activation=name), (5,))
        apart = keras.Sequential(
            [keras.Input((5,)), layers.Dense(4), layers.Activation(name)]
        )
        apart.set_weights(fused.get_weights())
        batch = RNG.normal(size=(3, 5)).astype("float32")
        for given in ((0.3, 1.1), (batch, 0.7)):
            a, b = propagate(fused, *given), propagate(apart, *given)
            np.testing.assert_allclose(a.mean, b.mean, rtol=1e-6)
            np.testing.assert_allclose(a.variance, b.variance, rtol=1e-6)


@pytest.mark.parametrize(
    "function",
    [ops.softplus, ops.gelu, ops.relu, ops.hard_silu, ops.squareplus, ops.leaky_relu],
)
def test_functions_of_keras_ops_given_as_activations(function):
    mean, variance = np.array([[-1.2, 0.1, 2.0]], "float32"), 0.7
    nodes = np.linspace(-8.0, 8.0, 20_001)[:, None]
    weights = np.exp(-0.5 * nodes**2)
    weights /= weights.sum()
    y = np.array(function((mean + np.sqrt(variance) * nodes).astype("float32")))
    expected = (weights * y).sum(0)
    got = propagate(single(layers.Activation(function), (3,)), mean, variance)
    np.testing.assert_allclose(got.mean[0], expected, atol=2e-3)
    expected = (weights * np.square(y - expected)).sum(0)
    np.testing.assert_allclose(got.variance[0], expected, atol=2e-3)


def test_predictive_stddev_of_a_noisy_net():
    """Scales with 30 % noise, three convolutions, a global average: within 25 %."""
    import bayesnorm

    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(6)
    blocks = []
    for filters in (12, 12, 12):
        conv = layers.Conv2D(filters, 3, padding="same")
        blocks += [
            bayesnorm.WeightNormalization(conv),
            bayesnorm.StochasticScaleNorm(initial_stddev=0.3),
            layers.LeakyReLU(0.01),
        ]
    head = [layers.GlobalAveragePooling2D(), layers.Dense(5)]
    model = keras.Sequential([keras.Input((6, 6, 2)), *blocks, *head])
    x = rng.normal(size=(1, 6, 6, 2)).astype("float32")
    got = propagate(model, x, 0.0)
    batch = ops.convert_to_tensor(np.repeat(x, 4000, 0))
    y = np.array(model(batch, training=True))
    ratio = np.sqrt(np.array(got.variance)[0] / y.var(0))
    assert 0.75 < np.exp(np.log(ratio).mean()) < 1.25
    assert np.all(np.abs(np.array(got.mean)[0] - y.mean(0)) < 0.3 * y.std(0))
