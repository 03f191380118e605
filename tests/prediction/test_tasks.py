"""Outputs of every kind: what they are, several of them, labels, their noise."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import special

from bayesnorm.layers import StochasticScaleNorm
from bayesnorm.prediction.perturbation import gradient_sign
from bayesnorm.prediction.predict import predict
from tests.helpers import long


def head(units, activation=None, name=None):
    return keras.layers.Dense(units, activation=activation, name=name)


def body():
    inputs = keras.Input((4,))
    x = head(5, "tanh")(inputs)
    return inputs, StochasticScaleNorm(initial_stddev=0.3)(x)


def branched(outputs=3, activation=None):
    inputs, x = body()
    return keras.Model(inputs, head(outputs, activation)(x))


@pytest.fixture
def x(rng):
    return rng.normal(size=(21, 4)).astype("float32")


# Logits or probabilities.


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "log_softmax"])
@pytest.mark.parametrize("how", ["argument", "layer", "reshaped", "inner"])
def test_last_activation_tells(x, activation, how):
    outputs = 1 if activation == "sigmoid" else 3
    body = branched(outputs, activation if how == "argument" else None)
    y = body.output
    if how != "argument":
        y = keras.layers.Activation(activation)(y)
    if how == "reshaped":
        y = keras.layers.Dropout(0.5)(keras.layers.Reshape((1, outputs))(y))
    model = keras.Model(body.input, y)
    if how == "inner":
        inputs = keras.Input((4,))
        model = keras.Model(inputs, model(inputs))
    got = predict(model, x, samples=3, seed=0, keep_samples=True)
    assert got.probs.shape[-1] == max(outputs, 2)
    np.testing.assert_allclose(got.probs.sum(-1), 1, atol=1e-6)
    raw = predict(model, x, samples=3, seed=0, task="regression", keep_samples=True)
    if activation == "sigmoid":
        np.testing.assert_allclose(got.probs[..., 1:], raw.mean, atol=1e-6)
    elif activation == "softmax":
        np.testing.assert_allclose(got.probs, raw.mean, atol=1e-6)
    else:
        np.testing.assert_allclose(got.samples, np.exp(raw.samples), atol=1e-6)


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("loss", ["Sparse", "", "Binary"])
def test_the_compiled_loss_tells(x, loss, from_logits):
    outputs = 1 if loss == "Binary" else 3
    activation = "sigmoid" if loss == "Binary" else "softmax"
    model = branched(outputs, None if from_logits else activation)
    cls = {
        "Sparse": keras.losses.SparseCategoricalCrossentropy,
        "": keras.losses.CategoricalCrossentropy,
        "Binary": keras.losses.BinaryCrossentropy,
    }[loss]
    model.compile(loss=cls(from_logits=from_logits))
    got = predict(model, x, samples=3, seed=0)
    expected = predict(model, x, samples=3, seed=0, from_logits=from_logits)
    np.testing.assert_array_equal(got.probs, expected.probs)


def test_strings_of_losses_mean_probabilities(x):
    model = branched(3, "softmax")
    model.compile(loss="sparse_categorical_crossentropy")
    predict(model, x, samples=2)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_an_activation_is_trusted_before_the_loss(x, activation):
    """Keras looks behind a softmax for the logits of a loss: training is right."""
    model = branched(3 if activation == "softmax" else 1, activation)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if activation == "sigmoid":
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(loss=loss)
    got = predict(model, x, method="mean").probs[:, -1]
    np.testing.assert_allclose(got, model.predict(x, verbose=0)[:, -1], atol=1e-6)
    with pytest.raises(ValueError, match=f"come from a {activation}"):
        predict(model, x, from_logits=True)


def test_logarithms_of_probabilities_are_no_probabilities(x):
    with pytest.raises(ValueError, match="logarithms of probabilities"):
        predict(branched(3, "log_softmax"), x, from_logits=False)


def test_it_says_when_it_cannot_tell(x):
    with pytest.raises(ValueError, match="from_logits=True"):
        predict(branched(), x)
    model = branched()
    model.compile(loss="mse")
    with pytest.raises(ValueError, match="last activation is 'linear'"):
        predict(model, x)


@pytest.mark.parametrize(
    ("activation", "loss", "arguments"),
    [
        ("sigmoid", None, {}),
        (None, "binary_crossentropy", {}),
        (None, keras.losses.BinaryCrossentropy(from_logits=True), {}),
        (None, keras.losses.BinaryCrossentropy(), {"from_logits": True}),
    ],
)
def test_labels_are_no_classes(x, activation, loss, arguments):
    model = branched(5, activation)
    model.compile(loss=loss)
    with pytest.raises(ValueError, match="task='multilabel'"):
        predict(model, x, **arguments)


@pytest.mark.parametrize(
    ("activation", "loss"), [("softmax", None), (None, "categorical_crossentropy")]
)
def test_classes_are_no_labels(x, activation, loss):
    model = branched(3, activation)
    model.compile(loss=loss)
    with pytest.raises(ValueError, match="classes of one question"):
        predict(model, x, task="multilabel")


# Labels.


@pytest.mark.parametrize("activation", [None, "sigmoid"])
@pytest.mark.parametrize("method", ["sample", "mean", "moments"])
def test_labels_are_questions_of_their_own(x, activation, method):
    """Each is what a model of this one output says of it."""
    model = branched(4, activation)
    arguments = dict(method=method, samples=20, seed=0, keep_samples=method == "sample")
    logits = None if activation else True
    got = predict(model, x, task="multilabel", from_logits=logits, **arguments)
    assert got.probs.shape == got.entropy.shape == (21, 4)
    weights = [w[..., 2:3] for w in model.layers[-1].get_weights()]
    one = keras.Model(
        model.input, (last := head(1, activation))(model.layers[-2].output)
    )
    last.set_weights(weights)
    expected = predict(one, x, from_logits=logits, **arguments)
    for name in ("entropy", "mutual_information"):
        np.testing.assert_allclose(
            getattr(got, name)[:, 2], getattr(expected, name), atol=1e-6
        )
    np.testing.assert_allclose(got.probs[:, 2], expected.probs[:, 1], atol=1e-6)
    if method == "sample":
        assert got.samples.shape == (20, 21, 4)
        p = got.samples.astype("float64")
        entropies = special.entr(p) + special.entr(1 - p)
        total = special.entr(p.mean(0)) + special.entr(1 - p.mean(0))
        np.testing.assert_allclose(got.entropy, total, atol=1e-5)
        np.testing.assert_allclose(
            got.mutual_information, total - entropies.mean(0), atol=1e-5
        )
    with pytest.raises(ValueError, match="probs > 0"):
        got.classes


# Several outputs.


def several(nest):
    inputs, x = body()
    # The kind is seen through noise too, and the age does not look at it.
    heads = {
        "kind": head(3, "softmax", "kind")(x),
        "tags": head(2, None, "tags")(x),
        "age": head(1, None, "age")(x),
    }
    model = keras.Model(inputs, heads if nest == "dict" else list(heads.values()))
    if nest == "subclassed":
        model = Subclassed(model)
        model(np.zeros((1, 4)))
    return model


class Subclassed(keras.Model):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, x):
        return tuple(self.model(x))


TASKS = ["classification", "multilabel", "regression"]
NAMES = ["kind", "tags", "age"]


@pytest.mark.parametrize("method", ["sample", "mean", "moments"])
@pytest.mark.parametrize("nest", ["dict", long("list"), "subclassed"])
def test_several_outputs_are_of_the_same_networks(x, nest, method):
    if nest == "subclassed" and method == "moments":
        pytest.skip("shows no graph to take moments through")
    model = several(nest)
    names = NAMES if nest != "subclassed" else ["output_0", "output_1", "output_2"]
    from_logits = dict.fromkeys(names) | {names[1]: True}
    arguments = dict(
        samples=7, method=method, seed=3, chunk_size=30, keep_samples=method == "sample"
    )
    got = predict(
        model,
        x,
        batch_size=8,
        task=dict(zip(names, TASKS, strict=True)),
        from_logits=from_logits | ({names[0]: False} if nest == "subclassed" else {}),
        **arguments,
    )
    assert set(got) == set(names)
    graph = model.model if nest == "subclassed" else model
    for name, shown, task in zip(NAMES, names, TASKS, strict=True):
        one = keras.Model(graph.input, graph.get_layer(name).output)
        logits = True if name == "tags" else None
        expected = predict(one, x, task=task, from_logits=logits, **arguments)
        for field in vars(expected):
            value = getattr(expected, field)
            if value is None:
                assert getattr(got[shown], field) is None
            else:
                np.testing.assert_allclose(
                    getattr(got[shown], field), value, atol=2e-6, err_msg=field
                )


def test_losses_of_several_outputs_tell(x):
    inputs, h = body()
    model = keras.Model(inputs, [head(3, name="a")(h), head(1, name="b")(h)])
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    binary = keras.losses.BinaryCrossentropy(from_logits=True)
    raw = dict(zip("ab", model.predict(x, verbose=0), strict=True))
    for loss in ([sparse, binary], {"a": sparse, "b": binary}):
        model.compile(loss=loss)
        got = predict(model, x, method="mean")
        np.testing.assert_allclose(
            got["a"].probs, special.softmax(raw["a"], -1), atol=1e-6
        )
        np.testing.assert_allclose(
            got["b"].probs[:, 1:], special.expit(raw["b"]), atol=1e-6
        )


def test_one_name_for_two_outputs_is_numbered(x):
    inputs, h = body()
    shared = head(3, "softmax", "shared")
    model = keras.Model(inputs, [shared(h), shared(ops.square(h))])
    assert set(predict(model, x, samples=2)) == {"shared_0", "shared_1"}


def test_an_ensemble_of_several_outputs(x):
    models = [several("dict"), several("dict")]
    task = dict(zip(NAMES, TASKS, strict=True))
    arguments = dict(
        method="mean", task=task, from_logits={"kind": None, "tags": True, "age": None}
    )
    got = predict(models, x, **arguments)
    each = [predict(model, x, **arguments) for model in models]
    for name in ("kind", "tags"):
        mean = sum(p[name].probs for p in each) / 2
        np.testing.assert_allclose(got[name].probs, mean, atol=1e-6)
    ages = np.stack([p["age"].mean for p in each])
    np.testing.assert_allclose(got["age"].variance, ages.var(0, ddof=1), rtol=1e-4)
    with pytest.raises(ValueError, match="must have the same outputs"):
        predict([models[0], branched()], x, task="regression")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"task": {"kind": "regression"}}, "one for each: a dict by name"),
        ({"task": ["regression"] * 2}, "one for each: a dict by name"),
        ({"task": "ranking"}, "`task`"),
        ({}, "'tags'"),
    ],
)
def test_what_is_said_of_several_outputs_must_fit(x, arguments, match):
    with pytest.raises(ValueError, match=match):
        predict(several("list"), x, **arguments)


def test_gradients_are_of_one_output(x):
    with pytest.raises(ValueError, match="has 3 outputs"):
        gradient_sign(several("list"), x, np.zeros(21, int), 0.1)


def test_an_output_that_is_not_finite_is_named(x):
    model = several("dict")
    layer = model.get_layer("age")
    layer.kernel.assign(layer.kernel * np.nan)
    with pytest.raises(ValueError, match="Output 'age' for example 0"):
        predict(model, x, task="regression")


def test_total_variance_of_a_heteroscedastic_regression(rng):
    """Mean and log-variance as two outputs: the law of total variance, by hand."""
    x = rng.normal(size=(5, 4)).astype("float32")
    inputs, h = body()
    outputs = {"mean": head(1)(h), "noise": ops.exp(head(1)(h))}
    model = keras.Model(inputs, outputs)
    got = predict(model, x, 200, task="regression", seed=0, keep_samples=True)
    total = got["mean"].variance + got["noise"].mean
    draws = got["mean"].samples + np.sqrt(got["noise"].samples) * rng.normal(
        size=(500, 200, 5, 1)
    )
    # Of 100,000 draws the variance has a relative standard error near 0.0045 or more.
    np.testing.assert_allclose(draws.var((0, 1)), total, rtol=0.05)
