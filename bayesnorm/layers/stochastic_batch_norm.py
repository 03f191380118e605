"""Batch normalization whose statistics are random in use as they are in training."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import keras
from keras import ops

from bayesnorm.arguments import check_choice, check_model, positive_integer
from bayesnorm.graph import unlocked
from bayesnorm.layers.axes import broadcast_shape
from bayesnorm.layers.noise import (
    StochasticLayer,
    current_noise_mode,
    stochastic_layers,
)
from bayesnorm.maths import correlation
from bayesnorm.maths.normalization import random_normalization
from bayesnorm.moments import Moments, register
from bayesnorm.types import Shape, Tensor

_KINDS = ("batch", "example")
_MEAN, _LOG_VARIANCE, _LATENT = "mean", "log_variance", "latent"
# The number of batches that a layer counts whose statistics do not vary.
_FIXED = 1e9

_source: contextvars.ContextVar[Any] = contextvars.ContextVar(
    "bayesnorm_batch_statistics", default=None
)


@contextlib.contextmanager
def batch_statistics(source: Callable[..., Any] | None) -> Iterator[None]:
    """Sets what stochastic batch normalizations normalize with.

    Args:
        source: Function `(layer, inputs, mask, by_batch) -> (mean, log_variance)`, the
            latter the logarithm of variance + epsilon, both `[channels]` or
            `[batch, channels]`; or None for the moving averages. `by_batch` says
            whether the layer would now normalize by the batch: in training, unless it
            is frozen or was called with `training=False`.
    """
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)


@keras.saving.register_keras_serializable("bayesnorm")
class StochasticBatchNormalization(StochasticLayer, keras.layers.BatchNormalization):
    """Batch normalization that can sample the statistics it normalizes with.

    In training, and in evaluation by default, it is `keras.layers.BatchNormalization`:
    `y = gamma (x - mean) / sqrt(variance + epsilon) + beta`, with the batch's
    statistics and with the moving averages. It also keeps the first two moments of
    the batches' statistics, per channel, and in evaluation with noise
    (`bayesnorm.predict`, `noise_mode("sample")`) draws

        mean ~ Normal(m_mu, s_mu^2),
        log(variance + epsilon) ~ Normal(m_l, s_l^2),

    A network trained with batch normalization has been trained on such draws;
    averaging its predictions over them is its uncertainty. With `law_rank=0` the draws
    are independent, as in the paper. But the statistics of a batch are not: bright
    images, say, have large means in many channels of many layers. With a joint law of
    rank r the standardized draws, of all means and log variances, are

        z = F^T u + sqrt(1 - |f|^2) e,  u ~ Normal(0, I_r), e ~ Normal(0, I),

    where f is a column of the factor F `[r, 2 channels]`. Their variances are those of
    the independent law, and they have the correlations that r directions have room for.
    `bayesnorm.calibrate` finds F over all layers of a model. In a sampled network
    (`bayesnorm.predict`, an export) the layers have u in common; a layer that draws by
    itself (`noise_mode("sample")`) draws its own, and has the law within the layer.
    Further training keeps F, until the next calibration. `predict(method="moments")`
    follows the correlation of a channel's own mean and variance alone: it carries no
    covariances between channels or layers.

    While training, the moments are exponential averages with the momentum of the
    layer, without a bias from their start; they also contain the drift of the
    weights. `bayesnorm.calibrate` replaces them by exact ones after training. Until
    there has been either, the outputs of a sampling call are NaN, and
    `bayesnorm.predict` refuses to sample.

    A layer that is called several times in a pass (shared, or inside `TimeDistributed`)
    has one law for all its calls, and a sample one draw.

    The size of the training batches is part of the posterior: smaller ones have
    noisier statistics. `calibrate` notes its own in `calibration_batch_size`.

    Args:
        axis: Integer, the channel axis. Defaults to -1.
        momentum: Of the moving averages, as in `keras.layers.BatchNormalization`.
        epsilon: Added to variances, likewise.
        noise: `"batch"`: all examples of a call share a draw, a sample of the
            network, as in the paper; `"example"`: each has its own, as a model
            server wants. `bayesnorm.predict` always shares a sample's draws.
        seed: Integer, None for a random one.
        calibration_batch_size: Integer or None, size of the batches of the latest
            calibration; set by `bayesnorm.calibrate`.
        law_rank: Integer from 0, rank r of the joint law; set by `bayesnorm.calibrate`.
        **kwargs: The other arguments of `keras.layers.BatchNormalization`.

    Call arguments:
        inputs: Tensor.
        training: Whether to normalize by the batch.
        mask: Boolean tensor like `inputs` without the last axis; masked entries do
            not count in the batch's statistics.

    Input shape:
        `[batch, ..., channels]` (channels at `axis`).

    Output shape:
        The input's.

    Raises:
        ValueError: If an argument is out of range, or with `renorm=True`: what
            renormalization trains on are not the batch's statistics.

    Reference:
        Atanov et al., 2018, "Uncertainty Estimation via Stochastic Batch
        Normalization", eqs. (3)-(7). The variance is what is log-normal here, as in
        the paper's figures and the authors' code, and epsilon is added once.
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        *,
        noise: Literal["batch", "example"] = "batch",
        seed: int | None = None,
        calibration_batch_size: int | None = None,
        law_rank: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            seed=seed, axis=axis, momentum=momentum, epsilon=epsilon, **kwargs
        )
        check_choice("noise", noise, _KINDS)
        if getattr(self, "renorm", False):  # Keras has it from 3.14 on.
            raise ValueError(
                "`renorm=True` does not go with stochastic batch normalization: it "
                "does not normalize by the batch's statistics, so these are not "
                "what the network was trained on. Received: renorm=True"
            )
        if calibration_batch_size is not None:
            positive_integer("calibration_batch_size", calibration_batch_size)
        self.noise = noise
        if law_rank != 0:
            positive_integer("law_rank", law_rank)
        self.calibration_batch_size = calibration_batch_size
        self.law_rank = law_rank
        self.law_factor = None

    def build(self, input_shape: Shape) -> None:
        """Makes the variables of batch normalization and the statistics' moments."""
        super().build(input_shape)
        channels = self.moving_mean.shape
        self.mu_mean = self._statistic("mu_mean", channels)
        self.mu_variance = self._statistic("mu_variance", channels)
        self.log_variance_mean = self._statistic("log_variance_mean", channels)
        self.log_variance_variance = self._statistic("log_variance_variance", channels)
        # Batches seen, and the sum of the squares of their weights in the averages.
        self.statistics_count = self._statistic("statistics_count", ())
        self.statistics_squared_weight = self._statistic(
            "statistics_squared_weight", ()
        )
        self._make_factor()

    def _make_factor(self):
        if self.law_rank:
            shape = (self.law_rank, 2, *self.moving_mean.shape)
            self.law_factor = self._statistic("law_factor", shape)

    def set_law_rank(self, rank: int) -> None:
        """Makes the law one of another rank, 0 for independent statistics.

        The moments stay. Where the rank changes, the law is that of independent
        statistics until the next calibration.

        Args:
            rank: Integer from 0.
        """
        if rank == self.law_rank:
            return
        self.law_rank = rank
        if self.built:
            with unlocked(self, self.law_factor):
                self.law_factor = None
                self._make_factor()

    def _statistic(self, name, shape):
        return self.add_weight(
            name=name,
            shape=shape,
            initializer="zeros",
            trainable=False,
            dtype="float32",
            autocast=False,
            aggregation="mean",
        )

    @property
    def statistics_variables(self) -> list[keras.Variable]:
        """The variables that hold the law of the batches' statistics."""
        return [
            *self._moments_variables,
            *([] if self.law_factor is None else [self.law_factor]),
        ]

    @property
    def _moments_variables(self):
        return [
            self.mu_mean,
            self.mu_variance,
            self.log_variance_mean,
            self.log_variance_variance,
            self.statistics_count,
            self.statistics_squared_weight,
        ]

    @property
    def noise_shapes(self) -> dict[str, Any]:
        """Two draws per channel, and those of the joint law."""
        channels = tuple(self.moving_mean.shape)
        latent = {_LATENT: (self.law_rank,)} if self.law_rank else {}
        return {_MEAN: channels, _LOG_VARIANCE: channels, **latent}

    @property
    def shared_noise(self) -> tuple[str, ...]:
        """What the statistics of all layers follow."""
        return (_LATENT,)

    def check_noise(self) -> None:
        """Checks that the layer has seen batches enough to know how they differ."""
        count = float(ops.convert_to_numpy(self.statistics_count))
        if count < 2:
            raise ValueError(
                f"Layer {self.name!r} cannot sample: it has the statistics of "
                f"{count:.0f} batches, and 2 or more are needed. Call "
                "bayesnorm.calibrate(model, training_data, batch_size=...) with the "
                "batch size of the training first."
            )

    def statistics_moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns `(m_mu, s_mu, m_l, s_l)`, `[channels]` each, float32.

        Means and standard deviations (from unbiased variances) over batches of the
        batch mean and of `log(variance + epsilon)`. NaN before there are two batches.
        """
        count, weight = (
            ops.convert_to_tensor(v)
            for v in (self.statistics_count, self.statistics_squared_weight)
        )
        # 1 - sum of squared weights is what a weighted variance is too small by.
        unbiased = ops.where(
            count > 1.5, 1.0 / ops.maximum(1.0 - weight, 1e-12), float("nan")
        )
        return (
            ops.convert_to_tensor(self.mu_mean),
            ops.sqrt(ops.convert_to_tensor(self.mu_variance) * unbiased),
            ops.convert_to_tensor(self.log_variance_mean),
            ops.sqrt(ops.convert_to_tensor(self.log_variance_variance) * unbiased),
        )

    def law_correlation(self) -> Tensor:
        """Returns the correlation of mean and log variance of each channel."""
        if self.law_factor is None:
            return ops.zeros(tuple(self.moving_mean.shape))
        factor = ops.convert_to_tensor(self.law_factor)
        return ops.sum(factor[:, 0] * factor[:, 1], axis=0)

    def _moments(self, inputs, mask):
        # Keras computes the batch's statistics here, across replicas if it is
        # synchronized, when and only when it normalizes by them.
        mean, variance = super()._moments(inputs, mask)
        count = self.statistics_count + 1.0
        keep = float(self.momentum)
        if keep in (0.0, 1.0):  # The limits: the last batch alone, all batches alike.
            rate = keep / count + (1.0 - keep)
        else:
            # At most 1, by whatever rounding: a variance must not become negative.
            rate = (1.0 - keep) / -ops.expm1(count * math.log(keep))
            rate = ops.where(count < 1.5, 1.0, ops.minimum(rate, 1.0))
        self._average(mean, ops.log(variance + self.epsilon), rate)
        return mean, variance

    def observe(
        self, inputs: Tensor, mask: Tensor | None = None
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Takes the statistics of a batch into exact averages, and returns them.

        Args:
            inputs: Tensor, a batch.
            mask: As in the call.

        Returns:
            `(statistics, update)`: `(mean, log_variance)`, `[channels]` each, and what
            they do to the correlations: `(keep, row)`, `[2, channels]` each, as of
            `maths.correlation.deviation`.
        """
        statistics = self.batch_statistics(inputs, mask)
        update = correlation.deviation(
            ops.convert_to_tensor(self.statistics_count),
            _stacked(self.mu_mean, self.log_variance_mean),
            _stacked(self.mu_variance, self.log_variance_variance),
            _stacked(*statistics),
        )
        mean, log_variance = statistics
        self._average(mean, log_variance, 1.0 / (self.statistics_count + 1.0))
        return statistics, update

    def batch_statistics(
        self, inputs: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns mean and `log(variance + epsilon)` of a batch, `[channels]` each."""
        mean, variance = super()._moments(_at_least_float32(inputs), mask)
        # Keras squeezes: one channel would come as a scalar.
        shape = tuple(self.moving_mean.shape)
        mean, variance = ops.reshape(mean, shape), ops.reshape(variance, shape)
        return mean, ops.log(variance + self.epsilon)

    def fix(self) -> None:
        """Takes the moving averages for the statistics of all batches, without spread.

        What a layer normalizes with that is frozen while the rest is trained.
        """
        # A copy: with JAX two variables would share an array, which Keras's compiled
        # steps then cannot take from both.
        self.mu_mean.assign(ops.copy(self.moving_mean.value))
        self.mu_variance.assign(ops.zeros_like(self.mu_variance.value))
        variance = ops.convert_to_tensor(self.moving_variance)
        self.log_variance_mean.assign(ops.log(variance + self.epsilon))
        self.log_variance_variance.assign(
            ops.zeros_like(self.log_variance_variance.value)
        )
        self.statistics_squared_weight.assign(0.0)
        self.statistics_count.assign(_FIXED)
        if self.law_factor is not None:
            self.law_factor.assign(ops.zeros_like(self.law_factor.value))

    def is_fixed(self) -> bool:
        """Whether `fix` was called last."""
        return float(ops.convert_to_numpy(self.statistics_count)) >= _FIXED

    def has_exact_moments(self) -> bool:
        """Whether all batches weighed the same: a calibration, no training since."""
        count, weight = (
            float(ops.convert_to_numpy(v))
            for v in (self.statistics_count, self.statistics_squared_weight)
        )
        return count > 0 and abs(weight * count - 1.0) < 1e-3

    def _average(self, mean, log_variance, rate):
        """Takes a batch's statistics into the averages, centrally.

        With d = x - m and the rate r of the batch: m <- m + r d and
        v <- (1 - r) (v + r d^2), which is never negative and cancels nothing.
        """
        for value, first, second in (
            (mean, self.mu_mean, self.mu_variance),
            (log_variance, self.log_variance_mean, self.log_variance_variance),
        ):
            delta = ops.cast(value, "float32") - first
            first.assign(first + rate * delta)
            second.assign((1.0 - rate) * (second + rate * ops.square(delta)))
        weight = self.statistics_squared_weight
        weight.assign(ops.square(1.0 - rate) * weight + ops.square(rate))
        self.statistics_count.assign(self.statistics_count + 1.0)

    def call(
        self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Normalizes `inputs`."""
        source = _source.get()
        if source is not None:
            by_batch = bool(training and self.trainable)
            statistics = source(self, inputs, mask, by_batch)
            if statistics is None:
                return super().call(inputs, training=False, mask=mask)
            return self._normalized(inputs, *statistics)
        if training and self.trainable:
            return super().call(inputs, training=True, mask=mask)
        statistics = self._draw(ops.shape(inputs)[0])
        if statistics is None:
            return super().call(inputs, training=False, mask=mask)
        return self._normalized(inputs, *statistics)

    def _draw(self, batch):
        """Returns mean and log variance, `[1 or batch, channels]`, or None."""
        mode = current_noise_mode()
        # A function hands out the draws of several networks, stacked in a batch.
        rows = batch if callable(mode) or self.noise == "example" else 1
        z_mean = self.standard_normal(_MEAN, rows, training=False)
        if z_mean is None:
            return None
        z_log_variance = self.standard_normal(_LOG_VARIANCE, rows, training=False)
        if self.law_factor is not None:
            latent = self.standard_normal(_LATENT, rows, training=False)
            factor = ops.convert_to_tensor(self.law_factor)
            own = correlation.own_stddev(factor)
            z_mean = own[0] * z_mean + ops.matmul(latent, factor[:, 0])
            z_log_variance = own[1] * z_log_variance + ops.matmul(latent, factor[:, 1])
        mean, mean_stddev, log_variance, log_variance_stddev = self.statistics_moments()
        return (
            mean + mean_stddev * z_mean,
            log_variance + log_variance_stddev * z_log_variance,
        )

    def _normalized(self, inputs, mean, log_variance):
        """`gamma (x - mean) exp(-log_variance / 2) + beta` as one scale and shift."""
        x = _at_least_float32(inputs)
        scale = ops.exp(-0.5 * log_variance)
        if self.scale:
            scale = scale * ops.cast(self.gamma, scale.dtype)
        shift = -mean * scale
        if self.center:
            shift = shift + ops.cast(self.beta, shift.dtype)
        rank, axis = len(x.shape), self.axis % len(x.shape)
        (channels,) = self.moving_mean.shape  # Of a tensor it may not be known.
        shape = broadcast_shape(axis, rank, channels, -1)  # Of 1 or more rows.
        scale, shift = (
            ops.cast(ops.reshape(value, shape), x.dtype) for value in (scale, shift)
        )
        return ops.cast(x * scale + shift, self.compute_dtype)

    def load_own_variables(self, store: Any) -> None:
        """Loads what was saved, also of another law; of a plain layer what it has."""
        values = {k: store[k] for k in store.keys()}  # noqa: SIM118 (an h5 group)
        saved = sum(key.isdigit() for key in values)
        variables = self._trainable_variables + self._non_trainable_variables
        plain = len(variables) - len(self.statistics_variables)
        factor = plain + len(self._moments_variables)
        if saved == plain:
            for i, variable in enumerate(self.statistics_variables, plain):
                values[str(i)] = ops.convert_to_numpy(variable)
        elif saved in (factor, factor + 1):
            of_law = values.get(str(factor))
            self.set_law_rank(0 if of_law is None else of_law.shape[0])
        super().load_own_variables(values)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "noise": self.noise,
            "calibration_batch_size": self.calibration_batch_size,
            "law_rank": self.law_rank,
        }


