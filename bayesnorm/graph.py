"""Walking the graph of a Keras model, layer by layer."""

import keras


def is_graph(model):
    """Whether `model` is a Functional or a built Sequential model."""
    return _functional(model) is not None


def _functional(model):
    if isinstance(model, keras.Sequential):
        return model._functional
    return model if hasattr(model, "_run_through_graph") else None


def run_graph(model, inputs, call):
    """Computes `model(inputs)` with `call` in place of each layer's own call.

    Args:
        model: A Functional or built Sequential model.
        inputs: The model's inputs, in the nest that it takes.
        call: Function `(operation, *args, **kwargs) -> outputs` that is given each
            layer, nested model or `keras.ops` operation of the graph in turn. To go
            into a nested model it calls `run_graph` again.

    Returns:
        The outputs, in the nest that the model gives.

    Raises:
        ValueError: If the model has no graph.
    """
    functional = _functional(model)
    if functional is None:
        raise ValueError(
            f"Model {model.name!r} of type {type(model).__name__} has no graph: give "
            "a Functional model, or a Sequential one that starts with an Input or "
            "has been called on data."
        )

    def replace(operation):
        return lambda *args, **kwargs: call(operation, *args, **kwargs)

    # Functional's own call standardizes inputs (casts, adds missing axes) first.
    inputs = functional._standardize_inputs(inputs)
    return functional._run_through_graph(inputs, operation_fn=replace)
