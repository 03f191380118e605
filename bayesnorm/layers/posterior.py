"""Layers with a learned posterior: what all of them share.

The loss gains `kl_weight * KL`, once a step; how the weight is found is written
in `bayesnorm.layers.kl_weight`.
"""

import weakref

import keras
import numpy as np
from keras import initializers, ops

from bayesnorm import backend
from bayesnorm.arguments import check_model, check_number
from bayesnorm.graph.internals import call_context
from bayesnorm.layers.noise import StochasticLayer, stochastic_layers


class _WeightedKL(keras.regularizers.Regularizer):
    """`kl_weight * KL` as the regularizer of a variable of the posterior.

    Keras adds a regularizer to the loss once per step however often the layer is
    called (`add_loss` would once per call), divides it rightly among the replicas
    of a strategy, and drops it when the variable is not trained.
    """

    def __init__(self, layer):
        self._layer = layer

    def __call__(self, variable):
        return ops.convert_to_tensor(self._layer.kl_weight_variable) * (
            self._layer.kl_divergence()
        )


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

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, kl_weight=None, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        if kl_weight is not None:
            check_number("kl_weight", kl_weight)
        self.kl_weight = kl_weight
        self.kl_weight_variable = None
        self._counts_examples = kl_weight is None
        self._epochs_begun = False
        self._counted_in = None
        self._epoch_end = _EpochEnd(self.on_epoch_end, name=f"{self.name}_epoch_end")

    def kl_divergence(self):
        """Returns the KL of the posterior to the prior, a float32 scalar in nats."""
        raise NotImplementedError

    @property
    def kl_carrier(self):
        """The variable that brings the KL into the loss, as its regularizer.

        The KL counts while this variable is trained. By default the first trainable
        one; name another if that one may be frozen alone, or has a regularizer.
        """
        return next((v for v in self.weights if v.trainable), None)

    def add_weight(self, *args, dtype="float32", autocast=False, **kwargs):
        """Makes a variable as in Keras, float32 whatever the layer's dtype policy.

        In half precision a small step of the posterior would be lost, and the KL be
        wrong. `call` casts what it computes from the variable.
        """
        return super().add_weight(*args, dtype=dtype, autocast=autocast, **kwargs)

    def build(self, input_shape=None):
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
        self.kl_weight_variable = self._counter("kl_weight", self.kl_weight or 0.0)
        self.examples_seen = self._counter("examples_seen", 0.0)

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
                "it is not built, or its `build` does not end with "
                "`super().build(input_shape)`."
            )

    def set_kl_weight(self, weight):
        """Sets the KL's weight; the layer no longer finds it by itself."""
        self._check_kl_weight()
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

    def standard_normal(self, name, batch_size, training):
        """Returns draws, and counts the examples of a step in training.

        Args:
            name: Key of `noise_shapes`.
            batch_size: Number of examples of the inputs: each has its own draw.
            training: The argument of the layer's `call`.
        """
        self._check_kl_weight()
        if training and self._counts_examples:
            self._count(batch_size)
        return super().standard_normal(name, batch_size, training)

    def _count(self, batch):
        """Counts the examples of a step: once, however often the layer is used."""
        step = call_context(self)
        if self._counted_in is None or self._counted_in() is not step:
            self._counted_in = weakref.ref(step)
            # The mean over the replicas is what each of them then holds.
            examples = ops.cast(batch, "float32") * backend.replicas()
            self.examples_seen.assign(self.examples_seen + examples)

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
        return {**super().get_config(), "kl_weight": self.kl_weight}


def posterior_layers(model):
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
