"""Moments through the graph of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from bayesnorm.arguments import check_model, check_number
from bayesnorm.graph import graph_of, run
from bayesnorm.graph.internals import inputs_struct, node_of, nodes_of
from bayesnorm.moments.moments import Moments, statistics_dtype
from bayesnorm.moments.registry import register, rule_for
from bayesnorm.types import Nest, Operation, Tensor


def propagate(
    model: keras.Model,
    mean: Nest[Tensor],
    var: Nest[Tensor],
    correlation: float = 1.0,
    axis: int = -1,
) -> Moments | Any:
    """Mean and variance of a model's outputs from those of its inputs.

    Args:
        model: A Functional or built Sequential model (models inside it are gone
            into).
        mean: Mean of the input; for several inputs the nest that the model takes.
            A number or a vector over the channels asks for the *data-set level*: one
            mean and variance for each channel at every layer. An array like a
            batch of inputs, `[batch, ...]`, asks for the law of each output *given
            the example*.
        var: Variance of the input, alike; a number is spread over `mean`'s
            shape.
        correlation: Data-set level: correlation between the neighbouring positions
            that a pooling layer takes together.
        axis: Data-set level: the channel axis of the inputs.

    Returns:
        `Moments` of the output, or a nest of them; `.mean` and `.variance` are
        tensors `[channels]`, or `[batch, ...]`.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model has no graph, a layer has no rule, the shapes do not
            fit the model's inputs, or `var` is a negative number.
    """
    check_model(model)
    functional = graph_of(model)
    inputs = functional.inputs
    means = _per_input(functional, mean, "mean")
    scalar = isinstance(var, int | float)
    if scalar:
        check_number("var", var)
    variances = [var] * len(inputs)
    if not scalar:
        variances = _per_input(functional, var, "var")
    declared = [
        _declared(x, m, v, correlation, axis)
        for x, m, v in zip(inputs, means, variances, strict=True)
    ]
    return _run(functional, declared)


def _per_input(functional, values, name):
    """A flat list of what stands in the places of the model's inputs."""
    if len(functional.inputs) == 1:
        return [values]
    flat = []
    try:
        keras.tree.map_structure_up_to(inputs_struct(functional), flat.append, values)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The model takes {len(functional.inputs)} inputs: give `{name}` in the "
            f"nest that the model takes. Received: {values!r}"
        ) from error
    return flat


def _declared(x, mean, variance, correlation, axis):
    """Moments of the Input `x` (a KerasTensor) from the user's values."""
    mean, variance = (
        ops.cast(ops.convert_to_tensor(v), statistics_dtype()) for v in (mean, variance)
    )
    rank = len(x.shape)
    stationary = len(mean.shape) <= 1 and rank > 1
    sizes = (x.shape[axis],) if stationary else tuple(x.shape)
    if len(mean.shape) and (
        len(mean.shape) != len(sizes)
        or any(n not in (None, m) for n, m in zip(sizes, mean.shape, strict=True))
    ):
        raise ValueError(
            f"Input {x.name!r} has shape {tuple(x.shape)}. Expected a mean of shape "
            f"() or {sizes[-1:]} (data-set level), or a batch of inputs. Received: "
            f"shape {tuple(mean.shape)}."
        )
    shape = tuple(x.shape) if stationary else tuple(mean.shape)
    return Moments(
        mean,
        ops.broadcast_to(variance, ops.shape(mean)),
        shape,
        stationary=stationary,
        axis=axis,
        correlation=correlation,
    )


def _run(model, inputs):
    """Runs the graph of a model on a flat list of Moments."""

    def call(operation, *args, **kwargs):
        return apply_rule(operation, args, kwargs)

    return run(model, inputs, call, standardized=True)


