"""A scale with a learned posterior: batch normalization as Bayesian learning."""

import weakref

import keras
import numpy as np
from keras import initializers, ops
from keras.src.backend.common.stateless_scope import get_stateless_scope

from bayesnorm import backend
from bayesnorm.arguments import check_choice, check_number
from bayesnorm.layers.kl_weight import EpochEnd
from bayesnorm.layers.noise import StochasticLayer
from bayesnorm.layers.scale_norm import ScaleNorm
from bayesnorm.maths import scale as scale_maths
from bayesnorm.moments import register

_PRIORS = ("normal", "log_uniform")


class _PosteriorKL(keras.regularizers.Regularizer):
    """`kl_weight * KL` as the regularizer of a variable of the posterior.

    Keras adds a regularizer to the loss once per step however often the layer is
    called (`add_loss` would once per call), divides it rightly among the replicas
    of a strategy, and drops it when the layer is not trainable.
    """

    def __init__(self, layer):
        self._layer = layer

    def __call__(self, rho):
        return ops.convert_to_tensor(self._layer.kl_weight_variable) * (
            self._layer.kl_divergence()
        )


@keras.saving.register_keras_serializable("bayesnorm")
class StochasticScaleNorm(StochasticLayer, ScaleNorm):
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
        seed: Integer, None for a random one.
        bias_initializer: Initializer of the bias. Defaults to zeros.
        scale_initializer: Initializer of the posterior mean. Defaults to ones.

    Input shape:
        `[batch, ..., channels]` (channels at `axis`).

    Output shape:
        The input's.

    Raises:
        ValueError: If an argument is out of range or `axis` is not a channel
            axis of the input.

    Reference:
        Shekhovtsov & Flach, 2018, "Stochastic Normalizations as Bayesian
        Learning", eqs. (15)-(19), (21).
    """

    def __init__(
        self,
        axis=-1,
        per_channel=True,
        prior="normal",
        prior_scale=10.0,
        initial_stddev=0.1,
        kl_weight=None,
        seed=None,
        bias_initializer="zeros",
        scale_initializer="ones",
        **kwargs,
    ):
        super().__init__(
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
        if kl_weight is not None:
            check_number("kl_weight", kl_weight)
        self.per_channel = per_channel
        self.prior = prior
        self.prior_scale = prior_scale
        self.initial_stddev = initial_stddev
        self.kl_weight = kl_weight
        self._counts_examples = kl_weight is None
        self._epochs_begun = False
        self._counted_in = None
        self._epoch_end = EpochEnd(self.on_epoch_end, name=f"{self.name}_epoch_end")

    def build(self, input_shape):
        """Makes the posterior's variables and those of the KL weight."""
        super().build(input_shape)
        self.rho = self._vector(
            "rho",
            self.scale.shape[0] if self.per_channel else 1,
            initializers.Constant(scale_maths.rho_of_stddev(self.initial_stddev)),
        )
        self.rho.regularizer = _PosteriorKL(self)
        self.kl_weight_variable = self._counter("kl_weight", self.kl_weight or 0.0)
        self.examples_seen = self._counter("examples_seen", 0.0)

    def _counter(self, name, value):
        return self.add_weight(
            name=name,
            shape=(),
            initializer=initializers.Constant(value),
            trainable=False,
            dtype="float32",
            autocast=False,
            aggregation="mean",
        )

    @property
    def noise_shapes(self):
        """One draw per channel: `{"scale": (channels,)}`."""
        return {"scale": tuple(self.scale.shape)}

    @property
    def stddev(self):
        """The posterior's standard deviation, `[channels]`, float32."""
        stddev = scale_maths.stddev_of_rho(ops.convert_to_tensor(self.rho))
        return ops.broadcast_to(stddev, self.scale.shape)

    def kl_divergence(self):
        """Returns the KL of the posterior to the prior, a scalar in nats."""
        mean = ops.convert_to_tensor(self.scale)
        if self.prior == "log_uniform":
            terms = scale_maths.kl_to_log_uniform(mean, self.stddev)
        else:
            terms = scale_maths.kl_to_normal(mean, self.stddev, self.prior_scale)
        return ops.sum(terms)

    def set_kl_weight(self, weight):
        """Sets the KL's weight; the layer no longer finds it by itself."""
        self._counts_examples = False
        self.kl_weight_variable.assign(weight)

    def on_epoch_end(self):
        """Takes 1 / (examples of the epoch that ended) as the KL's weight."""
        if not self._counts_examples:
            return
        if self.built:
            seen = float(ops.convert_to_numpy(self.examples_seen.value))
            # Calls made before there was an epoch say nothing of its size.
            if seen > 0 and self._epochs_begun:
                self.kl_weight_variable.assign(1.0 / seen)
            self.examples_seen.assign(0.0)
        # A model that is built by `fit` is not yet when its first epoch begins.
        self._epochs_begun = True

    def _count(self, batch):
        """Counts the examples of a step: once, however often the layer is used."""
        # A step is one scope of a stateless call (JAX: there every layer of a
        # functional model begins a call context), else one call of the model.
        step = get_stateless_scope() or self._get_call_context()
        if self._counted_in is None or self._counted_in() is not step:
            self._counted_in = weakref.ref(step)
            # The mean over the replicas is what each of them then holds.
            examples = ops.cast(batch, "float32") * backend.replicas()
            self.examples_seen.assign(self.examples_seen + examples)

    def call(self, inputs, training=None):
        """Returns `(inputs + bias) * S`."""
        batch = ops.shape(inputs)[0]
        if training and self._counts_examples:
            self._count(batch)
        noise = self.standard_normal("scale", batch, training)
        if noise is None:
            return super().call(inputs)
        draws = ops.convert_to_tensor(self.scale) + self.stddev * noise
        return self._scaled(inputs, draws, batch)

    def save_own_variables(self, store):
        """Saves the weights, the state of the noise, and whether N is counted."""
        super().save_own_variables(store)
        store["counts_examples"] = np.array(self._counts_examples)

    def load_own_variables(self, store):
        """Loads what was saved."""
        values = {k: store[k] for k in store.keys()}  # noqa: SIM118 (an h5 group)
        counts = values.pop("counts_examples", None)
        super().load_own_variables(values)
        if counts is not None:
            self._counts_examples = bool(np.asarray(counts))

    def get_config(self):
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "per_channel": self.per_channel,
            "prior": self.prior,
            "prior_scale": self.prior_scale,
            "initial_stddev": self.initial_stddev,
            "kl_weight": self.kl_weight,
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
