"""Servers of an exported model as processes of this machine, and clients of theirs."""

import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

_ROOT = pathlib.Path(__file__).parents[1]
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "RAY_USAGE_STATS_ENABLED": "0"}


class _Process:
    """A server's process, as a context that ends it.

    Args:
        arguments: Arguments of Python.
        ready: Regular expression of what it prints when it answers.
        timeout: Seconds until then.
    """

    def __init__(self, arguments, ready, timeout):
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=_ROOT,
            env={**os.environ, **_QUIET},
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self.ready = self._wait_for(ready, timeout)
        except BaseException:
            self.stop()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def log(self):
        """Returns what the server printed."""
        return pathlib.Path(self._log.name).read_text("utf-8", "replace")

    def stop(self):
        """Ends the process; its children end with it."""
        self._process.stdin.close()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _wait_for(self, ready, timeout):
        end = time.monotonic() + timeout
        while time.monotonic() < end and self._process.poll() is None:
            if found := re.search(ready, self.log(), flags=re.M):
                return found
            time.sleep(0.1)
        raise RuntimeError(
            f"The server was not ready after {timeout} s. It printed: "
            f"{self.log()[-3000:]}"
        )


class CLibraryServer(_Process):
    """The `PredictionService` over TensorFlow's C library (`tests/serving`).

    Args:
        path: The model's folder.
    """

    title = "C library, gRPC"

    def __init__(self, path):
        super().__init__(
            ["-m", "tests.serving.prediction_service", str(path)], r"^(\d+)$", 120
        )
        self.name, self.port = pathlib.Path(path).name, int(self.ready[1])

    def client(self):
        """Returns a client with a connection of its own."""
        return GrpcClient(self.name, self.port)


class RayServer(_Process):
    """`python -m bayesnorm.serving`.

    Args:
        path: The model's folder.
        *arguments: Its flags.
    """

    title = "Ray Serve, HTTP"

    def __init__(self, path, *arguments):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        super().__init__(
            ["-m", "bayesnorm.serving", str(path), f"--port={self.port}", *arguments],
            r"^Serving at ",
            300,
        )
        self.name = pathlib.Path(path).name

    def client(self):
        """Returns a client with a connection of its own."""
        return HttpClient(self.name, self.port)


class GrpcClient:
    """A client with TensorFlow Serving's official stubs."""

    def __init__(self, name, port):
        import grpc
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        self.name = name
        self.channel = grpc.insecure_channel(
            f"127.0.0.1:{port}",
            # Channels of one address would share a connection.
            options=[("grpc.use_local_subchannel_pool", 1)],
        )
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)

    def request(self, inputs, signature="serving_default", version=None):
        """Returns a PredictRequest."""
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        request.model_spec.name = self.name
        request.model_spec.signature_name = signature
        if version is not None:
            request.model_spec.version.value = version
        for key, x in inputs.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(x))
        return request

    def predict(self, inputs, signature="serving_default", version=None):
        """Returns `(outputs, version)`: a dict of arrays, and who answered."""
        import tensorflow as tf

        request = self.request(inputs, signature, version)
        answer = self.stub.Predict(request, timeout=60)
        outputs = {k: tf.make_ndarray(v) for k, v in answer.outputs.items()}
        return outputs, answer.model_spec.version.value

    def close(self):
        """Closes the connection."""
        self.channel.close()


class HttpClient:
    """A client that keeps its connection."""

    def __init__(self, name, port):
        self.name = name
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method, path, body=None):
        """Returns `(status, content)` of an answer in JSON."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self._connection.request(method, f"/v1/models/{self.name}{path}", body)
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())

    def predict(self, inputs, signature="serving_default", version=None):
        """Returns `(outputs, version)`: a dict of arrays, and the version asked for."""
        path = ":predict" if version is None else f"/versions/{version}:predict"
        body = {
            "signature_name": signature,
            "inputs": {name: x.tolist() for name, x in inputs.items()},
        }
        status, content = self.ask("POST", path, body)
        if status != 200:
            raise RuntimeError(f"Status {status}: {content}")
        outputs = content["outputs"]
        if not isinstance(outputs, dict):
            outputs = {"": outputs}
        return {name: np.array(x) for name, x in outputs.items()}, version

    def close(self):
        """Closes the connection."""
        self._connection.close()
