"""Mean and variance of an activation."""

import dataclasses
from typing import Any

from keras import ops

from bayesnorm.maths.activations import safe_sqrt
from bayesnorm.maths.scale import scaled_moments


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
        shared: Per example, the part of `variance` whose noise all positions of a
            channel have in common (a scale drawn once per channel); a tensor that
            broadcasts against `variance`, or None for zero.
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
    correlation: float = 1.0
    assumed: bool = False

    @classmethod
    def standardized(cls, shape, **kwargs):
        """Data-set level moments of mean 0 and variance 1.

        Args:
            shape: Tuple, shape of the activation, the batch first.
            **kwargs: Other attributes.
        """
        return cls(ops.zeros(()), ops.ones(()), tuple(shape), **kwargs)

    @property
    def known(self):
        """Whether there are any moments: not behind an unresolved rescaling."""
        return self.mean is not None

    @property
    def channel_axis(self):
        """The channel axis, counted from 0."""
        return self.axis % len(self.shape)

    def replace(self, **changes):
        """Returns a copy with some attributes changed.

        With `mean=` or `variance=` alone, as an element-wise rule gives them, the
        shared part keeps its share of the variance, and the moments no longer
        count as assumed.
        """
        if "mean" in changes or "variance" in changes:
            changes.setdefault("assumed", False)
            if "shared" not in changes and self.shared is not None:
                variance = changes.get("variance", self.variance)
                changes["shared"] = variance * self.shared_fraction
        return dataclasses.replace(self, **changes)

    @property
    def shared_map(self):
        """`shared` in the shape of `variance`, and not above it."""
        return ops.minimum(self.shared, self.variance)

    @property
    def shared_fraction(self):
        """Shared part over the variance, 0 where the variance is 0."""
        positive = self.variance > 0
        denominator = ops.where(positive, self.variance, 1.0)
        return ops.where(positive, self.shared_map / denominator, 0.0)

    def over(self, axis):
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

    def along(self, vector, axis=None):
        """Returns a vector over the channels in a shape to meet `mean`.

        Args:
            vector: Tensor `[channels]`.
            axis: Integer, the channel axis; None for that of the moments.
        """
        if self.stationary:
            return vector
        axis = (self.axis if axis is None else axis) % len(self.shape)
        return ops.reshape(vector, (-1,) + (1,) * (len(self.shape) - axis - 1))

    def affine(self, scale, shift=0.0):
        """Moments of `scale * x + shift`, vectors that meet `mean`."""
        squared = ops.square(scale)
        return self.replace(
            mean=self.mean * scale + shift,
            variance=self.variance * squared,
            shared=None if self.shared is None else self.shared * squared,
        )

    def scaled(self, scale, scale_variance=None, bias=0.0, axis=-1):
        """Moments of `(x + bias) S` with `S ~ (scale, scale_variance)`.

        S is drawn once per example and channel, so what it adds to a variance is
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
        mean, variance = scaled_moments(x.mean, x.variance, scale, noise, bias)
        if x.stationary:
            return x.replace(mean=mean, variance=variance)
        shared = ops.square(x.mean + bias) * noise
        if x.shared is not None:
            shared = shared + x.shared * (ops.square(scale) + noise)
        return x.replace(mean=mean, variance=variance, shared=shared)

    def averaged(self, average, inverse_count, shape):
        """Moments per example of averages over positions.

        The shared part adds up in full, the rest as independent variables.

        Args:
            average: Function that averages a full tensor.
            inverse_count: Number or tensor, one over the positions averaged.
            shape: Tuple, shape of the result.
        """
        if self.shared is None:
            variance, shared = average(self.variance) * inverse_count, None
        else:
            common = self.shared_map
            shared = ops.square(average(safe_sqrt(common)))
            variance = shared + average(self.variance - common) * inverse_count
        return self.replace(
            mean=average(self.mean), variance=variance, shared=shared, shape=shape
        )
