"""One table of all layers, one list of what every layer must do.

A row in `CASES` is all that a new layer needs to be tested; beside it belongs only
what the layer's own mathematics says.
"""

import json

import keras
import numpy as np
import pytest
from keras import ops

import bayesnorm
from bayesnorm.layers import posterior_layers
from tests.helpers import long
from tests.layers.test_posterior import NoisyBias, documented

IMAGE = (6, 6, 4)
VECTOR = (5,)
VOLUME = (4, 4, 4, 2)
SERIES = (9, 3)

L = keras.layers


def _wrapped(wrapper, layer, *args, **kwargs):
    return lambda **common: wrapper(layer(*args), **kwargs, **common)


def _linear_cases(name, wrapper):
    cases = {
        "dense": (L.Dense, (7,), VECTOR, {}),
        "dense_on_maps": (L.Dense, (7,), IMAGE, {}),
        "conv1d": (L.Conv1D, (4, 3), SERIES, {}),
        "conv2d": (L.Conv2D, (4, 3, 2, "same"), IMAGE, {"projection": True}),
        "conv3d": (L.Conv3D, (3, 2), VOLUME, {}),
        "depthwise1d": (L.DepthwiseConv1D, (3,), SERIES, {"projection": True}),
        "depthwise2d": (L.DepthwiseConv2D, (3, 1, "valid", 2), IMAGE, {}),
        "separable1d": (L.SeparableConv1D, (4, 3), SERIES, {}),
        "separable2d": (L.SeparableConv2D, (4, 3), IMAGE, {"projection": True}),
        "conv1d_transpose": (L.Conv1DTranspose, (4, 3, 2), SERIES, {}),
        "conv2d_transpose": (L.Conv2DTranspose, (4, 3), IMAGE, {"projection": True}),
        "conv3d_transpose": (L.Conv3DTranspose, (3, 2, 2), VOLUME, {}),
    }
    return {
        f"{name}-{key}": (_wrapped(wrapper, layer, *args, **kwargs), shape)
        for key, (layer, args, shape, kwargs) in cases.items()
    }


