"""architecture_difference: models that differ in their weights, and in more."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import bayesnorm
from bayesnorm.graph import architecture_difference


def functional(activation="relu", swap=False, share=False, units=4):
    inputs = keras.Input((4,))
    dense = layers.Dense(4, activation=activation)
    a = dense(inputs)
    b = dense(a) if share else layers.Dense(4)(a)
    y = b - a if swap else a - b
    return keras.Model(inputs, layers.Dense(units)(ops.transpose(y, axes=(0, 1))))


def nested(rate=0.1, **kwargs):
    base = functional(**kwargs)
    return keras.Sequential([keras.Input((4,)), base, layers.LeakyReLU(rate)])


def analytic():
    return keras.Sequential(
        [
            keras.Input((4,)),
            bayesnorm.AnalyticNormalization(layers.Dense(5)),
            bayesnorm.StochasticScaleNorm(),
            bayesnorm.AnalyticNormalization(layers.Dense(3)),
        ]
    )


def behind_hidden_layers():
    """Normalizes by weights that are not its own."""
    model = analytic()
    inputs = keras.Input((5,))
    return keras.Model(inputs, model.layers[-1](inputs))


class Own(keras.layers.Layer):
    """With arguments that no configuration tells."""

    def __init__(self, factor=1.0, held=None, swap=False):
        super().__init__()
        self.factor, self.held = factor, held
        self.a, self.b = layers.Dense(3), layers.Dense(3)
        if swap:
            self.a, self.b = self.b, self.a

    def build(self, input_shape):
        self.a.build(input_shape)
        self.b.build(input_shape)

    def call(self, x):
        return (self.a(x) - self.b(x)) * self.factor


class Model(keras.Model):
    def __init__(self, **kwargs):
        super().__init__()
        self.own = Own(**kwargs)

    def call(self, x):
        return self.own(x)


def subclassed(rows=2, fit=False, **kwargs):
    model = Model(**kwargs)
    x = np.ones((rows, 4), "float32")
    model(x)
    if fit:
        model.compile("sgd", "mse")
        model.fit(x, np.ones((rows, 3), "float32"), verbose=0)
    return model


def with_function(factor):
    return keras.Sequential(
        [keras.Input((4,)), layers.Lambda(lambda x: x * factor), layers.Dense(2)]
    )


def text(words):
    vectorize = layers.TextVectorization(output_sequence_length=3)
    vectorize.adapt(words)
    inputs = keras.Input((1,), dtype="string")
    return keras.Model(inputs, layers.Embedding(9, 2)(vectorize(inputs)))


@pytest.mark.parametrize(
    "make",
    [
        functional,
        nested,
        analytic,
        subclassed,
        lambda: subclassed(held=[np.ones(3), "word", {"a": 1}]),
        lambda: with_function(2.0),
        pytest.param(lambda: text(["a b"]), marks=pytest.mark.tensorflow),
    ],
)
def test_models_of_one_builder(make):
    assert architecture_difference(make(), make()) is None


def test_training_and_batches_do_not_count():
    assert architecture_difference(subclassed(), subclassed(rows=5, fit=True)) is None
    first, second = functional(), functional()
    second.compile("adam", "mse", metrics=["mse"])
    assert architecture_difference(first, second) is None


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        (functional, lambda: functional("tanh"), "configurations"),
        (functional, lambda: functional(swap=True), "graphs"),
        (functional, lambda: functional(share=True), "6 and 5 layers|5 and 4 layers"),
        (functional, lambda: functional(units=5), "graphs"),
        (nested, lambda: nested(0.2), "configurations"),
        (nested, lambda: nested(swap=True), "graphs"),
        (functional, nested, "layers"),
        (subclassed, lambda: subclassed(factor=2.0), "attributes|configurations"),
        (subclassed, lambda: subclassed(swap=True), "attributes|configurations"),
        (
            lambda: subclassed(held=object()),
            lambda: subclassed(held=object()),
            "attributes",
        ),
        (
            lambda: subclassed(held=np.zeros(2)),
            lambda: subclassed(held=np.ones(2)),
            "attributes",
        ),
        (lambda: with_function(2.0), lambda: with_function(3.0), "attributes|config"),
        (behind_hidden_layers, behind_hidden_layers, "attributes"),
        pytest.param(
            lambda: text(["a b"]),
            lambda: text(["a c"]),
            "assets",
            marks=pytest.mark.tensorflow,
        ),
    ],
)
def test_what_differs_is_said(first, second, word):
    found = architecture_difference(first(), second())
    assert found is not None
    assert any(each in found for each in word.split("|")), found


def test_flags_and_precision():
    first, second = functional(), functional()
    second.layers[1].trainable = False
    assert "trainable" in architecture_difference(first, second)
    keras.config.set_dtype_policy("mixed_bfloat16")
    assert "precisions" in architecture_difference(first, functional())
