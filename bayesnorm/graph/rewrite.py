"""Copies of a model in which other layers stand in the place of some."""

import contextlib
import functools
import tempfile
import types
import warnings

import keras
import numpy as np
from keras import ops

from bayesnorm.graph.internals import (
    functional,
    is_graph,
    lambda_output_shape,
    layers_of,
)
from bayesnorm.graph.run import by_position

_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    functools.partial,
)


class Chain:
    """Layers that a call goes through one after the other; none: the identity.

    Args:
        layers: List of layers, or other functions of symbolic tensors.
        operation: The layer in whose place they are called; None for none.
    """

    def __init__(self, layers, operation=None):
        self.layers = list(layers)
        self._operation = operation

    def __call__(self, *args, **kwargs):
        """Calls the first with all arguments, each other with what came of it."""
        if self._operation is not None:
            args, kwargs = by_position(self._operation, args, kwargs)
        x, *args = args
        for i, layer in enumerate(self.layers):
            x = layer(x, *args, **kwargs) if i == 0 else layer(x)
        return x


class Finished(list):
    """Layers in the place of another one that have what weights they are to have."""


def rewrite(model, replace, input_shape=None):
    """Copies a model, with other layers in the place of some.

    Nested models are gone into; a layer that is used several times is replaced once,
    and used as often. Weights, the `trainable` flags of layers and of nested models,
    and the compilation are carried over, without the state of the optimizer.

    Args:
        model: A Functional or Sequential model.
        replace: Function of a layer or `keras.ops` operation, no model with a graph,
            that returns None to have it copied, or the list of layers that take its
            place, in order: none, one or several, or functions of symbolic tensors such
            as operations. The weights of a layer go to the one that takes its place,
            where there is one, and the list is not `Finished`; others have those that
            whoever made them gave them.
        input_shape: Function of a nested model that returns the shapes of its inputs, a
            list; None where they stay.

    Returns:
        The new model, which saves as `.keras` if its layers do.

    Raises:
        ValueError: If a layer cannot be copied.
    """
    copier = _Copier(replace, input_shape)
    with _uncompiled(model):
        new = copier.model(model)
    for old, layers in copier.replaced():
        if len(layers) == 1 and id(old) not in copier.finished:
            copy_weights(old, layers[0])
    _copy_trainable(copier)
    _copy_compilation(model, new)
    return new


class _Copier:
    def __init__(self, replace, input_shape):
        self._replace, self._input_shape = replace, input_shape
        self._chains, self._originals = {}, []
        # By their identity, layers in whose place stand `Finished` ones.
        self.finished = set()
        # `(model, copy)`, the nested ones before what holds them.
        self.models = []

    def replaced(self):
        """Yields `(layer, the layers in its place)`, of what is not gone into."""
        entered = {id(model) for model, _ in self.models}
        for layer in self._originals:
            # A model that is gone into is none, one without a graph is.
            if isinstance(layer, keras.Layer) and id(layer) not in entered:
                chain = self._chains[id(layer)].layers
                yield layer, [x for x in chain if isinstance(x, keras.Layer)]

    def model(self, model, shapes=None):
        if isinstance(model, keras.Sequential):
            new = self._sequential(model, shapes)
        else:
            inputs = None
            if shapes is not None:
                flat = map(_input_like, functional(model).inputs, shapes)
                inputs = keras.tree.pack_sequence_as(model.input, list(flat))
            new = keras.models.clone_model(model, inputs, self.chain)
        self.models.append((model, new))
        return new

    def _sequential(self, model, shapes):
        layers = [new for layer in model.layers for new in self.chain(layer).layers]
        if is_graph(model):
            (x,) = model.inputs
            given = _input_like(x, x.shape if shapes is None else shapes[0])
            if not all(isinstance(x, keras.Layer) for x in layers):
                return keras.Model(given, Chain(layers)(given), name=model.name)
            layers = [given, *layers]
        return keras.Sequential(layers, name=model.name)

    def chain(self, operation):
        """Returns the `Chain` for an operation: the same however often it is asked."""
        if id(operation) not in self._chains:
            # Kept, so that no other object gets its identity.
            self._originals.append(operation)
            self._chains[id(operation)] = Chain(self._new(operation), operation)
        return self._chains[id(operation)]

    def _new(self, operation):
        if is_graph(operation) or isinstance(operation, keras.Sequential):
            given = self._input_shape
            return [self.model(operation, None if given is None else given(operation))]
        layers = self._replace(operation)
        if layers is None:
            return [copy_of(operation)]
        if isinstance(layers, Finished):
            self.finished.add(id(operation))
        return layers


def _input_like(tensor, shape):
    return keras.Input(batch_shape=shape, dtype=tensor.dtype, name=tensor.name)