# name -> (factory taking the arguments common to all layers, input shape)
CASES = {
    **_linear_cases("weight", bayesnorm.WeightNormalization),
    **_linear_cases("analytic", bayesnorm.AnalyticNormalization),
    "analytic-given_moments": (
        _wrapped(
            bayesnorm.AnalyticNormalization,
            L.Conv2D,
            4,
            3,
            input_mean=[0.1, 0.2, 0.3, 0.4],
            input_variance=1.0,
        ),
        IMAGE,
    ),
    "weight-activation": (
        lambda **kw: bayesnorm.WeightNormalization(
            L.Conv1D(4, 3, activation="tanh", bias_initializer="ones"), **kw
        ),
        SERIES,
    ),
    "analytic-activation": (
        lambda **kw: bayesnorm.AnalyticNormalization(
            L.Conv2D(4, 3, padding="same"), use_bias=True, activation="softplus", **kw
        ),
        IMAGE,
    ),
    "scale": (lambda **kw: bayesnorm.ScaleNorm(**kw), IMAGE),
    "scale-axis1": (lambda **kw: bayesnorm.ScaleNorm(axis=1, **kw), IMAGE),
    "scale-priors": (
        lambda **kw: bayesnorm.ScaleNorm(
            bias_regularizer=bayesnorm.priors.Normal(50),
            scale_regularizer=bayesnorm.priors.GroupLaplace(50),
            **kw,
        ),
        IMAGE,
    ),
    "stochastic_scale": (lambda **kw: bayesnorm.StochasticScaleNorm(**kw), IMAGE),
    "stochastic_scale-vector": (
        lambda **kw: bayesnorm.StochasticScaleNorm(seed=3, **kw),
        VECTOR,
    ),
    "stochastic_scale-axis1-per_layer": (
        lambda **kw: bayesnorm.StochasticScaleNorm(axis=1, per_channel=False, **kw),
        IMAGE,
    ),
    "stochastic_scale-log_uniform": (
        lambda **kw: bayesnorm.StochasticScaleNorm(
            prior="log_uniform", kl_weight=0.01, initial_stddev=0.5, **kw
        ),
        IMAGE,
    ),
    "stochastic_scale-num_examples": (
        lambda **kw: bayesnorm.StochasticScaleNorm(num_examples=50, **kw),
        VECTOR,
    ),
    "gain-batch": (
        _wrapped(bayesnorm.GainPosterior, L.BatchNormalization, initial_stddev=0.3),
        IMAGE,
    ),
    "gain-layer-per_layer": (
        _wrapped(
            bayesnorm.GainPosterior,
            L.LayerNormalization,
            per_channel=False,
            num_examples=50,
            seed=3,
        ),
        VECTOR,
    ),
    "pruning": (lambda **kw: bayesnorm.StructuredBayesianPruning(**kw), IMAGE),
    "pruning-vector-bias": (
        lambda **kw: bayesnorm.StructuredBayesianPruning(
            use_bias=True, initial_mean=-1.0, initial_log_stddev=-1.0, seed=3, **kw
        ),
        VECTOR,
    ),
    "pruning-axis1-bias": (
        lambda **kw: bayesnorm.StructuredBayesianPruning(
            axis=1, use_bias=True, num_examples=50, initial_log_stddev=0.0, **kw
        ),
        IMAGE,
    ),
    # About half of the channels lie below the threshold, once perturbed.
    "pruning-some_below": (
        lambda **kw: bayesnorm.StructuredBayesianPruning(
            initial_log_stddev=0.6, threshold=1.31, use_bias=True, kl_weight=0.01, **kw
        ),
        IMAGE,
    ),
    "noisy_scale": (lambda **kw: bayesnorm.NoisyScaleNorm(0.3, 0.2, **kw), IMAGE),
    "noisy_scale-vectors-axis1": (
        lambda **kw: bayesnorm.NoisyScaleNorm(
            [0.1, 0.2, 0.3, 0.4, 0.5], 0.1, axis=1, seed=3, **kw
        ),
        VECTOR,
    ),
    "stochastic_batch": (
        lambda **kw: bayesnorm.StochasticBatchNormalization(noise="example", **kw),
        IMAGE,
    ),
    "stochastic_batch-vector-axis1": (
        lambda **kw: bayesnorm.StochasticBatchNormalization(
            axis=1, noise="example", momentum=0.5, seed=3, **kw
        ),
        VECTOR,
    ),
    "stochastic_batch-joint": (
        lambda **kw: bayesnorm.StochasticBatchNormalization(
            noise="example", law_rank=2, seed=3, **kw
        ),
        IMAGE,
    ),
    "dropout": (lambda **kw: bayesnorm.MonteCarloDropout(0.4, **kw), IMAGE),
    "dropout-channels": (
        lambda **kw: bayesnorm.MonteCarloDropout(
            0.4, noise_shape=(None, 1, 1, None), seed=2, **kw
        ),
        IMAGE,
    ),
    "alpha_dropout": (lambda **kw: bayesnorm.MonteCarloAlphaDropout(0.4, **kw), IMAGE),
    "alpha_dropout-positions": (
        lambda **kw: bayesnorm.MonteCarloAlphaDropout(
            0.4, noise_shape=(None, None, None, 1), seed=2, **kw
        ),
        IMAGE,
    ),
    "gaussian_dropout": (
        lambda **kw: bayesnorm.MonteCarloGaussianDropout(0.4, **kw),
        IMAGE,
    ),
    "gaussian_noise": (
        lambda **kw: bayesnorm.MonteCarloGaussianNoise(0.4, seed=2, **kw),
        VECTOR,
    ),
    "users_posterior": (NoisyBias, IMAGE),
    "documented_posterior": (documented(bayesnorm.VariationalLayer), VECTOR),
    "documented_noise": (documented(bayesnorm.StochasticLayer), VECTOR),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request):
    """A layer's factory and its input shape."""
    return CASES[request.param]


def _data(shape, examples=3, seed=0):
    data = np.random.default_rng(seed).normal(size=(examples, *shape))
    return data.astype("float32")


def _functional(layer, shape):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    for layer in _batch_layers(model):
        # As if calibrated: without batches it does not sample.
        layer.mu_variance.assign(0.1 + layer.mu_variance.value)
        layer.log_variance_variance.assign(0.1 + layer.log_variance_variance.value)
        layer.statistics_count.assign(100.0)
        if layer.law_rank:
            rng = np.random.default_rng(1)
            layer.law_factor.assign(rng.uniform(-0.7, 0.7, layer.law_factor.shape))
    return model


def _batch_layers(model):
    cls = bayesnorm.StochasticBatchNormalization
    return [layer for layer in model._flatten_layers() if isinstance(layer, cls)]


def _perturb(model):
    """Moves the weights from where they start, so that a lost one shows."""
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign_add(0.1 * rng.normal(size=variable.shape))
    return model


def _evaluate(model, x):
    return ops.convert_to_numpy(model(x, training=False))


def _sample(model, x):
    with bayesnorm.noise_mode("sample"):
        return ops.convert_to_numpy(model(x, training=False))


def _is_stochastic(model):
    return bool(bayesnorm.layers.noise.stochastic_layers(model))


def test_config_round_trip(case):
    factory, _ = case
    layer = factory(name="layer")
    config = json.loads(json.dumps(layer.get_config()))
    again = type(layer).from_config(config)
    assert json.loads(json.dumps(again.get_config())) == json.loads(
        json.dumps(layer.get_config())
    )


