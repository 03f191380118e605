"""Networks that people have, made stochastic."""

from __future__ import annotations

import numbers
import warnings
from typing import Literal

import keras

from bayesnorm.arguments import check_choice, check_model, seed_integer
from bayesnorm.graph import (
    copy_of,
    is_graph,
    layers_of,
    rewrite,
)
from bayesnorm.layers import (
    MonteCarloAlphaDropout,
    MonteCarloDropout,
    MonteCarloGaussianDropout,
    MonteCarloGaussianNoise,
    StochasticBatchNormalization,
    StochasticLayer,
)
from bayesnorm.surgery.sameness import check_same

# Number of axes over which a dropout layer of Keras drops as one.
_SPATIAL_AXES = {"SpatialDropout1D": 1, "SpatialDropout2D": 2, "SpatialDropout3D": 3}
# What takes the place of layers that add noise in training.
_MONTE_CARLO = {
    "Dropout": MonteCarloDropout,
    **dict.fromkeys(_SPATIAL_AXES, MonteCarloDropout),
    "AlphaDropout": MonteCarloAlphaDropout,
    "GaussianDropout": MonteCarloGaussianDropout,
    "GaussianNoise": MonteCarloGaussianNoise,
}
_NOISE_LAYERS = (
    keras.layers.Dropout,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
)
_ARGUMENTS = ("name", "trainable", "dtype", "rate", "stddev", "noise_shape")


def to_stochastic(
    model: keras.Model,
    noise: Literal["batch", "example"] | None = "batch",
    dropout: bool = False,
    seed: int | None = None,
) -> keras.Model:
    """Makes a copy of a trained network whose normalizations and dropout can sample.

    Every `keras.layers.BatchNormalization` becomes a
    `bayesnorm.StochasticBatchNormalization` of the same name and weights, wherever it
    stands: in nested models, in layers and models that are used several times, inside
    wrappers such as `TimeDistributed`. The outputs in evaluation and in training stay
    what they were, to the bit. Then `bayesnorm.calibrate(model, training_data)` gives
    it the posterior, and `bayesnorm.predict` samples.

    With `dropout=True` the layers that add noise in training take part too. With
    `noise=None` they do alone (Monte Carlo dropout): batch normalizations stay as they
    are, and there is nothing to calibrate.

    Args:
        model: A Functional or Sequential Keras model.
        noise: `"batch"` or `"example"`, of the new normalizations; None to leave them.
        dropout: Whether `Dropout`, `SpatialDropout1D/2D/3D`, `AlphaDropout`,
            `GaussianDropout` and `GaussianNoise` become `bayesnorm.MonteCarloDropout`,
            `MonteCarloAlphaDropout`, `MonteCarloGaussianDropout` and
            `MonteCarloGaussianNoise`.
        seed: Integer of 32 bits, from which those of the layers follow; None for
            random ones.

    Returns:
        A new model with copies of the weights, compiled as the old one is, without the
        state of its optimizer.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it shows no graph (a subclassed model), has nothing to replace of
            what was asked for, or if `noise=None` and `dropout=False`.

    Warns:
        UserWarning: Names the batch normalizations, and with `dropout=True` the layers
            with noise in training, that were left as they are: those inside layers that
            make them in their own code, subclasses, recurrent layers and attention with
            `dropout=`.

    Reference:
        Atanov et al., 2018, "Uncertainty Estimation via Stochastic Batch
        Normalization"; Gal & Ghahramani, 2016, "Dropout as a Bayesian Approximation".
    """
    check_model(model)
    check_choice("noise", noise, ("batch", "example", None))
    if noise is None and not dropout:
        raise ValueError(
            "`noise=None` leaves batch normalizations as they are: give dropout=True "
            "to have dropout take part. Received: noise=None, dropout=False"
        )
    if not (is_graph(model) or isinstance(model, keras.Sequential)):
        raise ValueError(
            f"Model {model.name!r} of type {type(model).__name__} shows no graph to "
            "convert: give a Functional or Sequential model, or use "
            "bayesnorm.StochasticBatchNormalization in place of "
            "keras.layers.BatchNormalization in its code, to which "
            "bayesnorm.copy_weights brings the trained weights."
        )
    renormalizing = [x.name for x in layers_of(model) if getattr(x, "renorm", False)]
    if noise and renormalizing:
        raise ValueError(
            f"Model {model.name!r} has batch normalizations with renorm=True, which do "
            "not train on the statistics of a batch: there is nothing to sample. "
            f"Received: {', '.join(renormalizing)}"
        )
    replacer = _Replacer(noise, dropout, seed)
    new = rewrite(model, replacer.replace)
    left = [*(_plain(new) if noise else ()), *(_undrawn(new) if dropout else ())]
    if not replacer.count:
        _raise_nothing_to_convert(model, noise, dropout, left)
    check_same(
        model,
        new,
        "put bayesnorm.StochasticBatchNormalization into the model's code",
    )
    if left:
        warnings.warn(
            f"{len(left)} layers of model {model.name!r} stay deterministic in "
            f"sampling: {', '.join(left)}. They are inside layers that make them in "
            "their own code, of a subclass, or of a kind that has no stochastic twin "
            "(recurrent layers and attention with dropout). In code of your own make "
            "the layers of bayesnorm.layers.",
            stacklevel=2,
        )
    return new


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
        if self._noise and name == "BatchNormalization":
            arguments = config["config"] | {"noise": self._noise}
            return self._as(StochasticBatchNormalization, arguments)
        if self._dropout and name in _MONTE_CARLO:
            arguments = {k: v for k, v in config["config"].items() if k in _ARGUMENTS}
            if name in _SPATIAL_AXES:
                mask = _spatial_mask(_SPATIAL_AXES[name], config["config"])
                arguments["noise_shape"] = mask
            return self._as(_MONTE_CARLO[name], arguments)
        return config

    def _as(self, cls, arguments):
        seed = None if self._seed is None else (self._seed + self.count) % 2**32
        self.count += 1
        return {
            "module": cls.__module__,
            "class_name": cls.__name__,
            "registered_name": keras.saving.get_registered_name(cls),
            "config": arguments | {"seed": seed},
        }


