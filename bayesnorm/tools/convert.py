"""Networks that people have, made stochastic."""

import copy
import warnings

import keras
from keras import ops

from bayesnorm.arguments import check_choice, seed_integer
from bayesnorm.graph import is_graph
from bayesnorm.layers import MonteCarloDropout, StochasticBatchNormalization

_DROPOUT_SHAPES = {
    "Dropout": None,
    "SpatialDropout1D": (None, 1, None),
    "SpatialDropout2D": (None, 1, 1, None),
    "SpatialDropout3D": (None, 1, 1, 1, None),
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
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`model` must be a keras.Model. Received: {type(model).__name__}"
        )
    check_choice("noise", noise, ("batch", "example"))
    if not (is_graph(model) or isinstance(model, keras.Sequential)):
        raise ValueError(
            f"Model {model.name!r} of type {type(model).__name__} shows no graph to "
            "convert: give a Functional or Sequential model, or use "
            "bayesnorm.StochasticBatchNormalization in place of "
            "keras.layers.BatchNormalization in its code."
        )
    replacer = _Replacer(noise, dropout, seed)
    config = replacer.replaced(_config(model))
    if not replacer.count:
        _raise_nothing_to_convert(model, dropout)
    custom = {type(layer).__name__: type(layer) for layer in _layers(model)}
    custom = {k: v for k, v in custom.items() if not v.__module__.startswith("keras.")}
    with keras.saving.CustomObjectScope(custom):
        new = keras.saving.deserialize_keras_object(config, safe_mode=False)
        _copy_compilation(model, new)
    _copy_weights(model, new)
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
    """Rewrites a configuration; counts what it replaced."""

    def __init__(self, noise, dropout, seed):
        self._noise, self._dropout = noise, dropout
        self._seed = None if seed is None else seed_integer(seed, bits=32)
        self.count = 0

    def replaced(self, config):
        """Returns the configuration with the stochastic layers."""
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
        if self._dropout and name in _DROPOUT_SHAPES:
            shape = config["config"].get("noise_shape") or _DROPOUT_SHAPES[name]
            return self._as(MonteCarloDropout, config, {"noise_shape": shape})
        return config

    def _as(self, cls, config, arguments):
        seed = None if self._seed is None else (self._seed + self.count) % 2**32
        self.count += 1
        kept = dict(config["config"])
        if cls is MonteCarloDropout:
            kept = {k: kept[k] for k in ("name", "trainable", "dtype", "rate")}
        return config | {
            "module": cls.__module__,
            "class_name": cls.__name__,
            "registered_name": keras.saving.get_registered_name(cls),
            "config": kept | arguments | {"seed": seed},
        }


def _config(model):
    config = copy.deepcopy(keras.saving.serialize_keras_object(model))
    # The compilation may hold objects that nobody registered.
    config.pop("compile_config", None)
    return config


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
    config = old.get_compile_config()
    if config is not None:
        new.compile_from_config(config)


def _copy_weights(old, new):
    pairs = list(zip(_layers(old), _layers(new), strict=True))
    for source, target in pairs:
        _copy_own_weights(source, target)


def _copy_own_weights(source, target):
    if isinstance(target, StochasticBatchNormalization) and _is_plain(source):
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        values = [(getattr(source, n), getattr(target, n)) for n in names]
        values = [(v, w) for v, w in values if v is not None]
    else:
        values = list(
            zip(
                source._trainable_variables + source._non_trainable_variables,
                target._trainable_variables + target._non_trainable_variables,
                strict=True,
            )
        )
    for value, variable in values:
        variable.assign(ops.convert_to_numpy(value.value))