def copy_of(operation, change=None):
    """Copies a layer or a `keras.ops` operation, with the same functions.

    A configuration names functions, and Keras reads the names anew: what nobody
    registered is not found, and what is called as one of Keras's becomes that. The copy
    holds the very functions of the original.

    Args:
        operation: The layer, which has no weights taken along.
        change: Function of its configuration (a dict of the `module`, the `class_name`
            and its arguments, `config`) that returns another one, or None where it is
            to stay; None for none.

    Raises:
        ValueError: If it cannot be copied.
    """
    if isinstance(operation, keras.layers.Lambda):
        # Its function as it is: one rebuilt of bytecode misses its globals.
        return keras.layers.Lambda(
            operation.function,
            output_shape=lambda_output_shape(operation),
            mask=operation.mask,
            arguments=operation.arguments,
            name=operation.name,
            dtype=operation.dtype_policy,
        )
    try:
        copy = _from_config(operation, change)
    except Exception as error:
        raise ValueError(
            f"Layer {operation.name!r} of type {type(operation).__name__} cannot be "
            f"copied ({type(error).__name__}: {error}). A layer needs get_config and "
            "from_config."
        ) from error
    if isinstance(operation, keras.Layer):
        _take_functions(operation, copy)
    return copy


def _from_config(operation, change):
    cls = type(operation)
    with _without_functions(operation):
        # With its own class: nobody needs to have registered that.
        config = {
            "module": cls.__module__,
            "class_name": cls.__name__,
            "registered_name": keras.saving.get_registered_name(cls),
            "config": operation.get_config(),
        }
    changed = None if change is None else change(config)
    if changed is None:
        return cls.from_config(config["config"])
    if changed["class_name"] == cls.__name__ and "<locals>" in cls.__qualname__:
        # Of which the module does not hold it.
        return cls.from_config(changed["config"])
    return keras.saving.deserialize_keras_object(changed, safe_mode=False)


def _functions(layer):
    """Yields `(holder, name, function)` of the functions that a layer was given."""
    for holder in layers_of(layer):
        for name, value in vars(holder).items():
            # Keras wraps methods, and keeps these in the instance.
            method = callable(getattr(type(holder), name, None))
            if isinstance(value, _FUNCTIONS) and not method and name[0] != "_":
                yield holder, name, value


@contextlib.contextmanager
def _without_functions(operation):
    """Hides functions that a configuration cannot name."""
    hidden = []
    if isinstance(operation, keras.Layer):
        hidden = [f for f in _functions(operation) if not _is_named(f[2])]
    for holder, name, _ in hidden:
        setattr(holder, name, keras.activations.linear)
    try:
        yield
    finally:
        for holder, name, function in hidden:
            setattr(holder, name, function)


def _is_named(function):
    name = getattr(function, "__name__", "")
    return keras.saving.get_registered_object(name) is function or (
        keras.saving.get_registered_name(function) != name
        or getattr(keras.activations, name, None) is function
    )


def _take_functions(old, new):
    """Gives a copy the functions of the original."""
    holders, copies = layers_of(old), layers_of(new)
    places = {id(holder): copy for holder, copy in zip(holders, copies, strict=False)}
    for holder, name, function in _functions(old):
        copy = places.get(id(holder))
        if copy is not None and name in vars(copy):
            setattr(copy, name, function)


def copy_weights(old, new):
    """Gives a layer, and those inside it, the weights and assets of another one.

    Args:
        old: A layer.
        new: One of as many layers inside, each of which loads what that of the other
            saves.
    """
    for source, target in zip(layers_of(old), layers_of(new), strict=True):
        if not source.built:
            continue
        # As a file would: some layers derive more from their weights on loading.
        store = {}
        source.save_own_variables(store)
        # Copies: with JAX two variables would share an array, and a compiled step of
        # one model that writes into its own would take it from the other.
        store = {k: np.array(ops.convert_to_numpy(v)) for k, v in store.items()}
        target.load_own_variables(store)
        if hasattr(source, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                source.save_assets(folder)
                target.load_assets(folder)


def _copy_trainable(copier):
    """Sets the flags, those of models first, which set those of what they hold."""
    pairs = list(reversed(copier.models))
    for layer, copies in copier.replaced():
        for copy in copies:
            pairs += zip(layers_of(layer), layers_of(copy), strict=False)
    for old, new in pairs:
        if new.trainable != old.trainable:
            new.trainable = old.trainable


@contextlib.contextmanager
def _uncompiled(model):
    """Hides the compilation, which may hold what nobody registered, from Keras."""
    models = [x for x in layers_of(model) if getattr(x, "compiled", False)]
    for compiled in models:
        compiled.compiled = False
    try:
        yield
    finally:
        for compiled in models:
            compiled.compiled = True


def _copy_compilation(old, new):
    if not getattr(old, "compiled", False):
        return
    try:
        new.compile_from_config(old.get_compile_config())
    except Exception:
        # A loss or metric of the user's own: the objects themselves.
        optimizer = type(old.optimizer).from_config(old.optimizer.get_config())
        new.compile(optimizer, loss=old.loss)
        warnings.warn(
            "The new model is compiled with the loss and the optimizer of the old one, "
            "without its metrics: these cannot be copied.",
            stacklevel=4,
        )
