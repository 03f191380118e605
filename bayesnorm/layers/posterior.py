"""Layers with a learned posterior: what all of them share.

The loss gains `kl_weight * KL`, once a step; how the weight is found is written
in `bayesnorm.layers.kl_weight`.
"""

from __future__ import annotations

import contextlib
import contextvars
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import initializers, ops

from bayesnorm import backend
from bayesnorm.arguments import check_model, check_number, positive_integer
from bayesnorm.graph.internals import call_context
from bayesnorm.layers.noise import StochasticLayer, stochastic_layers
from bayesnorm.types import MaybeNone, Shape, Tensor

# What stands in place of a count of examples where the KL's weight was given.
_GIVEN = -1.0
_MEND = (
    "Say N, the number of training examples, before training: num_examples=N of the "
    "layer, or bayesnorm.set_kl_weight(model, 1 / N)."
)

_counting = contextvars.ContextVar("bayesnorm_counting", default=True)


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """In the context, calls with `training=True` are no steps of a training."""
    token = _counting.set(False)
    try:
        yield
    finally:
        _counting.reset(token)


class _Step:
    """A step of training, which all layers called in it share.

    Args:
        context: The object of `call_context`.
    """

    latest = None

    def __init__(self, context):
        self._context = weakref.ref(context)
        self._told = set()

    @classmethod
    def of(cls, context):
        """Returns the step: the same for every layer that is called in it."""
        if cls.latest is None or not cls.latest.is_of(context):
            cls.latest = cls(context)
        return cls.latest

    def is_of(self, context):
        """Whether a context is this step's."""
        return self._context() is context

    def warn_once(self, layer, subject, message):
        """Warns once for a layer, and for the first one alone of those in the step."""
        if subject not in layer.told | self._told:
            warnings.warn(message, stacklevel=2)
        layer.told.add(subject)
        self._told.add(subject)


class _WeightedKL(keras.regularizers.Regularizer):
    """`kl_weight * KL` as the regularizer of a variable of the posterior.

    Keras adds a regularizer to the loss once per step however often the layer is
    called (`add_loss` would once per call), divides it rightly among the replicas
    of a strategy, and drops it when the variable is not trained.
    """

    def __init__(self, layer):
        self._layer = layer

    def __call__(self, variable):
        weight = ops.convert_to_tensor(self._layer.kl_weight_variable)
        return self._layer.kl_factor * weight * self._layer.kl_divergence()


class _EpochEnd(keras.metrics.Metric):
    """Calls `notify` when an epoch ended; adds nothing to the logs.

    Keras resets the metrics of all layers when an epoch begins and before an
    evaluation: the one sign of an epoch that reaches a layer on every backend.
    """

    def __init__(self, notify, **kwargs):
        super().__init__(**kwargs)
        # A bound method, not the layer: Keras would look for weights in that.
        self._notify = notify

    def update_state(self, *args, **kwargs):
        """Does nothing: the layer counts, as it draws."""

    def reset_state(self):
        """Calls `notify`."""
        self._notify()

    def result(self):
        """Returns no entries for the logs."""
        return {}


