"""Rules of what stands in today's networks: products, attention, `keras.ops`.

`CASES` is a table of networks of one operation. Each is checked three times: at
variance 0 against the network itself, per example and at data-set level against Monte
Carlo. An exact rule must meet the sampled moments within 5.5 standard errors (about
2000 comparisons: one false alarm in 10 000 seeds), an approximate one, besides, within
its stated tolerance: in standard deviations for the mean, relative for the variance.
"""

import keras
import numpy as np
import pytest
from keras import activations, layers, ops

from bayesnorm.layers import StochasticScaleNorm
from bayesnorm.moments import check_upstream, propagate

SAMPLES = 6000
REFUSED = "refused"
# Within 25 % in the geometric mean over outputs, the mean within 0.25 deviations.
GEOMETRIC = "geometric"


def halves(merge):
    """Merges the first half of the channels with the second: independent ones."""
    return lambda x: merge([x[..., :2], x[..., 2:]])


def attention(**arguments):
    def network(x):
        layer = layers.MultiHeadAttention(4, 8)
        return layer(x, x, **arguments)

    return network


# name: (shape, network, tolerance per example, tolerance at data-set level)
CASES = {
    "multiply": ((3, 4), halves(layers.Multiply()), 0, 0),
    "multiply-three": (
        (3, 3),
        lambda x: layers.Multiply()([x[..., :1], x[..., 1:2], x[..., 2:]]),
        0,
        0,
    ),
    "squeeze-and-excitation": (
        (3, 3, 4),
        lambda x: layers.Multiply()(
            [x[..., :2], layers.GlobalAveragePooling2D(keepdims=True)(x[..., 2:])]
        ),
        0,
        0,
    ),
    "maximum": ((3, 4), halves(layers.Maximum()), 0, 0),
    "minimum": ((3, 4), halves(layers.Minimum()), 0, 0),
    "dot": ((6,), lambda x: layers.Dot(1)([x[:, :3], x[:, 3:]]), 0, REFUSED),
    "dot-positions": (
        (3, 4),
        lambda x: layers.Dot((1, 1))([x[..., :2], x[..., 2:]]),
        0,
        REFUSED,
    ),
    "dot-cosine": (
        (128,),
        lambda x: layers.Dot(1, normalize=True)([x[:, :64], x[:, 64:]]),
        0.05,
        REFUSED,
    ),
    "layer-normalization": ((2, 64), layers.LayerNormalization(), 0.06, 0.06),
    "layer-normalization-positions": (
        (6, 12),
        layers.LayerNormalization(axis=(1, 2)),
        0.06,
        REFUSED,
    ),
    "layer-normalization-rms": (
        (2, 64),
        layers.LayerNormalization(rms_scaling=True),
        0.06,
        0.06,
    ),
    "rms-normalization": ((2, 64), layers.RMSNormalization(), 0.06, 0.06),
    "unit-normalization": ((2, 64), layers.UnitNormalization(), 0.06, 0.06),
    "group-normalization": (
        (5, 5, 8),
        layers.GroupNormalization(2),
        0.06,
        0.06,
    ),
    "instance-normalization": (
        (8, 8, 3),
        layers.GroupNormalization(-1),
        0.06,
        0.06,
    ),
    "spectral-normalization": (
        (5, 5, 2),
        layers.SpectralNormalization(layers.Conv2D(3, 3)),
        0,
        0,
    ),
    "time-distributed": (
        (3, 4, 4, 2),
        layers.TimeDistributed(layers.Conv2D(3, 2)),
        0,
        0,
    ),
    "einsum-dense": (
        (3, 4),
        layers.EinsumDense("abc,cd->abd", output_shape=(None, 3), bias_axes="d"),
        0,
        0,
    ),
    "einsum-dense-heads": (
        (3, 4),
        layers.EinsumDense("abc,cde->abde", output_shape=(None, 2, 3), bias_axes="de"),
        0,
        0,
    ),
    "attention": ((8, 32), attention(), GEOMETRIC, REFUSED),
    "attention-causal": ((8, 32), attention(use_causal_mask=True), GEOMETRIC, REFUSED),
    "attention-masked": (
        (4, 32),
        attention(attention_mask=np.tri(4, dtype="bool")[None]),
        GEOMETRIC,
        REFUSED,
    ),
    "resizing": ((3, 4, 2), layers.Resizing(6, 8, interpolation="nearest"), 0, 0),
    "up-sampling-3d": ((2, 2, 2, 2), layers.UpSampling3D(2), 0, 0),
    "activation-layer": ((4,), layers.Dense(3, activation=layers.LeakyReLU(0.1)), 0, 0),
    "celu": ((3, 2), layers.Activation("celu"), 0, 0),
    "hard-silu": ((3, 2), layers.Activation("hard_silu"), 0, 0),
    "relu-limited": ((3, 2), lambda x: activations.relu(x, 0.1, 1.0, 0.2), 0, 0),
    "activation-operations": (
        (3, 2),
        lambda x: layers.Concatenate()(
            [
                f(x)
                for f in (
                    activations.celu,
                    activations.elu,
                    activations.gelu,
                    activations.hard_sigmoid,
                    activations.hard_tanh,
                    activations.leaky_relu,
                    activations.relu6,
                    activations.selu,
                    activations.sigmoid,
                    activations.silu,
                    activations.soft_shrink,
                    activations.hard_shrink,
                    activations.softplus,
                    activations.softsign,
                    activations.sparse_plus,
                    activations.sparse_sigmoid,
                    activations.squareplus,
                    activations.tanh,
                    activations.tanh_shrink,
                    ops.gelu,
                    ops.celu,
                )
            ]
        ),
        0,
        0,
    ),
    "getitem": ((3, 4), lambda x: x[:, 1:, 2], 0, 0),
    "split": ((3, 4), lambda x: ops.split(x, 2, axis=-1)[1], 0, 0),
    "clip": ((3, 2), lambda x: ops.clip(x, -0.5, 1.0), 0, 0),
    "max-of-two": ((3, 2), lambda x: ops.max(x, axis=-1, keepdims=True), 0, 0),
    "max-positions": ((2, 3), lambda x: ops.max(x, axis=1), 0, 0),
    "max-of-seven": ((7, 2), lambda x: ops.max(x, axis=1), 0.16, 0),
    "min-of-two": ((3, 2), lambda x: ops.min(x, axis=-1, keepdims=True), 0, 0),
    "sum": ((3, 2), lambda x: ops.sum(x, axis=1), 0, 0),
    "sum-all": ((3, 2), lambda x: ops.sum(x, axis=(1, 2), keepdims=True), 0, 0),
    "mean-channels": ((3, 2), lambda x: ops.mean(x, axis=-1, keepdims=True), 0, 0),
    "mean-positions": ((3, 4, 2), lambda x: ops.mean(x, axis=(1, 2)), 0, 0),
    "square": ((3, 2), ops.square, 0, 0),
    "square-by-hand": ((3, 2), lambda x: x * x, 0, 0),
    "cube": ((3, 2), lambda x: x**3, 0, 0),
    "abs": ((3, 2), ops.abs, 0, 0),
    "sqrt": ((3, 2), lambda x: ops.sqrt(x / 10 + 10.0), 0.02, 0.02),
    "exp": ((3, 2), lambda x: ops.exp(x / 2), 0, 0),
    "log": ((3, 2), lambda x: ops.log(x / 10 + 2.0), 0.03, 0.03),
    "rsqrt": ((3, 2), lambda x: ops.rsqrt(x / 10 + 2.0), 0.03, 0.05),
    "reciprocal": ((3, 2), lambda x: 1.0 / (x / 10 + 2.0), 0.03, 0.05),
    "quotient": ((3, 4), lambda x: x[..., :2] / (x[..., 2:] / 10 + 2.0), 0.03, 0.05),
    "expand-dims": ((3, 2), lambda x: ops.expand_dims(x, 1), 0, 0),
    "squeeze": ((1, 3, 2), lambda x: ops.squeeze(x, 1), 0, 0),
    "pad": ((3, 2), lambda x: ops.pad(x, ((0, 0), (1, 0), (0, 0))), 0, 0),
    "pad-by-a-constant": (
        (3, 2),
        lambda x: ops.pad(x, ((0, 0), (1, 0), (0, 0)), constant_values=2.0),
        0,
        0,
    ),
    "tile": ((3, 2), lambda x: ops.tile(x, (1, 2, 1)), 0, 0),
    "repeat": ((3, 2), lambda x: ops.repeat(x, 2, axis=1), 0, 0),
    "flip": ((3, 2), lambda x: ops.flip(x, 1), 0, 0),
    "take": ((3, 4), lambda x: ops.take(x, np.array([2, 0, 2]), axis=-1), 0, 0),
    "swapaxes": ((3, 4, 2), lambda x: ops.swapaxes(x, 1, 2), 0, 0),
    "moveaxis": ((3, 4, 2), lambda x: ops.moveaxis(x, 1, 2), 0, 0),
    "stack": ((3, 2), lambda x: ops.stack([x[:, 0], x[:, 1]], axis=1), 0, REFUSED),
    "maximum-operation": ((3, 4), lambda x: ops.maximum(x[..., :2], x[..., 2:]), 0, 0),
    "minimum-operation": ((3, 4), lambda x: ops.minimum(x[..., :2], x[..., 2:]), 0, 0),
    "maximum-constant": ((3, 2), lambda x: ops.maximum(x, 0.3), 0, 0),
    "minimum-constant": ((3, 2), lambda x: ops.minimum(0.3, x), 0, 0),
    "matmul-constant": (
        (3, 2),
        lambda x: ops.matmul(x, np.array([[1.0, -2.0], [0.5, 1.0]], "float32")),
        0,
        REFUSED,
    ),
    "matmul": (
        (2, 4),
        lambda x: ops.matmul(x[..., :2], x[..., 2:]),
        0,
        REFUSED,
    ),
    "einsum": (
        (2, 4),
        lambda x: ops.einsum("bij,bjk->bik", x[..., :2], x[..., 2:]),
        0,
        REFUSED,
    ),
    "where": (
        (3, 2),
        lambda x: ops.where(np.array([True, False]), x, 2.0),
        0,
        REFUSED,
    ),
}
# Keras 3.10 gives the input's shape for the output's.
if ops.glu(keras.KerasTensor((1, 4))).shape == (1, 2):
    CASES["glu"] = ((3, 4), lambda x: ops.glu(x, axis=-1), 0, 0)
