"""What a network costs: multiplications, and measured time."""

import math
import time

import keras
import numpy as np
from keras import layers, ops

from bayesnorm import backend
from bayesnorm.graph import apply, functional
from bayesnorm.layers.kernels import (
    LINEAR_LAYERS,
    TRANSPOSED_LAYERS,
    channel_axis,
)

# What is measured is the best of so many turns, each of so many seconds.
_TURNS, _SECONDS = 5, 0.1
# Sizes of the axes that a model leaves open, of which the first is taken that it runs
# with: windows without padding need more.
_OPEN_AXIS = 32
_OPEN_AXES = (_OPEN_AXIS, 128, 512)


def macs(layer, input_shape, output_shape):
    """Returns the multiplications of a linear layer for an example.

    Args:
        layer: A built dense or convolutional layer.
        input_shape: Shape of its input, the batch first.
        output_shape: Shape of its output.

    Returns:
        An integer; None where the number of positions is not known.
    """
    if isinstance(layer, layers.Embedding) or not isinstance(layer, LINEAR_LAYERS):
        return 0
    shape = input_shape if isinstance(layer, TRANSPOSED_LAYERS) else output_shape
    positions = shape[2:] if channel_axis(layer) == 1 else shape[1:-1]
    if None in positions:
        return None
    # Those of a quantized layer have scales beside them.
    kernels = [v for v in layer.weights if "kernel" in v.name and len(v.shape) > 1]
    return math.prod(positions) * sum(math.prod(v.shape) for v in kernels)


def random_inputs(model, batch, seed=0):
    """Returns random inputs of a model in its nest, standard normal or integers.

    Args:
        model: A model with a graph.
        batch: Number of examples, unless the model wants another one.
        seed: Integer.

    Raises:
        ValueError: If the model does not run on them, whatever its open axes are.
    """
    tensors = functional(model).inputs
    if not any(None in x.shape[1:] for x in tensors):
        return _random(model, batch, seed, _OPEN_AXIS)
    for size in _OPEN_AXES:
        inputs = _random(model, batch, seed, size)
        try:
            apply(model, inputs)
        except Exception as error:
            reason = error
        else:
            return inputs
    sizes = [tuple(x.shape) for x in tensors]
    raise ValueError(
        f"Model {model.name!r} does not run on random inputs: of its input shapes "
        f"{sizes} what is open was set to {list(_OPEN_AXES)} in turn. Make it with "
        "sizes that fit."
    ) from reason


def _random(model, batch, seed, open_axis):
    rng = np.random.default_rng(seed)

    def of(x):
        shape = [x.shape[0] or batch]
        shape += [open_axis if n is None else n for n in x.shape[1:]]
        if x.dtype == "string":
            return ops.convert_to_tensor(rng.integers(0, 2, shape).astype(str))
        if keras.backend.is_float_dtype(x.dtype):
            return ops.convert_to_tensor(rng.normal(size=shape), x.dtype)
        return ops.convert_to_tensor(rng.integers(0, 2, shape), x.dtype)

    return keras.tree.map_structure(of, functional(model).input)


def latencies(models, batch):
    """Measures how long models take for a batch of random inputs, compiled, in turns.

    Args:
        models: Dict from names to built models with a graph.
        batch: Number of examples.

    Returns:
        Dict from name to seconds, of the best turn.
    """
    runs = {}
    for name, model in models.items():
        function = backend.compiled(
            lambda x, model=model: apply(model, x), model.variables
        )
        runs[name] = function, random_inputs(model, batch)
    return best(runs)


def layer_latencies(layers_and_shapes, batch):
    """Measures how long layers take, each by itself, as `latencies` does.

    Args:
        layers_and_shapes: Dict from keys to `(layer, shape)`, the shape that of its
            input, the batch first.
        batch: Number of examples.

    Returns:
        Dict from key to seconds, of the best turn.
    """
    rng = np.random.default_rng(0)
    runs = {}
    for key, (layer, shape) in layers_and_shapes.items():
        sizes = [batch, *(_OPEN_AXIS if n is None else n for n in shape[1:])]
        x = ops.convert_to_tensor(rng.normal(size=sizes), layer.compute_dtype)
        runs[key] = backend.compiled(layer, layer.variables), x
    return best(runs)


def best(runs):
    """Measures functions in turns.

    Args:
        runs: Dict from keys to `(function, argument)`.

    Returns:
        Dict from key to seconds of a call, of the best turn.
    """
    for function, x in runs.values():
        _wait(function(x))  # Compiles.
    seconds = dict.fromkeys(runs, math.inf)
    for _ in range(_TURNS):
        for key, (function, x) in runs.items():
            seconds[key] = min(seconds[key], _seconds(function, x))
    return seconds


def _seconds(function, x):
    calls, start = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - start < _SECONDS:
        _wait(function(x))
        calls += 1
    return (time.perf_counter() - start) / calls


def _wait(outputs):
    for x in keras.tree.flatten(outputs):
        ops.convert_to_numpy(x)
