"""Pruned networks: error, operations and time, beside removal by the size of filters.

```
python -m trainers.sbp --dataset=mnist --data_dir=DIR --seed=0 --workdir=runs/lenet5-0
python -m benchmarks.pruning --runs=runs/lenet5-0,runs/lenet5-1 --output=DIR
```

Of finished runs of `trainers.sbp`: what each criterion keeps (signal-to-noise ratio,
evidence), and its test error; the network that pruning started from without its
filters of smallest norms, as many as to have no more multiplications, trained on for
`--epochs` as a plain network, with the run's optimizer and its rate falling to 0 in a
line; and the time of a call, compiled, as an exported SavedModel and in ONNX Runtime on
one thread, of one example and of 100 (`TF_NUM_INTRAOP_THREADS=1` and
`TF_NUM_INTEROP_THREADS=1` give TensorFlow one thread as well).
"""

import importlib.util
import json
import statistics
import tempfile
import warnings

import keras
import numpy as np
from absl import app, flags

import bayesnorm
from bayesnorm.pruning import cost, magnitude_masks
from benchmarks import runtimes, timing
from trainers import sbp, session
from trainers.flags import command
from trainers.report import tables
from trainers.sections import pruning

_RUNS = flags.DEFINE_list("runs", None, "Folders of runs.", required=True)
_EPOCHS = flags.DEFINE_integer("epochs", 30, "Epochs after removal by size.", 0)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the table.")

_BATCHES = (1, 100)


