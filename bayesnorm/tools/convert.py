"""Networks that people have, made stochastic."""

import contextlib
import tempfile
import warnings

import keras
import numpy as np
from keras import ops

from bayesnorm.arguments import check_choice, check_model, seed_integer
from bayesnorm.graph import is_graph
from bayesnorm.layers import MonteCarloDropout, StochasticBatchNormalization

# Number of axes over which a dropout layer of Keras drops as one.
_SPATIAL_AXES = {
    "Dropout": 0,
    "SpatialDropout1D": 1,
    "SpatialDropout2D": 2,
    "SpatialDropout3D": 3,
}


def to_stochastic(model, noise="batch", dropout=False, seed=None):
    """Makes a copy of a trained network whose batch normalizations can sample.

    Every `keras.layers.BatchNormalization` becomes a
    `bayesnorm.StochasticBatchNormalization` of the same name and weights, wherever it
    stands: in nested models, in layers and models that are used several times, inside
    wrappers such as `TimeDistributed`. The outputs in evaluation and in training stay
    what they were, to the bit. Then `bayesnorm.calibrate(model, training_data)` gives
    it the posterior, and `bayesnorm.predict` samples.

    Args:
        model: A Functional or Sequential Keras model.
        noise: `"batch"` or `"example"`, of the new layers.
        dropout: Whether `Dropout` and `SpatialDropout1D/2D/3D` become
            `bayesnorm.MonteCarloDropout`, so that they take part in sampling.
        seed: Integer of 32 bits, from which those of the layers follow; None for
            random ones.

    Returns:
        A new model with copies of the weights, compiled as the old one is, without the
        state of its optimizer.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it shows no graph (a subclassed model), has no batch
            normalization (and no dropout, if asked for), or none that can be replaced.

    Warns:
        UserWarning: Names the batch normalizations that were left as they are: those
            inside layers that make them in their own code, and subclasses.
    """
    check_model(model)
    check_choice("noise", noise, ("batch", "example"))
    if not (is_graph(model) or isinstance(model, keras.Sequential)):
        raise ValueError(
            f"Model {model.name!r} of type {type(model).__name__} shows no graph to "
            "convert: give a Functional or Sequential model, or use "
            "bayesnorm.StochasticBatchNormalization in place of "
            "keras.layers.BatchNormalization in its code."
        )
    replacer = _Replacer(noise, dropout, seed)
    with _uncompiled(model):
        new = keras.models.clone_model(
            model, clone_function=replacer.copy, recursive=True
        )
    if not replacer.count:
        _raise_nothing_to_convert(model, dropout)
    _copy_weights(model, new)
    _copy_compilation(model, new)
    left = [layer.name for layer in _layers(new) if _is_plain(layer)]
    if left:
        warnings.warn(
            f"{len(left)} batch normalizations of model {model.name!r} are inside "
            "layers that make them in their own code, or are of a subclass, and stay "
            f"deterministic: {', '.join(left)}.",
            stacklevel=2,
        )
    return new


class _Replacer:
    """Copies layers, stochastic ones in place of some; counts what it replaced."""

    def __init__(self, noise, dropout, seed):
        self._noise, self._dropout = noise, dropout
        self._seed = None if seed is None else seed_integer(seed, bits=32)
        self._copies = {}
        self.count = 0

    def copy(self, layer):
        """Returns the copy of a layer: the same one however often it is asked for."""
        if id(layer) not in self._copies:
            self._copies[id(layer)] = self._copy(layer)
        return self._copies[id(layer)]

    def _copy(self, layer):
        if isinstance(layer, keras.layers.Lambda):
            # Its function as it is: one rebuilt of bytecode misses its globals.
            return keras.layers.Lambda(
                layer.function,
                output_shape=layer._output_shape,
                mask=layer.mask,
                arguments=layer.arguments,
                name=layer.name,
                dtype=layer.dtype_policy,
            )
        before = self.count
        try:
            # With its own class: nobody needs to have registered that.
            config = {
                "module": type(layer).__module__,
                "class_name": type(layer).__name__,
                "config": layer.get_config(),
            }
            config = self.replaced(config)
            if self.count == before:
                return type(layer).from_config(config["config"])
            return keras.saving.deserialize_keras_object(config, safe_mode=False)
        except Exception as error:
            raise ValueError(
                f"Layer {layer.name!r} of type {type(layer).__name__} cannot be copied "
                f"({type(error).__name__}: {error}). A layer needs get_config and "
                "from_config, and functions in it keras.saving."
                "register_keras_serializable."
            ) from error

    def replaced(self, config):
        """Returns a configuration with the stochastic layers."""
        if isinstance(config, list | tuple):
            return type(config)(self.replaced(entry) for entry in config)
        if not isinstance(config, dict):
            return config
        config = {key: self.replaced(value) for key, value in config.items()}
        if not str(config.get("module", "")).startswith("keras."):
            return config
        name = config.get("class_name")
        if name == "BatchNormalization":
            return self._as(
                StochasticBatchNormalization, config, {"noise": self._noise}
            )
        if self._dropout and name in _SPATIAL_AXES:
            shape = config["config"].get("noise_shape")
            if _SPATIAL_AXES[name]:
                shape = _spatial_mask(_SPATIAL_AXES[name], config["config"])
            return self._as(MonteCarloDropout, config, {"noise_shape": shape})
        return config

    def _as(self, cls, config, arguments):
        seed = None if self._seed is None else (self._seed + self.count) % 2**32
        self.count += 1
        kept = dict(config["config"])
        if cls is MonteCarloDropout:
            names = ("name", "trainable", "dtype", "rate")
            kept = {k: kept[k] for k in names if k in kept}
        return {
            "module": cls.__module__,
            "class_name": cls.__name__,
            "registered_name": keras.saving.get_registered_name(cls),
            "config": kept | arguments | {"seed": seed},
        }


def _spatial_mask(axes, config):
    """The shape of the mask that drops whole maps."""
    ones = (1,) * axes
    default = keras.config.image_data_format()
    if axes > 1 and (config.get("data_format") or default) == "channels_first":
        return (None, None, *ones)
    return (None, *ones, None)


@contextlib.contextmanager
def _uncompiled(model):
    """Hides the compilation, which may hold what nobody registered, from Keras."""
    models = [x for x in _layers(model) if getattr(x, "compiled", False)]
    for compiled in models:
        compiled.compiled = False
    try:
        yield
    finally:
        for compiled in models:
            compiled.compiled = True


def _layers(model):
    """Layers of a model, nested ones too, each once, in an order that copies share."""
    layers = model._flatten_layers(include_self=True, recursive=True)
    return list(dict.fromkeys(layers))


def _is_plain(layer):
    return isinstance(layer, keras.layers.BatchNormalization) and not isinstance(
        layer, StochasticBatchNormalization
    )


def _raise_nothing_to_convert(model, dropout):
    inside = [layer.name for layer in _layers(model) if _is_plain(layer)]
    asked = " or Dropout" if dropout else ""
    found = (
        f"The batch normalizations {', '.join(inside)} are inside layers that make "
        "them in their own code: use bayesnorm.StochasticBatchNormalization there."
        if inside
        else "Its layers are of the types "
        f"{sorted({type(layer).__name__ for layer in _layers(model)})}."
    )
    raise ValueError(
        f"Model {model.name!r} has no BatchNormalization{asked} that could be "
        f"replaced. {found}"
    )


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
            stacklevel=3,
        )


def _copy_weights(old, new):
    for source, target in zip(_layers(old), _layers(new), strict=True):
        if not source.built or isinstance(source, keras.Model):
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
