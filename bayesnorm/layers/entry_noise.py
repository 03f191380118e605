"""Noise on the entries of an input: what the Monte Carlo layers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
from keras import ops
from scipy import special

from bayesnorm.layers.noise import StochasticLayer, current_noise_mode
from bayesnorm.types import Shape, Tensor

if TYPE_CHECKING:
    from bayesnorm.moments.moments import Moments


def check_rate(rate: float) -> None:
    """Raises a ValueError if a rate of dropout is not in [0, 1)."""
    if not 0 <= rate < 1:
        raise ValueError(f"`rate` must be from 0 to below 1. Received: rate={rate!r}")


class EntryNoise(StochasticLayer):
    """Base of the layers that do to every entry what a draw of its own says.

    In training every example has its own draws, in evaluation the layer is the
    identity; with noise (`bayesnorm.predict`, `noise_mode("sample")`) it draws. A
    sample of `bayesnorm.predict` is one network: the same draws for all examples.

    Args:
        noise_shape: Shape of the draws: the batch first, None for the input's size and
            1 where they are shared; None for the input's shape.
        seed: Integer, None for a random one.
    """

    def __init__(
        self,
        noise_shape: Sequence[int | None] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed=seed, **kwargs)
        self.noise_shape = None if noise_shape is None else tuple(noise_shape)
        self.supports_masking = True
        self._rows = self.noise_shape[0] if self.noise_shape else None
        self._entries: Any = None

    @property
    def amount(self) -> float:
        """A number, 0 where there is no noise: the layer is then the identity."""
        raise NotImplementedError

    def apply_noise(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """Returns the outputs for standard normals, float32, that meet `inputs`."""
        raise NotImplementedError

    def build(self, input_shape: Shape) -> None:
        """Finds the shape of the draws of an example."""
        shape = self.noise_shape or (None,) * len(input_shape)
        if len(shape) != len(input_shape):
            raise ValueError(
                f"`noise_shape` of layer {self.name!r} must have {len(input_shape)} "
                f"entries, as the input's shape {tuple(input_shape)}. Received: {shape}"
            )
        sizes = zip(shape[1:], input_shape[1:], strict=True)
        self._entries = tuple(n if size is None else size for size, n in sizes)

    @property
    def noise_shapes(self) -> dict[str, Any]:
        """One draw per entry of an example."""
        if not self.amount:
            return {}
        if None in self._entries:
            raise ValueError(
                f"Layer {self.name!r} cannot draw one mask for all examples: the size "
                f"of its input is not known, {self._entries} without the batch. "
                "Give the model's Input a fixed shape."
            )
        return {"mask": self._entries}

    @property
    def is_per_channel(self) -> bool:
        """Whether all positions of an example share a draw for each channel."""
        *positions, _ = self._entries
        return bool(positions) and set(positions) == {1}

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Returns the inputs, with noise when training or asked."""
        mode = current_noise_mode()
        if not self.amount or mode == "mean" or (mode == "auto" and not training):
            return inputs
        if mode == "auto":
            shape = tuple(
                ops.shape(inputs)[i] if n is None else n
                for i, n in enumerate((self._rows, *self._entries))
            )
            return self.train(inputs, shape)
        # A function hands out the draws of several networks, stacked in a batch.
        rows = None if callable(mode) else self._rows
        rows = rows or ops.shape(inputs)[0]
        return self.apply_noise(inputs, self.standard_normal("mask", rows, training))

    def train(self, inputs: Tensor, shape: Shape) -> Tensor:
        """Returns the outputs in training, where no size need be known beforehand."""
        draws = keras.random.normal(shape, dtype="float32", seed=self.seed_generator)
        return self.apply_noise(inputs, draws)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Returns the input's shape."""
        return input_shape


class MaskNoise(EntryNoise):
    """Base of the layers that put another number in the place of a share of entries.

    Args:
        rate: Number in [0, 1), the share.
        noise_shape: As for `EntryNoise`.
        seed: Integer, None for a random one.
    """

    def __init__(
        self,
        rate: float,
        noise_shape: Sequence[int | None] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(noise_shape=noise_shape, seed=seed, **kwargs)
        check_rate(rate)
        self.rate = rate

    @property
    def amount(self) -> float:
        """The rate."""
        return self.rate

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "rate": self.rate,
            "noise_shape": self.noise_shape,
        }


def kept(draws: Tensor, rate: float, dtype: Any) -> Tensor:
    """Returns a mask, 1 with probability `1 - rate`, of standard normal draws."""
    return ops.cast(draws < float(special.ndtri(1 - rate)), dtype)


def multiplicative_moments(layer: keras.layers.Layer, moments: Moments) -> Moments:
    """Moments of `x m`, m of mean 1 and variance `rate / (1 - rate)`, per entry."""
    if not layer.rate:
        return moments
    ratio = layer.rate / (1 - layer.rate)
    if layer.is_per_channel and layer._entries[-1] == moments.shape[-1]:
        ones = ops.ones(moments.shape[-1:], "float32")
        return moments.scaled(ones, ratio * ones)
    variance = moments.variance * (1 + ratio) + ratio * ops.square(moments.mean)
    # What an entry gains is its own; what entries share passes unchanged.
    return moments.replace(
        mean=moments.mean,
        variance=variance,
        shared=moments.shared,
        factor=moments.factor,
    )
