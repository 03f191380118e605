"""predict: against closed forms, and repeatable whatever the batches."""

import gc
import weakref

import keras
import numpy as np
import pytest
from keras import ops
from scipy import special, stats

import bayesnorm
from bayesnorm import backend
from bayesnorm.layers import StochasticScaleNorm
from bayesnorm.prediction.networks import Noise
from bayesnorm.prediction.outputs import finish_moments
from bayesnorm.prediction.predict import predict
from bayesnorm.prediction.sampling import sampling_model
from bayesnorm.prediction.tasks import Output


def entropy(probs):
    return -special.xlogy(probs, probs).sum(-1)


def scale_norm(**kwargs):
    return StochasticScaleNorm(initial_stddev=0.3, **kwargs)


def branched(outputs=3, activation=None):
    """A noisy branch and one that is not, put together."""
    inputs = keras.Input((4,))
    plain = keras.layers.Dense(6, activation="tanh")(inputs)
    noisy = scale_norm()(plain)
    x = keras.layers.Add()([plain, noisy])
    x = keras.layers.Concatenate()([x * 2.0, plain, noisy])
    x = scale_norm()(keras.layers.Dense(5)(x))
    return keras.Model(inputs, keras.layers.Dense(outputs, activation=activation)(x))


@pytest.fixture
def model():
    return branched()


@pytest.fixture
def x(rng):
    return rng.normal(size=(21, 4)).astype("float32")


@keras.saving.register_keras_serializable("tests")
class Counter(keras.layers.Layer):
    """Notes the shapes that it is traced with."""

    def build(self, input_shape):
        self.calls = []
        self.built = True

    def call(self, inputs):
        self.calls.append(tuple(inputs.shape))
        return inputs


# A network whose outputs have a law in closed form.


