"""Time of a Monte Carlo prediction, as ratios to passes through the network.

```
python -m benchmarks.predict                       # TensorFlow
KERAS_BACKEND=jax python -m benchmarks.predict     # JAX, in its own environment
```

`predict(samples=30)` takes turns with 30 calls of the compiled network on the same
batch, and `predict(method="moments")` with one; ratios are taken turn by turn.
"""

import keras
import numpy as np
from absl import app, flags

from bayesnorm import backend, models
from bayesnorm.models.blocks import NormalizedBlocks
from bayesnorm.prediction.predict import predict
from benchmarks import timing

_NETWORK = flags.DEFINE_enum("network", "all", ["all", "all_cnn", "small"], "Network.")
_WIDTH = flags.DEFINE_float("width", 1.0, "Width factor of the All-CNN.", 0.01)
_BATCH = flags.DEFINE_multi_integer("batch", [1, 32, 256], "Examples.", 1)
_SAMPLES = flags.DEFINE_integer("samples", 30, "Samples.", 1)
_CHUNK = flags.DEFINE_integer("chunk_size", None, "Rows of a pass of predict.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of each.", 1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")


def networks():
    """Yields `(title, model)`; the models return logits."""
    if _NETWORK.value in ("all", "all_cnn"):
        yield (
            f"All-CNN, width {_WIDTH.value:g}",
            models.all_cnn(projection=False, width=_WIDTH.value, seed=0),
        )
    if _NETWORK.value in ("all", "small"):
        block = NormalizedBlocks("weight", "stochastic", seed=0)
        x = inputs = keras.Input((64,))
        for i, units in enumerate((128, 128)):
            x = block(x, keras.layers.Dense, units, name=f"dense{i}")
            x = keras.layers.ReLU()(x)
        outputs = block(x, keras.layers.Dense, 10, name="dense2")
        yield "dense net 64-128-128-10", keras.Model(inputs, outputs)


def compare(title, model, batch):
    """Returns two summaries: samples against passes, moments against one pass."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, *model.input_shape[1:])).astype("float32")
    network = backend.compiled(
        lambda x: keras.ops.softmax(model(x, training=False)), model.variables
    )
    samples = _SAMPLES.value

    def passes(number):
        for _ in range(number):
            keras.ops.convert_to_numpy(network(x))

    def predicted(method):
        predict(
            model,
            x,
            samples,
            method,
            batch_size=batch,
            seed=0,
            from_logits=True,
            chunk_size=_CHUNK.value,
            verbose=False,
        )

    many, one = f"{samples} passes", "one pass"
    title = f"{title}, batch {batch}"
    seconds = timing.take_turns(
        {
            many: lambda: passes(samples),
            f"predict, {samples} samples": lambda: predicted("sample"),
        },
        _ROUNDS.value,
    )
    yield timing.summarize(title, seconds, many)
    seconds = timing.take_turns(
        {
            one: lambda: passes(1),
            "predict, mean": lambda: predicted("mean"),
            "predict, moments": lambda: predicted("moments"),
        },
        _ROUNDS.value,
    )
    yield timing.summarize(title, seconds, one)


def main(argv):
    """Runs the comparison."""
    del argv
    results = []
    for title, model in networks():
        for batch in _BATCH.value:
            for summary in compare(title, model, batch):
                results.append(summary)
                print(timing.table(summary), flush=True)
    timing.write(_OUTPUT.value, results)


if __name__ == "__main__":
    app.run(main)
