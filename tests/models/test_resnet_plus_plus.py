"""ResNet++: against a computation in NumPy, known numbers of weights, its priors."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

import bayesnorm
from bayesnorm import models, priors
from tests.helpers import long

N = 50
SMALL = {"input_shape": (8, 8, 3), "num_classes": 5, "depth": 11, "width": 0.25}


def _small(**arguments):
    return models.resnet_plus_plus(**{**SMALL, "seed": 1, **arguments})


def _randomized(model, rng):
    """Moves all trainable weights from where they start."""
    for variable in model.trainable_variables:
        noise = rng.normal(size=variable.shape)
        variable.assign_add(noise * (0.1 if len(variable.shape) > 1 else 0.3))
    return model


def _images(rng, n=4):
    return rng.normal(size=(n, 8, 8, 3)).astype("float32")


def _array(variable):
    return ops.convert_to_numpy(variable).astype("float64")


# --- a reference in float64 -----------------------------------------------------------


def _selu(x):
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    return scale * np.where(x > 0, x, alpha * (np.exp(np.minimum(x, 0)) - 1))


def _convolution(x, kernel, stride):
    size, width = kernel.shape[0], x.shape[1]
    missing = max((-(-width // stride) - 1) * stride + size - width, 0)
    pad = (missing // 2, missing - missing // 2)
    x = np.pad(x, ((0, 0), pad, pad, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
    return np.einsum("nhwcij,ijco->nhwo", windows[:, ::stride, ::stride], kernel)


def _reference(model, x):
    def block(x, name, stride=1):
        kernel = _array(model.get_layer(f"{name}_norm").layer.kernel)
        kernel = kernel / np.sqrt(np.sum(kernel**2, (0, 1, 2)))
        scale = model.get_layer(f"{name}_scale")
        x = _convolution(x, kernel, stride)
        return (x + _array(scale.bias)) * _array(scale.scale)

    x = _selu(block(x.astype("float64"), "conv"))
    for i in range(3):
        stride = 2 if i else 1
        shortcut = block(x, f"block{i}_0_shortcut", stride)
        x = _selu(block(x, f"block{i}_0_conv0"))
        x = _selu(block(x, f"block{i}_0_conv1", stride))
        x = _selu(block(x, f"block{i}_0_conv2") + shortcut)
    logits = model.get_layer("logits")
    return x.mean((1, 2)) @ _array(logits.kernel) + _array(logits.bias)


def test_it_computes_what_the_docstring_says(rng):
    model = _randomized(_small(), rng)
    x = _images(rng)
    np.testing.assert_allclose(model(x), _reference(model, x), rtol=1e-4, atol=1e-5)


# --- its size -------------------------------------------------------------------------


def _trained(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def _weights_of(n, factor, classes):
    """Kernels, scales and biases of a network of 9 n + 2 layers."""
    total, before = 0, 3
    convolutions = [(9, 16 * factor)]
    for width in (16, 32, 64):
        w = width * factor
        convolutions += [(1, w), (9, w), (1, 4 * w)] * n
    for size, filters in convolutions:
        total += size * before * filters + 2 * filters
        before = filters
    # The shortcuts, from what came before a stage to its 4 w.
    sums = [16 * factor, 64 * factor, 128 * factor, 256 * factor]
    for a, b in itertools.pairwise(sums):
        total += a * b + 2 * b
    return total + (before + 1) * classes


@pytest.mark.parametrize(
    ("depth", "width"), [(11, 2), long(20, 1), long(56, 1), (56, 2)]
)
@pytest.mark.parametrize("norm", ["weight", long("batch")])
def test_it_has_as_many_weights_as_counted_by_hand(depth, width, norm):
    model = models.resnet_plus_plus(depth=depth, width=width, norm=norm)
    assert _trained(model) == _weights_of((depth - 2) // 9, width, 10)
    convolutions = [
        x
        for x in model.layers
        if isinstance(getattr(x, "layer", x), keras.layers.Conv2D)
    ]
    assert len(convolutions) == depth - 1 + 3
    assert model.get_layer("block2_0_sum").output.shape[1:] == (8, 8, 256 * width)


@pytest.mark.parametrize(
    ("depth", "weights"),
    # Those known of these networks, with 1000 classes.
    [(50, 25_557_032), long(101, 44_549_160), long(152, 60_192_808)],
)
def test_the_networks_for_imagenet(depth, weights):
    model = models.resnet_plus_plus((224, 224, 3), 1000, "batch", depth=depth)
    assert _trained(model) == weights
    sizes = [
        model.get_layer(name).output.shape[1:]
        for name in ("conv_relu", "conv_pool", "block0_0_relu", "block3_2_relu")
    ]
    assert sizes == [(112, 112, 64), (56, 56, 64), (56, 56, 256), (7, 7, 2048)]


# --- how it starts --------------------------------------------------------------------


def test_the_signal_keeps_its_size_over_56_layers(rng):
    model = models.resnet_plus_plus(seed=1)
    names = [f"block{i}_{j}_selu" for i in range(3) for j in range(6)]
    outputs = [model.get_layer(name).output for name in ["conv_selu", *names, "pool"]]
    images = rng.normal(size=(4, 32, 32, 3)).astype("float32")
    *maps, features = map(_array, keras.Model(model.input, outputs)(images))
    sizes = np.array([np.sqrt(np.mean(x**2)) for x in maps])
    # A filter of norm 1 keeps the mean square, and SELU a variance of 1.
    np.testing.assert_allclose(sizes[0], 1.0, atol=0.1)
    assert (np.abs(np.log(sizes[1:] / sizes[:-1])) < 0.15).all()
    assert (sizes > 0.8).all()
    assert (sizes < 2.0).all()
    assert 0.1 < features.std() < 1.0


def _last(model, kind):
    return {
        layer.name: _array(layer.gamma if hasattr(layer, "gamma") else layer.scale)
        for layer in model.layers
        if isinstance(layer, kind)
    }


@pytest.mark.parametrize(
    ("arguments", "kind", "first"),
    [
        ({}, bayesnorm.ScaleNorm, 0.1),
        ({"last_scale": 0.0}, bayesnorm.ScaleNorm, 0.0),
        ({"norm": "batch"}, keras.layers.BatchNormalization, 1.0),
        (
            {"norm": "batch", "last_scale": 0.3},
            keras.layers.BatchNormalization,
            0.3,
        ),
        ({"scale": "stochastic"}, bayesnorm.StochasticScaleNorm, 0.1),
        (
            {"scale": "noisy", "scale_stddev": 0.1, "shift_stddev": 0.1},
            bayesnorm.NoisyScaleNorm,
            0.1,
        ),
    ],
)
def test_the_last_scale_of_a_branch_is_small(arguments, kind, first):
    found = _last(_small(depth=20, **arguments), kind)
    assert len(found) == 1 + 3 * 2 * 3 + 3
    for name, scale in found.items():
        truth = first if "_conv2" in name else 1.0
        np.testing.assert_array_equal(scale, np.float32(truth), name)


def test_kernels_start_as_lecuns_normal_whatever_the_norm():
    weight, batch = (_small(norm=norm, width=1.0) for norm in ("weight", "batch"))
    for name in ("conv", "block1_0_conv1", "block2_0_shortcut"):
        kernel = _array(weight.get_layer(f"{name}_norm").layer.kernel)
        np.testing.assert_array_equal(kernel, _array(batch.get_layer(name).kernel))
        length = np.sum(kernel**2, (0, 1, 2))
        np.testing.assert_allclose(length.mean(), 1, atol=5 / kernel.size**0.5)
    assert "block0_0_selu" in [x.name for x in weight.layers]
    assert "block0_0_relu" in [x.name for x in batch.layers]


# --- its priors -----------------------------------------------------------------------


def _kind(variable):
    """What a variable is, by its path."""
    *_, layer, name = variable.path.split("/")
    if layer == "logits" or name == "bias":
        return "other"
    return name


def _energy(variable):
    """`-log p` of a weight, up to a constant."""
    x = _array(variable)
    if _kind(variable) == "kernel":
        d = np.prod(x.shape[:-1])
        return d / 2 * np.sum((np.sum(x**2, (0, 1, 2)) - 1) ** 2)
    if _kind(variable) == "scale":
        return np.sum(np.abs(x)) / 5
    return np.sum(x**2) / (2 * 0.7**2)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"norm": "analytic"},
        {"scale": "noisy", "scale_stddev": 0.1, "shift_stddev": 0.1},
    ],
)
def test_every_weight_has_its_prior(arguments, rng, tmp_path):
    model = _small(num_examples=N, prior_stddev=0.7, **arguments)
    _randomized(model, rng)
    kinds = {
        "kernel": priors.UnitLength,
        "scale": priors.GroupLaplace,
        "other": priors.Normal,
    }
    for variable in model.trainable_variables:
        assert type(variable.regularizer) is kinds[_kind(variable)], variable.path
    truth = sum(map(_energy, model.trainable_variables))
    np.testing.assert_allclose(N * float(sum(model.losses)), truth, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(N * float(sum(loaded.losses)), truth, rtol=1e-5)
    assert not _small(**arguments).losses


@pytest.mark.parametrize("scale", ["stochastic", "pruning"])
def test_posteriors_bring_their_own_priors(scale, rng):
    model = _randomized(_small(num_examples=N, prior_stddev=0.7, scale=scale), rng)
    theirs = [
        v
        for layer in bayesnorm.layers.posterior_layers(model)
        for v in layer.trainable_variables
        if v.name != "bias"
    ]
    ids = {id(v) for v in theirs}
    ours = [v for v in model.trainable_variables if id(v) not in ids]
    assert len(ours) < len(model.trainable_variables)
    kl = float(bayesnorm.kl_divergence(model))
    assert kl > 1
    truth = kl + sum(map(_energy, ours))
    np.testing.assert_allclose(N * float(sum(model.losses)), truth, rtol=1e-5)


# --- it is used as the others ---------------------------------------------------------


@pytest.mark.parametrize("arguments", [{"num_examples": 16}, long({"norm": "batch"})])
def test_it_trains(arguments, rng):
    model = _small(**arguments)
    x, y = _images(rng, 16), rng.integers(0, 5, 16)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # TensorFlow takes longer to make a graph of so many layers than for the steps.
    eagerly = keras.backend.backend() == "tensorflow"
    model.compile(keras.optimizers.Adam(0.01), loss, run_eagerly=eagerly)
    found = model.fit(x, y, batch_size=16, epochs=10, verbose=0).history["loss"]
    assert np.isfinite(found).all()
    assert found[-1] < found[0] - 0.5


# It has no moving averages yet.
@pytest.mark.filterwarnings("ignore:The batch statistics")
def test_the_baseline_becomes_stochastic(rng):
    x = _images(rng, 16)
    model = bayesnorm.to_stochastic(_small(norm="batch"))
    found = [
        layer
        for layer in model.layers
        if isinstance(layer, bayesnorm.StochasticBatchNormalization)
    ]
    assert len(found) == 1 + 9 + 3
    bayesnorm.calibrate(model, x, batch_size=4, verbose=False)
    prediction = bayesnorm.predict(model, x, samples=2, seed=0, from_logits=True)
    assert prediction.probs.shape == (16, 5)


def test_its_posterior_predicts(rng):
    model = _small(num_examples=N, scale="stochastic")
    prediction = bayesnorm.predict(
        model, _images(rng), samples=2, seed=0, from_logits=True
    )
    np.testing.assert_allclose(prediction.probs.sum(-1), 1, rtol=1e-5)


def test_it_prunes_within_its_blocks(rng):
    model = _small(scale="pruning", num_examples=N)
    layers = [
        x for x in model.layers if isinstance(x, bayesnorm.StructuredBayesianPruning)
    ]
    assert [x.name.removesuffix("_pruning") for x in layers] == [
        f"block{i}_0_conv{k}" for i in range(3) for k in range(2)
    ]
    for layer in layers:
        deviations = np.full(layer.log_stddev.shape, -3.0, "float32")
        deviations[1:3] = 5.0
        layer.log_stddev.assign(deviations)
    x = _images(rng)
    small, _ = bayesnorm.prune(model)
    np.testing.assert_allclose(small(x), model(x), rtol=1e-3, atol=1e-4)
    assert _trained(small) < _trained(_small())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 57}, r"9 n \+ 2.*one of \(50, 101, 152\)"),
        ({"depth": 2}, r"9 n \+ 2"),
        ({"norm": "batch", "num_examples": N}, "'weight', 'analytic'.*norm='batch'"),
        ({"norm": None, "last_scale": 0.1}, "no last scale with norm=None"),
        ({"last_scale": -0.1}, "`last_scale` must be a finite number from 0"),
        ({"activation": "gelu"}, "'relu', 'selu'"),
        ({"num_examples": 0}, "`num_examples` must be an integer from 1"),
        ({"num_examples": N, "prior_stddev": 0}, "`stddev` must be a finite number"),
        ({"scale": "plain", "initial_stddev": 0.2}, "initial_stddev"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        _small(**arguments)