class VariationalLayer(StochasticLayer):
    """Base of the layers with a learned, variational posterior.

    A layer of your own gives its variables, `noise_shapes`, `kl_divergence` and
    `call`; its `build` ends with `super().build(input_shape)`. The loss of `fit`
    then contains the weighted KL, and the layer takes part in the noise switch and
    in `bayesnorm.predict` (in `method="moments"` with a rule):

    ```python
    import bayesnorm
    import keras
    from keras import ops


    @keras.saving.register_keras_serializable("my_package")
    class LogNormalScale(bayesnorm.VariationalLayer):
        # y = x S, log S ~ Normal(mean, stddev^2), prior Normal(0, 1)

        def build(self, input_shape):
            shape, small = input_shape[-1:], keras.initializers.Constant(-2.0)
            self.mean = self.add_weight(shape=shape, initializer="zeros")
            self.log_stddev = self.add_weight(shape=shape, initializer=small)
            super().build(input_shape)  # when the variables are made

        @property
        def noise_shapes(self):
            return {"scale": tuple(self.mean.shape)}

        def kl_divergence(self):
            variance = ops.exp(2.0 * self.log_stddev)
            return ops.sum(0.5 * (variance + self.mean**2 - 1.0) - self.log_stddev)

        def call(self, inputs, training=None):  # inputs [batch, channels]
            z = self.standard_normal("scale", ops.shape(inputs)[0], training)
            stddev = ops.exp(self.log_stddev)
            log_scale = self.mean + (0.5 * stddev**2 if z is None else stddev * z)
            return inputs * ops.cast(ops.exp(log_scale), inputs.dtype)


    @bayesnorm.moments.register(LogNormalScale)
    def log_normal_moments(layer, moments):
        variance = ops.exp(2.0 * layer.log_stddev)
        mean = ops.exp(layer.mean + 0.5 * variance)
        # Of a whole data set (stationary) the moments are those of the mean network.
        noise = None if moments.stationary else mean**2 * ops.expm1(variance)
        return moments.scaled(mean, noise)
    ```

    Args:
        kl_weight: Weight of the KL in the loss. None: found as written in
            `bayesnorm.layers.kl_weight`.
        seed: Integer, None for a random one.
        num_examples: Integer N, the number of training examples, times that of the
            labels of each: the weight is then 1 / N from the first step on.

    Raises:
        ValueError: If an argument is out of range, or `kl_weight` and `num_examples`
            are both given.
    """

    # Of the layer's KL in the loss, beside the weight that all layers of a model share.
    kl_factor = 1.0

    def __init__(
        self,
        kl_weight: float | None = None,
        seed: int | None = None,
        num_examples: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed=seed, **kwargs)
        if kl_weight is not None:
            check_number("kl_weight", kl_weight)
        if num_examples is not None:
            num_examples = positive_integer("num_examples", num_examples)
        if None not in (kl_weight, num_examples):
            raise ValueError(
                "`num_examples` is for kl_weight=1 / num_examples: give one of the "
                f"two. Received: kl_weight={kl_weight!r}, num_examples={num_examples!r}"
            )
        self.kl_weight = kl_weight
        self.num_examples = num_examples
        self.kl_weight_variable: Any = None
        self._counts_examples = self._given_weight is None
        self._epochs_begun = False
        self._step = None
        self.told = set()
        self._epoch_end = _EpochEnd(self.on_epoch_end, name=f"{self.name}_epoch_end")

    @property
    def _given_weight(self):
        """The weight of the constructor's arguments, None where it is counted."""
        return self.kl_weight if self.num_examples is None else 1.0 / self.num_examples

    def kl_divergence(self) -> Tensor:
        """Returns the KL of the posterior to the prior, a float32 scalar in nats."""
        raise NotImplementedError

    @property
    def kl_carrier(self) -> keras.Variable:
        """The variable that brings the KL into the loss, as its regularizer.

        The KL counts while this variable is trained. By default the first trainable
        one; name another if that one may be frozen alone, or has a regularizer.
        """
        return next((v for v in self.weights if v.trainable), None)

    def posterior_summary(self) -> dict[str, tuple[np.ndarray, str]]:
        """Returns what reports say of the posterior: name -> `(values, unit)`.

        `values` is a NumPy array of numbers, such as one for each channel, of which
        reports give the median by layer; `unit` is a text, "1" for none. By default
        the KL to the prior of the layer as a whole, `[1]`, in nats.
        """
        return {
            "kl": (np.reshape(ops.convert_to_numpy(self.kl_divergence()), 1), "nats")
        }

    def add_weight(
        self, *args: Any, dtype: str = "float32", autocast: bool = False, **kwargs: Any
    ) -> keras.Variable:
        """Makes a variable as in Keras, float32 whatever the layer's dtype policy.

        In half precision a small step of the posterior would be lost, and the KL be
        wrong. `call` casts what it computes from the variable.
        """
        return super().add_weight(*args, dtype=dtype, autocast=autocast, **kwargs)

    def build(self, input_shape: Shape | None = None) -> None:
        """Brings the KL into the loss; to be called when all variables are made."""
        carrier = self.kl_carrier
        if carrier is None or carrier.regularizer is not None:
            found = "none" if carrier is None else f"{carrier.path!r}, regularized"
            raise ValueError(
                f"Layer {self.name!r} ({type(self).__name__}) needs a trainable "
                "variable without a regularizer, to bring the KL into the loss. Make "
                "the variables before `super().build(input_shape)`, and name one by "
                f"`kl_carrier` if the first will not do. Found: {found}"
            )
        carrier.regularizer = _WeightedKL(self)
        given = self._given_weight
        self.kl_weight_variable = self._counter("kl_weight", given or 0.0)
        # Below 0 where the weight was given: what files of weights of any format keep.
        self.examples_seen = self._counter(
            "examples_seen", 0.0 if given is None else _GIVEN
        )

    def _counter(self, name, value):
        return self.add_weight(
            name=name,
            shape=(),
            initializer=initializers.Constant(value),
            trainable=False,
            aggregation="mean",
        )

    def _check_kl_weight(self):
        if self.kl_weight_variable is None:
            raise ValueError(
                f"Layer {self.name!r} ({type(self).__name__}) has no weight of its KL: "
                "it is not built (call the model on an example first, or give the "
                "layer num_examples), or its `build` does not end with "
                "`super().build(input_shape)`."
            )

    def set_kl_weight(self, weight: float) -> None:
        """Sets the KL's weight; the layer no longer finds it by itself."""
        self._check_kl_weight()
        self._counts_examples = False
        self.kl_weight_variable.assign(weight)
        self.examples_seen.assign(_GIVEN)

    def on_epoch_end(self) -> None:
        """Takes 1 / (examples of the epoch that ended) as the KL's weight."""
        if self.built:
            self._follow_variables()
            if self._counts_examples:
                self._end_count()
        # A model that is built by `fit` is not yet when its first epoch begins.
        self._epochs_begun = True

    def _end_count(self):
        seen = _number(self.examples_seen)
        # Calls made before there was an epoch say nothing of its size.
        if seen > 0 and self._epochs_begun:
            old = _number(self.kl_weight_variable)
            if not old and self._step is not None:
                self._step.warn_once(
                    self,
                    "counted",
                    f"Layer {self.name!r}, and any other of its model, counted "
                    f"{seen:.0f} examples in the epoch of training that ended. Its KL, "
                    f"which weighed nothing so far, weighs 1 / {seen:.0f} from now on: "
                    "the loss jumps, which callbacks that watch it see, and an epoch "
                    "that was not the whole training set (steps_per_epoch, "
                    f"train_on_batch) makes the weight wrong. {_MEND}",
                )
            self.kl_weight_variable.assign(1.0 / seen)
        self.examples_seen.assign(0.0)

    def _follow_variables(self):
        """After loading: counts where the variables say so and no argument does."""
        counts = _number(self.examples_seen) >= 0
        if counts and self._given_weight is not None:
            self.set_kl_weight(self._given_weight)
        else:
            self._counts_examples = counts

    def check_noise(self) -> None:
        """Warns of a posterior that was trained without its KL."""
        super().check_noise()
        if not (self.built and self._counts_examples):
            return
        if not _number(self.kl_weight_variable) and _number(self.examples_seen) > 0:
            (self._step or _Step(self)).warn_once(
                self,
                "no KL",
                f"The KL of layer {self.name!r}, and of any other of its model that "
                "counts examples, weighed nothing in the training so far: what it "
                f"learned is no posterior. {_MEND}",
            )

    def standard_normal(
        self, name: str, batch_size: Tensor, training: bool | None
    ) -> Tensor | MaybeNone:
        """Returns draws, and counts the examples of a step in training.

        Args:
            name: Key of `noise_shapes`.
            batch_size: Number of examples of the inputs: each has its own draw.
            training: The argument of the layer's `call`.
        """
        self._check_kl_weight()
        if training and self._counts_examples and _counting.get():
            self._count(batch_size)
        return super().standard_normal(name, batch_size, training)

    def _count(self, batch):
        """Counts the examples of a step: once, however often the layer is used."""
        context = call_context(self)
        if self._step is not None and self._step.is_of(context):
            return
        self._step = _Step.of(context)
        # The mean over the replicas is what each of them then holds.
        examples = ops.cast(batch, "float32") * backend.replicas()
        self.examples_seen.assign(self.examples_seen + examples)
        if not self._epochs_begun:
            self._step.warn_once(
                self,
                "no epoch",
                f"Layer {self.name!r}, and any other of its model, finds the weight of "
                "its KL by counting the examples of an epoch of `fit`, and is called "
                "in training outside of any that it sees: in a loop of your own, or "
                "by a model whose `metrics` leave out those of its layers. Until an "
                f"epoch ends its KL weighs nothing. {_MEND}",
            )

    def load_own_variables(self, store: Any) -> None:
        """Loads the weights, the state of the noise, and whether N is counted."""
        super().load_own_variables(store)
        self._follow_variables()

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "kl_weight": self.kl_weight,
            "num_examples": self.num_examples,
        }


def _number(variable):
    return float(variable.numpy())


def posterior_layers(model: keras.Model) -> list[VariationalLayer]:
    """Returns the layers of `model` that have a posterior, nested ones too, in order.

    Args:
        model: A Keras model.

    Returns:
        A list of `VariationalLayer`s.

    Raises:
        TypeError: If `model` is not a Keras model.
    """
    check_model(model)
    layers = stochastic_layers(model)
    return [layer for layer in layers if isinstance(layer, VariationalLayer)]
