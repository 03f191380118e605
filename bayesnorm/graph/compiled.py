"""Functions compiled for a model, kept as long as they are right for it."""

import weakref

import keras

from bayesnorm import backend
from bayesnorm.graph.internals import layers_of

_kept = weakref.WeakKeyDictionary()


def compiled_for(model):
    """Returns the `Compiled` functions of a built model as it is now."""
    kept = _kept.get(model)
    if kept is None or not kept.serves(model):
        kept = _kept[model] = Compiled(model)
    return kept


class Compiled:
    """What is compiled for a model, without a reference to it.

    It serves until the model has other layers or variables, a layer is frozen or
    thawed, or the default precision changes: all that a compiled function depends on
    besides the values of its variables.

    Args:
        model: A built model.
    """

    def __init__(self, model):
        self._model = weakref.ref(model)
        self._variables = list(model.variables)
        self._settings = _settings(model)
        self._functions = {}
        self._found = {}

    def serves(self, model):
        """Whether the functions are right for the model as it is now."""
        variables = model.variables
        return (
            len(self._variables) == len(variables)
            and all(a is b for a, b in zip(self._variables, variables, strict=True))
            and self._settings == _settings(model)
        )

    def get(self, make, *arguments, writes=False):
        """Returns a function, compiled the first time that it is asked for.

        Args:
            make: Function `(model, *arguments)` that returns it; `model` is a weak
                reference, which what it returns is to hold as such.
            *arguments: What else it depends on, hashable.
            writes: Whether it writes the model's variables: it is then one step of
                `backend.compiled_step`, else it is `backend.compiled`.
        """
        key = (make, writes, *arguments)
        if key not in self._functions:
            compiler = backend.compiled_step if writes else backend.compiled
            function = make(self._model, *arguments)
            self._functions[key] = compiler(function, self._variables)
        return self._functions[key]

    def get_stateless(self, make, *arguments):
        """Returns a function of the values of the model's variables, compiled once.

        Args:
            make: As of `get`.
            *arguments: As of `get`.

        Returns:
            `run(values, *args) -> (outputs, values)`, the values as of `state_of`. The
            variables keep theirs, and it compiles once for each set of shapes.
        """
        key = (make, "stateless", *arguments)
        if key not in self._functions:
            function = _stateless(make(self._model, *arguments), self._variables)
            self._functions[key] = backend.compiled(function, ())
        return self._functions[key]

    def remember(self, key, find):
        """Returns what `find()` returned the first time that the key was asked for."""
        if key not in self._found:
            self._found[key] = find()
        return self._found[key]


def _stateless(function, variables):
    """Makes of a function that reads and writes variables one of their values."""

    def run(values, *args):
        mapping = zip(variables, values, strict=True)
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            outputs = function(*args)
        return outputs, [scope.get_current_value(v) for v in variables]

    return run


def state_of(model, weights=None):
    """Returns the values of a model's variables, tensors in their order.

    Args:
        model: A built model.
        weights: Tensors to stand there in the place of those of `model.weights`, in
            their order; None for its own.
    """
    given = {}
    if weights is not None:
        pairs = zip(model.weights, weights, strict=True)
        given = {id(variable): value for variable, value in pairs}
    return [
        given[id(v)] if id(v) in given else backend.read(v) for v in model.variables
    ]


def _settings(model):
    layers = [(weakref.ref(layer), layer.trainable) for layer in layers_of(model)]
    return layers, keras.config.floatx()
