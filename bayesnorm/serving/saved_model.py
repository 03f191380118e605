"""The SavedModel of a stochastic network, in TensorFlow's own operations.

Imported only to export, with the TensorFlow backend.
"""

import keras
import tensorflow as tf

from bayesnorm.backend import tensorflow as backend
from bayesnorm.graph import apply
from bayesnorm.layers.noise import noise_mode
from bayesnorm.prediction.networks import (
    Noise,
    merge,
    run_networks,
    run_prefix,
    single_output,
)
from bayesnorm.prediction.outputs import entropy_and_information, finish, unbiased


def write(model, directory, signature, samples, from_logits, chunk_size):
    """Writes the SavedModel that `bayesnorm.export` describes.

    Args:
        model: A built model with one output.
        directory: Where to.
        signature: The model's inputs, a nest of `InputSpec`s with names.
        samples: Number of networks.
        from_logits: Boolean, None for regression.
        chunk_size: Rows of one pass through the network.
    """
    served = _Served(model, signature, samples, from_logits, chunk_size)
    inputs = [
        tf.TensorSpec(x.shape, x.dtype, x.name) for x in keras.tree.flatten(signature)
    ]
    seed = tf.TensorSpec([None], "int64", "seed")
    archive = keras.export.ExportArchive()
    # Without `track`, which would store every weight a second time.
    archive.add_endpoint("serving_default", served.predict, [inputs])
    archive.add_endpoint("seeded", served.predict_seeded, [inputs, seed])
    archive.add_endpoint("samples", served.samples, [inputs])
    archive.add_endpoint("mean", served.mean, [inputs])
    archive.write_out(str(directory), verbose=False)


class _Served:
    """The functions behind the signatures: each example has its own networks."""

    def __init__(self, model, signature, samples, from_logits, chunk_size):
        self._model = model
        self._noise = Noise(model)
        self._nest = signature
        self._samples = samples
        self._from_logits = from_logits
        self._chunk_size = chunk_size

    def predict(self, inputs):
        (_, mean, spread), _ = self._loop(inputs, self._fresh_draws())
        return self._named(mean, spread)

    def predict_seeded(self, inputs, seed):
        (seed,) = _checked([seed])
        same = tf.debugging.assert_equal(
            tf.shape(seed)[0],
            tf.shape(inputs[0])[0],
            "`seed` must hold one integer for each example.",
        )
        with tf.control_dependencies([same]):
            inputs = [tf.identity(x) for x in inputs]
        (_, mean, spread), _ = self._loop(inputs, self._seeded_draws(seed))
        return self._named(mean, spread)

    def samples(self, inputs):
        _, values = self._loop(inputs, self._fresh_draws(), collect=True)
        return {"samples": tf.experimental.numpy.swapaxes(values, 0, 1)}

    def mean(self, inputs):
        with noise_mode("mean"):
            outputs = apply(self._model, self._pack(inputs))
        outputs = single_output(self._model, outputs)
        values, entropy = finish(outputs, self._from_logits)
        if entropy is None:
            return {"mean": values}
        return {"probs": values, "entropy": entropy}

    def _named(self, mean, spread):
        if self._from_logits is None:
            return {"mean": mean, "variance": spread * unbiased(self._samples)}
        entropy, information = entropy_and_information(mean, spread)
        return {"probs": mean, "entropy": entropy, "mutual_information": information}

    def _pack(self, inputs):
        return keras.tree.pack_sequence_as(self._nest, _checked(inputs))

    def _fresh_draws(self):
        # A stateful generator would replay its stream after a restart, and lose
        # updates under concurrent requests.
        seed = tf.raw_ops.NonDeterministicInts(shape=[2], dtype="int64")

        def draws(start, count, batch):
            shape = (count * batch, self._noise.size)
            return backend.stateless_normal(shape, backend.fold_in(seed, start))

        return draws

    def _seeded_draws(self, seed):
        # The seeds of `predict(model, x, seed=...)`, one for each example.
        seed = tf.bitwise.bitwise_and(seed, tf.int64.max)
        seeds = tf.map_fn(
            lambda s: backend.fold_in(s, 0), tf.stack([seed, tf.zeros_like(seed)], 1)
        )

        def draws(start, count, batch):
            numbers = tf.repeat(tf.range(start, start + count), batch)
            return tf.map_fn(
                lambda pair: self._noise.network(*pair),
                (tf.tile(seeds, [count, 1]), numbers),
                fn_output_signature=tf.TensorSpec([self._noise.size], "float32"),
            )

        return draws

    def _loop(self, inputs, draws, collect=False):
        """Runs the networks, a chunk at a time.

        Returns:
            The state of `merge`, and the values `[samples, batch, ...]` of each
            network or None.
        """
        batch, nest = tf.shape(inputs[0])[0], self._pack(inputs)
        prefix = run_prefix(self._model, nest)
        each = tf.maximum(1, self._chunk_size // tf.maximum(1, batch))
        tails = []

        def step(i, start, state, stack):
            count = tf.minimum(each, self._samples - start)
            with self._noise.mode(draws(start, count, batch)):
                outputs = run_networks(self._model, nest, prefix, count)
            values, spread = finish(outputs, self._from_logits)
            tails.extend(x.shape[1:] for x in (values, spread) if x is not None)
            values = _unstack(values, count, batch)
            if collect:
                stack = stack.write(i, values)
            else:
                if spread is not None:
                    spread = _unstack(spread, count, batch)
                state = merge(state, values, spread, tf.ones([count]))
            return i + 1, start + count, state, stack

        anything = tf.TensorShape(None)
        _, _, state, stack = tf.while_loop(
            lambda i, start, state, stack: start < self._samples,
            step,
            (0, 0, (0.0, 0.0, 0.0), _stack()),
            shape_invariants=(
                tf.TensorShape([]),
                tf.TensorShape([]),
                (tf.TensorShape([]), anything, anything),
                anything,
            ),
            parallel_iterations=1,  # Bounds the memory, too.
        )
        if collect:
            values = stack.concat()
            return None, tf.ensure_shape(values, [self._samples, None, *tails[0]])
        weight, mean, spread = state
        mean = tf.ensure_shape(mean, [None, *tails[0]])
        return (weight, mean, tf.ensure_shape(spread, [None, *tails[-1]])), None


def _checked(inputs):
    """Answers a request of another shape with an error.

    The runtime believes the signature, drops a check of what it believes, and some
    kernels then end the process. The placeholder makes it forget.
    """
    return [
        tf.ensure_shape(tf.compat.v1.placeholder_with_default(x, None), x.shape)
        for x in inputs
    ]


def _stack():
    return tf.TensorArray("float32", 0, dynamic_size=True, infer_shape=False)


def _unstack(x, count, batch):
    """From `[count * batch, ...]` to `[count, batch, ...]`."""
    shape = tf.concat([[count, batch], tf.shape(x)[1:]], axis=0)
    return tf.ensure_shape(tf.reshape(x, shape), [None, None, *x.shape[1:]])
