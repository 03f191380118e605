"""Channels through the graph of a model."""

import keras

from bayesnorm.graph import by_position, functional, in_order, is_graph, run
from bayesnorm.pruning.channels import Channels, Trace
from bayesnorm.pruning.registry import copied, rule_for

INPUT, OUTPUT = "an input of the model", "an output of the model"


class RefusedError(Exception):
    """Raised by a rule that cannot follow channels; its text says why."""


def follow(model):
    """Returns the `Trace` of a model.

    Args:
        model: A Functional or built Sequential model; models inside it are gone into.
    """
    trace = Trace()
    inputs = []
    for x in functional(model).inputs:
        channels = trace.fresh(
            tuple(x.shape), -1, keras.backend.standardize_dtype(x.dtype)
        )
        trace.pin(channels.ids, model, INPUT)
        inputs.append(channels)
    outputs = _through(trace, model, inputs)
    for channels in _channels_in(outputs):
        trace.pin(channels.ids, model, OUTPUT)
    return trace


def _through(trace, model, inputs):
    def call(operation, *args, **kwargs):
        # Channels are those of inference, and masks do not change them.
        for channels in _channels_in(kwargs.get("mask")):
            trace.pin(channels.ids, operation, "takes them for a mask")
        kwargs = {k: v for k, v in kwargs.items() if k not in ("training", "mask")}
        args, kwargs = by_position(operation, args, kwargs)
        taken = _channels_in((args, kwargs))
        if is_graph(operation):
            taken = in_order(operation, args[0])
            outputs = _through(trace, operation, taken)
        else:
            outputs = _of_call(trace, operation, args, kwargs)
        _note(trace, operation, taken, _channels_in(outputs))
        return outputs

    return run(model, inputs, call, standardized=True)


def _channels_in(nest):
    return [x for x in keras.tree.flatten(nest) if isinstance(x, Channels)]


def _of_call(trace, operation, args, kwargs):
    rule = rule_for(operation)
    reason = f"no rule for {type(operation).__name__}"
    if rule is not None:
        try:
            return rule.follow(trace, operation, *args, **kwargs)
        except RefusedError as error:
            reason = str(error)
    return opaque(trace, operation, reason, *args, **kwargs)


def opaque(trace, operation, reason, *args, **kwargs):
    """The outputs of a call in which all channels must stay as they are."""
    for channels in _channels_in((args, kwargs)):
        trace.pin(channels.ids, operation, reason)

    def symbol(x):
        return keras.KerasTensor(x.shape, x.dtype) if isinstance(x, Channels) else x

    args, kwargs = keras.tree.map_structure(symbol, (args, kwargs))

    def pinned(x):
        if not isinstance(x, keras.KerasTensor):
            return x
        channels = trace.fresh(tuple(x.shape), -1, x.dtype)
        trace.pin(channels.ids, operation, reason)
        return channels

    outputs = operation.compute_output_spec(*args, **kwargs)
    return keras.tree.map_structure(pinned, outputs)


def _note(trace, operation, inputs, outputs):
    """Records a call; ties it to earlier ones of what is thinned in one way alone."""
    earlier = trace.calls.get(id(operation))
    one_way = is_graph(operation) or getattr(operation, "weights", None)
    if not one_way:
        rule = rule_for(operation)
        one_way = rule is not None and rule.thin is not copied
    if earlier and one_way:
        first = (*earlier[0][0], *earlier[0][1])
        for one, other in zip(first, (*inputs, *outputs), strict=True):
            if len(one.ids) == len(other.ids):
                trace.tie(one.ids, other.ids)
            else:
                for channels in (one, other):
                    trace.pin(
                        channels.ids, operation, "shared by inputs of several widths"
                    )
    trace.record(operation, inputs, outputs)