def apply_rule(
    operation: Operation, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Calls the rule of `operation` with the arguments of its call in the graph."""
    # Moments are those of inference, and masks do not change them.
    kwargs = {k: v for k, v in kwargs.items() if k not in ("training", "mask")}
    # By its scope an export finds the layer of an operation that a runtime lacks.
    with keras.name_scope(operation.name):
        return rule_for(operation)(operation, *args, **kwargs)


def check_rules(model: keras.Model) -> None:
    """Raises a ValueError if a layer of a model has no rule, and names it.

    Args:
        model: A Functional or built Sequential model (models inside it are gone
            into).
    """
    for node in nodes_of(graph_of(model)):
        if isinstance(node.operation, keras.Model):
            check_rules(node.operation)
        elif not node.is_input:
            rule_for(node.operation)


@register(keras.Model)
def _model(model, inputs):
    return _run(model, keras.tree.flatten(inputs))


def upstream_moments(
    keras_tensor: keras.KerasTensor,
    known: Mapping[str, Moments] | None = None,
    memo: dict[Any, Any] | None = None,
) -> Moments:
    """Data-set level moments of a tensor of a graph, from the layers before it.

    The walk goes up to the nearest layers that need no input moments (a
    normalization of their own), or to the model's Inputs, which count as
    standardized where nothing else is declared. Its cost does not depend on the
    batch.

    Args:
        keras_tensor: The symbolic tensor.
        known: Dict `{Input name: Moments}` of Inputs whose moments are declared, or
            None.
        memo: Dict that keeps what is computed, for several calls on one state of
            the weights; or None.

    Returns:
        `Moments`, stationary.

    Raises:
        ValueError: If a layer has no rule, or the moments cannot be known.
    """
    memo = {} if memo is None else memo
    for node in _upstream_nodes(keras_tensor):
        if all(id(x) in memo for x in node.outputs):
            continue
        operation = node.operation
        if node.is_input:
            outputs = [_input_moments(x, operation, known or {}) for x in node.outputs]
        elif not rule_for(operation).needs_inputs:
            unknown = {id(x): Moments(None, None, tuple(x.shape)) for x in node.inputs}
            outputs = apply_rule(operation, *node.arguments.fill_in(unknown))
        else:
            outputs = apply_rule(operation, *node.arguments.fill_in(memo))
        outputs = keras.tree.flatten(outputs)
        memo.update((id(x), y) for x, y in zip(node.outputs, outputs, strict=True))
    moments = memo[id(keras_tensor)]
    if not moments.known:
        raise ValueError(
            f"The mean and variance of {keras_tensor.name!r} are not known: a "
            "Rescaling layer before it changed the model's input, whose moments "
            "nobody declared. Put an adapted keras.layers.Normalization behind it."
        )
    return moments


def pooled_upstream_moments(
    keras_tensors: Sequence[keras.KerasTensor],
    known: Mapping[str, Moments] | None = None,
) -> Moments:
    """Moments of what several tensors of a graph hold together.

    Tensors that the same layers made of the same inputs count once: a growing
    Sequential model calls all its layers again with each `add`.

    Args:
        keras_tensors: Sequence of symbolic tensors with the same channels.
        known: As in `upstream_moments`.

    Returns:
        `Moments`: the mean of the means; the mean of the variances plus the
        variance of the means.
    """
    memo, seen = {}, {}
    distinct = {_signature(x, seen): x for x in keras_tensors}
    parts = [upstream_moments(x, known, memo) for x in distinct.values()]
    if len(parts) == 1:
        return parts[0]
    mean = sum(p.mean for p in parts) / len(parts)
    variance = sum(p.variance + ops.square(p.mean - mean) for p in parts) / len(parts)
    return parts[0].replace(mean=mean, variance=variance)


def _signature(keras_tensor, seen):
    """Returns a number that stands for how a tensor is computed.

    Args:
        keras_tensor: The symbolic tensor.
        seen: Dict, the numbers given so far; the same one for all that are compared.
    """
    numbers = {}
    for node in _upstream_nodes(keras_tensor):
        inputs = () if _ends_walk(node) else node.inputs
        made_of = tuple(numbers[id(x)] for x in inputs)
        for index, x in enumerate(node.outputs):
            key = (id(node.operation), index, made_of)
            numbers[id(x)] = seen.setdefault(key, len(seen))
    return numbers[id(keras_tensor)]


def check_upstream(keras_tensor: keras.KerasTensor) -> None:
    """Checks that `upstream_moments` has a rule for every layer it will meet.

    Computes nothing.

    Args:
        keras_tensor: The symbolic tensor.

    Raises:
        ValueError: If a layer has no rule.
    """
    for node in _upstream_nodes(keras_tensor):
        if not node.is_input:
            _check_operation(node.operation)


def _check_operation(operation):
    rule_for(operation)
    if isinstance(operation, keras.Model):
        for node in nodes_of(graph_of(operation)):
            if not node.is_input:
                _check_operation(node.operation)


def _upstream_nodes(keras_tensor):
    """Nodes that the moments of a tensor need, inputs first."""
    order, done = [], set()
    stack = [(_node(keras_tensor), False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
        elif node.key not in done:
            done.add(node.key)
            stack.append((node, True))
            if not _ends_walk(node):
                stack.extend((_node(x), False) for x in node.inputs)
    return order


def _ends_walk(node):
    return node.is_input or not rule_for(node.operation).needs_inputs


def _node(keras_tensor):
    return node_of(keras_tensor)[0]


def _input_moments(x, layer, known):
    for name in (layer.name, x.name):
        if name in known:
            return known[name]
    return Moments.standardized(x.shape, assumed=True)
