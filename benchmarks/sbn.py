"""Time of calibrating and sampling stochastic batch normalization, as ratios.

```
python -m benchmarks.sbn                       # TensorFlow
KERAS_BACKEND=jax python -m benchmarks.sbn     # JAX, in its own environment
```

Calibration, of the joint law and of independent statistics, takes turns with an epoch
of plain forward passes over the same batches, in the same kind of loop.
`predict(samples=30)` with either law takes turns with 30 forward passes, and with MCBN,
which needs as many training batches besides.
"""

import warnings

import keras
import numpy as np
from absl import app, flags
from keras import ops

from bayesnorm import backend, models
from bayesnorm.layers.stochastic_batch_norm import stochastic_batch_normalizations
from bayesnorm.measurement.calibrate import calibrate
from bayesnorm.prediction.predict import predict
from bayesnorm.surgery.to_stochastic import to_stochastic
from benchmarks import timing

_NETWORK = flags.DEFINE_enum(
    "network",
    "resnet18",
    ["lenet5", "vgg11", "resnet18", "resnet50"],
    "Network; resnet50 is that of keras.applications, for images of 64x64.",
)
_WIDTH = flags.DEFINE_float("width", 0.5, "Width factor, not of resnet50.", 0.01)
_BATCH = flags.DEFINE_integer("batch", 16, "Examples of a training batch.", 1)
_BATCHES = flags.DEFINE_integer("batches", 60, "Batches of an epoch.", 2)
_EXAMPLES = flags.DEFINE_integer("examples", 256, "Examples to predict.", 1)
_SAMPLES = flags.DEFINE_integer("samples", 30, "Samples.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.", 1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")


def build():
    """Returns the network, of random weights."""
    if _NETWORK.value == "resnet50":
        return keras.applications.ResNet50(
            weights=None,
            input_shape=(64, 64, 3),
            classes=10,
            classifier_activation=None,
        )
    shape = (28, 28, 1) if _NETWORK.value == "lenet5" else (32, 32, 3)
    return getattr(models, _NETWORK.value)(shape, width=_WIDTH.value, seed=0)


def calibrated(network, data, law):
    """Returns a stochastic copy of a network with one of the laws."""
    with warnings.catch_warnings():
        # Of an untrained network the moving averages are no statistics.
        warnings.simplefilter("ignore")
        return calibrate(to_stochastic(network), data, _BATCH.value, law=law)


def main(argv):
    """Runs the benchmark and prints its tables."""
    del argv
    network = build()
    model, shape = to_stochastic(network, seed=0), network.input_shape[1:]
    rng = np.random.default_rng(0)
    size = _BATCHES.value * _BATCH.value
    data = rng.uniform(size=(size, *shape)).astype("float32")
    examples = rng.uniform(size=(_EXAMPLES.value, *shape)).astype("float32")
    forward = backend.compiled_loop(
        lambda i, carry, x: [ops.sum(model(x, training=False))], model.variables
    )

    def epoch():
        total = [ops.zeros(())]
        for start in range(0, size, _BATCH.value):
            total = forward(0, 1, total, data[start : start + _BATCH.value])
        ops.convert_to_numpy(total[0])

    joint, independent = (
        calibrated(network, data, law) for law in ("joint", "independent")
    )
    layers = stochastic_batch_normalizations(model)
    statistics = sum(2 * layer.moving_mean.shape[0] for layer in layers)
    width = "" if _NETWORK.value == "resnet50" else f", width {_WIDTH.value:g}"
    name = f"{_NETWORK.value}{width}, {statistics} statistics"
    calibration = timing.summarize(
        f"{name}: {_BATCHES.value} batches of {_BATCH.value}",
        timing.take_turns(
            {
                "forward epoch": epoch,
                "calibrate, joint": lambda: calibrate(joint, data, _BATCH.value),
                "calibrate, independent": lambda: calibrate(
                    independent, data, _BATCH.value, law="independent"
                ),
            },
            _ROUNDS.value,
        ),
        "forward epoch",
    )
    one_pass = backend.compiled(lambda x: model(x, training=False), model.variables)

    def passes():
        for _ in range(_SAMPLES.value):
            ops.convert_to_numpy(one_pass(examples))

    def predicted(stochastic, method, **arguments):
        return lambda: predict(
            stochastic,
            examples,
            _SAMPLES.value,
            method=method,
            seed=0,
            from_logits=True,
            batch_size=_EXAMPLES.value,
            verbose=False,
            **arguments,
        )

    sampling = timing.summarize(
        f"{name}: {_SAMPLES.value} samples of {_EXAMPLES.value} examples",
        timing.take_turns(
            {
                "passes": passes,
                "SBN, joint": predicted(joint, "sample"),
                "SBN, independent": predicted(independent, "sample"),
                "MCBN": predicted(joint, "minibatch", train_data=data),
            },
            _ROUNDS.value,
        ),
        "passes",
    )
    for summary in (calibration, sampling):
        print(timing.table(summary))
    timing.write(_OUTPUT.value, [calibration, sampling])


if __name__ == "__main__":
    app.run(main)