def _spatial_mask(axes, config):
    """The shape of the mask that drops whole maps."""
    ones = (1,) * axes
    default = keras.config.image_data_format()
    if axes > 1 and (config.get("data_format") or default) == "channels_first":
        return (None, None, *ones)
    return (None, *ones, None)


def _plain(model):
    """Returns the names of the batch normalizations that do not sample."""
    return [
        layer.name
        for layer in layers_of(model)
        if isinstance(layer, keras.layers.BatchNormalization)
        and not isinstance(layer, StochasticBatchNormalization)
    ]


def _undrawn(model):
    """Returns the names of the layers whose noise of training does not sample."""
    noisy = [layer for layer in layers_of(model) if _has_noise_of_training(layer)]
    # Of a recurrent layer and its cell, of attention and its dropout, the outer one.
    inner = {id(x) for layer in noisy for x in layers_of(layer)[1:]}
    return [layer.name for layer in noisy if id(layer) not in inner]


def _has_noise_of_training(layer):
    if isinstance(layer, StochasticLayer):
        return False
    own = isinstance(layer, _NOISE_LAYERS)
    names = ("rate", "stddev") if own else ("dropout", "recurrent_dropout")
    values = [getattr(layer, name, None) for name in names]
    return any(isinstance(value, numbers.Real) and value > 0 for value in values)


def _raise_nothing_to_convert(model, noise, dropout, left):
    kinds = ["BatchNormalization"] * bool(noise) + ["dropout"] * bool(dropout)
    found = (
        f"The layers {', '.join(left)} are inside layers that make them in their own "
        "code, of a subclass, or of a kind that has no stochastic twin: in code of "
        "your own make the layers of bayesnorm.layers, such as "
        "bayesnorm.StochasticBatchNormalization."
        if left
        else "Its layers are of the types "
        f"{sorted({type(layer).__name__ for layer in layers_of(model)})}."
    )
    raise ValueError(
        f"Model {model.name!r} has no {' or '.join(kinds)} that could be replaced. "
        f"{found}"
    )
