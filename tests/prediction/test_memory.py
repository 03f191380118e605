"""The memory of predict: measured, and how it is foreseen."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import bayesnorm
from bayesnorm import backend
from bayesnorm.prediction import memory
from tests.helpers import long

MEASURED = """
import resource, sys
import keras, numpy as np
from keras import layers
import bayesnorm

inputs = keras.Input((None, None, 3))
x = layers.ReLU()(layers.Conv2D(24, 1)(inputs))
x = bayesnorm.StochasticScaleNorm(initial_stddev=0.3)(x)
x = layers.ReLU()(layers.Conv2D(24, 1)(x))
outputs = layers.Conv2D(2, 1)(layers.AveragePooling2D(64)(x))
model = keras.Model(inputs, outputs)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

arguments = {"from_logits": True, "seed": 0, "method": sys.argv[1]}
images = np.ones((int(sys.argv[2]), 512, 512, 3), "float32")
bayesnorm.predict(model, images[:, :64, :64], samples=8, **arguments)
before = peak()
bayesnorm.predict(model, images, samples=8, **arguments)
print(peak() - before)
"""


@pytest.mark.parametrize(("method", "images"), [("sample", 6), long("mean", 40)])
def test_large_images_stay_below_a_gibibyte(method, images):
    """Of 24 channels one takes 24 MiB: in one pass 1.5 and 1 GiB for each tensor."""
    found = subprocess.run(
        [sys.executable, "-c", MEASURED, method, str(images)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert float(found.stdout.split()[-1]) < 1.0


def bytes_a_row(model, x, apply=None):
    step = apply or (lambda batch: model(batch, training=False))
    return memory.peak_bytes(*backend.operations(step, model.variables, x))


def test_bytes_of_tensors_in_use_at_one_time():
    # a (2) -> b (5) -> c (3), which reads a as well; w is of weights.
    operations = [
        ((), {"w": 1000}),
        (("a", "w"), {"b": 5}),
        (("b",), {"d": 7}),
        (("a", "d"), {"c": 3}),
        (("c",), {}),
    ]
    assert memory.peak_bytes({"a": 2}, operations) == 2 + 5 + 7
    operations[3] = (("a", "b", "d"), {"c": 3})
    assert memory.peak_bytes({"a": 2}, operations) == 2 + 5 + 7 + 3


def test_weights_do_not_count():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3)(layers.Dense(1000)(inputs)))
    # The input and, at most, two tensors of 1000.
    assert 4000 <= bytes_a_row(model, np.ones((1, 4), "float32")) <= 8100


class Attention(keras.Model):
    """Shows no graph, and its largest tensor in no output."""

    def __init__(self):
        super().__init__()
        self.attention = layers.MultiHeadAttention(num_heads=4, key_dim=2)
        self.scale = bayesnorm.StochasticScaleNorm(initial_stddev=0.3)

    def call(self, x):
        return self.scale(self.attention(x, x))[:, 0]


def test_tensors_inside_of_layers_count():
    model = Attention()
    x = np.ones((1, 300, 4), "float32")
    model(x)
    scores = 4 * 4 * 300**2
    assert scores < bytes_a_row(model, x) < 5 * scores


def test_rows_follow_the_shape_of_the_examples(monkeypatch, rng):
    """Large examples go in a few at a time, small ones as ever."""
    seen = []

    @keras.saving.register_keras_serializable("tests")
    class Rows(layers.Layer):
        def call(self, x):
            seen.append(tuple(x.shape[:2]))
            return x

    inputs = keras.Input((None, 8))
    x = bayesnorm.StochasticScaleNorm(initial_stddev=0.3)(inputs)
    model = keras.Model(inputs, layers.GlobalAveragePooling1D()(Rows()(x)))
    monkeypatch.setattr(memory, "_BYTES", 2**20)
    arguments = {"samples": 5, "seed": 0, "task": "regression", "batch_size": 64}
    small = rng.normal(size=(64, 2, 8)).astype("float32")
    large = rng.normal(size=(64, 2000, 8)).astype("float32")
    for x, method in ((small, "sample"), (large, "sample"), (large, "mean")):
        seen.clear()
        got = bayesnorm.predict(model, x, method=method, **arguments)
        rows = {shape[0] for shape in seen} - {1}  # Of one it is foreseen.
        if x is small:
            assert rows == {320}
        else:
            # One such tensor is of 64 kB.
            assert max(rows, default=1) <= 16
        expected = bayesnorm.predict(
            model, x, method=method, chunk_size=1000, **arguments
        )
        np.testing.assert_allclose(got.mean, expected.mean, atol=1e-5)


def test_it_is_foreseen_once(monkeypatch, rng):
    calls = []
    operations = backend.operations
    monkeypatch.setattr(
        backend, "operations", lambda *a: calls.append(1) or operations(*a)
    )
    inputs = keras.Input((4,))
    model = keras.Model(inputs, bayesnorm.StochasticScaleNorm()(inputs))
    x = rng.normal(size=(9, 4)).astype("float32")
    for n in (9, 3, 9):
        bayesnorm.predict(model, x[:n], samples=2, task="regression")
    assert len(calls) == 1
