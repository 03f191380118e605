"""What data may come in: streams with and without an end, batches of several shapes."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import bayesnorm
from bayesnorm.streams.arrays import as_arrays


def batch_normalized(shape=(4,)):
    inputs = keras.Input(shape)
    x = layers.BatchNormalization()(layers.Dense(3)(inputs))
    return bayesnorm.to_stochastic(keras.Model(inputs, x))


def scaled(*inputs):
    x = layers.Concatenate()(inputs) if len(inputs) > 1 else inputs[0]
    x = bayesnorm.StochasticScaleNorm(initial_stddev=0.3)(x)
    return keras.Model(list(inputs), layers.Dense(2)(x))


def of_sequences(pooled=True):
    """Takes sequences of any length."""
    inputs = keras.Input((None, 2))
    x = bayesnorm.StochasticScaleNorm(initial_stddev=0.3)(layers.Dense(4)(inputs))
    x = layers.GlobalAveragePooling1D()(x) if pooled else x
    return keras.Model(inputs, layers.Dense(3)(x))


class Batches(keras.utils.PyDataset):
    """Batches of 8, and how many were asked for."""

    def __init__(self, x, end=True, element=lambda batch: (batch, batch[:, 0])):
        super().__init__()
        self.x, self.end, self.element, self.read = x, end, element, 0

    @property
    def num_batches(self):
        return len(self.x) // 8 if self.end else None

    def __getitem__(self, i):
        self.read += 1
        start = 8 * i % len(self.x)
        return self.element(self.x[start : start + 8])


def endless_tf_data(x):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(x).batch(8).repeat()


STREAMS = [
    lambda x: Batches(x, end=False),
    pytest.param(endless_tf_data, marks=pytest.mark.tensorflow),
]
ARGUMENTS = {"samples": 3, "seed": 1, "task": "regression"}


@pytest.fixture
def x(rng):
    return rng.normal(size=(48, 4)).astype("float32")


# Steps.


@pytest.mark.parametrize("endless", STREAMS)
def test_a_stream_without_an_end_needs_steps(x, endless):
    model = batch_normalized()
    for call in (
        lambda: bayesnorm.calibrate(model, endless(x)),
        lambda: bayesnorm.predict(model, endless(x), **ARGUMENTS),
        lambda: bayesnorm.channel_statistics(model, endless(x)),
    ):
        with pytest.raises(ValueError, match=r"has no end.*Pass steps="):
            call()


@pytest.mark.parametrize("endless", STREAMS)
def test_steps_are_batches_of_the_stream(x, endless):
    model = bayesnorm.calibrate(batch_normalized(), endless(x), steps=3)
    got = model.get_weights()
    bayesnorm.calibrate(model, x[:24], batch_size=8, shuffle=False)
    for a, b in zip(got, model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    prediction = bayesnorm.predict(model, endless(x), steps=2, **ARGUMENTS)
    expected = bayesnorm.predict(model, x[:16], **ARGUMENTS)
    np.testing.assert_allclose(prediction.mean, expected.mean, atol=1e-6)
    (got,) = bayesnorm.channel_statistics(
        model, endless(x), [model.layers[1].name], steps=2
    ).values()
    (expected,) = bayesnorm.channel_statistics(
        model, x[:16], [model.layers[1].name]
    ).values()
    np.testing.assert_allclose(got.mean, expected.mean, atol=1e-6)


def test_steps_of_arrays_and_of_iterators(x):
    model = batch_normalized()
    bayesnorm.calibrate(model, x, batch_size=8)
    got = bayesnorm.predict(model, x, batch_size=8, steps=2, **ARGUMENTS)
    assert len(got) == 16
    batches = iter(np.split(x, 6))
    assert len(bayesnorm.predict(model, batches, steps=2, **ARGUMENTS)) == 16
    np.testing.assert_array_equal(next(batches), x[16:24])  # No more were read.


def test_fewer_batches_than_steps_are_said(x):
    model = scaled(keras.Input((4,)))
    for data in (x, iter([x])):
        with pytest.warns(UserWarning, match="ended after 1 of steps=3 batches"):
            bayesnorm.predict(model, data, steps=3, batch_size=48, **ARGUMENTS)
    with pytest.raises(ValueError, match="`steps` must be an integer from 1"):
        bayesnorm.predict(model, x, steps=0, **ARGUMENTS)


@pytest.mark.parametrize("end", [False, True])
def test_minibatch_reads_a_batch_for_each_sample(x, end):
    model = bayesnorm.calibrate(batch_normalized(), x, batch_size=8)
    stream = Batches(np.tile(x, (10, 1)), end=end)
    arguments = {**ARGUMENTS, "samples": 5}
    bayesnorm.predict(model, x, method="minibatch", train_data=stream, **arguments)
    assert stream.read == 5


def test_batch_noise_reads_what_it_takes(x):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.BatchNormalization()(inputs))
    stream = Batches(x, end=False)
    found = bayesnorm.batch_noise(model, stream, 8, batches=12)
    assert stream.read == 12
    # Two batches, again and again.
    stream = Batches(x, end=False)
    again = bayesnorm.batch_noise(model, stream, 8, batches=12, steps=2)
    assert stream.read == 12
    assert again[0].shift_stddev != found[0].shift_stddev
    expected = bayesnorm.batch_noise(model, Batches(x[:16]), 8, batches=12)
    assert again == expected


# Batches of several shapes.


def sequences(rng):
    """Batches of lengths 3, 3, 5, 3, as of a bucketed data set."""
    lengths = [(4, 3), (3, 3), (4, 5), (2, 3)]
    return [rng.normal(size=(n, t, 2)).astype("float32") for n, t in lengths]


@pytest.mark.parametrize("method", ["sample", "mean", "moments"])
def test_lengths_may_vary(rng, method):
    model, batches = of_sequences(), sequences(rng)
    arguments = {**ARGUMENTS, "method": method}
    got = bayesnorm.predict(model, iter(batches), batch_size=4, **arguments).mean
    each = [bayesnorm.predict(model, batch, **arguments).mean for batch in batches]
    np.testing.assert_allclose(got, np.concatenate(each), atol=1e-6)


@pytest.mark.tensorflow
def test_padded_batches_of_tf_data(rng):
    import tensorflow as tf

    lengths = rng.integers(1, 9, size=21)
    x = [rng.normal(size=(n, 2)).astype("float32") for n in lengths]
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(x), output_signature=tf.TensorSpec([None, 2], "float32")
    ).padded_batch(4)
    model = of_sequences()
    got = bayesnorm.predict(model, dataset, **ARGUMENTS).mean
    each = [bayesnorm.predict(model, b.numpy(), **ARGUMENTS).mean for b in dataset]
    np.testing.assert_allclose(got, np.concatenate(each), atol=1e-6)


def test_few_sizes_are_compiled_of_each_shape(rng):
    traced = []

    @keras.saving.register_keras_serializable("tests")
    class Seen(layers.Layer):
        def call(self, x):
            traced.append(tuple(x.shape[:2]))
            return x

    inputs = keras.Input((None, 2))
    x = bayesnorm.StochasticScaleNorm(initial_stddev=0.3)(Seen()(inputs))
    model = keras.Model(inputs, layers.GlobalAveragePooling1D()(x))
    traced.clear()
    rows = [(8, 3), (3, 5), (4, 3), (8, 3), (2, 5), (1, 3)]
    batches = [rng.normal(size=(n, t, 2)).astype("float32") for n, t in rows]
    bayesnorm.predict(model, iter(batches), batch_size=8, **ARGUMENTS)
    assert set(traced) - {(1, 3), (1, 5)} == {(8, 3), (4, 5)}


def test_outputs_of_several_shapes_are_refused(rng):
    model = of_sequences(pooled=False)
    with pytest.raises(ValueError, match=r"\(3, 3\) for example 0, \(5, 3\) for"):
        bayesnorm.predict(model, iter(sequences(rng)), **ARGUMENTS)
    got = bayesnorm.predict(model, iter(sequences(rng)[:2]), **ARGUMENTS)
    assert got.mean.shape == (7, 3, 3)


def test_calibration_over_several_lengths(rng):
    inputs = keras.Input((None, 4))
    x = layers.BatchNormalization()(inputs)
    model = keras.Model(inputs, layers.GlobalAveragePooling1D()(x))
    batches = [rng.normal(size=(6, t, 4)).astype("float32") for t in (3, 7, 3, 2)]
    model = bayesnorm.calibrate(bayesnorm.to_stochastic(model), iter(batches))
    mean = np.mean([b.mean((0, 1)) for b in batches], 0)
    got = ops.convert_to_numpy(model.layers[1].mu_mean)
    np.testing.assert_allclose(got, mean, atol=1e-6)
    with pytest.raises(ValueError, match="examples of one shape"):
        bayesnorm.calibrate(model, iter(batches), batch_size=12)


def test_each_shape_is_checked(x):
    model = scaled(keras.Input((4,)))
    with pytest.raises(ValueError, match=r"takes arrays of shape \('n', 4\)"):
        bayesnorm.predict(model, iter([x, x[:, :2]]), **ARGUMENTS)


# What an element is.


@pytest.mark.parametrize(
    "element", [lambda b: [b, b[:, 0]], lambda b: [b], lambda b: b]
)
def test_lists_are_read_as_keras_reads_them(x, element):
    model = scaled(keras.Input((4,)))
    expected = bayesnorm.predict(model, x, **ARGUMENTS).mean
    stream = Batches(x, element=element)
    np.testing.assert_allclose(
        model.predict(stream, verbose=0), model.predict(x, verbose=0), atol=1e-6
    )
    for data in (stream, (element(batch) for batch in np.split(x, 6))):
        got = bayesnorm.predict(model, data, **ARGUMENTS).mean
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_several_inputs_of_a_stream(x):
    model = scaled(keras.Input((3,)), keras.Input((1,)))
    expected = bayesnorm.predict(model, [x[:, :3], x[:, 3:]], **ARGUMENTS).mean
    for element in (
        lambda b: ((b[:, :3], b[:, 3:]), b[:, 0]),
        lambda b: [[b[:, :3], b[:, 3:]], b[:, 0]],
        lambda b: ((b[:, :3], b[:, 3:]),),
    ):
        stream = Batches(x, element=element)
        got = bayesnorm.predict(model, stream, **ARGUMENTS).mean
        np.testing.assert_allclose(got, expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"takes 2 inputs.*\(\(a, b\), labels\)"):
        bayesnorm.predict(model, iter([[x[:, :3], x[:, 3:]]]), **ARGUMENTS)


class Frame:
    """What NumPy sees of a pandas DataFrame, or of a Series."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)

    def __iter__(self):
        return iter(["the", "names", "of", "columns"])

    def to_frame(self):
        return self


