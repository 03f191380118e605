"""A posterior around the trained gains of the normalizations inside a layer."""

from __future__ import annotations

import contextvars
import inspect
import re
from typing import Any, Self

import keras
import numpy as np
from keras import initializers, ops

from bayesnorm.arguments import check_choice, check_number
from bayesnorm.graph import layers_of
from bayesnorm.layers.noise import StochasticLayer
from bayesnorm.layers.posterior import VariationalLayer
from bayesnorm.layers.scale_norm import ScaleNorm
from bayesnorm.maths import scale as scale_maths
from bayesnorm.moments import register, rule_for
from bayesnorm.types import Tensor

_PRIOR_SCALE = 10.0
# Attributes by which normalizations of users and of libraries name their variables.
_GAINS, _OFFSETS = ("gamma", "scale", "gain", "weight"), ("beta", "bias", "offset")
_KERAS = tuple(
    getattr(keras.layers, name)
    for name in (
        "BatchNormalization",
        "LayerNormalization",
        "GroupNormalization",
        "RMSNormalization",
    )
    if hasattr(keras.layers, name)
)

# "Norm" of Normalization, not of what is normal.
_NAME = re.compile(r"Norm(?!al(?!i[sz]))")

# Of the posteriors that are called now: the identity of each -> the number of its
# examples, and its draws for them.
_called: contextvars.ContextVar[Any] = contextvars.ContextVar(
    "bayesnorm_gain_posterior_called", default=None
)


def _first(layer, names):
    """Returns the first of some attributes that is a variable, or None."""
    for name in names:
        value = getattr(layer, name, None)
        if isinstance(value, keras.Variable):
            return value
    return None


def is_normalization(layer: keras.layers.Layer) -> bool:
    """Whether a built layer is a normalization with a gain.

    Those of Keras, batch normalization also with `scale=False`, where the gain is 1;
    and any layer of a class that has "Norm" in its name (as in "Normalization", not in
    "Normal"), holds no layers, and has a vector `scale`, `gamma`, `gain` or `weight`,
    such as a user's, or keras-hub's, root mean square normalization. Those of
    `StochasticBatchNormalization` too, whose noise is of the statistics: a posterior
    on the gain comes on top of it. Other layers with noise of their own are none.
    """
    if isinstance(layer, keras.layers.BatchNormalization):
        return layer.built
    if isinstance(layer, StochasticLayer | ScaleNorm):
        return False
    gain = _first(layer, _GAINS)
    if gain is None:
        return False
    if isinstance(layer, _KERAS):
        return True
    own = _NAME.search(type(layer).__name__) and len(layers_of(layer)) == 1
    return bool(own) and len(gain.shape) == 1


