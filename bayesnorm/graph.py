"""Walking the graph of a Keras model, layer by layer."""

import keras


def is_graph(model):
    """Whether `model` is a Functional or a built Sequential model."""
    return functional(model) is not None


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


def standardize(model, inputs):
    """Returns the inputs as the model's graph takes them: a flat list of tensors."""
    return functional(model)._standardize_inputs(inputs)


def run_graph(model, inputs, call, standardized=False):
    """Computes `model(inputs)` with `call` in place of each layer's own call.

    Args:
        model: A Functional or built Sequential model.
        inputs: The model's inputs, in the nest that it takes.
        call: Function `(operation, *args, **kwargs) -> outputs` that is given each
            layer, nested model or `keras.ops` operation of the graph in turn. To go
            into a nested model it calls `run_graph` again.
        standardized: Whether `inputs` is the flat list of what `standardize`
            returned, or of objects that stand for tensors.

    Returns:
        The outputs, in the nest that the model gives.

    Raises:
        ValueError: If the model has no graph.
    """
    graph = functional(model)
    if graph is None:
        raise ValueError(
            f"Model {model.name!r} of type {type(model).__name__} has no graph: give "
            "a Functional model, or a Sequential one that starts with an Input or "
            "has been called on data."
        )

    def replace(operation):
        return lambda *args, **kwargs: call(operation, *args, **kwargs)

    if not standardized:
        # Functional's own call casts its inputs and adds missing axes first.
        inputs = standardize(model, inputs)
    return graph._run_through_graph(inputs, operation_fn=replace)
