"""Whether two models differ in nothing but their weights."""

import functools
import pathlib
import tempfile
import types

import keras
import numpy as np
from keras import ops

from bayesnorm.graph.internals import (
    inputs_struct,
    is_graph,
    is_symbolic,
    layers_of,
    node_of,
    nodes_of,
    outputs_struct,
)

_PLAIN = (bool, int, float, complex, str, bytes, np.generic, np.dtype)
# What a prediction does not depend on, or what is compared in its own place.
_APART = (
    keras.random.SeedGenerator,
    keras.initializers.Initializer,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
    keras.optimizers.Optimizer,
    keras.losses.Loss,
    keras.metrics.Metric,
    keras.InputSpec,
    keras.DTypePolicy,
)
# Whose layers say in their configuration what they compute.
_TRUSTED = ("keras", "bayesnorm")
_ENDINGS = ("initializer", "regularizer", "constraint")


def architecture_difference(first, second):
    """Says what two models differ in besides their weights.

    Names, seeds, losses and how weights start do not count. What cannot be compared (an
    object of the user's own in a layer of the user's own) counts as a difference.

    Args:
        first: A built model.
        second: Another one.

    Returns:
        None if the one with the weights of the other computes what the other does, else
        words.
    """
    return _Comparison(first, second).difference()


class _Comparison:
    def __init__(self, first, second):
        self._models = first, second
        self._layers = layers_of(first), layers_of(second)
        self._places = [
            {id(x): i for i, x in enumerate([*layers, *model.weights])}
            for layers, model in zip(self._layers, self._models, strict=True)
        ]
        # Pairs that are being compared, or were: what refers to itself has an end.
        self._met = {}

    def difference(self):
        a, b = self._layers
        if len(a) != len(b):
            return f"they have {len(a)} and {len(b)} layers"
        for both in zip(a, b, strict=True):
            what = self._of_layers(*both)
            if what is not None:
                return f"{what} of layers {both[0].name!r} and {both[1].name!r} differ"
        shapes = [[(v.shape, v.dtype) for v in m.weights] for m in self._models]
        return None if shapes[0] == shapes[1] else "the shapes of their weights differ"

    def _of_layers(self, a, b):
        """Returns the word for what two layers differ in, or None."""
        if type(a) is not type(b):
            return "the types"
        if a.trainable != b.trainable:
            return "the flags `trainable`"
        if a.dtype_policy.name != b.dtype_policy.name:
            return "the precisions"
        if is_graph(a) != is_graph(b) or (is_graph(a) and not self._one_graph(a, b)):
            return "the graphs"
        if not is_graph(a) and not self._same(_config(a), _config(b)):
            return "the configurations"
        if not self._same(_attributes(a), _attributes(b)):
            return "the attributes"
        return None if _assets(a) == _assets(b) else "the assets (a vocabulary, say)"

    def _one_graph(self, a, b):
        nodes = nodes_of(a), nodes_of(b)
        if len(nodes[0]) != len(nodes[1]):
            return False
        calls = []
        for model, own in zip((a, b), nodes, strict=True):
            numbers = {}
            for node in own:
                for x in node.outputs:
                    numbers[id(x)] = _Tensor(len(numbers), x.shape, x.dtype)
            nests = (
                [(n.arguments.args, n.arguments.kwargs) for n in own if not n.is_input],
                inputs_struct(model),
                outputs_struct(model),
            )
            calls.append(
                keras.tree.map_structure(
                    lambda x, numbers=numbers: numbers.get(id(x), x), nests
                )
            )
        operations = [[node.operation for node in own] for own in nodes]
        return self._same(operations[0], operations[1]) and self._same(*calls)

    def _same(self, a, b):
        if a is b:
            return True
        if isinstance(a, types.FunctionType) and isinstance(b, types.FunctionType):
            return self._once(self._one_function, a, b)
        if type(a) is not type(b):
            return False
        if isinstance(a, keras.Layer | keras.Variable):
            return self._one_place(a, b)
        if isinstance(a, keras.KerasTensor):
            return self._once(self._one_source, a, b)
        if isinstance(a, keras.Operation):
            return self._same(_config(a), _config(b)) and self._same(
                _attributes(a), _attributes(b)
            )
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(self._same(a[k], b[k]) for k in a)
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(map(self._same, a, b))
        if isinstance(a, functools.partial):
            parts = [(x.func, x.args, x.keywords) for x in (a, b)]
            return self._same(*parts)
        if isinstance(a, np.ndarray):
            return a.dtype == b.dtype and np.array_equal(a, b)
        if ops.is_tensor(a):
            return self._same(ops.convert_to_numpy(a), ops.convert_to_numpy(b))
        if isinstance(a, (*_PLAIN, _Tensor)):
            return a == b
        if isinstance(a, set | frozenset):
            return all(isinstance(x, _PLAIN) for x in (*a, *b)) and a == b
        return _is_apart(a)

    def _once(self, compare, a, b):
        if (id(a), id(b)) not in self._met:
            self._met[id(a), id(b)] = True
            self._met[id(a), id(b)] = compare(a, b)
        return self._met[id(a), id(b)]

    def _one_place(self, a, b):
        first, second = self._places
        return first.get(id(a)) == second.get(id(b))

    def _one_function(self, a, b):
        """Whether two functions were made by one line of code, of the same values."""
        if a.__code__ != b.__code__ or a.__globals__ is not b.__globals__:
            return False
        held = []
        for function in (a, b):
            # An empty cell has no contents.
            cells = [getattr(x, "cell_contents", x) for x in function.__closure__ or ()]
            held.append((cells, function.__defaults__, function.__kwdefaults__))
        return self._same(*held)

    def _one_source(self, a, b):
        """Whether symbolic tensors that a layer keeps are computed within the models.

        What a layer before the model's own Input computes has weights of its own.
        """
        if (a.shape, a.dtype) != (b.shape, b.dtype) or is_symbolic(a) != is_symbolic(b):
            return False
        if not is_symbolic(a):
            return True
        (first, i), (second, j) = node_of(a), node_of(b)
        if first.is_input or second.is_input:
            return first.is_input and second.is_input
        if isinstance(first.operation, keras.Layer) and (
            id(first.operation) not in self._places[0]
        ):
            return False
        return (
            i == j
            and self._same(first.operation, second.operation)
            and self._same(first.inputs, second.inputs)
        )