def linear_model():
    """y = ((x W + b) S) V: Gaussian, the same S for all positions."""
    inputs = keras.Input((3,))
    x = StochasticScaleNorm(
        initial_stddev=0.5,
        bias_initializer=keras.initializers.Constant(0.2),
        scale_initializer=keras.initializers.Constant(1.5),
    )(keras.layers.Dense(4, use_bias=False)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    return model


def linear_law(model, x):
    w = ops.convert_to_numpy(model.layers[1].kernel).astype("float64")
    v, c = (ops.convert_to_numpy(y).astype("float64") for y in model.layers[3].weights)
    h = x.astype("float64") @ w + 0.2
    return (h * 1.5) @ v + c, (h**2 * 0.25) @ v**2


def test_regression_has_the_exact_mean_and_variance(rng):
    model = linear_model()
    x = rng.normal(size=(40, 3)).astype("float32")
    mean, variance = linear_law(model, x)
    samples = 4000
    got = predict(model, x, samples=samples, seed=3, task="regression", chunk_size=900)
    # Bonferroni over 80 correlated statistics each, false alarm under 1e-4.
    bound = stats.norm.isf(1e-4 / 160 / 2)
    z = (got.mean - mean) / np.sqrt(variance / samples)
    assert np.abs(z).max() < bound
    z = (got.variance / variance - 1) / np.sqrt(2 / (samples - 1))
    assert np.abs(z).max() < bound
    assert got.probs is None
    assert got.entropy is None
    assert got.samples is None


def test_moments_of_a_regression_are_exact(rng):
    model = linear_model()
    x = rng.normal(size=(10, 3)).astype("float32")
    mean, variance = linear_law(model, x)
    got = predict(model, x, method="moments", task="regression", batch_size=4)
    np.testing.assert_allclose(got.mean, mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.variance, variance, rtol=1e-5)


def test_variance_far_from_zero():
    """Mean 1000 and standard deviation 0.1: no E[y^2] - E[y]^2 in float32."""
    inputs = keras.Input((1,))
    x = StochasticScaleNorm(initial_stddev=0.1)(inputs)
    model = keras.Model(inputs, x + 1000.0)
    x = np.ones((2, 1), "float32")
    arguments = dict(samples=50, seed=0, task="regression", keep_samples=True)
    got = predict(model, x, chunk_size=10, **arguments)
    expected = got.samples.astype("float64").var(axis=0, ddof=1)
    np.testing.assert_allclose(got.variance, expected, rtol=1e-4)


def test_moments_agree_with_many_samples(x):
    """Independent Gaussian logits: what is left is the softmax's approximation."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, scale_norm()(keras.layers.Dense(5)(inputs)))
    truth = predict(model, x, samples=4000, seed=0, from_logits=True)
    got = predict(model, x, method="moments", from_logits=True)
    np.testing.assert_allclose(got.probs, truth.probs, atol=0.02)
    np.testing.assert_allclose(got.entropy, truth.entropy, atol=0.05)
    error = np.abs(got.mutual_information - truth.mutual_information)
    assert error.mean() < 0.15 * truth.mutual_information.mean()


def test_moments_repeat_to_the_last_digit(rng):
    # Sums over the nodes of a rule: their order must not depend on threads.
    inputs = keras.Input((8,))
    model = keras.Model(inputs, scale_norm()(inputs))
    x = 3 * rng.normal(size=(300, 8)).astype("float32")
    first, *others = (
        predict(model, x, method="moments", from_logits=True) for _ in range(4)
    )
    assert all(np.array_equal(first.probs, each.probs) for each in others)


@pytest.mark.parametrize("concentration", [0.3, 3.0, 100.0])
def test_mutual_information_of_moments_for_two_classes(concentration):
    """A Beta law of the probability, whose mean entropy is known exactly."""
    mean = np.array([[0.7, 0.3]])
    variance = mean * (1 - mean) / (concentration + 1)
    alpha = mean * concentration
    expected = special.digamma(concentration + 1) - (
        mean * special.digamma(alpha + 1)
    ).sum(-1)
    _, got = finish_moments(
        ops.convert_to_tensor(mean),
        ops.convert_to_tensor(variance),
        Output(None, "classification", False),
    )
    information = entropy(mean) - expected
    np.testing.assert_allclose(entropy(mean) - got, information, rtol=1e-3)


# Entropies and mutual information.


def test_probabilities_are_averaged_and_entropy_is_split(model, x):
    got = predict(model, x, samples=13, seed=1, from_logits=True, keep_samples=True)
    assert got.samples.shape == (13, 21, 3)
    samples = got.samples.astype("float64")
    mean = samples.mean(axis=0)
    np.testing.assert_allclose(got.probs, mean, atol=1e-6)
    np.testing.assert_allclose(got.entropy, entropy(mean), atol=1e-6)
    information = entropy(mean) - entropy(samples).mean(axis=0)
    np.testing.assert_allclose(got.mutual_information, information, atol=1e-6)
    assert (got.mutual_information > 0).all()
    np.testing.assert_array_equal(got.classes, mean.argmax(-1))
    assert len(got) == 21


def test_extreme_logits_stay_finite():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, scale_norm()(inputs))
    x = np.array([[-1e4, 0, 1e4], [0, 0, 0]], "float32")
    got = predict(model, x, seed=0, from_logits=True)
    assert np.isfinite(got.entropy).all()
    np.testing.assert_allclose(got.entropy, [0, np.log(3)], atol=1e-6)
    assert (got.mutual_information >= 0).all()


# Repeatable, whatever the batches.


@pytest.mark.parametrize(
    ("batch_size", "chunk_size"), [(21, 1), (4, 9), (8, 1000), (64, 70)]
)
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_batches_and_chunks_change_nothing(model, x, batch_size, chunk_size, task):
    arguments = dict(samples=7, seed=2, from_logits=True, keep_samples=True, task=task)
    expected = predict(model, x, **arguments)
    got = predict(model, x, batch_size=batch_size, chunk_size=chunk_size, **arguments)
    np.testing.assert_allclose(got.samples, expected.samples, atol=1e-5)
    for name in ("probs", "entropy", "mutual_information", "mean", "variance"):
        a, b = getattr(got, name), getattr(expected, name)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_seeds(model, x):
    arguments = dict(samples=3, from_logits=True)
    one, again, two = (
        predict(model, x, seed=seed, **arguments).probs for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - two).max() > 1e-3
    fresh = [predict(model, x, **arguments).probs for _ in range(2)]
    assert np.abs(fresh[0] - fresh[1]).max() > 1e-3
    more = predict(model, x, seed=1, keep_samples=True, samples=5, from_logits=True)
    np.testing.assert_allclose(more.samples[:3].mean(axis=0), one, atol=1e-6)


def test_order_of_examples_changes_nothing(model, x):
    arguments = dict(samples=3, seed=1, from_logits=True, batch_size=4)
    forward = predict(model, x, **arguments).probs
    backward = predict(model, x[::-1], **arguments).probs
    np.testing.assert_allclose(forward, backward[::-1], atol=1e-6)


def test_compiles_once(x):
    inputs = keras.Input((4,))
    before, after = Counter(), Counter()
    x1 = before(inputs)
    outputs = keras.layers.Dense(3)(after(scale_norm()(x1)))
    model = keras.Model(inputs, outputs)
    before.calls, after.calls = [], []
    arguments = dict(samples=5, from_logits=True, batch_size=8, chunk_size=16)
    predict(model, x, **arguments)
    # The part before the noise is traced, and so computed, once for all samples.
    assert before.calls == [(8, 4)]
    assert set(after.calls) == {(16, 4)}
    traces = len(after.calls)
    predict(model, x[:13], **arguments)
    predict(model, x, seed=4, **arguments)
    assert len(before.calls) == 1
    assert len(after.calls) == traces


def test_sees_new_weights_and_new_layers(x):
    model = keras.Sequential([keras.Input((4,)), scale_norm()])
    arguments = dict(samples=3, seed=0, task="regression")
    before = predict(model, x, **arguments).mean
    model.layers[0].scale.assign(model.layers[0].scale * 2)
    model.layers[0].rho.assign(model.layers[0].rho - 50.0)
    np.testing.assert_allclose(predict(model, x, **arguments).mean, 2 * x, rtol=1e-5)
    assert np.abs(before - 2 * x).max() > 0.1
    model.add(keras.layers.Dense(2, kernel_initializer="ones"))
    got = predict(model, x, **arguments).mean
    np.testing.assert_allclose(got, 2 * x.sum(1, keepdims=True) * [1, 1], rtol=1e-4)


def test_holds_no_model_alive(x):
    model = branched()
    predict(model, x, samples=2, from_logits=True)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


# Graphs.


def nested():
    inner_inputs = keras.Input((4,))
    h = keras.layers.Dense(4)(inner_inputs)
    inner = keras.Model(inner_inputs, [scale_norm()(h), h])
    inputs = keras.Input((4,))
    noisy, plain = inner(inputs)
    return keras.Model(inputs, keras.layers.Dense(3)(plain + noisy))


def twice_nested():
    inner = keras.Sequential([keras.Input((4,)), scale_norm(), keras.layers.Dense(4)])
    inputs = keras.Input((4,))
    x = inner(keras.layers.Dense(4)(inputs))  # The second call meets noise.
    return keras.Model(inputs, keras.layers.Dense(3)(inner(x)))


def shared():
    inputs = keras.Input((4,))
    scale = scale_norm()
    x = keras.layers.Dense(4, activation="relu")(scale(inputs))
    return keras.Model(inputs, keras.layers.Dense(3)(scale(x)))


def noise_first():
    return keras.Sequential([keras.Input((4,)), scale_norm(), keras.layers.Dense(3)])


def of_positions():
    inputs = keras.Input((4,))
    x = keras.layers.Reshape((2, 2, 1))(inputs)
    x = scale_norm()(keras.layers.Conv2D(5, 2, padding="same")(x))
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense, self.scale = keras.layers.Dense(3), scale_norm()

    def call(self, inputs):
        return self.scale(self.dense(inputs))


def inside_functional():
    inputs = keras.Input((4,))
    return keras.Model(inputs, Subclassed()(keras.layers.Dense(4)(inputs)) * 0.5)


class OwnCall(keras.Model):
    """A Functional model's subclass whose graph is not what it computes."""

    def call(self, inputs):
        return -super().call(inputs)


def own_call():
    inputs = keras.Input((4,))
    return OwnCall(inputs, keras.layers.Dense(3)(scale_norm()(inputs)))


@pytest.mark.parametrize(
    "make",
    [
        branched,
        nested,
        twice_nested,
        shared,
        noise_first,
        of_positions,
        Subclassed,
        inside_functional,
        own_call,
    ],
)
def test_graphs(make, x):
    """Each sample is what the model itself computes with those draws."""
    model = make()
    got = predict(
        model, x, samples=3, seed=0, task="regression", keep_samples=True, batch_size=8
    ).samples
    noise, seed = Noise(model), backend.fold_in(backend.seed_from_int(0), 0)
    for k in range(3):
        with noise.mode(noise.network(seed, k)[None]):
            expected = ops.convert_to_numpy(model(x, training=False))
        np.testing.assert_allclose(got[k], expected, atol=1e-5)
    assert np.abs(got[0] - got[1]).max() > 1e-3


def test_masks_are_repeated_with_their_tensors():
    inputs = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(7, 3, mask_zero=True)(inputs)
    noisy = scale_norm()(x)
    noisy.supports_masking = True
    pooled = keras.layers.GlobalAveragePooling1D()(keras.layers.Add()([x, noisy]))
    model = keras.Model(inputs, keras.layers.Dense(2)(pooled))
    tokens = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 1]])
    got = predict(model, tokens, samples=4, seed=0, task="regression")
    one = [
        predict(model, t[None], samples=4, seed=0, task="regression").mean[0]
        for t in tokens
    ]
    np.testing.assert_allclose(got.mean, one, atol=1e-6)


