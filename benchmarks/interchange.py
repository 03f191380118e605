"""Networks in other runtimes: what they answer, and how long a call takes.

```
python -m benchmarks.interchange --output benchmarks/results/interchange
```

The network of mean weights (`method="mean"`) as one compiled function of TensorFlow,
and as the ONNX model that `bayesnorm.export_onnx` writes, in ONNX Runtime and OpenVINO:
one thread each, in turns, the best of the turns. Weights are random, which is as fast
as trained ones; the pruned LeNet-5-Caffe has the widths to which training came with
seed 0 (`benchmarks/results/pruning`).
"""

import json
import pathlib
import tempfile

import keras
import numpy as np
from absl import app, flags

import bayesnorm
from bayesnorm.pruning import cost
from benchmarks import runtimes, timing
from trainers.flags import command
from trainers.report import tables

_OUTPUT = flags.DEFINE_string("output", None, "Folder of the table.")

_BATCHES = (1, 100)
_DENSE, _PRUNED = "LeNet-5-Caffe, 20-50-800-500", "pruned to 4-8-128-132"
# Of 800 inputs of the dense layer 128 are left with 8 of 50 filters.
_WIDTHS = (4, 8, None, 132)


def lenet5_caffe():
    """Returns LeNet-5-Caffe and the one that is left of it."""
    whole = bayesnorm.models.lenet5(norm=None, scale="pruning", seed=0)
    layers = [
        layer
        for layer in whole.layers
        if isinstance(layer, bayesnorm.StructuredBayesianPruning)
    ]
    dense, _ = bayesnorm.prune(whole, keep={x.name: _evenly(x, None) for x in layers})
    masks = {x.name: _evenly(x, n) for x, n in zip(layers, _WIDTHS, strict=True)}
    pruned, report = bayesnorm.prune(whole, keep=masks)
    print(report)
    return dense, pruned


def _evenly(layer, width):
    """A mask of `width` channels, None for all."""
    channels = layer.mean.shape[0]
    kept = np.zeros(channels, bool)
    kept[np.linspace(0, channels - 1, width or channels).round().astype(int)] = True
    return kept


def networks():
    """Returns the networks, a dict by title, and how many classes they have."""
    rng = np.random.default_rng(0)
    lenet5 = bayesnorm.to_stochastic(bayesnorm.models.lenet5(seed=0))
    bayesnorm.calibrate(lenet5, rng.normal(size=(256, 28, 28, 1)).astype("float32"), 32)
    dense, pruned = lenet5_caffe()
    return {
        "All-CNN, 8x8, width 0.25": bayesnorm.models.all_cnn(
            (8, 8, 1), 10, width=0.25, padding="same", seed=0
        ),
        "LeNet-5, stochastic batch normalization": lenet5,
        "ResNet-18, width 0.25": bayesnorm.models.resnet18((32, 32, 3), width=0.25),
        _DENSE: dense,
        _PRUNED: pruned,
    }


def compiled(model):
    """Returns the function of TensorFlow, batch to probabilities."""
    step = bayesnorm.graph.compiled_for(model).get(_mean)
    return lambda x: step(x)


def _mean(model):
    def step(batch):
        with bayesnorm.noise_mode("mean"):
            return keras.ops.softmax(model()(batch, training=False))

    return step


def measure(model, folder):
    """Returns `{runtime: {"error": ..., batch: seconds}}` of a network."""
    path = pathlib.Path(folder) / "model.onnx"
    bayesnorm.export_onnx(model, path, from_logits=True)
    runs = {
        "TensorFlow": compiled(model),
        "ONNX Runtime": runtimes.in_onnxruntime(path),
        "OpenVINO": runtimes.in_openvino(path),
    }
    shape = model.input_shape[1:]
    x = np.random.default_rng(1).normal(size=(max(_BATCHES), *shape)).astype("float32")
    truth = bayesnorm.predict(
        model, x, method="mean", from_logits=True, verbose=False
    ).probs
    found = {
        name: {"error": float(np.abs(np.asarray(run(x)) - truth).max())}
        for name, run in runs.items()
    }
    for batch in _BATCHES:
        seconds = cost.best({k: (run, x[:batch]) for k, run in runs.items()})
        for name, value in seconds.items():
            found[name][batch] = value
    return found


def table(results):
    """Returns the tables."""
    names = list(next(iter(results.values())))
    head = ["ms a call", "batch", *names, "largest difference to Keras"]
    rows = []
    for title, found in results.items():
        error = max(found[name]["error"] for name in names)
        for batch in _BATCHES:
            times = [f"{1e3 * found[name][batch]:.3f}" for name in names]
            rows.append([title, str(batch), *times, f"{error:.0e}"])
    text = tables.table(head, rows)
    rows = []
    for batch in _BATCHES:
        dense, pruned = results[_DENSE], results[_PRUNED]
        ratios = [dense[name][batch] / pruned[name][batch] for name in names]
        against = dense["TensorFlow"][batch]
        rows.append(
            [
                f"batch {batch}",
                *(f"{ratio:.1f}" for ratio in ratios),
                *(f"{against / pruned[name][batch]:.1f}" for name in names),
            ]
        )
    head = [
        "times faster when pruned",
        *names,
        *(f"{name}, than unpruned in TensorFlow" for name in names),
    ]
    return f"{text}\n\n{tables.table(head, rows)}"


def main(argv):
    """Measures, prints and writes."""
    del argv
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    results = {}
    for title, model in networks().items():
        with tempfile.TemporaryDirectory() as folder:
            results[title] = measure(model, folder)
        print(title, json.dumps(results[title]), flush=True)
    import onnxruntime
    import openvino

    versions = (
        f"Keras {keras.__version__}, TensorFlow {tf.__version__}, ONNX Runtime "
        f"{onnxruntime.__version__}, OpenVINO {openvino.__version__.split('-')[0]}"
    )
    text = (
        f"# Other runtimes\n\n`{command()}`; {timing.hardware()}, one thread; "
        f"{versions}.\n\n{table(results)}\n"
    )
    print(text)
    timing.write_report(_OUTPUT.value, text, results)


if __name__ == "__main__":
    app.run(main)