def normalizations_in(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns the normalizations with gains of a built layer, itself or inside it.

    Those in a `GainPosterior` are not among them: they have one posterior already.
    """
    layers = layers_of(layer)
    taken = [x.layer for x in layers if isinstance(x, GainPosterior)]
    taken = {id(inner) for outer in taken for inner in layers_of(outer)}
    return [x for x in layers if id(x) not in taken and is_normalization(x)]


def _is_whole(layer):
    """Whether a layer, and all that it holds, is built."""
    return all(x.built for x in layers_of(layer))


def _examples_of(inputs):
    """Returns the number of examples in a nest that a layer is called with."""
    tensors = (x for x in keras.tree.flatten(inputs) if len(getattr(x, "shape", ())))
    return ops.shape(next(tensors))[0]


class _Gain:
    """The gain of a normalization: its place in the output, and how it is noisy.

    Args:
        holder: The `GainPosterior`.
        layer: The normalization.
        key: Name of its draws.
    """

    def __init__(self, holder, layer, key):
        self.layer, self.key = layer, key
        self._holder = holder
        gain = _first(layer, _GAINS)
        if gain is None:
            gain = layer.moving_mean
        self.shape = tuple(gain.shape)
        self.offset = _first(layer, _OFFSETS)
        self._call = layer.call
        layer.call = self.call

    @property
    def axes(self):
        """The axes of the layer's output along which the gain lies, a list."""
        axes = getattr(self.layer, "axis", None)
        if axes is None:
            first = getattr(self.layer, "data_format", None) == "channels_first"
            axes = 1 if first else -1
        return [axes] if isinstance(axes, int) else list(axes)

    def check(self, outputs):
        """Raises a ValueError if the outputs are not what a gain multiplies."""
        shape = getattr(outputs, "shape", None)
        if shape is not None:
            rank = len(shape)
            fits = all(-rank <= axis < rank for axis in self.axes)
            sizes = [shape[i] for i in self._sorted(rank)] if fits else None
            pairs = zip(sizes or (), self.shape, strict=False)
            if fits and all(x is None or x == size for x, size in pairs):
                return
        found = type(outputs).__name__ if shape is None else f"shape {tuple(shape)}"
        raise ValueError(
            f"Layer {self.layer.name!r} ({type(self.layer).__name__}) is taken for a "
            f"normalization with a gain of shape {self.shape} along the axes "
            f"{self.axes} of its output, a tensor. It returned: {found}. If the gain "
            "lies elsewhere, give the layer an attribute `axis`; if it is no "
            "normalization, call it by a name without 'Norm', or leave it out by "
            "`layers` of bayesnorm.to_posterior."
        )

    def _sorted(self, rank):
        return sorted(axis % rank for axis in self.axes)[-len(self.shape) :]

    def _along(self, vector, rank):
        """Returns a tensor `[rows, *shape]` with the axes of the layer's output."""
        shape = [1] * rank
        shape[0] = -1
        for axis, size in zip(self._sorted(rank), self.shape, strict=True):
            shape[axis] = size
        return ops.reshape(vector, shape)

    def _of_rows(self, z, examples, outputs):
        """Returns the draws `z [examples, *shape]` for each row of the outputs.

        Where a layer folds positions into the batch, `[batch * positions, ...]`, those
        of an example follow each other; a table of one row is shared by all examples.
        """
        rows = ops.shape(outputs)[0]
        known, both = isinstance(rows, int), isinstance(examples, int)
        if known and (rows == 1 or (both and rows == examples)):
            return z
        if known and not (both and rows % examples == 0):
            raise ValueError(
                f"Layer {self.layer.name!r} ({type(self.layer).__name__}) inside "
                f"{self._holder.layer.name!r} normalizes {rows} rows that are not "
                "those of the examples, so no draw belongs to a row. Expected a first "
                "axis of the batch, of a multiple of it, or of size 1."
            )
        numbers = ops.arange(rows) // (rows // examples)
        return ops.take(z, numbers, axis=0)

    def call(self, *args, **kwargs):
        """Calls the normalization, with noise on its gain where there is any."""
        outputs = self._call(*args, **kwargs)
        called = (_called.get() or {}).get(id(self._holder))
        if called is None:
            # From outside of the posterior, by another model that shares the layer.
            return outputs
        examples, draws = called
        self.check(outputs)
        z = draws[self.key]
        if z is None:
            return outputs
        rank = len(outputs.shape)
        x = ops.cast(outputs, "float32")
        if self.offset is not None:
            offset = ops.convert_to_tensor(self.offset)
            x -= self._along(ops.cast(offset, "float32")[None], rank)
        z = self._of_rows(z, examples, outputs)
        noise = self._along(self._holder.stddev_of(self.key) * z, rank)
        return outputs + ops.cast(x * noise, outputs.dtype)


@keras.saving.register_keras_serializable("bayesnorm")
class GainPosterior(VariationalLayer):
    """A layer whose normalizations have a posterior on their gains.

    The gain g of a channel, as it was trained, becomes `g S`, `q(S) = Normal(1,
    stddev^2)`: with `y = g x_hat + offset` the output of a normalization is

        y + (y - offset) * stddev * z,  z ~ Normal(0, 1),

    with one draw for an example and channel, shared by all positions (also those that
    the layer folds into the batch, or takes one after the other, as `TimeDistributed`
    and cells of recurrent layers do), in training and in evaluation when asked
    (`noise_mode`, `bayesnorm.predict`); otherwise the outputs are the layer's own, to
    the bit, as they are when other models call it. What the layer does with its gain
    (Gemma's `1 + scale`, say) is of no matter: the noise is relative to what comes out.
    The KL to the prior `p(S) = Normal(1, 10^2)`,

        KL = log(10 / stddev) + stddev^2 / 200 - 1/2

    summed over channels, in nats, is in the loss as that of every `VariationalLayer`.
    Gains and offsets stay the layer's, trained or frozen as they are.

    Args:
        layer: A layer: a normalization, or one that makes normalizations in its code,
            which it calls at every call (a transformer block, a model). Gains of those
            of Keras and of others that `is_normalization` describes have a posterior.
        per_channel: Whether each channel has its own standard deviation; one for each
            normalization otherwise.
        initial_stddev: Standard deviation at the start, relative to the gain.
        kl_weight: As of `StochasticScaleNorm`.
        num_examples: Likewise.
        seed: Integer, None for a random one.

    Raises:
        ValueError: If an argument is out of range, or `layer`, once it is built, has no
            normalization with a gain.

    Reference:
        Shekhovtsov & Flach, 2018, "Stochastic Normalizations as Bayesian Learning",
        eqs. (15)-(19), around trained scales.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        per_channel: bool = True,
        initial_stddev: float = 0.01,
        kl_weight: float | None = None,
        num_examples: int | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("name", f"{layer.name}_posterior")
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(
            kl_weight=kl_weight, num_examples=num_examples, seed=seed, **kwargs
        )
        check_choice("per_channel", per_channel, (True, False))
        check_number("initial_stddev", initial_stddev, positive=True)
        # The layer casts its inputs, or, as layer normalization does, does not.
        self.autocast = False
        self.layer = layer
        self.per_channel = per_channel
        self.initial_stddev = initial_stddev
        self.supports_masking = layer.supports_masking
        self._gains = {}
        self._takes_training = "training" in inspect.signature(layer.call).parameters

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer; builds it first, from whatever it is called with."""
        # Keras takes a layer that is loaded for built, whatever it could build.
        if not self._gains:
            # One without a `build` of its own makes what it holds when it is called.
            if not _is_whole(self.layer):
                self.layer(*args, **kwargs)
            self.build()
        return super().__call__(*args, **kwargs)

    def build(self, input_shape: Any = None) -> None:
        """Makes the deviations, one variable for each normalization."""
        if not self.layer.built:
            self.layer.build(input_shape)
        found = normalizations_in(self.layer)
        if not found:
            raise ValueError(
                f"Layer {self.layer.name!r} ({type(self.layer).__name__}) has no "
                "normalization with a gain, which a posterior is put on. Expected a "
                "batch, layer, group or root mean square normalization, or a layer "
                "that holds one."
            )
        rho = initializers.Constant(scale_maths.rho_of_stddev(self.initial_stddev))
        for i, layer in enumerate(found):
            gain = _Gain(self, layer, f"gain_{i}")
            self._gains[gain.key] = gain
            shape = gain.shape if self.per_channel else (1,)
            setattr(
                self,
                f"rho_{i}",
                self.add_weight(name=f"rho_{i}", shape=shape, initializer=rho),
            )
        super().build(input_shape)

    @property
    def kl_carrier(self) -> keras.Variable:
        """The first deviations."""
        return self.rho_0

    @property
    def normalizations(self) -> list[keras.layers.Layer]:
        """The normalizations, in the order of their deviations."""
        return [gain.layer for gain in self._gains.values()]

    @property
    def noise_shapes(self) -> dict[str, Any]:
        """One draw per channel of each normalization: `{"gain_0": shape, ...}`."""
        return {key: gain.shape for key, gain in self._gains.items()}

    @property
    def rhos(self) -> list[keras.Variable]:
        """The variables of the deviations, in the order of the normalizations."""
        return [getattr(self, f"rho_{i}") for i in range(len(self._gains))]

    def stddev_of(self, key: str) -> Tensor:
        """Returns the deviations of the draws `key`, of their shape, float32."""
        rho = getattr(self, key.replace("gain", "rho"))
        stddev = scale_maths.stddev_of_rho(ops.convert_to_tensor(rho))
        return ops.broadcast_to(stddev, self._gains[key].shape)

    def set_stddev(self, stddev: float) -> None:
        """Sets the deviations of all channels to a number above 0."""
        check_number("stddev", stddev, positive=True)
        for rho in self.rhos:
            value = scale_maths.rho_of_stddev(float(stddev))
            rho.assign(np.full(rho.shape, value, "float32"))

    def kl_divergence(self) -> Tensor:
        """Returns the KL of the posterior to the prior, a scalar in nats."""
        total = 0.0
        for key in self._gains:
            stddev = self.stddev_of(key)
            mean = ops.ones_like(stddev)
            total += ops.sum(scale_maths.kl_to_normal(mean, stddev, _PRIOR_SCALE))
        return total

    def posterior_summary(self) -> dict[str, tuple[np.ndarray, str]]:
        """Returns the relative noise of all channels, as `relative_stddev`."""
        values = [
            np.ravel(ops.convert_to_numpy(self.stddev_of(key))).astype("float64")
            for key in self._gains
        ]
        return {"relative_stddev": (np.concatenate(values), "1")}

    def call(
        self, inputs: Any, *args: Any, training: bool | None = None, **kwargs: Any
    ) -> Any:
        """Returns what the layer returns, its gains with noise."""
        # Before the layer: a loop over time inside it draws no more.
        examples = _examples_of((inputs, args, kwargs))
        draws = {
            key: self.standard_normal(key, examples, training) for key in self._gains
        }
        if self._takes_training:
            kwargs["training"] = training
        token = _called.set({**(_called.get() or {}), id(self): (examples, draws)})
        try:
            return self.layer(inputs, *args, **kwargs)
        finally:
            _called.reset(token)

    def compute_output_spec(
        self, *args: Any, training: bool | None = None, **kwargs: Any
    ) -> Any:
        """Returns the layer's: some say what they return, and cannot be traced."""
        if self._takes_training:
            kwargs["training"] = training
        spec = self.layer.compute_output_spec(*args, **kwargs)
        for gain in self._gains.values():
            if gain.layer is self.layer:
                gain.check(spec)
        return spec

    def get_build_config(self) -> dict[str, Any]:
        """Returns that of the layer."""
        return {"layer": self.layer.get_build_config()}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Builds the layer, and the posterior on it."""
        if not self.layer.built and config.get("layer"):
            self.layer.build_from_config(config["layer"])
        if _is_whole(self.layer) and not self._gains:
            self.build()

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
            "per_channel": self.per_channel,
            "initial_stddev": self.initial_stddev,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Makes the layer from its configuration."""
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})


@register(GainPosterior, accepts_unknown=True)
def _moments(layer, moments, *args, **kwargs):
    inner = layer.layer
    found = rule_for(inner)(inner, moments, *args, **kwargs)
    if moments.stationary:
        return found
    if layer.normalizations != [inner]:
        raise ValueError(
            f"Layer {layer.name!r} holds normalizations inside {inner.name!r} "
            f"({type(inner).__name__}), whose noise no rule takes through it. Take "
            "method='sample', or register a rule for a subclass of GainPosterior."
        )
    (gain,) = layer._gains.values()
    axis = getattr(inner, "axis", -1)
    if len(gain.shape) != 1:
        raise ValueError(
            f"Layer {inner.name!r} normalizes over several axes, along which moments "
            "have no channels. Take method='sample'."
        )
    axis = axis if isinstance(axis, int) else axis[0]
    offset = 0.0 if gain.offset is None else ops.convert_to_tensor(gain.offset)
    variance = ops.square(layer.stddev_of(gain.key))
    noisy = found.scaled(ops.ones_like(variance), variance, bias=-offset, axis=axis)
    if gain.offset is None:
        return noisy
    return noisy.affine(1.0, noisy.along(offset, axis))