def test_a_model_without_noise_is_run_once(x):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    with pytest.warns(UserWarning, match="no layer that draws noise"):
        got = predict(model, x, samples=4, from_logits=True, keep_samples=True)
    assert got.samples.shape == (4, 21, 3)
    np.testing.assert_array_equal(got.samples[0], got.samples[3])
    assert (got.mutual_information <= 1e-6).all()
    expected = special.softmax(ops.convert_to_numpy(model(x)), axis=-1)
    np.testing.assert_allclose(got.probs, expected, atol=1e-6)


def test_ensembles_average_members_and_samples(x):
    members = [branched(), branched()]
    arguments = dict(samples=6, seed=1, from_logits=True, keep_samples=True)
    got = predict(members, x, **arguments)
    assert got.samples.shape == (12, 21, 3)
    first = predict(members[0], x, **arguments)
    np.testing.assert_allclose(got.samples[:6], first.samples, atol=1e-6)
    mean = got.samples.astype("float64").mean(axis=0)
    np.testing.assert_allclose(got.probs, mean, atol=1e-6)
    information = entropy(mean) - entropy(got.samples).mean(axis=0)
    np.testing.assert_allclose(got.mutual_information, information, atol=1e-5)
    got = predict(members, x, samples=6, seed=1, task="regression", keep_samples=True)
    np.testing.assert_allclose(
        got.variance, got.samples.var(axis=0, ddof=1), rtol=1e-4, atol=1e-6
    )


