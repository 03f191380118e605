"""A scale with a learned posterior: batch normalization as Bayesian learning."""

from __future__ import annotations

from typing import Any, Literal

import keras
import numpy as np
from keras import initializers, ops

from bayesnorm.arguments import check_choice, check_number
from bayesnorm.layers.posterior import VariationalLayer
from bayesnorm.layers.scale_norm import ScaleNorm
from bayesnorm.maths import scale as scale_maths
from bayesnorm.moments import register
from bayesnorm.types import Initializer, Shape, Tensor

_PRIORS = ("normal", "log_uniform")


@keras.saving.register_keras_serializable("bayesnorm")
class StochasticScaleNorm(VariationalLayer, ScaleNorm):
    """Bias, and a scale with a learned posterior: `y = (x + bias) * S`.

    The posterior of the scale of a channel is `q(S) = Normal(scale, stddev^2)`.
    In training, and in evaluation when asked (`noise_mode`), S is drawn once per
    example and channel and shared by all positions; otherwise `S = scale`. The
    standard deviation is `stddev(u) = exp(u)` if `u < 0` else `u + 1` of a
    variable u, so that stddev and its logarithm have derivatives in (0, 1].

    The layer adds `kl_weight * KL(q || prior)` to the model's loss, KL in nats,
    summed over the channels:

    - prior `"normal"`, `p(S) = Normal(1, prior_scale^2)`:
      `KL = log(prior_scale / stddev) + (stddev^2 + (scale - 1)^2)
      / (2 prior_scale^2) - 1/2`;
    - prior `"log_uniform"`, `p(S) ~ 1/|S|`: up to the prior's infinite constant,
      `KL = sqrt(2) * integral of Dawson(t / sqrt(2)) for t from 0 to
      |scale| / stddev`.

    Args:
        axis: Integer, the channel axis. Defaults to -1.
        per_channel: Whether each channel has its own standard deviation; one for
            the layer otherwise (its channels are still drawn independently).
        prior: `"normal"` or `"log_uniform"`.
        prior_scale: Standard deviation of the normal prior.
        initial_stddev: Standard deviation of the posterior at the start.
        kl_weight: Weight of the KL in the loss. None: found as written in
            `bayesnorm.layers.kl_weight`.
        num_examples: Integer N, the number of training examples, times that of the
            labels of each: `kl_weight = 1 / N` from the first step on.
        seed: Integer, None for a random one.
        bias_initializer: Initializer of the bias. Defaults to zeros.
        scale_initializer: Initializer of the posterior mean. Defaults to ones.
        **kwargs: `bias_regularizer`, `scale_regularizer` (of the posterior mean, beside
            the KL), and arguments of every layer.

    Input shape:
        `[batch, ..., channels]` (channels at `axis`).

    Output shape:
        The input's.

    Raises:
        ValueError: If an argument is out of range, `kl_weight` and `num_examples`
            are both given, or `axis` is not a channel axis of the input.

    Reference:
        Shekhovtsov & Flach, 2018, "Stochastic Normalizations as Bayesian
        Learning", eqs. (15)-(19), (21).
    """

    def __init__(
        self,
        axis: int = -1,
        per_channel: bool = True,
        prior: Literal["normal", "log_uniform"] = "normal",
        prior_scale: float = 10.0,
        initial_stddev: float = 0.1,
        kl_weight: float | None = None,
        seed: int | None = None,
        bias_initializer: Initializer = "zeros",
        scale_initializer: Initializer = "ones",
        num_examples: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            kl_weight=kl_weight,
            num_examples=num_examples,
            seed=seed,
            axis=axis,
            bias_initializer=bias_initializer,
            scale_initializer=scale_initializer,
            **kwargs,
        )
        check_choice("prior", prior, _PRIORS)
        check_choice("per_channel", per_channel, (True, False))
        check_number("prior_scale", prior_scale, positive=True)
        check_number("initial_stddev", initial_stddev, positive=True)
        self.per_channel = per_channel
        self.prior = prior
        self.prior_scale = prior_scale
        self.initial_stddev = initial_stddev

    def build(self, input_shape: Shape) -> None:  # type: ignore[override]
        """Makes the posterior's variables."""
        ScaleNorm.build(self, input_shape)  # bias, scale; `super().build` comes last
        self.rho = self._vector(
            "rho",
            self.scale.shape[0] if self.per_channel else 1,
            initializers.Constant(scale_maths.rho_of_stddev(self.initial_stddev)),
        )
        super().build(input_shape)

    @property
    def kl_carrier(self) -> keras.Variable:
        """`rho`: the posterior is learned, whatever else is frozen, while this is."""
        return self.rho

    @property
    def noise_shapes(self) -> dict[str, Any]:
        """One draw per channel: `{"scale": (channels,)}`."""
        return {"scale": tuple(self.scale.shape)}

    @property
    def stddev(self) -> Tensor:
        """The posterior's standard deviation, `[channels]`, float32."""
        stddev = scale_maths.stddev_of_rho(ops.convert_to_tensor(self.rho))
        return ops.broadcast_to(stddev, self.scale.shape)

    def kl_divergence(self) -> Tensor:
        """Returns the KL of the posterior to the prior, a scalar in nats."""
        mean = ops.convert_to_tensor(self.scale)
        if self.prior == "log_uniform":
            terms = scale_maths.kl_to_log_uniform(mean, self.stddev)
        else:
            terms = scale_maths.kl_to_normal(mean, self.stddev, self.prior_scale)
        return ops.sum(terms)

    def posterior_summary(self) -> dict[str, tuple[np.ndarray, str]]:
        """Returns the noise of the channels, `stddev / |scale|`, as `relative_stddev`.

        The values are `[channels]`, float64, from 0 up.
        """
        stddev = ops.convert_to_numpy(self.stddev).astype("float64")
        scale = np.maximum(np.abs(ops.convert_to_numpy(self.scale)), 1e-12)
        return {"relative_stddev": (stddev / scale, "1")}

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Returns `(inputs + bias) * S`."""
        batch = ops.shape(inputs)[0]
        noise = self.standard_normal("scale", batch, training)
        if noise is None:
            return super().call(inputs)
        draws = ops.convert_to_tensor(self.scale) + self.stddev * noise
        return self._scaled(inputs, draws, batch)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "per_channel": self.per_channel,
            "prior": self.prior,
            "prior_scale": self.prior_scale,
            "initial_stddev": self.initial_stddev,
        }


@register(StochasticScaleNorm)
def _moments(layer, moments):
    # The data set's statistics are those of the mean network, the same in training
    # and in use; only a prediction for an example carries the posterior's variance.
    return moments.scaled(
        ops.convert_to_tensor(layer.scale),
        None if moments.stationary else ops.square(layer.stddev),
        bias=ops.convert_to_tensor(layer.bias),
        axis=layer.axis,
    )