if hasattr(layers, "AdaptiveAveragePooling2D"):
    CASES["adaptive-average"] = (
        (5, 4, 2),
        lambda x: layers.AdaptiveAveragePooling2D((2, 3))(x),
        0,
        0.02,
    )
    CASES["adaptive-max"] = (
        (4, 5, 2),
        lambda x: layers.AdaptiveMaxPooling2D((4, 3))(x),
        0,
        REFUSED,
    )


def network_of(name, rng):
    shape, network, *_ = CASES[name]
    inputs = keras.Input(shape)
    model = keras.Model(inputs, network(inputs))
    for variable in model.weights:
        if variable.dtype == "float32":
            spread = 0.15 if "attention" in name else 0.5
            values = spread * rng.normal(size=variable.shape)
            variable.assign(values.astype("float32"))
    return model, shape


def assert_meet(samples, mean, variance, tolerance):
    """First and second moments of `samples` `[n, ...]`, independent in n."""
    n = len(samples)
    samples = samples.astype("float64")
    centre = samples.mean(0)
    squares = (samples - centre) ** 2
    true = squares.mean(0)
    floor = 3e-6 * (np.abs(centre) + 1.0)
    if tolerance == GEOMETRIC:
        assert np.abs(np.log(variance / true).mean()) < np.log(1.25)
        assert (((mean - centre) ** 2 / true).mean()) ** 0.5 < 0.25
        return
    error = np.abs(mean - centre)
    assert np.all(error < 5.5 * (true / n) ** 0.5 + floor + tolerance * true**0.5)
    error = np.abs(variance - true)
    noise = 5.5 * squares.std(0) / n**0.5
    assert np.all(error < noise + floor + tolerance * true), (variance, true)