# Data.


def streams():
    def generator(x):
        yield from (x[a:b] for a, b in [(0, 3), (3, 4), (4, 16), (16, 21)])

    class Dataset(keras.utils.PyDataset):
        def __init__(self, x):
            super().__init__()
            self.x = x

        def __len__(self):
            return 3

        def __getitem__(self, i):
            return self.x[7 * i : 7 * i + 7], np.zeros(7)

    return {
        "generator": generator,
        "labelled": lambda x: ((batch, 0, 1) for batch in generator(x)),
        "PyDataset": Dataset,
        "tensor": ops.convert_to_tensor,
        "list": lambda x: x.tolist(),
    }


@pytest.mark.parametrize("name", list(streams()))
def test_streams(model, x, name):
    arguments = dict(samples=3, seed=1, from_logits=True, batch_size=8)
    expected = predict(model, x, **arguments).probs
    got = predict(model, streams()[name](x), **arguments).probs
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.tensorflow
@pytest.mark.parametrize("labels", [False, True])
def test_tf_data(model, x, labels):
    import tensorflow as tf

    data = (x, np.arange(21)) if labels else x
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(5)
    arguments = dict(samples=3, seed=1, from_logits=True, batch_size=8)
    expected = predict(model, x, **arguments).probs
    np.testing.assert_allclose(
        predict(model, dataset, **arguments).probs, expected, atol=1e-6
    )
    with pytest.raises(ValueError, match="batch"):
        predict(model, dataset.unbatch(), **arguments)