def test_keras_file_keeps_weights_and_noise(case, tmp_path):
    factory, shape = case
    model = _perturb(_functional(factory(), shape))
    x = _data(shape)
    _sample(model, x)  # moves the noise on from where a new layer's begins
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(_evaluate(loaded, x), _evaluate(model, x))
    np.testing.assert_array_equal(_sample(loaded, x), _sample(model, x))


def test_weights_file_keeps_weights_and_noise(case, tmp_path):
    factory, shape = case
    model = _perturb(_functional(factory(), shape))
    x = _data(shape)
    _sample(model, x)
    model.save_weights(tmp_path / "model.weights.h5")
    other = _functional(factory(), shape)
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(_evaluate(other, x), _evaluate(model, x))
    np.testing.assert_array_equal(_sample(other, x), _sample(model, x))


def test_clone(case):
    factory, shape = case
    model = _perturb(_functional(factory(), shape))
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    x = _data(shape)
    np.testing.assert_array_equal(_evaluate(clone, x), _evaluate(model, x))
    assert not {id(v) for v in clone.variables} & {id(v) for v in model.variables}


def test_sequential_nested_and_shared_agree_with_functional(case):
    factory, shape = case
    layer = factory()
    model = _perturb(_functional(layer, shape))
    x = _data(shape)
    expected = _evaluate(model, x)

    sequential = keras.Sequential([keras.Input(shape), layer, L.Identity()])
    np.testing.assert_array_equal(_evaluate(sequential, x), expected)

    nested = _functional(model, shape)
    np.testing.assert_array_equal(_evaluate(nested, x), expected)

    left, right = keras.Input(shape), keras.Input(shape)
    shared = keras.Model([left, right], [layer(left), layer(right)])
    for y in shared([x, x], training=False):
        np.testing.assert_array_equal(ops.convert_to_numpy(y), expected)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(case, policy):
    factory, shape = case
    model = _perturb(_functional(factory(), shape))
    x = _data(shape)
    expected = _evaluate(model, x)
    keras.config.set_dtype_policy(policy)
    half = _functional(factory(), shape)
    half.set_weights(model.get_weights())
    dtypes = {keras.backend.standardize_dtype(v.dtype) for v in half.weights}
    assert dtypes <= {"float32"}
    y = half(x, training=False)
    assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_")
    y = ops.convert_to_numpy(ops.cast(y, "float32"))
    tolerance = 0.02 if policy == "mixed_float16" else 0.1
    np.testing.assert_allclose(y, expected, atol=tolerance * np.abs(expected).max())
    for loss in half.losses:
        assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    if policy == "mixed_bfloat16":  # Its types are those of float16.
        return
    half.compile("sgd", "mse")
    half.fit(x, expected, verbose=0)
    assert all(np.isfinite(w).all() for w in half.get_weights())


