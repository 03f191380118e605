"""Priors of weights, as regularizers: `-log p / N`, p up to its constant factor.

The loss of training is `mean NLL + sum(regularizers)`, so that N times the loss is
`-log posterior` up to a constant, in nats, when every weight has a prior and N is the
number of training examples, times that of the labels of each where the mean is over
these as well (segmentation, sequences).

```python
prior = bayesnorm.priors.Normal(num_examples=50_000, stddev=1.0)
keras.layers.Dense(10, kernel_regularizer=prior)
```
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from bayesnorm.arguments import check_number, positive_integer
from bayesnorm.types import Tensor

# Below it float32 has no numbers of full precision, and squares and quotients are off.
_SMALLEST = 1e-37


class Prior(keras.regularizers.Regularizer):
    """Base of the priors: a regularizer of the value `energy(x) / num_examples`.

    Args:
        num_examples: Integer N, the number of training examples, times that of the
            labels of each.

    Raises:
        ValueError: If an argument is out of range; when called, if the weights have no
            such axes.
    """

    def __init__(self, num_examples: int) -> None:
        self.num_examples = positive_integer("num_examples", num_examples)

    def energy(self, x: Tensor) -> Tensor:
        """Returns `-log p(x)` up to a constant, in nats.

        Args:
            x: Tensor of weights, float32 or float64.

        Returns:
            A scalar of the dtype of x.
        """
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        """Returns `energy(x) / num_examples`, a scalar, float32 at least."""
        x = ops.convert_to_tensor(x)
        x = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
        return self.energy(x) / self.num_examples

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"num_examples": self.num_examples}


@keras.saving.register_keras_serializable("bayesnorm")
class GroupLaplace(Prior):
    """Laplace prior of groups: `-log p = sum over groups of ||x_group|| / scale`.

    A group of d weights has the density `exp(-||x|| / scale) / (A Gamma(d) scale^d)`
    with `A = 2 pi^(d/2) / Gamma(d/2)`, the Laplace density where d = 1. The gradient
    is `x / (scale ||x||)` for a group, and 0 where the group is 0.

    Args:
        num_examples: Integer N, the number of training examples, times that of the
            labels of each.
        scale: Scale b of the density, above 0.
        axis: Axes over which the norm of a group is taken: an integer, a tuple of
            them, None for all (one group); `()`, the default, makes each weight a group
            of its own.

    Raises:
        ValueError: If an argument is out of range; when called, if the weights have no
            such axes.

    Reference:
        Heek & Kalchbrenner, 2019, "Bayesian Inference for Large Scale Image
        Classification".
    """

    def __init__(
        self,
        num_examples: int,
        scale: float = 5.0,
        axis: int | Sequence[int] | None = (),
    ) -> None:
        super().__init__(num_examples)
        check_number("scale", scale, positive=True)
        self.scale, self.axis = float(scale), _given_axes(axis)

    def energy(self, x: Tensor) -> Tensor:
        """Returns the sum of the groups' norms over `scale`, a scalar in nats."""
        axes = _axes_of(x, self.axis, range(len(x.shape)))
        # JAX takes 1 for the slope of |x| at 0.
        norms = _norms(x, axes) if axes else x * ops.stop_gradient(ops.sign(x))
        return ops.sum(norms) / self.scale

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "scale": self.scale, "axis": self.axis}


