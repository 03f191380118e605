"""Mean and variance of an activation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import keras
from keras import ops

from bayesnorm import backend
from bayesnorm.maths.activations import safe_sqrt
from bayesnorm.maths.scale import scaled_moments
from bayesnorm.types import Shape, Tensor


def statistics_dtype() -> str:
    """The dtype of declared moments: Keras's float type, never half precision."""
    return "float64" if keras.config.floatx() == "float64" else "float32"


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Mean and variance of the elements of an activation.

    They come at two levels. At *data-set level* (`stationary=True`) they are those
    of a channel over all examples and positions: vectors `[channels]`, or scalars
    where all channels agree. *Per example* (`stationary=False`) they are full
    tensors `[batch, ...]`, the law of each element given the example.

    Attributes:
        mean: Tensor.
        variance: Tensor like `mean`.
        shape: Tuple, shape of the activation, the batch first; None where unknown.
        stationary: Whether the level is that of the data set.
        axis: Integer, the channel axis of stationary moments.
        shared: Per example, the part of `variance` that is the same noise at all
            positions of a channel and has come through at least one linear layer
            or shift; broadcasts against `variance`; None for zero.
        factor: Per example, the signed standard deviation that one draw for each
            channel, the last stochastic scale's, gives each position: behind the
            scale `(mean + bias) stddev(S)`. A tensor like `variance` (which contains
            its square), or None.
        correlation: Data-set level, correlation between neighbouring positions of
            a channel, for pooling layers.
        assumed: Whether nobody declared these moments: those of a graph's Input,
            which counts as standardized.
    """

    mean: Any
    variance: Any
    shape: tuple
    stationary: bool = True
    axis: int = -1
    shared: Any = None
    factor: Any = None
    correlation: float = 1.0
    assumed: bool = False

    @classmethod
    def standardized(cls, shape: Shape, **kwargs: Any) -> Self:
        """Data-set level moments of mean 0 and variance 1.

        Args:
            shape: Tuple, shape of the activation, the batch first.
            **kwargs: Other attributes.
        """
        dtype = statistics_dtype()
        return cls(ops.zeros((), dtype), ops.ones((), dtype), tuple(shape), **kwargs)

    @property
    def known(self) -> bool:
        """Whether there are any moments: not behind an unresolved rescaling."""
        return self.mean is not None

    @property
    def channel_axis(self) -> int:
        """The channel axis, counted from 0."""
        return self.axis % len(self.shape)

    def replace(self, **changes: Any) -> Moments:
        """Returns a copy with some attributes changed.

        With `mean=` or `variance=` alone, as an element-wise rule gives them, the
        noise that positions share keeps its share of the variance, and the
        moments no longer count as assumed.
        """
        if "mean" in changes or "variance" in changes:
            changes.setdefault("assumed", False)
            if not {"shared", "factor"} & set(changes) and self.has_common_noise:
                ratio = self._ratio(changes.get("variance", self.variance))
                if self.shared is not None:
                    changes["shared"] = self.shared * ratio
                if self.factor is not None:
                    changes["factor"] = self.factor * safe_sqrt(ratio)
        return dataclasses.replace(self, **changes)

    def _ratio(self, variance):
        """New variance over the old one, 0 where that is 0."""
        positive = self.variance > 0
        denominator = ops.where(positive, self.variance, 1.0)
        return ops.where(positive, variance / denominator, 0.0)

    @property
    def has_common_noise(self) -> bool:
        """Whether positions share some noise."""
        return self.shared is not None or self.factor is not None

    @property
    def common_variance(self) -> Tensor | None:
        """Variance of the noise that positions share, in the shape of `variance`.

        None where there is no such noise.
        """
        return common_variance(self.variance, self.shared, self.factor)

    def mean_common_variance(
        self, average: Callable[[Tensor], Tensor]
    ) -> Tensor | None:
        """Variance of the average over positions of the noise that they share.

        Args:
            average: Function that averages a tensor over positions.

        Returns:
            Tensor, or None where there is no such noise.
        """
        if not self.has_common_noise:
            return None
        common = 0.0 if self.shared is None else self.shared
        if self.factor is not None:
            common = common + ops.square(self.factor)
        # The small number: a finite derivative at 0, in one pass over memory.
        return ops.square(average(ops.sqrt(common + 1e-20)))

    def over(self, axis: int) -> Moments:
        """Returns stationary moments as vectors along a channel axis.

        Args:
            axis: Integer, the channel axis that a layer asks for.

        Raises:
            ValueError: If the vectors lie along another axis.
        """
        rank = len(self.shape)
        axis = axis % rank
        if not self.stationary:
            return self
        if len(self.mean.shape) and axis != self.channel_axis and rank > 2:
            raise ValueError(
                f"The layer's channels are axis {axis} of its input of shape "
                f"{self.shape}, but the moments given are per channel along axis "
                f"{self.channel_axis}. Use one data_format throughout, or build "
                f"Moments(..., axis={axis})."
            )
        size = (self.shape[axis],)
        if size[0] is None:
            raise ValueError(
                "Moments per channel need the number of channels. Received an "
                f"activation of shape {self.shape} with channels along axis {axis}."
            )
        return dataclasses.replace(
            self,
            mean=ops.broadcast_to(self.mean, size),
            variance=ops.broadcast_to(self.variance, size),
            axis=axis if axis != rank - 1 else -1,
        )

    def constant(self, value: Tensor) -> Tensor:
        """Returns a constant, a weight of any float type say, in the type of `mean`."""
        return ops.cast(ops.convert_to_tensor(value), self.mean.dtype)

    def along(self, vector: Tensor, axis: int | None = None) -> Tensor:
        """Returns a vector over the channels in a shape to meet `mean`.

        Args:
            vector: Tensor `[channels]`.
            axis: Integer, the channel axis; None for that of the moments.
        """
        vector = self.constant(vector)
        if self.stationary:
            return vector
        axis = (self.axis if axis is None else axis) % len(self.shape)
        return ops.reshape(vector, (-1,) + (1,) * (len(self.shape) - axis - 1))

    def affine(self, scale: Tensor, shift: Tensor = 0.0) -> Moments:
        """Moments of `scale * x + shift`, vectors that meet `mean`."""
        scale, shift = self.constant(scale), self.constant(shift)
        squared = ops.square(scale)
        return self.replace(
            mean=self.mean * scale + shift,
            variance=self.variance * squared,
            shared=None if self.shared is None else self.shared * squared,
            factor=None if self.factor is None else self.factor * scale,
        )

    def with_common_noise(self, variance: Tensor, axis: int) -> Moments:
        """Moments per example of `x + V`, V drawn once per example and channel.

        Args:
            variance: Tensor `[channels]`, of V, which has mean 0.
            axis: Integer, the channel axis of the layer.
        """
        noise = self.along(variance, axis)
        return self.replace(
            variance=self.variance + noise,
            shared=noise if self.shared is None else self.shared + noise,
            factor=self.factor,
        )

    def scaled(
        self,
        scale: Tensor,
        scale_variance: Tensor | None = None,
        bias: Tensor = 0.0,
        axis: int = -1,
    ) -> Moments:
        """Moments of `(x + bias) S`, `S ~ (scale, scale_variance)`.

        S is drawn once per example and channel: what it adds to the variance is
        shared by all positions.

        Args:
            scale: Tensor `[channels]`, mean of S.
            scale_variance: Tensor `[channels]`, variance of S; None for zero.
            bias: Tensor `[channels]` or number.
            axis: Integer, the channel axis of the layer.
        """
        x = self.over(axis)
        scale = x.along(scale, axis)
        if not isinstance(bias, int | float):
            bias = x.along(bias, axis)
        if scale_variance is None:
            return x.affine(scale, bias * scale)
        noise = x.along(scale_variance, axis)
        if x.stationary:
            mean, variance = scaled_moments(x.mean, x.variance, scale, noise, bias)
            return x.replace(mean=mean, variance=variance)
        mean, variance, shared, factor = _scale_maps(
            x.mean, x.variance, x.shared, x.factor, scale, noise, bias
        )
        return x.replace(mean=mean, variance=variance, shared=shared, factor=factor)

    def averaged(
        self, average: Callable[[Tensor], Tensor], inverse_count: Tensor, shape: Shape
    ) -> Moments:
        """Moments per example of averages over positions.

        The noise that positions share adds up in full, the rest as independent
        variables.

        Args:
            average: Function that averages a full tensor.
            inverse_count: Number or tensor, one over the positions averaged.
            shape: Tuple, shape of the result.
        """
        mean, common = average(self.mean), self.common_variance
        if common is None:
            variance = average(self.variance) * inverse_count
            return self.replace(mean=mean, variance=variance, shape=shape)
        shared = factor = None
        variance = average(self.variance - common) * inverse_count
        if self.shared is not None:
            stddev = ops.sqrt(self.shared + 1e-20)
            stddev = ops.broadcast_to(stddev, ops.shape(self.variance))
            shared = ops.square(average(stddev))
            variance = variance + shared
        if self.factor is not None:
            factor = average(self.factor)
            variance = variance + ops.square(factor)
        return self.replace(
            mean=mean, variance=variance, shared=shared, factor=factor, shape=shape
        )


def common_variance(
    variance: Tensor, shared: Tensor | None, factor: Tensor | None
) -> Tensor | None:
    """Variance of the noise that positions share, None for none; see `Moments`."""
    if shared is None and factor is None:
        return None
    common = 0.0 if shared is None else shared
    if factor is not None:
        common = common + ops.square(factor)
    return ops.minimum(common, variance)


@backend.fused
def _scale_maps(mean, variance, shared, factor, scale, noise, bias):
    # Noise of an earlier scale loses its own pattern over the positions.
    shared = common_variance(variance, shared, factor)
    if shared is not None:
        shared = shared * (ops.square(scale) + noise)
    factor = (mean + bias) * ops.sqrt(noise)
    mean, variance = scaled_moments(mean, variance, scale, noise, bias)
    return mean, variance, shared, factor