@pytest.mark.parametrize("jit_compile", [long(False), True])
def test_fit_moves_every_trainable_weight(case, jit_compile):
    factory, shape = case
    model = _functional(factory(), shape)
    bayesnorm.set_kl_weight(model, 0.01)
    before = [ops.convert_to_numpy(v).copy() for v in model.trainable_variables]
    x = _data(shape, 8)
    y = _data(model.output_shape[1:], 8, seed=1)
    model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=jit_compile)
    history = model.fit(x, y, batch_size=4, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    for old, variable in zip(before, model.trainable_variables, strict=True):
        new = ops.convert_to_numpy(variable)
        assert np.isfinite(new).all()
        assert not np.allclose(old, new, atol=1e-7), variable.path


def test_trainable_false_freezes(case):
    factory, shape = case
    model = _functional(factory(), shape)
    model.layers[-1].trainable = False
    assert not model.trainable_variables
    assert not model.losses
    before = model.get_weights()
    x = _data(shape)
    model.compile("sgd", "mse")
    model.evaluate(x, _evaluate(model, x), verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_batch_of_one_and_unknown_batch(case):
    factory, shape = case
    model = _perturb(_functional(factory(), shape))
    assert model.output_shape[0] is None
    x = _data(shape, 5)
    whole = model.predict(x, batch_size=5, verbose=0)
    assert whole.shape[1:] == model.output_shape[1:]
    for i in range(5):
        one = model.predict(x[i : i + 1], verbose=0)
        np.testing.assert_allclose(one[0], whole[i], rtol=1e-4, atol=1e-5)


def test_nan_stays_in_its_example(case):
    factory, shape = case
    model = _functional(factory(), shape)
    x = _data(shape)
    x[1] = np.nan
    for y in (_evaluate(model, x), _sample(model, x)):
        assert np.isnan(y[1]).any()
        assert np.isfinite(y[[0, 2]]).all()
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_noise_switch_and_seed(case):
    factory, shape = case
    model = _perturb(_functional(factory(), shape))
    x = _data(shape)
    mean = _evaluate(model, x)
    # In training those normalize by the batch.
    if not any(isinstance(x, L.BatchNormalization) for x in model._flatten_layers()):
        with bayesnorm.noise_mode("mean"):
            np.testing.assert_array_equal(
                ops.convert_to_numpy(model(x, training=True)), mean
            )
    np.testing.assert_array_equal(_evaluate(model, x), mean)
    first, second = _sample(model, x), _sample(model, x)
    if not _is_stochastic(model):
        np.testing.assert_array_equal(first, mean)
        return
    assert not np.allclose(first, mean)
    assert not np.allclose(first, second)
    # Each example has its own draw: the same input gives different outputs.
    same = np.repeat(x[:1], 3, axis=0)
    noisy = _sample(model, same)
    assert not np.allclose(noisy[0], noisy[1])
    # The noise is a function of the seed generator's state alone.
    generator = bayesnorm.layers.noise.stochastic_layers(model)[0].seed_generator
    state = ops.convert_to_numpy(generator.state.value)
    again = _sample(model, x)
    generator.state.assign(state)
    np.testing.assert_array_equal(_sample(model, x), again)


def test_moments_are_those_of_the_noise(case):
    """Mean and variance of n = 4,000 draws: z-scores below 5."""
    factory, shape = case
    model = _perturb(_functional(factory(), shape))
    x, n = _data(shape, 1), 4000
    moments = bayesnorm.moments.propagate(model, x, 0.0)
    y = _sample(model, np.repeat(x, n, axis=0)).astype("float64")
    mean, variance = (
        np.broadcast_to(ops.convert_to_numpy(value), (1, *y.shape[1:]))[0]
        for value in (moments.mean, moments.variance)
    )
    squares = (y - y.mean(0)) ** 2
    error = 5 * squares.mean(0) ** 0.5 / n**0.5 + 1e-4 * (1 + np.abs(mean))
    assert (np.abs(y.mean(0) - mean) < error).all()
    error = 5 * squares.std(0) / n**0.5 + 1e-6
    assert (np.abs(squares.mean(0) - variance) < error).all()


def test_predict_draws_one_network_for_all_examples(case):
    factory, shape = case
    model = _perturb(_functional(factory(), shape))
    if not _is_stochastic(model):
        return
    x = np.repeat(_data(shape, 1), 3, axis=0)

    def samples(seed):
        return bayesnorm.predict(
            model, x, samples=2, seed=seed, task="regression", keep_samples=True
        ).samples

    first = samples(0)
    np.testing.assert_allclose(first[:, 1:], first[:, :-1], rtol=1e-5, atol=1e-5)
    assert not np.allclose(first[0], first[1])
    np.testing.assert_array_equal(samples(0), first)
    assert not np.allclose(samples(1), first)


def test_a_posterior_brings_its_weighted_kl_and_counts(case, tmp_path):
    factory, shape = case
    model = _perturb(_functional(factory(), shape))
    if not posterior_layers(model):
        return
    (layer,) = posterior_layers(model)
    given = layer.kl_weight or (layer.num_examples and 1 / layer.num_examples)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x, y = _data(shape, 6), _data(model.output_shape[1:], 6)
    model.fit(x, y, batch_size=4, epochs=2, verbose=0)
    weight = float(ops.convert_to_numpy(layer.kl_weight_variable.value))
    assert weight == pytest.approx(given or 1 / 6)
    (loss,) = model.losses
    kl = float(layer.kl_divergence())
    assert np.isfinite(kl)
    assert float(loss) == pytest.approx(weight * kl)
    for values, unit in layer.posterior_summary().values():
        assert np.isfinite(values).all()
        assert values.ndim == 1
        assert unit in ("1", "nats", "%")

    bayesnorm.set_kl_weight(model, 0.5)
    for file in ("model.keras", "model.h5"):
        model.save(tmp_path / file)
        loaded = keras.saving.load_model(tmp_path / file, compile=False)
        loaded.compile(keras.optimizers.SGD(0.0), "mse")
        loaded.fit(x, y, epochs=2, verbose=0)
        assert float(loaded.losses[0]) == pytest.approx(0.5 * kl)


@pytest.mark.tensorflow
def test_saved_model(case, tmp_path):
    import tensorflow as tf

    factory, shape = case
    model = _perturb(_functional(factory(), shape))
    x = _data(shape)
    expected = _evaluate(model, x)
    model.export(tmp_path / "saved_model", verbose=False)
    served = tf.saved_model.load(tmp_path / "saved_model")
    np.testing.assert_allclose(served.serve(x), expected, rtol=1e-5, atol=1e-5)
