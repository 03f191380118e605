"""The SavedModel of a stochastic network, with TensorFlow's own operations."""

import keras
import tensorflow as tf

from bayesnorm.backend import tensorflow as backend
from bayesnorm.layers.noise import noise_mode
from bayesnorm.tools.networks import (
    Noise,
    merge,
    run_networks,
    run_prefix,
    single_output,
)
from bayesnorm.tools.outputs import finish

_POSITIVE = 0x7FFFFFFFFFFFFFFF


def write(model, directory, specs, samples, from_logits, chunk_size):
    """Writes the SavedModel of `bayesnorm.export`.

    Args:
        model: A built model with one output.
        directory: Where to.
        specs: List of `(name, shape, dtype)` of the inputs, the batch first.
        samples: Number of networks.
        from_logits: Boolean, None for regression.
        chunk_size: Rows of one pass through the network.
    """
    served = _Served(model, samples, from_logits, chunk_size)
    inputs = [tf.TensorSpec(shape, dtype, name) for name, shape, dtype in specs]
    seed = tf.TensorSpec([None], "int64", "seed")
    archive = keras.export.ExportArchive()
    # Without `track`, which would store every weight a second time.
    archive.add_endpoint("serving_default", served.predict, [inputs])
    archive.add_endpoint("seeded", served.predict_seeded, [inputs, seed])
    archive.add_endpoint("samples", served.samples, [inputs])
    archive.add_endpoint("mean", served.mean, [inputs])
    archive.write_out(directory, verbose=False)


class _Served:
    """The functions behind the signatures; every example has networks of its own."""

    def __init__(self, model, samples, from_logits, chunk_size):
        self._model = model
        self._noise = Noise(model)
        self._samples = samples
        self._from_logits = from_logits
        self._chunk_size = chunk_size

    def predict(self, inputs):
        return self._predict(inputs, self._fresh_draws())

    def predict_seeded(self, inputs, seed):
        return self._predict(inputs, self._seeded_draws(seed))

    def samples(self, inputs):
        stack = tf.TensorArray("float32", 0, dynamic_size=True, infer_shape=False)

        def step(state, values, spread, stack):
            del spread
            return state, stack.write(stack.size(), values)

        tail, (_, stack) = self._loop(inputs, self._fresh_draws(), (), stack, step)
        samples = tf.reshape(stack.concat(), [self._samples, -1, *_sizes(tail)])
        return {"samples": tf.experimental.numpy.swapaxes(samples, 0, 1)}

    def mean(self, inputs):
        with noise_mode("mean"):
            outputs = self._model(self._nest(inputs), training=False)
        outputs = single_output(self._model, outputs)
        values, spread = finish(outputs, self._from_logits)
        return {"mean": values} if spread is None else {
            "probs": values,
            "entropy": spread,
        }