@keras.saving.register_keras_serializable("bayesnorm")
class UnitLength(Prior):
    """Prior of directions: `-log p = sum over features of (d/2) (||v||^2 - 1)^2`.

    v are the weights of an output feature, d their number. Behind a normalization by
    `||v||` the likelihood does not depend on the length, which this keeps near 1; the
    gradient is `2 d (||v||^2 - 1) v`.

    The density of v is largest on `||v|| = 1`, that of the length is not, for there is
    more space outside: it has its mode at `sqrt((1 + sqrt(1 + 2 (d - 1) / d)) / 2)`,
    1.16856 of d = 576, and a deviation near `0.38 / sqrt(d)`.

    Args:
        num_examples: Integer N, the number of training examples, times that of the
            labels of each.
        axis: Axes of the norm, an integer or a tuple of them. None: all but the last,
            as for kernels of Dense and convolutional layers; `(0, 1)` for a depthwise
            convolution in two dimensions, `(0, 1, 3)` for a transposed one.

    Raises:
        ValueError: If an argument is out of range; when called, if the weights have no
            such axes, or are a vector and `axis` is None.

    Reference:
        Heek & Kalchbrenner, 2019, "Bayesian Inference for Large Scale Image
        Classification", eq. (13).
    """

    def __init__(
        self, num_examples: int, axis: int | Sequence[int] | None = None
    ) -> None:
        super().__init__(num_examples)
        self.axis = _given_axes(axis)
        if self.axis == ():
            raise ValueError(
                "`axis` must name the axes of the norm, or be None for all but the "
                f"last. Received: axis={axis!r}"
            )

    def energy(self, x: Tensor) -> Tensor:
        """Returns `sum (d/2) (||v||^2 - 1)^2`, a scalar in nats."""
        axes = _axes_of(x, self.axis, range(len(x.shape) - 1))
        if not axes:
            raise ValueError(
                "UnitLength is a prior of kernels, whose last axis is that of the "
                "features: give `axis` for other weights. Received: weights of shape "
                f"{tuple(x.shape)}"
            )
        size = 1
        for axis in axes:
            size *= x.shape[axis]
        excess = ops.sum(ops.square(x), axes) - 1.0
        return size / 2 * ops.sum(ops.square(excess))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "axis": self.axis}


@keras.saving.register_keras_serializable("bayesnorm")
class Normal(Prior):
    """Normal prior of mean 0: `-log p = sum of x^2 / (2 stddev^2)`.

    Args:
        num_examples: Integer N, the number of training examples, times that of the
            labels of each.
        stddev: Standard deviation, above 0.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, num_examples: int, stddev: float = 1.0) -> None:
        super().__init__(num_examples)
        check_number("stddev", stddev, positive=True)
        self.stddev = float(stddev)

    def energy(self, x: Tensor) -> Tensor:
        """Returns `sum x^2 / (2 stddev^2)`, a scalar in nats."""
        return ops.sum(ops.square(x / self.stddev)) / 2

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "stddev": self.stddev}


def _norms(x: Tensor, axes: Any) -> Tensor:
    """Returns the norms over axes, whose gradient is 0 where they are 0.

    By the largest entry, for the squares of small and large numbers leave float32.
    """
    largest = ops.stop_gradient(ops.max(ops.abs(x), axes, keepdims=True))
    alive = largest > _SMALLEST
    unit = ops.where(alive, largest, 1.0)
    squared = ops.sum(ops.square(x / unit), axes, keepdims=True)
    return largest * ops.sqrt(ops.where(alive, squared, 1.0))


def _given_axes(axis: Any) -> Any:
    """Returns `axis` as None or a tuple of integers."""
    if axis is None:
        return None
    try:
        axes = tuple(map(operator.index, axis if _is_sequence(axis) else (axis,)))
    except TypeError:
        axes = None
    if axes is None or len({*axes}) < len(axes):
        raise ValueError(
            "`axis` must be an integer, a tuple of different ones, or None. Received: "
            f"axis={axis!r}"
        )
    return axes


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _axes_of(x: Tensor, axes: Any, default: Any) -> tuple[int, ...]:
    """Returns axes counted from 0, the default ones for None."""
    rank = len(x.shape)
    axes = tuple(default) if axes is None else axes
    positive = tuple(axis + rank if axis < 0 else axis for axis in axes)
    if len({*positive}) < len(axes) or not all(0 <= axis < rank for axis in positive):
        raise ValueError(
            f"`axis` must name different axes of the weights, from -{rank} to "
            f"{rank - 1}. Received: axis={axes} and weights of shape {tuple(x.shape)}"
        )
    return positive