@pytest.mark.parametrize("name", CASES)
def test_no_variance_gives_the_network_itself(name, rng):
    model, shape = network_of(name, rng)
    x = rng.normal(size=(3, *shape)).astype("float32")
    got = propagate(model, x, 0.0)
    y = np.array(model(x, training=False))
    assert got.shape[1:] == tuple(model.output_shape[1:])
    np.testing.assert_allclose(got.mean, y, rtol=2e-5, atol=3e-6)
    np.testing.assert_allclose(np.broadcast_to(got.variance, y.shape), 0.0, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_per_example(name, rng):
    model, shape = network_of(name, rng)
    tolerance = CASES[name][2]
    mean = rng.uniform(-1.0, 1.0, size=(2, *shape)).astype("float32")
    variance = rng.uniform(0.3, 1.0, size=mean.shape).astype("float32")
    got = propagate(model, mean, variance)
    assert not got.stationary
    for i in range(2):
        x = rng.normal(mean[i], variance[i] ** 0.5, size=(SAMPLES, *shape))
        y = np.array(model(x.astype("float32"), training=False))
        full = np.broadcast_to(got.variance, got.mean.shape)
        assert_meet(y, np.array(got.mean[i]), full[i], tolerance)


@pytest.mark.parametrize("name", CASES)
def test_data_set_level(name, rng):
    model, shape = network_of(name, rng)
    tolerance = CASES[name][3]
    mean = rng.uniform(-1.0, 1.0, size=shape[-1])
    variance = rng.uniform(0.3, 1.0, size=shape[-1])
    if tolerance == REFUSED:
        with pytest.raises(ValueError, match=r"data-set level|per example only"):
            propagate(model, mean, variance)
        return
    got = propagate(model, mean, variance, correlation=0.0)
    assert got.stationary
    assert got.shape == tuple(model.output_shape)
    x = rng.normal(mean, variance**0.5, size=(SAMPLES, *shape)).astype("float32")
    y = np.array(model(x, training=False))
    y = y.reshape(SAMPLES, -1, y.shape[-1] if len(got.mean.shape) else 1)
    if not len(got.mean.shape):
        y = y.reshape(SAMPLES, -1, 1)
    # All positions are of one law, those of an example not independent.
    first, second = y.mean(1), (y.astype("float64") ** 2).mean(1)
    moments = np.array(got.mean), np.array(got.variance)
    for values, truth in ((first, moments[0]), (second, moments[1] + moments[0] ** 2)):
        error = np.abs(values.mean(0) - truth)
        spread = y.std((0, 1))
        room = tolerance * (spread if values is first else second.mean(0))
        floor = 3e-6 * (np.abs(truth) + 1.0)
        assert np.all(error < 5.5 * values.std(0) / SAMPLES**0.5 + floor + room)


def test_embedding():
    inputs = keras.Input((5,), dtype="int32")
    layer = layers.Embedding(7, 3)
    model = keras.Model(inputs, layer(inputs))
    tokens = np.array([[0, 6, 2, 2, 1]])
    got = propagate(model, tokens, 0.0)
    np.testing.assert_array_equal(got.mean, model(tokens))
    assert not np.any(got.variance)
    # A data set in which all tokens are equally frequent.
    got = propagate(model, 0.0, 1.0)
    table = np.array(layer.embeddings)
    np.testing.assert_allclose(got.mean, table.mean(0), atol=1e-6)
    np.testing.assert_allclose(got.variance, table.var(0), rtol=1e-5)
    masked = keras.Model(inputs, layers.Embedding(7, 3, mask_zero=True)(inputs))
    with pytest.raises(ValueError, match="mask_zero"):
        propagate(masked, tokens, 0.0)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: layers.LSTM(2), "'odd' of type LSTM.*recurrent"),
        (lambda: layers.GRU(2), "'odd' of type GRU.*recurrent"),
        (lambda: layers.Bidirectional(layers.LSTM(2)), "Bidirectional.*recurrent"),
        (lambda: layers.Lambda(lambda x: x, output_shape=(4, 2)), "Lambda computes"),
    ],
)
def test_what_has_no_rule_says_why(make, reason):
    layer = make()
    layer.name = "odd"
    inputs = keras.Input((4, 2))
    outputs = layer(inputs)
    with pytest.raises(ValueError, match=reason):
        check_upstream(outputs)
    with pytest.raises(ValueError, match=reason):
        propagate(keras.Model(inputs, outputs), np.zeros((1, 4, 2)), 0.0)


