"""Keras's internals: every private name of Keras that the package uses.

Nothing else in the package reads a name of Keras with an underscore, or imports
`keras.src`. When Keras changes, `tests/graph/test_internals.py` says which moved.
"""

import contextlib
import dataclasses
from typing import Any

import keras
from keras.src.activations.activations import ReLU as ReluOperation
from keras.src.applications.convnext import LayerScale, StochasticDepth
from keras.src.applications.inception_resnet_v2 import CustomScaleLayer
from keras.src.backend import AutocastScope, get_keras_mask, set_keras_mask
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.export.export_utils import get_input_signature
from keras.src.ops import core as core_ops
from keras.src.ops import math as math_ops
from keras.src.ops import nn as nn_ops
from keras.src.ops import numpy as numpy_ops

__all__ = [
    "AutocastScope",
    "CustomScaleLayer",
    "LayerScale",
    "Node",
    "ReluOperation",
    "StochasticDepth",
    "attends_over_positions",
    "call_context",
    "core_ops",
    "functional",
    "get_input_signature",
    "get_keras_mask",
    "in_nest",
    "in_order",
    "inputs_struct",
    "is_graph",
    "is_symbolic",
    "lambda_output_shape",
    "layers_of",
    "math_ops",
    "nn_ops",
    "node_of",
    "nodes_of",
    "numpy_ops",
    "outputs_struct",
    "run_through",
    "set_keras_mask",
    "standardize",
    "takes_training",
    "unlocked",
]


@dataclasses.dataclass(frozen=True)
class Node:
    """A call of an operation in a graph of symbolic tensors.

    Attributes:
        operation: The layer, nested model or `keras.ops` operation.
        inputs: Its symbolic tensors that the call takes, a list.
        outputs: The symbolic tensors that it gives, a list.
        is_input: Whether it stands for an Input of a model.
        arguments: Keras's record of the call's arguments, of which `fill_in` takes a
            dict from `id(tensor)` to what stands in its place.
    """

    operation: Any
    inputs: list
    outputs: list
    is_input: bool
    arguments: Any

    @property
    def key(self):
        """A number that no other call has."""
        return id(self.outputs[0])


def functional(model):
    """Returns the Functional model behind `model`, None if it has no graph.

    A Functional model's subclass with its own `call` does not run its graph.
    """
    if isinstance(model, keras.Sequential):
        return model._functional
    if hasattr(model, "_run_through_graph"):
        own_call = type(model).call.__module__.split(".")[0] != "keras"
        return None if own_call else model
    return None


def is_graph(model):
    """Whether `model` is a Functional or a built Sequential model."""
    return functional(model) is not None


def layers_of(layer, recursive=True):
    """Returns the layer and those in it, each once, what holds one before it."""
    found = layer._flatten_layers(include_self=True, recursive=recursive)
    return list(dict.fromkeys(found))


def is_symbolic(tensor):
    """Whether a tensor is one of a graph, with a history."""
    return hasattr(tensor, "_keras_history")


def _as_node(node):
    return Node(
        node.operation,
        list(node.input_tensors),
        list(node.outputs),
        node.is_input,
        node.arguments,
    )


def node_of(tensor):
    """Returns `(node, index)`: the call that made a symbolic tensor, its place."""
    history = tensor._keras_history
    node = history.operation._inbound_nodes[history.node_index]
    return _as_node(node), history.tensor_index


def nodes_of(model):
    """Returns the calls of a model's own graph, in the order in which they run."""
    by_depth = functional(model)._nodes_by_depth
    return [
        _as_node(n) for depth in sorted(by_depth, reverse=True) for n in by_depth[depth]
    ]


def inputs_struct(model):
    """Returns the nest of symbolic tensors that a model with a graph takes."""
    return functional(model)._inputs_struct


def outputs_struct(model):
    """Returns the nest of symbolic tensors that a model with a graph gives."""
    return functional(model)._outputs_struct


def in_nest(model, inputs):
    """Returns inputs in the nest that a model takes, without which Keras warns.

    A model that is loaded may want a list of one where it was made of a single Input.
    """
    nest = inputs_struct(model) if is_graph(model) else None
    alone = not isinstance(inputs, list | tuple | dict)
    wants_list = isinstance(nest, list | tuple) and len(nest) == 1
    return [inputs] if alone and wants_list else inputs


def in_order(model, inputs):
    """Returns the nest of a model's call as the flat list that its graph takes.

    A model of a list of Inputs may be called with a dict of their names.
    """
    struct = inputs_struct(model)
    if isinstance(inputs, dict) and not isinstance(struct, dict):
        names = [x.name for x in keras.tree.flatten(struct)]
        if all(name in inputs for name in names):
            return [inputs[name] for name in names]
    return keras.tree.flatten(inputs)


def standardize(model, inputs):
    """Returns the inputs as the model's graph takes them: a flat list of tensors."""
    return functional(model)._standardize_inputs(inputs)


def run_through(model, inputs, operation_fn):
    """Runs a model's graph on a flat list, `operation_fn(operation)` for each call."""
    return functional(model)._run_through_graph(inputs, operation_fn=operation_fn)


def takes_training(operation):
    """Whether Keras hands `training` down to an operation of a graph."""
    # A registry from 3.12 on, a flag of the layer before.
    registered = getattr(operation, "_call_context_args", ())
    return "training" in registered or bool(
        getattr(operation, "_call_has_training_arg", False)
    )


def call_context(layer):
    """Returns an object that lives as long as the step in which `layer` is called.

    One scope of a stateless call (JAX: there every layer of a functional model
    begins a call context), else one call of the model.
    """
    return get_stateless_scope() or layer._get_call_context()


def lambda_output_shape(layer):
    """Returns the `output_shape` that a `Lambda` layer was made with."""
    return layer._output_shape


def attends_over_positions(layer):
    """Whether a MultiHeadAttention has no gate, window or axes of its own."""
    plain = not getattr(layer, "_use_gate", False)
    return plain and getattr(layer, "_sliding_window", None) is None


@contextlib.contextmanager
def unlocked(layer, variable=None):
    """Lets a built layer make variables, in the place of one that it has or None."""
    layer._tracker.unlock()
    if variable is not None:
        layer._untrack_variable(variable)
    try:
        yield
    finally:
        layer._tracker.lock()
