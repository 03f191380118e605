"""The SavedModel of a stochastic network, in TensorFlow's own operations.

Imported only to export, with the TensorFlow backend.
"""

import keras
import tensorflow as tf

from bayesnorm.backend import tensorflow as backend
from bayesnorm.graph import layers_of
from bayesnorm.layers.noise import noise_mode
from bayesnorm.prediction.average import (
    average_members,
    average_networks,
    mean_network,
    samples_a_pass,
)
from bayesnorm.prediction.networks import Noise
from bayesnorm.prediction.outputs import unbiased
from bayesnorm.serving.entries import Entries


def write(
    model, weights, directory, signature, samples, outputs, temperatures, chunk_size
):
    """Writes the SavedModel that `bayesnorm.export` describes.

    Args:
        model: A built model.
        weights: The weights of the members of an ensemble, for each of `model.weights`
            an array `[members, ...]`; None for the model's own.
        directory: Where to.
        signature: The model's inputs, a nest of `InputSpec`s with names.
        samples: Number of networks, for each member.
        outputs: An `Output` for each output of the model.
        temperatures: The temperature of each output's average.
        chunk_size: Rows of one pass through the network.
    """
    members = Members(model, weights)
    served = _Served(members, signature, samples, outputs, temperatures, chunk_size)
    inputs = [
        tf.TensorSpec(x.shape, x.dtype, x.name) for x in keras.tree.flatten(signature)
    ]
    seed = tf.TensorSpec([None], "int64", "seed")
    archive = keras.export.ExportArchive()
    # The tables alone: `track(model)` would store every weight a second time.
    for table in tables_of(model):
        archive.track(table)
    archive.add_endpoint("serving_default", served.predict, [inputs])
    archive.add_endpoint("seeded", served.predict_seeded, [inputs, seed])
    archive.add_endpoint("samples", served.samples, [inputs])
    archive.add_endpoint("mean", served.mean, [inputs])
    archive.write_out(str(directory), verbose=False)


def tables_of(model):
    """The lookup tables in a model's layers, which a SavedModel must be told of."""
    return [
        value
        for layer in layers_of(model)
        for value in vars(layer).values()
        if isinstance(value, tf.saved_model.experimental.TrackableResource)
    ]


class Members:
    """A model with the weights of one member after the other.

    Args:
        model: A built model.
        weights: As of `write`.
    """

    def __init__(self, model, weights):
        self.model, self.number, self._stacks = model, 1, None
        if weights is not None:
            self.number = len(weights[0])
            self._stacks = [
                tf.Variable(stack, trainable=False, name=f"members_{k}")
                for k, stack in enumerate(weights)
            ]

    def average(self, function, outputs, keep_samples=False):
        """Returns `average_members` of a function of the number of a member."""

        def member(i):
            if self._stacks is None:
                return function(i)
            # Of a variable this reads the member's part alone.
            weights = [tf.gather(stack, i) for stack in self._stacks]
            mapping = list(zip(self.model.weights, weights, strict=True))
            with keras.StatelessScope(mapping):
                return function(i)

        return average_members(member, self.number, outputs, keep_samples)


class _Served:
    """The functions behind the signatures: each example has its own networks."""

    def __init__(self, members, signature, samples, outputs, temperatures, chunk_size):
        self._members, self._model = members, members.model
        self._noise = Noise(self._model)
        self._nest = signature
        self._samples = samples
        self._outputs = outputs
        self._chunk_size = chunk_size
        self._entries = Entries(outputs, temperatures)

    def predict(self, inputs):
        return self._predicted(inputs, self._fresh_draws(inputs))

    def predict_seeded(self, inputs, seed):
        (seed,) = _checked([seed])
        same = tf.debugging.assert_equal(
            tf.shape(seed)[0],
            tf.shape(inputs[0])[0],
            "`seed` must hold one integer for each example.",
        )
        with tf.control_dependencies([same]):
            inputs = [tf.identity(x) for x in inputs]
        return self._predicted(inputs, self._seeded_draws(seed))

    def _predicted(self, inputs, of_member):
        factor = unbiased(self._members.number * self._samples)
        return self._entries.of_several(self._average(inputs, of_member), factor)

    def samples(self, inputs):
        draws = self._fresh_draws(inputs)
        return self._entries.samples(self._average(inputs, draws, keep_samples=True))

    def mean(self, inputs):
        inputs = self._pack(inputs)

        def member(i):
            del i
            with noise_mode("mean"):
                return mean_network(self._model, inputs, self._outputs)

        said = self._members.average(member, self._outputs)
        if self._members.number > 1:
            return self._entries.of_several(said, unbiased(self._members.number))
        return self._entries.of_one(said)

    def _pack(self, inputs):
        return keras.tree.pack_sequence_as(self._nest, _checked(inputs))

    def _fresh_draws(self, inputs):
        # A stateful generator would replay its stream after a restart, and lose
        # updates under concurrent requests.
        seed = tf.raw_ops.NonDeterministicInts(shape=[2], dtype="int64")
        batch = tf.shape(inputs[0])[0]

        def of_member(member):
            own = backend.fold_in(seed, member)

            def draws(numbers):
                shape = (tf.size(numbers) * batch, self._noise.size)
                return backend.stateless_normal(shape, backend.fold_in(own, numbers[0]))

            return draws

        return of_member

    def _seeded_draws(self, seed):
        # The seeds of `predict(model, x, seed=...)`, one for each example.
        seed = tf.bitwise.bitwise_and(seed, tf.int64.max)

        def of_member(member):
            seeds = tf.map_fn(
                lambda s: backend.fold_in(s, member),
                tf.stack([seed, tf.zeros_like(seed)], 1),
            )

            def draws(numbers):
                return tf.map_fn(
                    lambda pair: self._noise.network(*pair),
                    (
                        tf.tile(seeds, [tf.size(numbers), 1]),
                        tf.repeat(numbers, tf.shape(seeds)[0]),
                    ),
                    fn_output_signature=tf.TensorSpec([self._noise.size], "float32"),
                )

            return draws

        return of_member

    def _average(self, inputs, of_member, keep_samples=False):
        """`average_networks` of all members.

        `of_member(i)(numbers)` gives the draws of the networks of a pass, of which a
        row is of one example in one network, not of a whole batch.
        """
        most = tf.maximum(1, self._chunk_size // tf.maximum(1, tf.shape(inputs[0])[0]))
        choices = range(1, self._samples + 1)
        each = tf.constant([samples_a_pass(self._samples, most) for most in choices])
        packed = self._pack(inputs)

        def member(i):
            draws = of_member(i)
            return average_networks(
                self._model,
                packed,
                lambda numbers: self._noise.mode(draws(numbers)),
                self._samples,
                each[tf.minimum(most, self._samples) - 1],
                self._outputs,
                keep_samples,
            )

        return self._members.average(member, self._outputs, keep_samples)


def _checked(inputs):
    """Answers a request of another shape with an error.

    The runtime believes the signature, drops a check of what it believes, and some
    kernels then end the process. The placeholder makes it forget.
    """
    return [
        tf.ensure_shape(tf.compat.v1.placeholder_with_default(x, None), x.shape)
        for x in inputs
    ]