def test_choices_that_depend_on_activations_are_refused():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, ops.where(inputs > 0, inputs, 0.0))
    with pytest.raises(ValueError, match="Greater"):
        propagate(model, np.zeros((1, 3)), 1.0)
    model = keras.Model(inputs, ops.power(inputs, inputs))
    with pytest.raises(ValueError, match="number as exponent"):
        propagate(model, np.ones((1, 3)), 1.0)


@pytest.mark.parametrize("kind", ["zeros", "random"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_interpolation_of_shared_noise(kind, interpolation, rng):
    """Perfectly correlated neighbours: what an interpolation is of one draw."""
    inputs = keras.Input((4, 4, 2))
    layer = layers.Resizing(7, 6, interpolation=interpolation)
    model = keras.Model(inputs, layer(inputs))
    mean = rng.normal(size=(1, 4, 4, 2)).astype("float32")
    variance = 0.0 if kind == "zeros" else 4.0
    got = propagate(model, mean, variance)
    np.testing.assert_allclose(got.mean, model(mean), atol=1e-6)
    np.testing.assert_allclose(got.variance, variance * np.ones_like(got.mean), 1e-4)


KERNELS = {
    "conv": lambda: layers.Conv2D(4, 3, padding="same"),
    "conv-valid": lambda: layers.Conv2D(4, (3, 2), strides=2),
    "conv-dilated": lambda: layers.Conv2D(4, 2, dilation_rate=2),
    "depthwise": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
    "separable": lambda: layers.SeparableConv2D(4, 3, padding="same"),
    "separable-multiplier": lambda: layers.SeparableConv2D(4, 3, depth_multiplier=2),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("kernel", ["ones", "random"])
def test_a_draw_for_all_positions_behind_kernels(name, kernel, rng):
    """One scale for each channel: the errors of a map have all one sign.

    Exact for depthwise kernels and for constant ones, but for Monte Carlo; for random
    ones that mix channels on average over the outputs.
    """
    inputs = keras.Input((8, 8, 16))
    layer = KERNELS[name]()
    scaled = StochasticScaleNorm(initial_stddev=0.3)(inputs)
    model = keras.Model(inputs, layer(scaled))
    if kernel == "ones":
        layer.set_weights([np.ones_like(w) for w in layer.get_weights()])
    x = (1.0 + rng.normal(size=(1, 8, 8, 16))).astype("float32")
    got = propagate(model, x, 0.0)
    y = np.array(model(np.repeat(x, 1500, 0), training=True))
    ratio = np.array(got.variance)[0] / y.var(0)
    total = np.array(got.variance).sum() / y.var(0).sum()
    # The window of a dilated kernel holds more than its taps.
    assert abs(total - 1.0) < (0.25 if name == "conv-dilated" else 0.15)
    if (kernel == "ones" and name != "conv-dilated") or name == "depthwise":
        low, high = np.percentile(ratio, [2, 98])
        assert 0.85 < low < high < 1.18


def test_a_gate_is_shared_by_the_positions_that_it_scales(rng):
    """[batch, 1, 1, channels] times a map, added to a map, and pooled."""
    x, gate = keras.Input((4, 4, 2)), keras.Input((1, 1, 2))
    y = layers.Add()([layers.Multiply()([x, gate]), gate])
    model = keras.Model([x, gate], layers.GlobalAveragePooling2D()(y))
    means = [rng.normal(size=(1, *s)).astype("float32") for s in ((4, 4, 2), (1, 1, 2))]
    variances = [np.zeros((1, 4, 4, 2), "float32"), np.full((1, 1, 1, 2), 0.5, "f")]
    got = propagate(model, means, variances)
    # The two uses of the gate count as independent.
    factor = means[0].mean((1, 2))
    np.testing.assert_allclose(got.variance, 0.5 * (factor**2 + 1.0), rtol=1e-4)


@pytest.mark.tensorflow
@pytest.mark.parametrize("everywhere", [True, False])
def test_float64(everywhere, rng):
    import bayesnorm

    if everywhere:
        keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        inputs = keras.Input((6, 6, 2))
        h = layers.Conv2D(4, 3, padding="same")(inputs)
        h = layers.ReLU()(StochasticScaleNorm(initial_stddev=0.3)(h))
        h = layers.DepthwiseConv2D(3)(bayesnorm.NoisyScaleNorm(0.1, 0.1)(h))
        h = layers.GroupNormalization(2)(layers.ELU()(layers.MaxPooling2D()(h)))
        h = layers.GlobalAveragePooling2D()(layers.Multiply()([h, ops.sigmoid(h)]))
        model = keras.Model(inputs, layers.Dense(3, "softmax")(h))
        x = rng.normal(size=(4, 6, 6, 2))
        got = bayesnorm.predict(model, x, method="moments", verbose=False)
        mean = bayesnorm.predict(model, x, method="mean", verbose=False)
    finally:
        keras.config.set_floatx("float32")
    assert np.abs(got.probs - mean.probs).max() < 0.1


@pytest.mark.parametrize(
    "layer",
    [
        layers.LayerNormalization,
        layers.RMSNormalization,
        layers.UnitNormalization,
        lambda: layers.GroupNormalization(1),
    ],
)
def test_normalizations_of_few_elements_and_little_noise(layer, rng):
    """What an element does to its own mean and divisor counts where there are few."""
    model = keras.Sequential([keras.Input((4,)), layer()])
    mean = rng.normal(size=4).astype("float32")
    variance = rng.uniform(1e-4, 4e-4, 4).astype("float32")
    got = propagate(model, mean[None], variance[None])
    x = rng.normal(mean, variance**0.5, size=(SAMPLES, 4)).astype("float32")
    y = np.array(model(x))
    assert_meet(y, np.array(got.mean[0]), np.array(got.variance[0]), 0.02)
