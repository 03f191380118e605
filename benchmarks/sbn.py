"""Time of calibrating and sampling stochastic batch normalization, as ratios.

```
python -m benchmarks.sbn                       # TensorFlow
KERAS_BACKEND=jax python -m benchmarks.sbn     # JAX, in its own environment
```

Calibration takes turns with an epoch of plain forward passes over the same batches, in
the same kind of loop. `predict(samples=30)` takes turns with 30 forward passes, and
with MCBN, which needs as many training batches besides.
"""

import numpy as np
from absl import app, flags
from keras import ops

from bayesnorm import backend, models
from bayesnorm.measurement.calibrate import calibrate
from bayesnorm.prediction.predict import predict
from bayesnorm.surgery.to_stochastic import to_stochastic
from benchmarks import timing

_NETWORK = flags.DEFINE_enum(
    "network", "resnet18", ["lenet5", "vgg11", "resnet18"], "Network."
)
_WIDTH = flags.DEFINE_float("width", 0.5, "Width factor.", 0.01)
_BATCH = flags.DEFINE_integer("batch", 16, "Examples of a training batch.", 1)
_BATCHES = flags.DEFINE_integer("batches", 60, "Batches of an epoch.", 2)
_EXAMPLES = flags.DEFINE_integer("examples", 256, "Examples to predict.", 1)
_SAMPLES = flags.DEFINE_integer("samples", 30, "Samples.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.", 1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")


def main(argv):
    """Runs the benchmark and prints its tables."""
    del argv
    shape = (28, 28, 1) if _NETWORK.value == "lenet5" else (32, 32, 3)
    build = getattr(models, _NETWORK.value)
    model = to_stochastic(build(shape, width=_WIDTH.value, seed=0), seed=0)
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

    name = f"{_NETWORK.value}, width {_WIDTH.value:g}"
    calibration = timing.summarize(
        f"{name}: {_BATCHES.value} batches of {_BATCH.value}",
        timing.take_turns(
            {
                "forward epoch": epoch,
                "calibrate": lambda: calibrate(model, data, _BATCH.value),
            },
            _ROUNDS.value,
        ),
        "forward epoch",
    )
    network = backend.compiled(lambda x: model(x, training=False), model.variables)

    def passes():
        for _ in range(_SAMPLES.value):
            ops.convert_to_numpy(network(examples))

    def predicted(method, **arguments):
        return lambda: predict(
            model,
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
                "SBN": predicted("sample"),
                "MCBN": predicted("minibatch", train_data=data),
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