class _Tensor(tuple):
    """A tensor of a graph, known by its number."""

    __slots__ = ()

    def __new__(cls, *values):
        return super().__new__(cls, values)


def _config(operation):
    try:
        return _without_names(operation.get_config())
    except Exception:
        # None of the user's own: then attributes alone tell, and all of them count.
        return None


def _without_names(config):
    if isinstance(config, dict):
        return {
            k: _without_names(v)
            for k, v in config.items()
            if k not in ("name", "seed") and not str(k).endswith(_ENDINGS)
        }
    if isinstance(config, list | tuple):
        return [_without_names(v) for v in config]
    return config


def _root(x):
    return type(x).__module__.split(".")[0]


def _attributes(operation):
    """The functions and tensors in a layer; all that is in one of the user's own."""
    trusted = _root(operation) in _TRUSTED
    return {
        name: value
        for name, value in vars(operation).items()
        # What `compile` and `fit` leave is not there in a model that was loaded.
        if name not in _own_attributes()
        and value is not None
        and not _is_apart(value)
        and not name.endswith(_ENDINGS)
        and not name.startswith("_self_")  # TensorFlow's, for its checkpoints.
        # Keras wraps methods, and keeps these in the instance.
        and not callable(getattr(type(operation), name, None))
        and (not trusted or isinstance(value, types.FunctionType) or _tensors(value))
    }


def _is_apart(value):
    compared = (keras.Operation, keras.Variable, keras.KerasTensor, list, dict, set)
    return isinstance(value, _APART) or (
        _root(value) == "keras" and not isinstance(value, compared)
    )


def _tensors(value):
    return isinstance(value, list) and any(
        isinstance(x, keras.KerasTensor) for x in value
    )


@functools.cache
def _own_attributes():
    """The names of what Keras keeps in layers and models, and of seeds."""
    bare = keras.Layer(name="bare"), keras.Model(name="bare")
    later = "_build_shapes_dict", "_compiled_trainable_state", "stop_training", "seed"
    return {*vars(bare[0]), *vars(bare[1]), *later}


def _assets(layer):
    """What a layer saves besides its weights, bytes by the name of the file."""
    if not hasattr(layer, "save_assets"):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        layer.save_assets(folder)
        files = [x for x in pathlib.Path(folder).rglob("*") if x.is_file()]
        return {str(x.relative_to(folder)): x.read_bytes() for x in files}
