"""Time of a training step of each normalization, as ratios in one run.

```
python -m benchmarks.layers                       # TensorFlow
KERAS_BACKEND=jax python -m benchmarks.layers     # JAX, in its own environment
```

The variants of a network take turns, some steps each in one compiled call, so
that whatever else the machine does falls on all of them; the ratio to batch
normalization is taken turn by turn.
"""

import keras
import numpy as np
from absl import app, flags

from bayesnorm import datasets, models
from bayesnorm.models.blocks import NormalizedBlocks
from bayesnorm.training.loop import Config, Loop
from bayesnorm.training.optimization import make_optimizer
from benchmarks import timing

_NETWORK = flags.DEFINE_enum("network", "all", ["all", "all_cnn", "small"], "Network.")
_WIDTH = flags.DEFINE_float("width", 1.0, "Width factor of the All-CNN.", 0.01)
_BATCH = flags.DEFINE_multi_integer("batch", [32], "Examples of a step.", 1)
_STEPS = flags.DEFINE_integer("steps", 5, "Steps of a turn.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of each variant.", 1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")

# name -> (norm, scale)
VARIANTS = {
    "batch": ("batch", "plain"),
    "none": (None, "plain"),
    "weight": ("weight", "plain"),
    "weight + stochastic": ("weight", "stochastic"),
    "analytic": ("analytic", "plain"),
    "analytic + stochastic": ("analytic", "stochastic"),
}


def small_net(norm, scale, classes=10):
    """Three convolutions and a dense layer, 28x28 images."""
    block = NormalizedBlocks(norm, scale, seed=0)
    x = inputs = keras.Input((28, 28, 1))
    for i, filters in enumerate((16, 32, 32)):
        x = block(x, keras.layers.Conv2D, filters, 3, strides=2, name=f"conv{i}")
        x = keras.layers.ReLU()(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, block(x, keras.layers.Dense, classes, name="dense"))


def networks():
    """Yields `(name, builder of (norm, scale), shape of an image)`."""
    if _NETWORK.value in ("all", "all_cnn"):

        def all_cnn(norm, scale):
            return models.all_cnn(
                norm=norm, scale=scale, projection=False, width=_WIDTH.value, seed=0
            )

        yield f"All-CNN, width {_WIDTH.value:g}", all_cnn, (32, 32, 3)
    if _NETWORK.value in ("all", "small"):
        yield "small net", small_net, (28, 28, 1)


def _turn(model, shape, batch, steps):
    """Returns a function that takes `steps` training steps."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch * steps, *shape)).astype("float32")
    labels = np.arange(batch * steps) % 10
    splits = datasets.from_arrays(*[(images, labels)] * 3)
    config = Config(epochs=1, batch_size=batch, steps_per_call=steps)
    loop = Loop(model, make_optimizer("sgd"), splits, config)
    return lambda: loop.train_epoch(0, learning_rate=1e-4)


def main(argv):
    """Runs the benchmark and prints a table for each network and batch size."""
    del argv
    results = []
    for name, build, shape in networks():
        for batch in _BATCH.value:
            turns = {
                variant: _turn(build(*arguments), shape, batch, _STEPS.value)
                for variant, arguments in VARIANTS.items()
            }
            seconds = timing.take_turns(turns, _ROUNDS.value)
            title = f"{name}, batch {batch}: one training step"
            results.append(timing.summarize(title, seconds, "batch", per=_STEPS.value))
            print(timing.table(results[-1]), flush=True)
    timing.write(_OUTPUT.value, results)


if __name__ == "__main__":
    app.run(main)