@pytest.mark.parametrize("as_dict", [False, True])
def test_several_inputs(x, as_dict):
    a, b = keras.Input((4,), name="a"), keras.Input((1,), name="b")
    y = keras.layers.Concatenate()([scale_norm()(a), b])
    inputs = {"a": a, "b": b} if as_dict else [a, b]
    model = keras.Model(inputs, keras.layers.Dense(2)(y))
    values = {"a": x, "b": x[:, :1]}
    data = values if as_dict else list(values.values())
    arguments = dict(samples=3, seed=0, task="regression", batch_size=8)
    got = predict(model, data, **arguments).mean
    assert got.shape == (21, 2)
    with pytest.raises(ValueError, match="2 inputs"):
        predict(model, x, **arguments)


def test_bad_data(model, x):
    arguments = dict(samples=2, from_logits=True, batch_size=8)
    bad = x.copy()
    bad[13, 2] = np.nan
    with pytest.raises(ValueError, match="Example 13 holds NaN"):
        predict(model, bad, **arguments)
    with pytest.raises(ValueError, match="empty"):
        predict(model, x[:0], **arguments)
    with pytest.raises(ValueError, match="empty"):
        predict(model, iter(()), **arguments)
    with pytest.raises(ValueError, match=r"takes arrays of shape \('n', 4\)"):
        predict(model, x[:, :3], **arguments)
    with pytest.raises(ValueError, match="batch axis is missing"):
        predict(model, x[0], **arguments)
    with pytest.raises(TypeError, match="Received: int"):
        predict(model, 3, **arguments)
    with pytest.raises(ValueError, match=r"Received: \('n', 2\)"):
        predict(model, iter([x[:3], x[:3, :2]]), **arguments)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (dict(method="bald"), "`method`"),
        (dict(task="ranking"), "`task`"),
        (dict(samples=0), "`samples`"),
        (dict(samples=2.5), "`samples`"),
        (dict(batch_size=0), "`batch_size`"),
        (dict(chunk_size=-1), "`chunk_size`"),
        (dict(seed=-1), "`seed`"),
        (dict(method="moments", keep_samples=True), "no samples to keep"),
    ],
)
def test_bad_arguments(model, x, arguments, match):
    with pytest.raises(ValueError, match=match):
        predict(model, x, **{"from_logits": True, **arguments})


def test_bad_models(x):
    with pytest.raises(TypeError, match=r"keras\.Model"):
        predict(lambda x: x, x)
    with pytest.raises(ValueError, match="empty list"):
        predict([], x)
    diverged = branched()
    diverged.layers[1].kernel.assign(diverged.layers[1].kernel * np.nan)
    with pytest.raises(ValueError, match="example 0 are not finite"):
        predict(diverged, x, from_logits=True)
    with pytest.raises(ValueError, match="from_logits=True if the model ends"):
        predict(branched(), x, from_logits=False)


def test_a_single_logit_is_a_yes_or_no_question(x):
    model = branched(1)
    got = predict(model, x, seed=0, samples=5, from_logits=True)
    raw = predict(
        model, x, seed=0, samples=5, task="regression", keep_samples=True
    ).samples
    np.testing.assert_allclose(
        got.probs[:, 1:], special.expit(raw).mean(axis=0), atol=1e-6
    )
    np.testing.assert_array_equal(got.classes, (got.probs[:, 1] > 0.5))
    moments = predict(model, x, method="moments", from_logits=True)
    many = predict(model, x, samples=2000, seed=0, from_logits=True)
    np.testing.assert_allclose(moments.probs, many.probs, atol=0.01)


def test_mixed_precision_takes_the_softmax_in_float32(x):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = branched()
    got = predict(model, x, seed=0, samples=3, from_logits=True, keep_samples=True)
    assert got.samples.dtype == "float32"
    np.testing.assert_allclose(got.samples.sum(-1), 1, atol=1e-6)
    got = predict(branched(3, "softmax"), x, seed=0, samples=3)
    np.testing.assert_allclose(got.probs.sum(-1), 1, atol=1e-6)


