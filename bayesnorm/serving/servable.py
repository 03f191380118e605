"""A SavedModel that Python serves, with TensorFlow alone: no layer of Keras runs."""

import pathlib

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import saved_model_pb2

from bayesnorm.serving.rest import Input


def use_threads(number):
    """Gives TensorFlow a number of threads; before it runs anything."""
    tf.config.threading.set_intra_op_parallelism_threads(number)
    tf.config.threading.set_inter_op_parallelism_threads(number)


class Servable:
    """A loaded SavedModel.

    Args:
        path: The folder that `bayesnorm.export` wrote.
    """

    def __init__(self, path):
        self._path = pathlib.Path(path)
        self._loaded = tf.saved_model.load(str(path))
        self._functions = dict(self._loaded.signatures)
        self.signatures = {
            name: {
                key: Input(spec.dtype.name, tuple(spec.shape))
                for key, spec in function.structured_input_signature[1].items()
            }
            for name, function in self._functions.items()
        }

    def run(self, signature, inputs):
        """Runs a signature.

        Args:
            signature: Its name.
            inputs: Dict of arrays, the batch first.

        Returns:
            Dict of arrays, the batch first.

        Raises:
            ValueError: If the graph refuses the inputs.
        """
        tensors = {name: tf.constant(x) for name, x in inputs.items()}
        try:
            outputs = self._functions[signature](**tensors)
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(error.message) from error
        return {name: x.numpy() for name, x in sorted(outputs.items())}

    def definitions(self):
        """Returns the `SignatureDef`s as dicts by name, for JSON."""
        saved = saved_model_pb2.SavedModel.FromString(
            (self._path / "saved_model.pb").read_bytes()
        )
        return {
            name: json_format.MessageToDict(
                definition,
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )
            for name, definition in saved.meta_graphs[0].signature_def.items()
            if name in self.signatures
        }

    def probe(self):
        """Runs one example of zeros through the cheapest signature.

        A signature whose examples have open lengths is not run: what lengths a model
        takes is not in its signature.
        """
        name = "mean" if "mean" in self.signatures else "serving_default"
        specs = self.signatures.get(name, {})
        if not specs or any(None in spec.shape[1:] for spec in specs.values()):
            return
        self.run(
            name,
            {
                key: np.full((1, *spec.shape[1:]), b"", object)
                if spec.dtype == "string"
                else np.zeros((1, *spec.shape[1:]), spec.dtype)
                for key, spec in specs.items()
            },
        )
