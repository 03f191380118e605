"""Running the graph of a Keras model, layer by layer, as Keras would."""

import inspect

import keras

from bayesnorm.graph.internals import (
    functional,
    in_nest,
    is_graph,
    outputs_struct,
    run_through,
    standardize,
    takes_training,
)


def apply(model, inputs, training=False):
    """Returns `model(inputs, training=training)`, whatever nest the model wants."""
    return model(in_nest(model, inputs), training=training)


def build(model, batch):
    """Builds a model that is not built yet by calling it on an example."""
    if not model.built:
        apply(model, keras.tree.map_structure(lambda x: x[:1], batch))


def output_nest(model, inputs):
    """Returns the outputs of a model in their nest, of which structure and shape count.

    Args:
        model: A built model.
        inputs: Its inputs, on which one without a graph is called: arrays, or
            `keras.KerasTensor`s.
    """
    return outputs_struct(model) if is_graph(model) else apply(model, inputs)


def graph_of(model):
    """Returns the Functional model behind `model`.

    Raises:
        ValueError: If the model has no graph.
    """
    if not is_graph(model):
        raise ValueError(
            f"Model {model.name!r} of type {type(model).__name__} has no graph: give "
            "a Functional model, or a Sequential one that starts with an Input or "
            "has been called on data."
        )
    return functional(model)


def enters(operation, args, kwargs):
    """Whether a `call` of `run` may go into an operation by another `run`.

    With a mask, say, a nested model runs as one.
    """
    return is_graph(operation) and len(args) == 1 and kwargs.keys() <= {"training"}


def by_position(operation, args, kwargs):
    """Returns a call's arguments, the first of them by its position.

    Layers may be called as `layer(inputs=x)`.
    """
    if args:
        return args, kwargs
    name = next(iter(inspect.signature(operation.call).parameters), None)
    if name not in kwargs:
        return args, kwargs
    return (kwargs[name],), {k: v for k, v in kwargs.items() if k != name}


def run(model, inputs, call, standardized=False):
    """Computes `model(inputs, training=False)`, `call` in place of the layers' calls.

    As in Keras's inference `training=False` is handed to everything that takes it,
    over a `training=True` that was written into a node.

    Args:
        model: A Functional or built Sequential model.
        inputs: The model's inputs, in the nest that it takes.
        call: Function `(operation, *args, **kwargs) -> outputs` that is given each
            layer, nested model or `keras.ops` operation of the graph in turn. To go
            into a nested model it calls `run` again.
        standardized: Whether `inputs` is the flat list of what `standardize`
            returned, or of objects that stand for tensors.

    Returns:
        The outputs, in the nest that the model gives.

    Raises:
        ValueError: If the model has no graph.
    """
    graph_of(model)

    def replace(operation):
        inference = {"training": False} if takes_training(operation) else {}
        return lambda *args, **kwargs: call(operation, *args, **kwargs | inference)

    if not standardized:
        # Functional's own call casts its inputs and adds missing axes first.
        inputs = standardize(model, inputs)
    # TensorFlow lets no name begin with an underscore that stands in no other's scope.
    with keras.name_scope("network"):
        return run_through(model, inputs, replace)