def test_regression_has_no_classes(model, x):
    got = predict(model, x, samples=2, task="regression")
    with pytest.raises(ValueError, match="no classes"):
        got.classes


# The model that samples.


def test_sampling_model_samples_in_compiled_functions(model, x, tmp_path):
    sampling = sampling_model(model)
    first, second = (sampling.predict(x, verbose=0) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3
    twins = sampling.predict(np.repeat(x[:1], 2, axis=0), verbose=0)
    assert np.abs(twins[0] - twins[1]).max() > 1e-3  # An own draw for each.
    mean = sampling_model(model, "mean").predict(x, verbose=0)
    np.testing.assert_allclose(mean, model.predict(x, verbose=0), atol=1e-6)
    assert all(a is b for a, b in zip(sampling.variables, model.variables, strict=True))
    sampling.compile(loss="mse")
    losses = {sampling.evaluate(x, np.zeros((21, 3)), verbose=0) for _ in range(3)}
    assert len(losses) == 3

    sampling.save(tmp_path / "sampling.keras")
    loaded = keras.saving.load_model(tmp_path / "sampling.keras")
    assert loaded.mode == "sample"
    np.testing.assert_allclose(
        predict(loaded, x, seed=0, from_logits=True).probs,
        predict(model, x, seed=0, from_logits=True).probs,
        atol=1e-6,
    )
    clone = keras.models.clone_model(sampling)
    assert clone.mode == "sample"
    assert clone.predict(x, verbose=0).shape == (21, 3)


@pytest.mark.tensorflow
def test_sampling_model_exports_with_its_noise(model, x, tmp_path):
    import tensorflow as tf

    sampling = sampling_model(model)
    sampling(x)
    sampling.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    first, second = (np.asarray(served.serve(x)) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize(
    "call",
    [
        lambda m: bayesnorm.calibrate(m, np.zeros((8, 4))),
        lambda m: bayesnorm.batch_noise(m, np.zeros((8, 4)), 4),
        bayesnorm.kl_divergence,
        lambda m: bayesnorm.set_kl_weight(m, 1.0),
        lambda m: bayesnorm.moments.propagate(m, 0.0, 1.0),
        bayesnorm.project,
        lambda m: bayesnorm.data_dependent_init(m, np.zeros((8, 4))),
        bayesnorm.to_stochastic,
    ],
)
def test_what_is_no_model_is_refused(call, model):
    with pytest.raises(TypeError, match="Received: list"):
        call([model])


def test_sampling_model_refuses(model):
    with pytest.raises(ValueError, match="`mode`"):
        sampling_model(model, "noisy")
    with pytest.raises(TypeError, match=r"keras\.Model"):
        sampling_model(len)


def test_draws_do_not_depend_on_the_global_seed(model, x):
    """Nothing of Keras's or the backend's global seed is used."""
    results = []
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        results.append(predict(model, x, samples=2, seed=0, from_logits=True).probs)
    np.testing.assert_array_equal(*results)


def test_a_sampling_model_within_a_model_follows_predict(rng):
    inner = keras.Sequential([keras.Input((4,)), bayesnorm.StochasticScaleNorm()])
    inputs = keras.Input((4,))
    model = keras.Model(inputs, bayesnorm.sampling_model(inner)(inputs))
    x = rng.normal(size=(5, 4)).astype("float32")
    arguments = {"task": "regression", "samples": 3, "seed": 1}
    first = bayesnorm.predict(model, x, **arguments).mean
    np.testing.assert_array_equal(bayesnorm.predict(model, x, **arguments).mean, first)
    mean = bayesnorm.predict(model, x, method="mean", task="regression").mean
    np.testing.assert_allclose(mean, x, rtol=1e-6)


def test_a_chunk_has_rows(rng):
    model = keras.Sequential([keras.Input((4,)), bayesnorm.StochasticScaleNorm()])
    with pytest.raises(ValueError, match="chunk_size"):
        bayesnorm.predict(model, np.zeros((2, 4)), from_logits=True, chunk_size=0)
