"""Time and memory of a step of each sampler, as ratios to SGD with momentum.

```
python -m benchmarks.sampler_steps                       # TensorFlow
KERAS_BACKEND=jax python -m benchmarks.sampler_steps     # JAX, in its own environment
```

Networks of the same build take turns, some steps each in one compiled call. Memory is
what an optimizer keeps for a weight, in bytes (a float32 is 4).
"""

import keras
import numpy as np
from absl import app, flags

from bayesnorm import datasets, models, samplers
from bayesnorm.training.loop import Config, Loop
from benchmarks import timing
from trainers.report.tables import table

_DEPTH = flags.DEFINE_integer("depth", 20, "Depth of ResNet++.", 11)
_WIDTH = flags.DEFINE_float("width", 1.0, "Its width factor.", 0.01)
_BATCH = flags.DEFINE_integer("batch", 128, "Examples of a step.", 1)
_STEPS = flags.DEFINE_integer("steps", 2, "Steps of a turn.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Turns of each.", 1)
_NAMES = flags.DEFINE_list(
    "optimizers", ["SGD", "Adam", "ATMC", "SGNHT", "SGHMC", "SGLD"], "What is timed."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")

_SHAPE, _CLASSES = (32, 32, 3), 10
_REFERENCE = "SGD"


def optimizer(name, num_examples):
    """Returns an optimizer by its name."""
    if name == _REFERENCE:
        return keras.optimizers.SGD(1e-4, momentum=0.9)
    if name == "Adam":
        return keras.optimizers.Adam(1e-4)
    # Steps that take the weights nowhere: SGLD's rate is the square of the others'.
    rate = 1e-12 if name == "SGLD" else 1e-6
    return getattr(samplers, name)(num_examples, rate, seed=0, verbose=False)


def loop_with(name, splits):
    """Returns a `Loop` of the network with an optimizer."""
    model = models.resnet_plus_plus(
        _SHAPE,
        _CLASSES,
        depth=_DEPTH.value,
        width=_WIDTH.value,
        num_examples=len(splits.train),
        seed=0,
    )
    steps = _STEPS.value
    config = Config(epochs=1, batch_size=_BATCH.value, steps_per_call=steps)
    return Loop(model, optimizer(name, len(splits.train)), splits, config)


def bytes_per_weight(loop):
    """Returns what the optimizer keeps for each trained number, in bytes."""
    weights = sum(np.prod(v.shape, dtype=int) for v in loop.model.trainable_variables)
    state = sum(
        np.prod(v.shape, dtype=int) * np.dtype(v.dtype).itemsize
        for v in loop.optimizer.variables
    )
    return state / weights


def main(argv):
    """Runs the benchmark and prints its tables."""
    del argv
    names = list(dict.fromkeys([_REFERENCE, *_NAMES.value]))
    rng = np.random.default_rng(0)
    count = _BATCH.value * _STEPS.value
    images = rng.normal(size=(count, *_SHAPE)).astype("float32")
    splits = datasets.from_arrays(*[(images, np.arange(count) % _CLASSES)] * 3)
    loops = {name: loop_with(name, splits) for name in names}
    turns = {
        name: (lambda loop=loop: loop.train_epoch(0)) for name, loop in loops.items()
    }
    seconds = timing.take_turns(turns, _ROUNDS.value)
    result = timing.summarize(
        f"ResNet++-{_DEPTH.value}, width {_WIDTH.value:g}, batch {_BATCH.value}: "
        "one step",
        seconds,
        _REFERENCE,
        per=_STEPS.value,
    )
    result["bytes"] = {name: bytes_per_weight(loop) for name, loop in loops.items()}
    print(timing.table(result))
    rows = [[name, f"{value:.1f}"] for name, value in result["bytes"].items()]
    print(table(["", "bytes a weight"], rows))
    timing.write(_OUTPUT.value, [result])


if __name__ == "__main__":
    app.run(main)
