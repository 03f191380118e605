"""Sampled networks: a model run once for many draws of its noise.

One sample is one network. The networks of a pass are stacked along the batch
axis, samples first: `[samples * batch, ...]`. What comes before the first noisy
layer does not depend on the sample: it is computed once, on `[batch, ...]`, and
repeated only where it meets noise.
"""

import dataclasses
import math
from typing import Any

import keras
from keras import ops

from bayesnorm import backend
from bayesnorm.graph import (
    apply,
    enters,
    functional,
    is_graph,
    layers_of,
    run,
    standardize,
)
from bayesnorm.graph.internals import get_keras_mask, set_keras_mask
from bayesnorm.layers.noise import noise_mode, stochastic_layers


class Noise:
    """The draws that the networks of a model consist of.

    Args:
        model: A built model.

    Attributes:
        size: Number of draws of a network.
    """

    def __init__(self, model):
        self._starts, self.size = {}, 0
        for layer in stochastic_layers(model):
            for name, shape in layer.noise_shapes.items() if layer.built else ():
                key = _key(layer, name, shape)
                if key not in self._starts:
                    self._starts[key] = self.size
                    self.size += math.prod(shape)

    def draw(self, seed, numbers):
        """Returns the draws of networks, functions of the seed and number alone.

        Args:
            seed: Seed `[2]`.
            numbers: Integers `[networks]`, the numbers of the samples.

        Returns:
            Standard normals `[networks, size]`.
        """
        return ops.map(lambda number: self.network(seed, number), numbers)

    def network(self, seed, number):
        """Returns the draws `[size]` of one network."""
        return backend.stateless_normal((self.size,), backend.fold_in(seed, number))

    def mode(self, draws):
        """Returns the noise mode that hands out `draws`.

        Args:
            draws: Standard normals `[networks, size]`; the rows of a layer's input
                belong to the networks in equal, consecutive parts.
        """

        def supply(layer, name, shape, batch_size):
            networks, size = ops.shape(draws)[0], math.prod(shape)
            start = self._starts[_key(layer, name, shape)]
            rows = ops.expand_dims(draws[:, start : start + size], 1)
            rows = ops.broadcast_to(rows, (networks, batch_size // networks, size))
            return ops.reshape(rows, (-1, *shape))

        return noise_mode(supply)


def _key(layer, name, shape):
    return (name, shape) if name in layer.shared_noise else (id(layer), name)


_NOISY = object()


@dataclasses.dataclass
class _Done:
    """Outputs of an operation that no noise reaches."""

    outputs: Any


@dataclasses.dataclass
class _Repeat:
    """Mark of an operation to run for each sample."""


@dataclasses.dataclass
class Prefix:
    """What `run_prefix` found and computed, operation by operation."""

    steps: list


@dataclasses.dataclass
class _Value:
    """A tensor of the graph, and whether it is stacked over the samples."""

    tensor: Any
    stacked: bool


def run_prefix(model, inputs):
    """Computes the part of a model that no noise reaches.

    Args:
        model: A built model.
        inputs: Its inputs, `[batch, ...]`.

    Returns:
        The `Prefix`, to give to `run_networks` with the same inputs; None if the
        model shows no graph.
    """
    return _prefix(model, inputs)[1] if is_graph(model) else None


def _prefix(model, inputs):
    steps = []

    def call(operation, *args, **kwargs):
        if any(x is _NOISY for x in keras.tree.flatten((args, kwargs))):
            steps.append(_Repeat())
        elif not _draws(operation):
            steps.append(_Done(operation(*args, **kwargs)))
            return steps[-1].outputs
        elif enters(operation, args, kwargs):
            outputs, prefix = _prefix(operation, args[0])
            steps.append(prefix)
            return outputs
        else:
            steps.append(_Repeat())
        return [_NOISY] * len(keras.tree.flatten(operation.output))

    return run(model, inputs, call), Prefix(steps)


def _draws(operation):
    return isinstance(operation, keras.Layer) and bool(stochastic_layers(operation))


def run_networks(model, inputs, prefix, samples):
    """Computes a model's outputs for several networks, inside `Noise.mode`.

    Args:
        model: A built model.
        inputs: Its inputs, `[batch, ...]`.
        prefix: What `run_prefix` returned.
        samples: Number of networks, an integer or a scalar tensor.

    Returns:
        The list of its outputs, `[samples * batch, ...]`.
    """
    if prefix is None:
        inputs = keras.tree.map_structure(lambda x: _stack(x, samples), inputs)
        return keras.tree.flatten(apply(model, inputs))
    outputs = keras.tree.flatten(_networks(model, inputs, prefix, samples))
    return [x.tensor if x.stacked else _stack(x.tensor, samples) for x in outputs]


def check_any_batch(model):
    """Checks that a model takes batches of any size, as stacked networks need.

    Raises:
        ValueError: If its Inputs fix the size, or a layer keeps a state for each row.
    """
    fixed = [x.shape[0] for x in functional(model).inputs] if is_graph(model) else []
    if any(size is not None for size in fixed):
        raise ValueError(
            f"Model {model.name!r} has Inputs of a fixed batch size ({fixed[0]}), and "
            "networks are stacked along the batch. Make it with keras.Input(shape=...) "
            "without batch_size."
        )
    stateful = [
        layer.name
        for layer in layers_of(model)
        if isinstance(layer, keras.layers.RNN) and layer.stateful
    ]
    if stateful:
        raise ValueError(
            f"Layers {', '.join(stateful)} of model {model.name!r} keep a state from "
            "batch to batch (stateful=True), which is of no single network. Make them "
            "with stateful=False."
        )


def _networks(model, inputs, prefix, samples):
    steps = iter(prefix.steps)

    def call(operation, *args, **kwargs):
        step = next(steps)
        if isinstance(step, _Done):
            return _values(step.outputs, stacked=False)
        if isinstance(step, Prefix):
            nested = keras.tree.map_structure(lambda value: value.tensor, args[0])
            return _networks(operation, nested, step, samples)
        args, kwargs = keras.tree.map_structure(stacked, (args, kwargs))
        return _values(operation(*args, **kwargs), stacked=True)

    def stacked(value):
        if not isinstance(value, _Value):
            return value  # An argument that is not a tensor of the graph.
        return value.tensor if value.stacked else _stack(value.tensor, samples)

    inputs = _values(standardize(model, inputs), stacked=False)
    return run(model, inputs, call, standardized=True)


def _values(tensors, stacked):
    return keras.tree.map_structure(lambda x: _Value(x, stacked), tensors)


def _stack(tensor, samples):
    """Repeats a batch `samples` times, as a whole: `[samples * batch, ...]`."""
    if not len(tensor.shape):
        return tensor
    if isinstance(samples, int) and samples == 1:
        return tensor
    stacked = ops.tile(tensor, (samples,) + (1,) * (len(tensor.shape) - 1))
    mask = get_keras_mask(tensor)
    if mask is not None:
        set_keras_mask(stacked, _stack(mask, samples))
    return stacked