def test_data_frames(x):
    model = scaled(keras.Input((4,)))
    expected = bayesnorm.predict(model, x, **ARGUMENTS).mean
    got = bayesnorm.predict(model, Frame(x.astype("float64")), **ARGUMENTS).mean
    np.testing.assert_allclose(got, expected, atol=1e-6)
    columns = scaled(*(keras.Input((1,), name=name) for name in "abcd"))
    got = bayesnorm.predict(columns, [Frame(c) for c in x.T], **ARGUMENTS)
    assert got.mean.shape == (48, 2)
    # A Series is a column, as in Keras, also where no graph says so.
    assert as_arrays(Frame(x[:, 0])).shape == (48, 1)
    mixed = np.array([[True, "a", 1.0, 2]], object)
    with pytest.raises(ValueError, match=r"bool, float, int, str.*columns of one type"):
        bayesnorm.predict(model, mixed, **ARGUMENTS)


def test_pandas(x):
    pandas = pytest.importorskip("pandas")
    model, frame = scaled(keras.Input((4,))), pandas.DataFrame(x, columns=[*"abcd"])
    expected = bayesnorm.predict(model, x, **ARGUMENTS).mean
    got = bayesnorm.predict(model, frame, **ARGUMENTS).mean
    np.testing.assert_allclose(got, expected, atol=1e-6)
    columns = scaled(*(keras.Input((1,), name=name) for name in "abcd"))
    got = bayesnorm.predict(columns, dict(frame), **ARGUMENTS).mean
    expected = bayesnorm.predict(columns, list(x.T[..., None]), **ARGUMENTS).mean
    np.testing.assert_allclose(got, expected, atol=1e-6)
    batches = (frame[i : i + 8] for i in range(0, 48, 8))
    assert len(bayesnorm.predict(model, batches, **ARGUMENTS)) == 48
    with pytest.raises(ValueError, match="columns of one type"):
        bayesnorm.predict(model, frame.assign(d="one", c=True), **ARGUMENTS)


