"""What the outputs of a model are: classes, labels or numbers; logits or not."""

import dataclasses
import functools
from typing import Any

import keras

from bayesnorm.arguments import check_choice, check_number
from bayesnorm.graph import Index, functional, is_graph, output_nest

TASKS = ("classification", "multilabel", "regression")
# Layers behind an activation that move its values, one by one.
_MOVES = (
    keras.layers.Reshape,
    keras.layers.Flatten,
    keras.layers.Dropout,
    keras.layers.Cropping1D,
    keras.layers.Cropping2D,
    keras.layers.Cropping3D,
)
# The outputs of a log-softmax are logits too: softmax(log p) = p.
_ACTIVATIONS = {"softmax": False, "sigmoid": False, "log_softmax": True}
_LOSSES_OF_CLASSES = (
    keras.losses.CategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
    keras.losses.SparseCategoricalCrossentropy,
)
_LOSSES_OF_LABELS = (
    keras.losses.BinaryCrossentropy,
    keras.losses.BinaryFocalCrossentropy,
)
_FUNCTIONS_OF_CLASSES = (
    keras.losses.categorical_crossentropy,
    keras.losses.categorical_focal_crossentropy,
    keras.losses.sparse_categorical_crossentropy,
)
_FUNCTIONS_OF_LABELS = (
    keras.losses.binary_crossentropy,
    keras.losses.binary_focal_crossentropy,
)