def _at_least_float32(x):
    # As in Keras: half precision overflows here.
    return ops.cast(x, keras.backend.result_type(x.dtype, "float32"))


def _stacked(of_means, of_log_variances):
    """Both kinds of statistics, `[2, channels]`, float32."""
    return ops.stack([ops.cast(x, "float32") for x in (of_means, of_log_variances)])


def stochastic_batch_normalizations(
    model: keras.Model,
) -> list[StochasticBatchNormalization]:
    """Returns the stochastic batch normalizations of a model, nested ones too."""
    check_model(model)
    layers = stochastic_layers(model)
    return [x for x in layers if isinstance(x, StochasticBatchNormalization)]


@register(StochasticBatchNormalization, needs_inputs=False)
def _moments(layer, moments):
    """Of a joint law it follows the correlation of a channel's mean and log variance.

    So mean and variance are exact for one layer. Those between channels, and between
    layers, a pass has no room for: it carries no covariances of channels, and adds up
    the noise of later layers as if it were independent.
    """
    dtype = moments.mean.dtype if moments.known else "float32"
    gamma = ops.cast(layer.gamma, dtype) if layer.scale else 1.0
    beta = ops.cast(layer.beta, dtype) if layer.center else 0.0
    if moments.stationary:
        # What it is there for, as for batch normalization itself.
        x = Moments.standardized(moments.shape, axis=layer.axis).over(layer.axis)
        return x.affine(gamma, beta)
    mean, mean_stddev, log_variance, log_stddev = (
        ops.cast(x, dtype) for x in layer.statistics_moments()
    )
    inverse, noise, shift, common, offset = random_normalization(
        mean_stddev, log_variance, log_stddev, ops.cast(layer.law_correlation(), dtype)
    )
    # The mean's own noise is shared.
    x = moments.with_common_noise(common, layer.axis)
    x = x.scaled(inverse * gamma, noise * ops.square(gamma), shift - mean, layer.axis)
    if layer.law_rank:
        # What the mean has of the log variance's goes with its pattern over positions.
        factor = x.factor + x.along(offset * ops.abs(gamma), layer.axis)
        variance = x.variance + ops.square(factor) - ops.square(x.factor)
        variance = ops.maximum(variance, 0.0)
        x = x.replace(variance=variance, shared=x.shared, factor=factor)
    return x.affine(1.0, x.along(beta, layer.axis) if layer.center else 0.0)