TEXTS = ["one two", "three", "two two one", "four", "one three two"]


def of_texts():
    vectorization = layers.TextVectorization(10, output_sequence_length=3)
    vectorization.adapt(TEXTS)
    inputs = keras.Input((), dtype="string")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(10, 4)(vectorization(inputs)))
    # With Keras 3.10 its input does not show the number of channels when it runs.
    x = layers.BatchNormalization()(x)
    return keras.Model(inputs, layers.Dense(2)(x))


@pytest.mark.tensorflow
def test_strings_go_through_the_model():
    import tensorflow as tf

    model = bayesnorm.to_stochastic(of_texts())
    bayesnorm.calibrate(model, np.array(TEXTS), batch_size=2)
    expected = bayesnorm.predict(model, np.array(TEXTS, object), **ARGUMENTS).mean
    dataset = tf.data.Dataset.from_tensor_slices((TEXTS, np.arange(5))).batch(2)
    for texts in (TEXTS, np.array(TEXTS), tf.constant(TEXTS), dataset):
        got = bayesnorm.predict(model, texts, batch_size=3, **ARGUMENTS).mean
        np.testing.assert_allclose(got, expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"takes string. Received: an array of float"):
        bayesnorm.predict(model, np.ones(5, "float32"), **ARGUMENTS)


