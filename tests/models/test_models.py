"""The papers' networks."""

import keras
import numpy as np
import pytest

import bayesnorm
from bayesnorm import models
from tests.helpers import long


@pytest.mark.parametrize("norm", [None, "batch"])
def test_all_cnn_is_the_papers_network(norm):
    model = models.all_cnn(norm=norm, scale="plain", projection=False)
    convolutions = [
        layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)
    ]
    sizes = [layer.output.shape[1:] for layer in convolutions]
    assert [s[0] for s in sizes] == [30, 28, 13, 11, 9, 4, 2, 2, 2]
    assert [s[2] for s in sizes] == [96] * 3 + [192] * 5 + [10]
    kernels = sum(int(np.prod(layer.kernel.shape)) for layer in convolutions)
    assert kernels == (
        9 * (3 * 96 + 2 * 96 * 96 + 96 * 192 + 3 * 192 * 192) + 192 * 192 + 1920
    )
    limit = np.abs(np.asarray(convolutions[1].kernel)).max()
    assert 0.9 < limit / (9 * 96) ** -0.5 <= 1
    relus = [x for x in model.layers if isinstance(x, keras.layers.LeakyReLU)]
    assert len(relus) == 8
    assert model.output_shape == (None, 10)


@pytest.mark.parametrize("norm", [None, "batch", "weight", "analytic"])
@pytest.mark.parametrize("scale", ["plain", "stochastic"])
@pytest.mark.parametrize("projection", [False, True])
def test_every_variant_builds_and_runs(norm, scale, projection, rng):
    model = models.all_cnn(
        (8, 8, 1), 3, norm, scale, projection, width=0.1, padding="same"
    )
    x = rng.normal(size=(2, 8, 8, 1)).astype("float32")
    y = np.asarray(model(x, training=True))
    assert y.shape == (2, 3)
    assert np.isfinite(y).all()
    posterior = float(bayesnorm.kl_divergence(model))
    assert (posterior > 0) == (scale == "stochastic")


