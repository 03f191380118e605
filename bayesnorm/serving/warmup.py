"""Requests that a model server makes of itself when it loads a SavedModel.

Imported only to export, with the TensorFlow backend.
"""

import pathlib

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

REQUESTS = "assets.extra/tf_serving_warmup_requests"
_EXAMPLE = "assets.extra/warmup_inputs.npz"


def signatures_of(folder):
    """Returns the `SignatureDef`s of a SavedModel, a dict by name."""
    data = (pathlib.Path(folder) / "saved_model.pb").read_bytes()
    (graph,) = saved_model_pb2.SavedModel.FromString(data).meta_graphs
    return {k: v for k, v in graph.signature_def.items() if not k.startswith("__")}


def write_requests(folder, name, batch_sizes, example=None):
    """Writes a request for each signature and batch size beside a SavedModel.

    Args:
        folder: Path of the SavedModel.
        name: Name of the model.
        batch_sizes: Integers.
        example: Dict of arrays `[1, ...]` by the names of the model's inputs, which is
            kept for the next time; None for what was kept, or else zeros.

    Returns:
        The number of requests: 0, and no file, where an input leaves the shape of an
        example open and there is no example.
    """
    folder = pathlib.Path(folder)
    if example is not None:
        (folder / _EXAMPLE).parent.mkdir(exist_ok=True)
        np.savez(folder / _EXAMPLE, **example)
    signatures = signatures_of(folder)
    requests = [
        _prediction_log(name, signature, tensors)
        for signature in sorted(signatures)
        for size in batch_sizes
        if (tensors := request_of(folder, signatures[signature], size)) is not None
    ]
    if requests:
        (folder / REQUESTS).parent.mkdir(exist_ok=True)
        with tf.io.TFRecordWriter(str(folder / REQUESTS)) as writer:
            for request in requests:
                writer.write(request)
    return len(requests)


def request_of(folder, signature, size):
    """Returns the tensors of a request, a dict of `TensorProto`s by name.

    Args:
        folder: Path of the SavedModel.
        signature: A `SignatureDef` of it.
        size: Number of examples.

    Returns:
        None where nothing says the shape of an example.
    """
    example, found = {}, {}
    if (pathlib.Path(folder) / _EXAMPLE).is_file():
        with np.load(pathlib.Path(folder) / _EXAMPLE) as kept:
            example = dict(kept)
    for name, info in signature.inputs.items():
        if name in example:
            found[name] = tf.make_tensor_proto(np.repeat(example[name], size, axis=0))
            continue
        shape = [size, *(d.size for d in info.tensor_shape.dim[1:])]
        if -1 in shape:
            return None
        dtype = tf.as_dtype(info.dtype)
        # Of a tensor that is one value throughout, the value and the shape are enough.
        found[name] = tf.make_tensor_proto(b"" if dtype == tf.string else 0, dtype)
        found[name].tensor_shape.CopyFrom(tf.TensorShape(shape).as_proto())
    return found


def _prediction_log(name, signature, tensors):
    """Returns the bytes of a `tensorflow.serving.PredictionLog` with a PredictRequest.

    By hand, for the wire format of a published message does not change, and the package
    of its classes (tensorflow-serving-api) is one more that would have to be installed.
    """
    spec = _field(1, name.encode()) + _field(3, signature.encode())  # ModelSpec
    request = _field(1, spec) + b"".join(
        _field(2, _field(1, key.encode()) + _field(2, tensor.SerializeToString()))
        for key, tensor in tensors.items()
    )
    return _field(6, _field(1, request))  # PredictLog, of which this is the request


def _field(number, payload):
    """A field of bytes or of a message: its tag, its length, itself."""
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload


def _varint(value):
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
