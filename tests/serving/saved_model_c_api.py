"""A client of TensorFlow's C library: runs a SavedModel without importing tensorflow.

What a model server does in C++, in a process that knows no Keras layer. Read as a
script it takes the path of the library's folder and a job as JSON on its standard
input, and prints the outputs as JSON; see `test_export.py`.
"""

import ctypes
import json
import pathlib
import sys
import threading

import numpy as np

_TYPES = {"float32": 1, "int32": 3, "int64": 9}  # TF_DataType
_NAMES = {number: name for name, number in _TYPES.items()}


class _Output(ctypes.Structure):
    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


_POINTER, _TEXT, _INT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
_SIZE = ctypes.c_size_t
_FUNCTIONS = [  # Name, result, arguments.
    ("TF_NewStatus", _POINTER, []),
    ("TF_GetCode", _INT, [_POINTER]),
    ("TF_Message", _TEXT, [_POINTER]),
    ("TF_DeleteStatus", None, [_POINTER]),
    ("TF_NewGraph", _POINTER, []),
    ("TF_NewSessionOptions", _POINTER, []),
    ("TF_GraphOperationByName", _POINTER, [_POINTER, _TEXT]),
    ("TF_AllocateTensor", _POINTER, [_INT, _POINTER, _INT, _SIZE]),
    ("TF_TensorData", _POINTER, [_POINTER]),
    ("TF_TensorType", _INT, [_POINTER]),
    ("TF_NumDims", _INT, [_POINTER]),
    ("TF_Dim", ctypes.c_int64, [_POINTER, _INT]),
    ("TF_DeleteTensor", None, [_POINTER]),
    (
        "TF_LoadSessionFromSavedModel",
        _POINTER,
        [_POINTER, _POINTER, _TEXT, _POINTER, _INT, _POINTER, _POINTER, _POINTER],
    ),
    (
        "TF_SessionRun",
        None,
        [_POINTER, _POINTER, *[_POINTER, _POINTER, _INT] * 2]
        + [_POINTER, _INT, _POINTER, _POINTER],
    ),
]


def _library(folder):
    # RTLD_LOCAL: the library brings symbols that clash with those of Python's own
    # modules.
    folder = pathlib.Path(folder)
    ctypes.CDLL(str(folder / "libtensorflow_framework.so.2"), mode=ctypes.RTLD_LOCAL)
    tf = ctypes.CDLL(str(folder / "libtensorflow_cc.so.2"), mode=ctypes.RTLD_LOCAL)
    for name, result, arguments in _FUNCTIONS:
        function = getattr(tf, name)
        function.restype, function.argtypes = result, arguments
    return tf


class Server:
    """A loaded SavedModel."""

    def __init__(self, library_folder, path):
        self._tf = _library(library_folder)
        self._graph = self._tf.TF_NewGraph()
        tags = (ctypes.c_char_p * 1)(b"serve")
        self._session = self._checked(
            self._tf.TF_LoadSessionFromSavedModel,
            self._tf.TF_NewSessionOptions(),
            None,
            str(path).encode(),
            tags,
            1,
            self._graph,
            None,
        )

    def _checked(self, function, *arguments):
        status = self._tf.TF_NewStatus()
        try:
            result = function(*arguments, status)
            if self._tf.TF_GetCode(status):
                raise RuntimeError(self._tf.TF_Message(status).decode())
            return result
        finally:
            self._tf.TF_DeleteStatus(status)

    def run(self, signature, inputs):
        """Runs a signature.

        Args:
            signature: `{"inputs": {name: tensor name}, "outputs": ...}`.
            inputs: Dictionary of arrays.

        Returns:
            Dictionary of arrays.
        """
        names = list(signature["outputs"])
        feeds = [self._output(signature["inputs"][name]) for name in inputs]
        fetches = [self._output(signature["outputs"][name]) for name in names]
        values = [self._tensor(x) for x in inputs.values()]
        results = (ctypes.c_void_p * len(names))()
        try:
            self._checked(
                self._tf.TF_SessionRun,
                self._session,
                None,
                (_Output * len(feeds))(*feeds),
                (ctypes.c_void_p * len(values))(*values),
                len(feeds),
                (_Output * len(fetches))(*fetches),
                results,
                len(fetches),
                None,
                0,
                None,
            )
        finally:
            for value in values:
                self._tf.TF_DeleteTensor(value)
        return dict(zip(names, map(self._array, results), strict=True))

    def _output(self, name):
        operation, index = name.split(":")
        found = self._tf.TF_GraphOperationByName(self._graph, operation.encode())
        if not found:
            raise RuntimeError(f"The graph has no operation {operation!r}.")
        return _Output(found, int(index))

    def _tensor(self, x):
        x = np.ascontiguousarray(x)
        dims = (ctypes.c_int64 * x.ndim)(*x.shape)
        tensor = self._tf.TF_AllocateTensor(
            _TYPES[x.dtype.name], dims, x.ndim, x.nbytes
        )
        ctypes.memmove(self._tf.TF_TensorData(tensor), x.ctypes.data, x.nbytes)
        return tensor

    def _array(self, tensor):
        tf = self._tf
        shape = [tf.TF_Dim(tensor, i) for i in range(tf.TF_NumDims(tensor))]
        x = np.empty(shape, _NAMES[tf.TF_TensorType(tensor)])
        ctypes.memmove(x.ctypes.data, tf.TF_TensorData(tensor), x.nbytes)
        tf.TF_DeleteTensor(tensor)
        return x


def main():
    """Runs the job on the standard input: requests, one by one or at once."""
    job = json.load(sys.stdin)
    server = Server(job["library"], job["path"])
    answers = [None] * len(job["requests"])

    def answer(i):
        request = job["requests"][i]
        inputs = {
            name: np.array(values, dtype).reshape(shape)
            for name, (values, dtype, shape) in request["inputs"].items()
        }
        try:
            outputs = server.run(job["signatures"][request["signature"]], inputs)
            answers[i] = {name: x.tolist() for name, x in outputs.items()}
        except RuntimeError as error:
            answers[i] = {"error": str(error)}

    threads = [threading.Thread(target=answer, args=[i]) for i in range(len(answers))]
    for thread in threads:
        thread.start()
        if not job["concurrent"]:
            thread.join()
    for thread in threads:
        thread.join()
    if "tensorflow" in sys.modules:
        raise RuntimeError("The client must not import tensorflow.")
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
