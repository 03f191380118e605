"""The page beside an exported SavedModel: how to serve it, and how to ask it."""

import keras

_PAGE = """# {name}

A TensorFlow SavedModel that answers with Monte Carlo uncertainty: {networks} networks
for each example{members}. It needs no Python to run.

## What to ask

Inputs of all signatures:

{inputs}

| Signature | Outputs | |
| --- | --- | --- |
| `seeded` | {outputs} | takes `seed` too, int64 `[batch]`: an example's answer repeats with its seed, whatever else is in the batch. **Begin here** |
| `mean` | {mean} | {what_mean}: fast, the same each time |
| `serving_default` | {outputs} | fresh noise for every example and call: two answers to one request differ, as they should |
| `samples` | {kept}: `[batch, {networks}, ...]` | the answer of each network, with fresh noise |

Every input and output has the batch as its first axis. Entropy and mutual information are in nats.{tempered}

## Serve

From this folder:

```shell
tensorflow_model_server --port=8500 --rest_api_port=8501 --model_name={name} \\
  --model_base_path="$(dirname "$PWD")" \\
  --enable_batching --batching_parameters_file="$PWD/batching.txt"
```

TensorFlow Serving takes the folders of `model_base_path` whose names are integers
for the versions of the model; this one is `{folder}`. With Docker:

```shell
docker run -p 8500:8500 -p 8501:8501 -e MODEL_NAME={name} \\
  -v "$(dirname "$PWD"):/models/{name}" tensorflow/serving \\
  --enable_batching --batching_parameters_file=/models/{name}/{folder}/batching.txt
```

Its log shows that it batches, and that it was warm before the first request:

```
Wrapping session to perform batch processing
{warm}
```

- **Batching.** A server that batches pads to the next of `allowed_batch_sizes` in
  [batching.txt](batching.txt), with copies of a request's first example. An answer does
  not depend on these, nor on other requests of the batch, but for rounding (about 1e-6).
  `python -m bayesnorm.serving.tune_batching .` measures this file on the machine that serves.
- **Warm-up.** {warmup}
- The folder is tested with TensorFlow's C library, which a server runs it with; the
  server itself was not at hand.

## REST

```python
import json
import urllib.request

import numpy as np

inputs = {{{rest}}}
body = json.dumps({{"signature_name": "seeded", "inputs": inputs}}).encode()
url = "http://localhost:8501/v1/models/{name}:predict"
print(json.load(urllib.request.urlopen(url, body))["outputs"])
```

{curl}

## gRPC

`pip install tensorflow-serving-api`

```python
import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

inputs = {{{grpc}}}
request = predict_pb2.PredictRequest()
request.model_spec.name = "{name}"
request.model_spec.signature_name = "seeded"
for key, value in inputs.items():
    request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
channel = grpc.insecure_channel("localhost:8500")
stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
answer = stub.Predict(request, timeout=10.0)
print({{key: tf.make_ndarray(value) for key, value in answer.outputs.items()}})
```
"""  # noqa: E501

_WARM = (
    "Finished reading warmup data for model at .../{folder}/assets.extra/"
    "tf_serving_warmup_requests. Number of warmup records read: {requests}. "
    "Elapsed time (microseconds): ..."
)
_COLD = "No warmup data file found at .../assets.extra/tf_serving_warmup_requests"
_OPEN = 64  # What stands in the examples for an axis of any length.


def readme(model, path, members, samples, signature, outputs, temperatures, requests):
    """Returns the page.

    Args:
        model: The model.
        path: Path of the SavedModel.
        members: Number of members of an ensemble.
        samples: Number of networks of each.
        signature: The model's inputs, a nest of `InputSpec`s with names.
        outputs: An `Output` for each output of the model.
        temperatures: The temperature of each output's average.
        requests: Number of warm-up requests.
    """

    def entries(of_regression, of_probabilities):
        return ", ".join(
            f"`{output.entry(name)}`"
            for output in outputs
            for name in (
                of_regression if output.task == "regression" else of_probabilities
            )
        )

    specs = keras.tree.flatten(signature)
    inputs = "\n".join(
        f"- `{x.name}`: {x.dtype} `[{', '.join(['batch', *map(str, x.shape[1:])])}]`"
        for x in specs
    )
    averaged = entries(("mean", "variance"), ("probs", "entropy", "mutual_information"))
    arrays = {x.name: _array(x) for x in specs}
    return _PAGE.format(
        name=model.name,
        networks=members * samples,
        members="" if members == 1 else f", {samples} of each of {members} members",
        folder=path.name,
        inputs=inputs,
        outputs=averaged,
        mean=averaged if members > 1 else entries(("mean",), ("probs", "entropy")),
        what_mean=(
            "the one network of mean weights"
            if members == 1
            else "the average of the members' networks of mean weights"
        ),
        kept=entries(("samples",), ("samples",)),
        tempered=_tempered(outputs, temperatures),
        warm=_WARM.format(folder=path.name, requests=requests) if requests else _COLD,
        warmup=(
            f"{requests} requests, one for each signature and allowed batch size."
            if requests
            else "None: the model leaves the shape of an example open, and none was "
            "given. `bayesnorm.export(..., warmup_inputs=example)` makes them of one."
        ),
        rest="".join(f'"{k}": {v}.tolist(), ' for k, v in arrays.items())
        + '"seed": [0]',
        grpc="".join(f'"{k}": {v}, ' for k, v in arrays.items())
        + '"seed": np.zeros([1], "int64")',
        curl=_curl(model, specs),
    )


def _array(x):
    shape = [1, *(_OPEN if size is None else size for size in x.shape[1:])]
    if x.dtype == "string":
        return f'np.full({shape}, "text")'
    return f'np.zeros({shape}, "{x.dtype}")'


def _curl(model, specs):
    address = f"curl http://localhost:8501/v1/models/{model.name}"
    lines = [f"{address}  # AVAILABLE?", f"{address}/metadata  # all signatures"]
    if len(specs) == 1:
        body = """{"signature_name": "mean", "instances": [EXAMPLE, EXAMPLE]}"""
        lines.append(f"{address}:predict -d '{body}'")
    return "\n".join(["```shell", *lines, "```"])


def _tempered(outputs, temperatures):
    found = ", ".join(
        f"`{output.entry('probs')}` {temperature:g}"
        for output, temperature in zip(outputs, temperatures, strict=True)
        if temperature != 1.0
    )
    if not found:
        return ""
    return (
        " Probabilities and entropies of the average are at a temperature, "
        f"softmax(log p / T): {found}; mutual information and samples are not."
    )
