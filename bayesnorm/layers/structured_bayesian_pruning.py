"""Multiplicative noise that learns which channels a network can do without."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import initializers, ops

from bayesnorm.arguments import check_choice, check_number
from bayesnorm.layers.axes import add_along, broadcast_shape, canonical_axis
from bayesnorm.layers.posterior import VariationalLayer
from bayesnorm.maths import truncated_log_normal as law
from bayesnorm.moments import register
from bayesnorm.types import Initializer, Shape, Tensor


class _Range(keras.constraints.Constraint):
    """Keeps a variable in a range; what is not finite becomes NaN.

    Clipped, an infinite step would be a parameter like any other, and prune.
    """

    def __init__(self, low, high):
        self.low, self.high = low, high

    def __call__(self, value):
        inside = ops.clip(value, self.low, self.high)
        return ops.where(ops.isfinite(value), inside, float("nan"))


@keras.saving.register_keras_serializable("bayesnorm")
class StructuredBayesianPruning(VariationalLayer):
    """A random scale per channel that learns to be noise: `y = x theta (+ bias)`.

    The posterior of a channel is `log theta ~ Normal(mean, stddev^2)` truncated to
    `[-20, 0]`, the prior uniform on that interval. In training, and in evaluation
    when asked (`noise_mode`), theta is drawn once per example and channel and shared
    by all positions. Channels whose signal-to-noise ratio `E[theta] / sqrt(Var[theta])`
    is below `threshold` are pruned: in evaluation, sampled or not, their theta is 0.
    Otherwise theta is drawn, or `E[theta]`. In training no channel is pruned: it may
    come back.

    The layer adds `kl_weight * KL(q || prior)` to the model's loss, KL in nats, summed
    over the channels (`bayesnorm.maths.truncated_log_normal`, where all formulas and
    their float32 errors stand). The optimizer keeps `mean` in `[-20, 5]` and
    `log_stddev` in `[-20, 5]`, where the formulas hold.

    Put it right behind a linear layer without a bias, and give it the bias
    (`use_bias`), as the authors do: a pruned unit is then a constant. They start from
    a trained network.

    Parameters that are not finite prune nothing: outputs are NaN, and the methods that
    return NumPy arrays raise.

    Args:
        axis: Integer, the channel axis. Defaults to -1.
        use_bias: Whether a bias is added after the scale.
        threshold: Signal-to-noise ratio, from 0 up, below which a channel is pruned.
        initial_mean: Number in `[-20, 5]`, `mean` at the start.
        initial_log_stddev: Number in `[-20, 5]`, `log_stddev` at the start.
        kl_weight: Weight of the KL in the loss. None: found as written in
            `bayesnorm.layers.kl_weight`.
        seed: Integer, None for a random one.
        bias_initializer: Initializer of the bias. Defaults to zeros.
        num_examples: Integer N, the number of training examples, times that of the
            labels of each: `kl_weight = 1 / N` from the first step on.
        kl_factor: Factor of this layer's KL in the loss, beside the weight. The
            evidence lower bound has 1; above it a channel has to be worth more than its
            information, such as one of a convolution, which costs time at every
            position.

    Input shape:
        `[batch, ..., channels]` (channels at `axis`).

    Output shape:
        The input's.

    Raises:
        ValueError: If an argument is out of range, `kl_weight` and `num_examples`
            are both given, or `axis` is not a channel axis of the input.

    Reference:
        Neklyudov et al., 2017, "Structured Bayesian Pruning via Log-Normal
        Multiplicative Noise", arXiv:1705.07283.
    """

    def __init__(
        self,
        axis: int = -1,
        use_bias: bool = False,
        threshold: float = 1.0,
        initial_mean: float = 0.0,
        initial_log_stddev: float = -5.0,
        kl_weight: float | None = None,
        seed: int | None = None,
        bias_initializer: Initializer = "zeros",
        num_examples: int | None = None,
        kl_factor: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            kl_weight=kl_weight, num_examples=num_examples, seed=seed, **kwargs
        )
        check_number("kl_factor", kl_factor, positive=True)
        check_choice("use_bias", use_bias, (True, False))
        check_number("threshold", threshold)
        _check_range("initial_mean", initial_mean, law.MEAN_RANGE)
        _check_range("initial_log_stddev", initial_log_stddev, law.LOG_STDDEV_RANGE)
        self.axis = axis
        self.use_bias = use_bias
        self.threshold = threshold
        self.initial_mean = initial_mean
        self.initial_log_stddev = initial_log_stddev
        self.kl_factor = kl_factor
        self.bias_initializer = initializers.get(bias_initializer)
        self.bias = None
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:  # type: ignore[override]
        """Makes the posterior's variables, and the bias if there is one."""
        channels = input_shape[canonical_axis(self, self.axis, input_shape)]
        self.input_spec = keras.layers.InputSpec(
            ndim=len(input_shape), axes={self.axis: channels}
        )
        self.mean = self.add_weight(
            name="mean",
            shape=(channels,),
            initializer=initializers.Constant(self.initial_mean),
            constraint=_Range(*law.MEAN_RANGE),
        )
        self.log_stddev = self.add_weight(
            name="log_stddev",
            shape=(channels,),
            initializer=initializers.Constant(self.initial_log_stddev),
            constraint=_Range(*law.LOG_STDDEV_RANGE),
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(channels,), initializer=self.bias_initializer
            )
        super().build(input_shape)

    @property
    def kl_carrier(self) -> keras.Variable:
        """`log_stddev`: the posterior is learned, whatever is frozen, while this is."""
        return self.log_stddev

    @property
    def noise_shapes(self) -> dict[str, Any]:
        """One draw per channel: `{"scale": (channels,)}`."""
        return {"scale": tuple(self.mean.shape)}

    @property
    def _parameters(self) -> tuple[Tensor, Tensor]:
        return tuple(map(ops.convert_to_tensor, (self.mean, self.log_stddev)))

    def kl_divergence(self) -> Tensor:
        """Returns the KL of the posterior to the prior, a scalar in nats."""
        return ops.sum(law.kl_to_log_uniform(*self._parameters))

    def _values(self, function):
        """Returns `function` of the parameters, a NumPy array, or raises for NaN."""
        parameters = [ops.convert_to_numpy(x) for x in self._parameters]
        lost = ~np.isfinite(parameters).all(0)
        if lost.any():
            raise ValueError(
                f"Layer {self.name!r} has parameters that are not finite, of the "
                f"channels {np.flatnonzero(lost)[:10].tolist()}"
                f"{' and others' if lost.sum() > 10 else ''}: whether to prune them "
                "is unknown. Go back to weights from before the training diverged."
            )
        return ops.convert_to_numpy(function(*self._parameters))

    def expected_scale(self) -> np.ndarray:
        """Returns `E[theta]`, `[channels]`, float32 NumPy, of pruned channels too."""
        return self._values(law.expected_value)

    def snr(self) -> np.ndarray:
        """Returns `E[theta] / sqrt(Var[theta])`, `[channels]`, float32 NumPy."""
        return self._values(law.signal_to_noise)

    def median(self) -> np.ndarray:
        """Returns the median of theta, `[channels]`, float32 NumPy."""
        return self._values(
            lambda mean, log_stddev: ops.exp(
                law.quantile(mean, log_stddev, ops.zeros_like(mean))
            )
        )

    def evidence(self) -> np.ndarray:
        """Returns what holding theta at 0 adds to the log evidence.

        `[channels]`, float32 NumPy, in nats; from 0 up the model without the channel is
        the better one (`bayesnorm.maths.truncated_log_normal.log_evidence_ratio`).
        Useless channels, that end near the prior, are a tie: some tenths below 0. The
        rule of the authors' code prunes these, too: `evidence() >= -log(2 pi) / 2`.
        """
        return self._values(law.log_evidence_ratio)

    @property
    def keep(self) -> np.ndarray:
        """The channels that are not pruned: `snr() >= threshold`, boolean NumPy."""
        return self.snr() >= self.threshold

    def posterior_summary(self) -> dict[str, tuple[np.ndarray, str]]:
        """Returns the channels' `snr`, unit 1, and `kept`, the per cent not pruned.

        The values are `[channels]` and `[1]`; NaN where the parameters are not finite.
        """
        snr = ops.convert_to_numpy(law.signal_to_noise(*self._parameters))
        kept = np.where(np.isnan(snr), np.nan, snr >= self.threshold)
        return {"snr": (snr, "1"), "kept": (100.0 * kept.mean(keepdims=True), "%")}

    def _alive(self, values):
        """Returns values `[..., channels]` with 0 at pruned channels; NaN stays."""
        snr = law.signal_to_noise(*self._parameters)
        return ops.where(snr < self.threshold, 0.0, values)

    def evaluated_scale(self) -> Tensor:
        """Returns a tensor `[channels]`: `E[theta]`, 0 for pruned channels."""
        return self._alive(law.expected_value(*self._parameters))

    def evaluated_variance(self) -> Tensor:
        """Returns a tensor `[channels]`: `Var[theta]`, 0 for pruned channels."""
        mean, snr = law.expected_value, law.signal_to_noise
        return self._alive(ops.square(mean(*self._parameters) / snr(*self._parameters)))

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Returns `inputs * theta`, plus the bias if there is one."""
        batch = ops.shape(inputs)[0]
        noise = self.standard_normal("scale", batch, training)
        if noise is None:
            scale, batch = self.evaluated_scale(), 1
        else:
            scale = ops.exp(law.quantile(*self._parameters, noise))
            if not training:
                scale = self._alive(scale)
        axis = canonical_axis(self, self.axis, inputs.shape)
        shape = broadcast_shape(axis, len(inputs.shape), inputs.shape[axis], batch)
        outputs = inputs * ops.cast(ops.reshape(scale, shape), inputs.dtype)
        if self.bias is None:
            return outputs
        return add_along(outputs, ops.convert_to_tensor(self.bias), axis)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Returns the input's shape."""
        canonical_axis(self, self.axis, input_shape)
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "axis": self.axis,
            "use_bias": self.use_bias,
            "threshold": self.threshold,
            "initial_mean": self.initial_mean,
            "initial_log_stddev": self.initial_log_stddev,
            "kl_factor": self.kl_factor,
            "bias_initializer": initializers.serialize(self.bias_initializer),
        }


def _check_range(name, value, limits):
    low, high = limits
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        inside = False
    else:
        inside = low <= value <= high
    if not inside:
        raise ValueError(
            f"`{name}` must be a number from {low:g} to {high:g}. Received: "
            f"{name}={value!r}"
        )


@register(StructuredBayesianPruning)
def _moments(layer, moments):
    # The data set's statistics are those of the mean network, the same in training
    # and in use; only a prediction for an example carries the posterior's variance.
    noise = None if moments.stationary else layer.evaluated_variance()
    scaled = moments.scaled(layer.evaluated_scale(), noise, axis=layer.axis)
    if layer.bias is None:
        return scaled
    bias = ops.convert_to_tensor(layer.bias)
    return scaled.scaled(ops.ones_like(bias), bias=bias, axis=layer.axis)
