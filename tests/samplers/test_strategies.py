"""Samplers under a strategy of TensorFlow, in a process of two logical devices."""

import subprocess
import sys

import pytest

from tests.helpers import long

_REPLICAS = """
import sys, keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
from bayesnorm import priors, samplers
rng = np.random.default_rng(0)
x = rng.normal(size=(64, 6)).astype("float32")
y = (x[:, :1] > 0).astype("float32")

def trained(kind):
    keras.utils.set_random_seed(0)
    prior = priors.Normal(64)
    model = keras.Sequential([
        keras.Input((6,)),
        keras.layers.Dense(8, "tanh", kernel_regularizer=prior),
        keras.layers.Dense(1, kernel_regularizer=prior),
    ])
    model.compile(
        kind(64, seed=3, verbose=False), keras.losses.BinaryCrossentropy(True)
    )
    model.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0)
    return [v.value for v in model.weights + model.optimizer.variables]

for name in sys.argv[1:]:
    kind = getattr(samplers, name)
    one = trained(kind)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        two = [[copy.numpy() for copy in value.values] for value in trained(kind)]
    for a, (b, c) in zip(one, two, strict=True):
        np.testing.assert_array_equal(b, c)
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-5, atol=1e-6)
    print(name, len(two))
"""


# Weights, the number of the step, the rate, readings, momenta, thermostats.
@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "counts", [{"ATMC": 18}, long({"SGNHT": 18, "SGHMC": 14, "SGLD": 10})]
)
def test_replicas_have_equal_states_and_take_the_steps_of_one_device(counts):
    command = [sys.executable, "-c", _REPLICAS, *counts]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    lines = [line.split() for line in run.stdout.splitlines() if " " in line]
    assert lines == [[name, str(count)] for name, count in counts.items()]