def error(model, splits):
    """Returns the error on the test part, per cent."""
    images = splits.inputs(splits.test.images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = model.predict(images, batch_size=500, verbose=0)
    return 100.0 * float(np.mean(scores.argmax(-1) != splits.test.labels))


def by_size(trained, splits, macs, run):
    """Returns the network without its smallest filters, trained on.

    Args:
        trained: The network to start from.
        splits: The `Splits`.
        macs: How many multiplications it may have.
        run: The flags of the run.
    """
    low, high, found = 0.0, 1.0, None
    for _ in range(12):
        share = (low + high) / 2
        smaller, report = bayesnorm.prune(
            trained, keep=magnitude_masks(trained, max(share, 1e-3))
        )
        if report.macs[1] <= macs:
            low, found = share, (smaller, report)
        else:
            high = share
    smaller, report = found
    steps = max(1, _EPOCHS.value * len(splits.train) // run.batch_size)
    rate = keras.optimizers.schedules.PolynomialDecay(
        float(run.learning_rate), steps, 0
    )
    smaller.compile(
        keras.optimizers.Adam(rate, beta_1=run.beta_1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    keras.utils.set_random_seed(run.seed)
    if _EPOCHS.value:
        smaller.fit(
            splits.inputs(splits.train.images),
            splits.train.labels,
            batch_size=run.batch_size,
            epochs=_EPOCHS.value,
            verbose=2,
        )
    return smaller, report


def served_seconds(models, batch):
    """Returns the seconds of a call of models exported as SavedModels, in turns."""
    import tensorflow as tf

    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models.items():
            model.export(f"{folder}/{name}", verbose=False)
            served = tf.saved_model.load(f"{folder}/{name}")
            # The loaded object holds the weights.
            runs[name] = (
                lambda x, served=served: served.serve(x),
                cost.random_inputs(model, batch),
            )
        return cost.best(runs)


def onnx_seconds(models, batch):
    """Returns the seconds of a call of models in ONNX Runtime, one thread, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for name, model in models.items():
            path = f"{folder}/{name}.onnx"
            bayesnorm.export_onnx(model, path, from_logits=True)
            x = cost.random_inputs(model, batch)
            runs[name] = runtimes.in_onnxruntime(path), np.asarray(x)
        return cost.best(runs)


def measure(folder):
    """Returns the figures of a run, and the networks whose times are compared."""
    run = sbp.PROGRAM.flags({"config": f"{folder}/flags.txt", "workdir": folder})
    keras.utils.set_random_seed(run.seed)
    splits = session.load_data(run)
    workdir = session.open_workdir(run, "sbp")
    trained = sbp.trained_network(run, splits, workdir)
    model, _, whole = sbp.train(run, splits, trained, workdir)
    found = {"network": run.network, "seed": run.seed, "epochs": run.epochs}
    rows = {"before": (trained, None)}
    for criterion in ("snr", "evidence"):
        rows[criterion] = bayesnorm.prune(model, run.threshold, criterion)
    before = bayesnorm.prune(whole, run.threshold)[1].macs[0]
    rows["size"] = by_size(trained, splits, rows["snr"][1].macs[1], run)
    for name, (network, report) in rows.items():
        found[name] = {
            "error": error(network, splits),
            "macs": before if report is None else report.macs[1],
            "inputs": None if report is None else [x.inputs[1] for x in report.layers],
        }
    return found, {"before": trained, "after": rows["snr"][0]}


def times(pair):
    """Returns the seconds of calls of two networks, by way to call them and batch."""
    found = {"compiled": {b: cost.latencies(pair, b) for b in _BATCHES}}
    if keras.backend.backend() == "tensorflow":
        found["served"] = {b: served_seconds(pair, b) for b in _BATCHES}
        if importlib.util.find_spec("onnxruntime"):
            found["ONNX Runtime"] = {b: onnx_seconds(pair, b) for b in _BATCHES}
    return found


_TITLES = {
    "before": "before pruning",
    "snr": "signal-to-noise ratio below 1",
    "evidence": "evidence",
    "size": "smallest filters, trained on",
}


def table(results):
    """Returns the tables of the runs of one network."""
    first = results[0]
    head = ["criterion", *(f"seed {r['seed']}" for r in results), "mean"]
    rows = []
    for name, title in _TITLES.items():
        cells = []
        for r in results:
            factor = first["before"]["macs"] / r[name]["macs"]
            inputs = r[name]["inputs"]
            kept = "" if inputs is None else ", " + "-".join(map(str, inputs))
            cells.append(f"{r[name]['error']:.2f} %, {factor:.1f} x{kept}")
        mean = statistics.mean(r[name]["error"] for r in results)
        factors = (r["before"]["macs"] / r[name]["macs"] for r in results)
        factor = statistics.mean(factors)
        rows.append([title, *cells, f"{mean:.2f} %, {factor:.1f} x"])
    for method, wrong, factor, widths in pruning.published(results[0]["network"]):
        cells = [f"{wrong:.2f} %, {factor:.1f} x, {widths}"]
        rows.append([method, *[""] * len(results), *cells])
    text = tables.table(head, rows)
    kinds = [k for k in ("compiled", "served", "ONNX Runtime") if k in first]
    head = ["times faster", *(f"seed {r['seed']}" for r in results), "before, ms"]
    rows = []
    for kind in kinds:
        for batch in _BATCHES:
            times = [r[kind][batch] for r in results]
            rows.append(
                [
                    f"{kind}, batch {batch}",
                    *(f"{t['before'] / t['after']:.1f}" for t in times),
                    f"{1e3 * times[0]['before']:.2f}",
                ]
            )
    return f"{text}\n\n{tables.table(head, rows)}"


def main(argv):
    """Measures, prints and writes."""
    del argv
    results, measured = {}, []
    for folder in _RUNS.value:
        measured.append(measure(folder))
        print(json.dumps(measured[-1][0]), flush=True)
    # Last, and together: nothing else is to run beside them.
    print("times", flush=True)
    for found, pair in measured:
        results.setdefault(found["network"], []).append(found | times(pair))
    version = f"Keras {keras.__version__} on {keras.backend.backend()}"
    lines = [
        "# Structured Bayesian pruning",
        "",
        f"`{command()}`; {timing.hardware()}; {version}.",
        "",
    ]
    for network, runs in results.items():
        lines += [f"## {network}", "", table(runs), ""]
    lines += [
        "Error on the test part; how many times fewer multiplications of dense and",
        "convolutional layers; the channels that each of these layers takes. Published",
        "networks of these widths, on MNIST, are below. Channels of which the ratio",
        "fell below 1 while training shrank the network are gone for both criteria.",
        "",
    ]
    text = "\n".join(lines)
    print(text)
    timing.write_report(_OUTPUT.value, text, results)


if __name__ == "__main__":
    app.run(main)