def test_the_seed_fixes_the_weights_and_the_noise(rng):
    x = rng.normal(size=(2, 32, 32, 3)).astype("float32")
    y = [
        np.asarray(models.all_cnn(width=0.05, seed=seed)(x, training=True))
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(y[0], y[1])
    assert not np.allclose(y[0], y[2])


def _kernels(model):
    return [np.asarray(w) for w in model.weights if w.path.endswith("kernel")]


def test_networks_of_one_seed_start_from_the_same_weights():
    """What differs between two runs of a comparison is the method."""
    noise = {"scale_stddev": 0.1, "shift_stddev": 0.1}
    networks = [
        models.all_cnn(norm=norm, scale=scale, width=0.05, seed=3, **arguments)
        for norm, scale, arguments in [
            ("weight", "plain", {}),
            ("weight", "noisy", noise),
            ("weight", "stochastic", {}),
            ("analytic", "stochastic", {}),
            ("batch", "plain", {}),
        ]
    ]
    first, *others = [_kernels(model) for model in networks]
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    batch, dropped = (
        _kernels(models.lenet5(norm=norm, dropout=rate, seed=3))
        for norm, rate in [("batch", 0.0), ("stochastic_batch", 0.5)]
    )
    for a, b in zip(batch, dropped, strict=True):
        np.testing.assert_array_equal(a, b)
    seeds = [
        layer.seed
        for layer in networks[2].layers
        if isinstance(layer, bayesnorm.StochasticScaleNorm)
    ]
    assert len({*seeds}) == len(seeds) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "layer"}, "'weight', 'analytic'"),
        ({"scale": "loud"}, "'plain', 'noisy', 'stochastic'"),
        ({"scale": "noisy", "scale_stddev": 0.1}, r"needs \['shift_stddev'\]"),
        (
            {"scale": "noisy", "scale_stddev": [0.1] * 3, "shift_stddev": 0.1},
            "3 entries, and block 3",
        ),
        (
            {"scale": "noisy", "scale_stddev": [0.1] * 12, "shift_stddev": 0.1},
            "12 entries for the 9 blocks of 'all_cnn'",
        ),
        ({"padding": "full"}, "'valid', 'same'"),
        ({"width": 0}, "above 0"),
        ({"input_shape": (20, 20, 3)}, "27 pixels"),
        ({"scale": "plain", "initial_stddev": 0.2}, "initial_stddev"),
        ({"input_variance": 4.0}, "go together"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.all_cnn(**arguments)


def _filters(model):
    linear = (keras.layers.Conv2D, keras.layers.Dense)
    return [int(x.kernel.shape[-1]) for x in model.layers if isinstance(x, linear)]


def _count(model, cls):
    return sum(isinstance(x, cls) for x in model.layers)


def test_lenet5_is_the_papers_network():
    model = models.lenet5(dropout=0.5)
    assert _filters(model) == [20, 50, 500, 10]
    assert model.get_layer("conv0").output.shape[1:] == (24, 24, 20)
    assert model.get_layer("conv1").output.shape[1:] == (8, 8, 50)
    assert model.get_layer("flatten").output.shape[1:] == (800,)
    assert _count(model, keras.layers.BatchNormalization) == 3
    assert _count(model, bayesnorm.MonteCarloDropout) == 3
    kernels = 25 * 20 + 25 * 20 * 50 + 800 * 500 + 500 * 10
    assert model.count_params() >= kernels
    assert len(model.trainable_weights) == 3 + 6 + 2


def test_vgg11_is_the_papers_network():
    model = models.vgg11(num_classes=5)
    assert _filters(model) == [64, 128, 256, 256, 512, 512, 512, 512, 5]
    assert _count(model, keras.layers.MaxPooling2D) == 5
    assert model.get_layer("flatten").output.shape == (None, 512)
    assert _count(model, keras.layers.BatchNormalization) == 8


def test_resnet18_is_the_papers_network():
    model = models.resnet18(num_classes=5)
    assert _count(model, keras.layers.Conv2D) == 1 + 16 + 3
    assert _count(model, keras.layers.BatchNormalization) == 20
    assert _count(model, keras.layers.Add) == 8
    assert model.get_layer("block3_1_relu").output.shape[1:] == (4, 4, 512)
    # The number that is known of this form with 10 classes is 11,173,962.
    trained = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert trained == 11_173_962 - 5 * 513


@pytest.mark.parametrize("norm", [None, "stochastic_batch", "weight", "analytic"])
@pytest.mark.parametrize("name", ["lenet5", "vgg11", "resnet18"])
def test_networks_with_other_normalizations(name, norm, rng):
    padding = {"padding": "same"} if name == "lenet5" else {}
    model = getattr(models, name)(
        (8, 8, 1), 3, norm, "stochastic", width=0.05, seed=1, **padding
    )
    x = rng.normal(size=(4, 8, 8, 1)).astype("float32")
    assert np.isfinite(np.asarray(model(x, training=True))).all()
    assert float(bayesnorm.kl_divergence(model)) > 0


def test_cell_fcn_is_the_papers_network():
    model = models.cell_fcn(norm="batch", scale="plain", projection=False)
    assert _filters(model) == [64, 64, 32, 32, 16, 16, 8, 8, 8, 4, 4, 2]
    assert _count(model, keras.layers.AveragePooling2D) == 5
    kernels = [int(np.prod(w.shape)) for w in model.weights if len(w.shape) == 4]
    assert sum(kernels) == 81 * 8304 + 8  # some 0.67 million
    assert model.output_shape == (None, None, None, 2)


@pytest.mark.parametrize(
    "activation", [long("softmax"), "leaky_relu", long("softplus")]
)
def test_cell_fcn_with_analytic_normalization(activation, rng):
    model = models.cell_fcn(
        (40, 40, 1), width=0.25, activation=activation, scale="plain", seed=1
    )
    x = rng.normal(size=(2, 40, 40, 1)).astype("float32")
    y = np.asarray(model(x))
    assert y.shape == (2, 40, 40, 2)
    assert np.isfinite(y).all()
    found = bayesnorm.channel_statistics(model, x)
    stddev = np.sqrt(np.mean(found["conv0_0_norm"].stddev ** 2))
    assert stddev == pytest.approx(1.0, abs=0.2)
    with pytest.raises(ValueError, match="'softmax', 'leaky_relu', 'softplus'"):
        models.cell_fcn(activation="tanh")


def test_noises_are_given_layer_by_layer():
    deviations = [0.1 * i for i in range(9)]
    model = models.all_cnn(
        norm="weight",
        scale="noisy",
        width=0.05,
        scale_stddev=deviations,
        shift_stddev=0.5,
    )
    noisy = [x for x in model.layers if isinstance(x, bayesnorm.NoisyScaleNorm)]
    assert [layer.scale_stddev for layer in noisy] == deviations
    assert {layer.shift_stddev for layer in noisy} == {0.5}


def test_small_images_need_padding():
    with pytest.raises(ValueError, match="16 pixels"):
        models.lenet5((8, 8, 1))


def _widths(model):
    """The channels of the pruning layers."""
    cls = bayesnorm.StructuredBayesianPruning
    return [int(x.mean.shape[0]) for x in model.layers if isinstance(x, cls)]


def test_lenet5_caffe_is_the_pruning_papers_network():
    plain = models.lenet5(norm=None)
    # Of LeNet-5-Caffe 431,080 weights and biases are known.
    assert plain.count_params() == 431_080
    model = models.lenet5(norm=None, scale="pruning", threshold=2.0)
    assert _widths(model) == [20, 50, 800, 500]
    names = [x.name for x in model.layers]
    for name in ("conv0", "conv1", "dense0"):
        layer = model.get_layer(name)
        assert not layer.use_bias
        assert names[names.index(name) + 1] == f"{name}_pruning"
        assert model.get_layer(f"{name}_pruning").use_bias
    assert not model.get_layer("flatten_pruning").use_bias
    assert model.get_layer("conv0_pruning").threshold == 2.0
    # Beside mean and log_stddev, the layers' own weight of the KL and its count.
    posteriors = 2 * (20 + 50 + 800 + 500) + 2 * 4
    assert model.count_params() == plain.count_params() + posteriors
    assert [x for x in names if not x.endswith("_pruning")] == [
        x.name for x in plain.layers
    ]


def test_the_fully_connected_network():
    plain = models.mlp()
    assert plain.count_params() == 785 * 500 + 501 * 300 + 301 * 10
    assert models.mlp(units=(300, 100)).count_params() == 266_610  # LeNet-300-100
    assert _widths(models.mlp(scale="pruning")) == [784, 500, 300]
    assert _count(models.mlp(dropout=0.5), bayesnorm.MonteCarloDropout) == 2
    with pytest.raises(ValueError, match="`units` must be an integer from 1"):
        models.mlp(units=(300, 0))


@pytest.mark.parametrize("norm", [None, "weight"])
@pytest.mark.parametrize("name", ["lenet5", "mlp"])
def test_every_weight_of_a_small_network_has_its_prior(name, norm, rng):
    arguments = {"padding": "same"} if name == "lenet5" else {"units": (4, 3)}
    model = getattr(models, name)(
        (8, 8, 1), 3, norm, width=0.1, num_examples=7, prior_stddev=0.6, **arguments
    )
    truth = 0.0
    for variable in model.trainable_variables:
        variable.assign(x := rng.normal(size=variable.shape))
        kind = variable.path.rsplit("/", 1)[-1]
        if norm is None or kind == "bias" or "logits" in variable.path:
            truth += np.sum(x**2) / (2 * 0.6**2)
        elif kind == "scale":
            truth += np.sum(np.abs(x)) / 5
        else:
            axes = tuple(range(x.ndim - 1))
            d = np.prod(x.shape[:-1])
            truth += d / 2 * np.sum((np.sum(x**2, axes) - 1) ** 2)
    np.testing.assert_allclose(7 * float(sum(model.losses)), truth, rtol=1e-5)
    assert not getattr(models, name)((8, 8, 1), norm=norm, **arguments).losses
    with pytest.raises(ValueError, match=r"norm=None.*Received: norm='batch'"):
        getattr(models, name)((8, 8, 1), 3, "batch", num_examples=7, **arguments)


def test_vgg_like_is_the_pruning_papers_network():
    widths = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    plain = models.vgg_like(dropout=1.0)
    assert _filters(plain) == [*widths, 512, 10]
    assert _count(plain, keras.layers.MaxPooling2D) == 5
    assert plain.get_layer("flatten").output.shape == (None, 512)
    rates = [x.rate for x in plain.layers if isinstance(x, bayesnorm.MonteCarloDropout)]
    assert rates == [0.3, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.5, 0.5]
    model = models.vgg_like(scale="pruning")
    assert _widths(model) == [*widths, 512, 512]
    assert _count(model, bayesnorm.MonteCarloDropout) == 0
    # Its bias stands behind the factor.
    assert not model.get_layer("conv0_0_norm").center
    assert model.get_layer("conv0_0_norm").scale


@pytest.mark.parametrize("depth", [8, long(20)])
def test_resnets_prune_within_their_blocks(depth):
    model = models.resnet(depth=depth, scale="pruning")
    n = (depth - 2) // 6
    assert _widths(model) == [16] * n + [32] * n + [64] * n
    assert _count(model, keras.layers.Add) == 3 * n
    plain = models.resnet(depth=depth)
    assert _count(plain, keras.layers.Conv2D) == depth - 1 + 2
    if depth == 20:
        # 269,722 with shortcuts of 1x1 convolutions, 0.27 million in He et al.
        trained = sum(int(np.prod(w.shape)) for w in plain.trainable_weights)
        assert trained == 269_722 + (16 + 2) * 32 + (32 + 2) * 64
    with pytest.raises(ValueError, match=r"`depth` must be 6 n \+ 2"):
        models.resnet(depth=18)


@pytest.mark.parametrize(
    "norm", [None, "batch", *map(long, ("stochastic_batch", "weight", "analytic"))]
)
@pytest.mark.parametrize(
    "name",
    ["lenet5", "mlp", *map(long, ("all_cnn", "resnet18", "vgg11", "vgg_like"))],
)
def test_all_networks_can_be_pruned(name, norm, rng):
    padding = {"padding": "same"} if name in ("lenet5", "all_cnn") else {}
    arguments = {"projection": False, "width": 0.05, "seed": 1, **padding}
    build = getattr(models, name)
    plain = build((8, 8, 1), 3, norm, "plain", **arguments)
    model = build((8, 8, 1), 3, norm, "pruning", **arguments)
    # The classes are not pruned, and the initial weights are those of the plain one.
    assert "logits_pruning" not in [x.name for x in model.layers]
    assert not any("conv8" in x.name and "pruning" in x.name for x in model.layers)
    for a, b in zip(_kernels(plain), _kernels(model), strict=True):
        np.testing.assert_array_equal(a, b)
    bayesnorm.set_kl_weight(model, 0.01)
    x = rng.normal(size=(4, 8, 8, 1)).astype("float32")
    assert np.isfinite(np.asarray(model(x, training=True))).all()
    assert float(bayesnorm.kl_divergence(model)) > 0
