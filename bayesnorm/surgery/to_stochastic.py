"""Networks that people have, made stochastic."""

import warnings

import keras

from bayesnorm.arguments import check_choice, check_model, seed_integer
from bayesnorm.graph import (
    copy_of,
    first_difference,
    is_graph,
    layers_of,
    rewrite,
)
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
            "keras.layers.BatchNormalization in its code, to which "
            "bayesnorm.copy_weights brings the trained weights."
        )
    renormalizing = [x.name for x in layers_of(model) if getattr(x, "renorm", False)]
    if renormalizing:
        raise ValueError(
            f"Model {model.name!r} has batch normalizations with renorm=True, which do "
            "not train on the statistics of a batch: there is nothing to sample. "
            f"Received: {', '.join(renormalizing)}"
        )
    replacer = _Replacer(noise, dropout, seed)
    new = rewrite(model, replacer.replace)
    if not replacer.count:
        _raise_nothing_to_convert(model, dropout)
    _check_same(model, new)
    left = [layer.name for layer in layers_of(new) if _is_plain(layer)]
    if left:
        warnings.warn(
            f"{len(left)} batch normalizations of model {model.name!r} are inside "
            "layers that make them in their own code, or are of a subclass, and stay "
            f"deterministic: {', '.join(left)}.",
            stacklevel=2,
        )
    return new


def _check_same(model, new):
    different = first_difference(model, new)
    if different is not None:
        raise ValueError(
            f"The copy of model {model.name!r} computes something else, from layer "
            f"{different.name!r} ({type(different).__name__}) on: what that layer does "
            "is not in its get_config, its weights or its functions. Mend its "
            "get_config and from_config, or put "
            "bayesnorm.StochasticBatchNormalization into the model's code."
        )


class _Replacer:
    """Puts stochastic layers in the place of some, and counts them."""

    def __init__(self, noise, dropout, seed):
        self._noise, self._dropout = noise, dropout
        self._seed = None if seed is None else seed_integer(seed, bits=32)
        self.count = 0

    def replace(self, layer):
        """Returns the layers in the place of a layer, as for `rewrite`."""
        return [copy_of(layer, self._change)]

    def _change(self, config):
        before = self.count
        changed = self.replaced(config)
        return None if self.count == before else changed

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


def _is_plain(layer):
    return isinstance(layer, keras.layers.BatchNormalization) and not isinstance(
        layer, StochasticBatchNormalization
    )


def _raise_nothing_to_convert(model, dropout):
    inside = [layer.name for layer in layers_of(model) if _is_plain(layer)]
    asked = " or Dropout" if dropout else ""
    found = (
        f"The batch normalizations {', '.join(inside)} are inside layers that make "
        "them in their own code: use bayesnorm.StochasticBatchNormalization there."
        if inside
        else "Its layers are of the types "
        f"{sorted({type(layer).__name__ for layer in layers_of(model)})}."
    )
    raise ValueError(
        f"Model {model.name!r} has no BatchNormalization{asked} that could be "
        f"replaced. {found}"
    )
