"""A gRPC `PredictionService` over TensorFlow's C library, with the official stubs.

Stands in for `tensorflow_model_server`, which no package index has: the same protocol,
the same C++ kernels, and no Python of TensorFlow or Keras in the process. It serves all
versions in a model's folder, the latest by default, and looks for new ones. From the
root of the repository:

    python -m tests.serving.prediction_service FOLDER_OF_A_MODEL

It prints its port, and ends with its standard input.
"""

import importlib.util
import pathlib
import sys
import threading
import types
from concurrent import futures

import numpy as np

_FOLDER = pathlib.Path(
    importlib.util.find_spec("tensorflow").submodule_search_locations[0]
)
# The stubs import messages from `tensorflow.core`, which need nothing of the package
# around them: a bare one of its name keeps its `__init__.py` from running.
sys.modules["tensorflow"] = types.ModuleType("tensorflow")
sys.modules["tensorflow"].__path__ = [str(_FOLDER)]

import grpc  # noqa: E402
from tensorflow.core.framework import tensor_pb2, types_pb2  # noqa: E402
from tensorflow.core.protobuf import saved_model_pb2  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tests.serving.saved_model_c_api import Server  # noqa: E402

_POLL_SECONDS = 0.2
# dtype: NumPy's, and the field of a TensorProto that lists its values.
_DTYPES = {
    types_pb2.DT_FLOAT: ("float32", "float_val"),
    types_pb2.DT_INT32: ("int32", "int_val"),
    types_pb2.DT_INT64: ("int64", "int64_val"),
}
_NUMBERS = {dtype: number for number, (dtype, _) in _DTYPES.items()}


def array_of(message):
    """Returns a TensorProto's array, or raises a ValueError."""
    if message.dtype not in _DTYPES:
        raise ValueError(f"dtype {types_pb2.DataType.Name(message.dtype)} is not read")
    dtype, field = _DTYPES[message.dtype]
    shape = [dim.size for dim in message.tensor_shape.dim]
    if message.tensor_content:
        return np.frombuffer(message.tensor_content, dtype).reshape(shape)
    values = np.array(getattr(message, field), dtype)
    # Values that repeat to the end are sent once.
    return np.pad(values, (0, np.prod(shape, dtype=int) - len(values)), "edge").reshape(
        shape
    )


def message_of(x):
    """Returns an array's TensorProto."""
    message = tensor_pb2.TensorProto(
        dtype=_NUMBERS[x.dtype.name], tensor_content=x.tobytes()
    )
    for size in x.shape:
        message.tensor_shape.dim.add(size=size)
    return message


class Model:
    """A version: its session, and what its signatures say."""

    def __init__(self, path):
        saved = saved_model_pb2.SavedModel.FromString(
            (path / "saved_model.pb").read_bytes()
        )
        self.definitions = {
            name: definition
            for name, definition in saved.meta_graphs[0].signature_def.items()
            if not name.startswith("__")
        }
        self._server = Server(_FOLDER, path)

    def run(self, name, inputs):
        """Runs a signature: dicts of arrays."""
        if name not in self.definitions:
            raise ValueError(f"the signatures are {sorted(self.definitions)}: {name!r}")
        definition = self.definitions[name]
        if inputs.keys() != definition.inputs.keys():
            raise ValueError(f"the inputs are {sorted(definition.inputs)}")
        for key, x in inputs.items():
            if _NUMBERS[x.dtype.name] != definition.inputs[key].dtype:
                raise ValueError(f"the dtype of {key!r} is not {x.dtype.name}")
        signature = {
            "inputs": {k: v.name for k, v in definition.inputs.items()},
            "outputs": {k: v.name for k, v in definition.outputs.items()},
        }
        return self._server.run(signature, inputs)


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata of one model."""

    def __init__(self, path):
        self._path, self._models = path, {}
        self.refresh()

    def refresh(self):
        """Loads versions that are new."""
        for folder in self._path.iterdir():
            if folder.name.isdecimal() and int(folder.name) not in self._models:
                self._models = self._models | {int(folder.name): Model(folder)}

    def _model(self, spec, context):
        models = self._models
        version = spec.version.value if spec.HasField("version") else max(models)
        if spec.name != self._path.name or version not in models:
            context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"{self._path.name} has the versions {sorted(models)}",
            )
        return version, models[version]

    def Predict(self, request, context):  # noqa: N802
        version, model = self._model(request.model_spec, context)
        name = request.model_spec.signature_name or "serving_default"
        try:
            inputs = {key: array_of(value) for key, value in request.inputs.items()}
            outputs = model.run(name, inputs)
        except (ValueError, RuntimeError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        kept = request.output_filter or outputs
        answer = predict_pb2.PredictResponse(
            outputs={key: message_of(outputs[key]) for key in kept}
        )
        answer.model_spec.name = request.model_spec.name
        answer.model_spec.signature_name = name
        answer.model_spec.version.value = version
        return answer

    def GetModelMetadata(self, request, context):  # noqa: N802
        version, model = self._model(request.model_spec, context)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, definition in model.definitions.items():
            signatures.signature_def[name].CopyFrom(definition)
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        answer.model_spec.name = self._path.name
        answer.model_spec.version.value = version
        answer.metadata["signature_def"].Pack(signatures)
        return answer


def main(path):
    """Serves a model's folder."""
    service = PredictionService(pathlib.Path(path))
    server = grpc.server(futures.ThreadPoolExecutor(16))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    if "tensorflow.python" in sys.modules or "keras" in sys.modules:
        raise RuntimeError("The server must not import TensorFlow's Python or Keras.")
    print(port, flush=True)
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    while not over.wait(_POLL_SECONDS):
        service.refresh()
    server.stop(None)


if __name__ == "__main__":
    main(sys.argv[1])