def test_strings_that_a_model_does_not_take():
    model = scaled(keras.Input((1,)))
    where = keras.backend.backend() == "tensorflow"
    match = "takes float32. Received: an array of strings" if where else "numbers first"
    for texts in (TEXTS, np.array(TEXTS), iter([np.array(TEXTS, object)])):
        with pytest.raises(ValueError, match=match):
            bayesnorm.predict(model, texts, **ARGUMENTS)


@pytest.mark.tensorflow
def test_ragged_and_sparse_tensors_are_refused():
    import tensorflow as tf

    model = of_sequences()
    ragged = tf.ragged.constant([[[1.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]]], ragged_rank=1)
    with pytest.raises(ValueError, match=r"ragged tensor: give x\.to_tensor"):
        bayesnorm.predict(model, ragged, **ARGUMENTS)
    dataset = tf.data.Dataset.from_tensor_slices(ragged).batch(2)
    with pytest.raises(ValueError, match=r"ragged tensor: give x\.to_tensor"):
        bayesnorm.predict(model, dataset, **ARGUMENTS)
    with pytest.raises(ValueError, match=r"sparse.*tf\.sparse\.to_dense"):
        bayesnorm.predict(model, tf.sparse.from_dense(np.eye(2)), **ARGUMENTS)


def test_what_is_no_dense_array_is_refused(x):
    import scipy.sparse

    model = scaled(keras.Input((4,)))
    with pytest.raises(ValueError, match=r"sparse.*x\.toarray"):
        bayesnorm.predict(model, scipy.sparse.csr_matrix(x), **ARGUMENTS)
    images = np.empty(2, object)
    images[:] = [x[:3], x[:4]]
    with pytest.raises(ValueError, match="examples of several shapes as a stream"):
        bayesnorm.predict(model, images, **ARGUMENTS)
    with pytest.raises(ValueError, match="empty tuple or list"):
        bayesnorm.predict(model, iter([()]), **ARGUMENTS)