@dataclasses.dataclass(frozen=True)
class Output:
    """One output of a model.

    Attributes:
        name: Its name, None for the only one of a model that gives no dict.
        task: One of `TASKS`.
        from_logits: Whether it gives logits, or else probabilities; None for a
            regression.
    """

    name: str | None
    task: str
    from_logits: bool | None

    def entry(self, name):
        """Returns what the entry `name` is called beside those of other outputs."""
        return name if self.name is None else f"{self.name}_{name}"


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The outputs of a model.

    Attributes:
        nest: The nest in which the model gives them.
        each: Tuple of an `Output` for each.
    """

    nest: Any
    each: tuple

    def pack(self, values):
        """Returns one value for each output in the nest of the predictions.

        That is the model's, a dict by name where the model gives a list.
        """
        if self.each[0].name is None:
            return values[0]
        if isinstance(self.nest, list | tuple):
            return {
                output.name: value
                for output, value in zip(self.each, values, strict=True)
            }
        return keras.tree.pack_sequence_as(self.nest, values)

    def by_output(self, argument, value):
        """Returns the list of what an argument says of each output.

        Args:
            argument: Its name.
            value: One thing for all outputs, or one for each: a dict by name or the
                nest of the outputs.

        Raises:
            ValueError: If it is of other outputs.
        """
        names = [output.name for output in self.each]
        return _by_output(argument, value, self.nest, names)


def temperatures_of(outputs, temperature):
    """Returns the temperature of each output, 1 for a regression.

    Args:
        outputs: The `Outputs`.
        temperature: A number above 0, or for each output one (None: 1); None for 1.

    Raises:
        ValueError: If it is something else, or of a regression.
    """
    several = isinstance(temperature, list | tuple | dict)
    values = outputs.by_output("temperature", temperature)
    tasks = [output.task for output in outputs.each]
    for value, task in zip(values, tasks, strict=True):
        if value is None:
            continue
        check_number("temperature", value, positive=True)
        if task == "regression" and (several or set(tasks) == {"regression"}):
            raise ValueError(
                "A temperature is of probabilities, and a regression has none. Leave "
                f"it out (None) for a regression. Received: temperature={temperature!r}"
            )
    return [
        1.0 if value is None or task == "regression" else float(value)
        for value, task in zip(values, tasks, strict=True)
    ]


def outputs_of(model, inputs, task="classification", from_logits=None):
    """Finds out what a model's outputs are.

    Args:
        model: A built model.
        inputs: Inputs of the model, arrays or `keras.KerasTensor`s: a model without a
            graph is called on them.
        task: One of `TASKS`; or for each output one, in the nest of the outputs, a
            list or a dict by name.
        from_logits: Boolean, whether the outputs of a classifier are logits; None to
            read it off the last activation (softmax, sigmoid, log-softmax), or else
            off the loss that the model was compiled with. Or for each output one.

    Returns:
        The `Outputs`.

    Raises:
        ValueError: If neither activation nor loss tells, or what they tell
            contradicts the arguments.
    """
    nest = output_nest(model, inputs)
    tensors, names = keras.tree.flatten(nest), _names(model, nest)
    tasks = _by_output("task", task, nest, names)
    answers = _by_output("from_logits", from_logits, nest, names)
    losses = _losses(model, nest, names)
    index, each = Index(model), []
    for i, (name, tensor) in enumerate(zip(names, tensors, strict=True)):
        check_choice("task", tasks[i], TASKS)
        from_logits = None
        if tasks[i] != "regression":
            where = f"model {model.name!r}" + (f", output {name!r}" if name else "")
            several = len(tensor.shape) > 1 and tensor.shape[-1] not in (None, 1)
            from_logits = _from_logits(
                where,
                tasks[i],
                several,
                answers[i],
                _last_activation(model, index, i),
                losses[i],
            )
        each.append(Output(name, tasks[i], from_logits))
    return Outputs(nest, tuple(each))


def only_output(model, inputs, from_logits=None):
    """Returns the `Output` of a classifier that has one, as `outputs_of` does.

    Raises:
        ValueError: If it has several outputs, too.
    """
    names = _names(model, output_nest(model, inputs))
    if len(names) > 1:
        raise ValueError(
            f"Model {model.name!r} has {len(names)} outputs ({', '.join(names)}); "
            "expected one. Make a model of the output that is meant: "
            "keras.Model(model.inputs, model.outputs[i])."
        )
    return outputs_of(model, inputs, from_logits=from_logits).each[0]


def _names(model, nest):
    """Names of the outputs in their order: keys of dicts, those of Keras in lists."""
    if not isinstance(nest, list | tuple | dict):
        return [None]
    paths = [path for path, _ in keras.tree.flatten_with_path(nest)]
    if isinstance(nest, dict):
        return ["_".join(map(str, path)) for path in paths]
    if len(paths) == 1:
        return [None]
    if not is_graph(model):
        return [f"output_{i}" for i in range(len(paths))]
    names = functional(model).output_names
    # A layer that gives several outputs, or is called twice, lends its name to all.
    return [
        name if names.count(name) == 1 else f"{name}_{names[:i].count(name)}"
        for i, name in enumerate(names)
    ]


def _by_output(argument, value, nest, names):
    """A list of what an argument says of each output."""
    if not isinstance(value, list | tuple | dict):
        return [value] * len(names)
    if isinstance(value, dict) and value.keys() == set(names):
        return [value[name] for name in names]
    try:
        found = []
        keras.tree.map_structure_up_to(nest, found.append, value)
        return found
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"`{argument}` must say one thing for all outputs, or one for each: a dict by "
        f"name or the nest of the outputs. Expected: {names}. Received: {value!r}"
    )


def _losses(model, nest, names):
    """A list of the losses that a model was compiled with, None where it was not."""
    loss = model.loss if getattr(model, "compiled", False) else None
    if not isinstance(loss, list | tuple | dict):
        return [loss] * len(names)
    if isinstance(loss, dict):
        # By the names of output layers, or by the keys of the outputs.
        known = functional(model).output_names if is_graph(model) else names
        found = [loss.get(a, loss.get(b)) for a, b in zip(names, known, strict=True)]
        if any(x is not None for x in found):
            return found
    flat = keras.tree.flatten(loss)
    return flat if len(flat) == len(names) else [None] * len(names)


def _from_logits(where, task, several, answer, activation, loss):
    """The `from_logits` of an output.

    Args:
        where: Words that name it.
        task: `"classification"` or `"multilabel"`.
        several: Whether its last axis has several entries.
        answer: What the user says, None to find out.
        activation: Name of the last activation or None.
        loss: What it was compiled with, or None.
    """
    of_logits, of_labels = _of_loss(loss)
    if several and task == "classification" and (of_labels or activation == "sigmoid"):
        raise ValueError(
            f"The outputs of {where} are several independent yes-or-no labels "
            "(sigmoids or a binary cross-entropy), not the classes of one. Pass "
            "task='multilabel' for the probability of each."
        )
    if task == "multilabel" and (of_labels is False or activation == "softmax"):
        raise ValueError(
            f"The outputs of {where} are the classes of one question (a softmax or a "
            "categorical cross-entropy), not independent labels. Leave task= at "
            "'classification'."
        )
    # Before the loss: Keras itself looks behind a softmax for the logits of a loss
    # with from_logits=True, and the outputs are probabilities all the same.
    found = _ACTIVATIONS.get(activation)
    if answer is not None:
        if found is not None and bool(answer) != found:
            kinds = "logarithms of probabilities" if found else "probabilities"
            raise ValueError(
                f"from_logits={bool(answer)}, but the outputs of {where} come from a "
                f"{activation}: they are {kinds}. Leave from_logits= out."
            )
        return bool(answer)
    found = of_logits if found is None else found
    if found is None:
        raise ValueError(
            f"Cannot tell whether the outputs of {where} are logits or probabilities: "
            "it is not compiled with a cross-entropy of Keras, and its last "
            f"activation is {activation!r}, neither softmax nor sigmoid. Pass "
            "from_logits=True (scores before the softmax or sigmoid) or "
            "from_logits=False (probabilities). For regression pass "
            "task='regression'."
        )
    return found


def _of_loss(loss):
    """Returns whether a loss takes logits, and labels; None where it does not say."""
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    keywords = {}
    if isinstance(loss, functools.partial):
        loss, keywords = loss.func, loss.keywords
    if isinstance(loss, keras.losses.Loss):
        from_logits = loss.get_config().get("from_logits")
        labels = isinstance(loss, _LOSSES_OF_LABELS)
        classes = isinstance(loss, _LOSSES_OF_CLASSES)
    else:
        labels = loss in _FUNCTIONS_OF_LABELS
        classes = loss in _FUNCTIONS_OF_CLASSES
        from_logits = keywords.get("from_logits", False if labels or classes else None)
    return (
        None if from_logits is None else bool(from_logits),
        labels if labels or classes else None,
    )


def _last_activation(model, index, i):
    """Name of the last activation of an output; None where there is no graph."""
    if not is_graph(model):
        return None
    tensor, name = functional(model).outputs[i], None
    # A nested model that is called twice has two makers of its Input: either will do.
    while calls := index.producers(tensor):
        operation, inputs = calls[0].operation, calls[0].inputs
        name = _activation(operation)
        moves = isinstance(operation, _MOVES) or (
            isinstance(operation, keras.layers.Activation) and name == "linear"
        )
        if not moves:
            break
        (tensor,) = inputs
    return name


def _activation(operation):
    if isinstance(operation, keras.layers.TimeDistributed):
        operation = operation.layer
    activation = getattr(operation, "activation", None)
    if callable(activation):
        return getattr(activation, "__name__", type(activation).__name__)
    # keras.layers.Softmax, and keras.ops.softmax as an operation of the graph.
    names = {"Softmax": "softmax", "Sigmoid": "sigmoid", "LogSoftmax": "log_softmax"}
    return names.get(type(operation).__name__, type(operation).__name__)
