"""Laws of batch statistics, against the statistics of real batches (MCBN).

```
python -m benchmarks.laws --data_dir=DIR --ood_file=FILE --output=FOLDER
```

Trains each network for each seed, and predicts with the statistics of real batches, of
other real batches (what the measurement itself varies by), independent ones (the paper)
and joint ones of several ranks: of a factor across all layers, and of the same factor
where each layer has its own draw. LeNet-5 sees MNIST, with notMNIST out of the domain;
the others classes 0 to 4 of CIFAR-10, with 5 to 9 out of the domain.

Rows that the output has are not measured again: the command goes on where it stopped,
and more seeds or networks add theirs.
"""

import json
import pathlib

import keras
import numpy as np
from absl import app, flags

import bayesnorm
from bayesnorm import datasets, metrics, models, plots
from bayesnorm.layers.stochastic_batch_norm import stochastic_batch_normalizations
from benchmarks import timing
from trainers.flags import command
from trainers.report import tables

# Width and epochs that a core trains in minutes.
NETWORKS = {
    "lenet5": (1.0, 3),
    "vgg11": (0.25, 3),
    "resnet18": (0.125, 3),
    "mobilenet_v2": (0.35, 3),
}
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TensorFlow Datasets directory.")
_OOD_FILE = flags.DEFINE_string("ood_file", None, "notMNIST as a NumPy archive.")
_CIFAR = flags.DEFINE_string("cifar_title", "CIFAR-10", "What the data are called.")
_NETWORKS = flags.DEFINE_list("networks", list(NETWORKS), "Networks.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
_TRAIN = flags.DEFINE_integer("train_examples", 12_000, "Training images.", 1)
_TEST = flags.DEFINE_integer("examples", 500, "Images in the domain.", 1)
_OUTSIDE = flags.DEFINE_integer("ood_examples", 250, "And out of it.", 1)
_BATCH = flags.DEFINE_integer("batch_size", 16, "Images of a training batch.", 2)
_SAMPLES = flags.DEFINE_integer("samples", 150, "Sampled networks.", 2)
_RANKS = flags.DEFINE_list("ranks", ["4", "16", "64"], "Ranks of the joint law.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the tables and the figure.")

REAL, AGAIN, INDEPENDENT = "real batches", "other real batches", "independent"
_INFORMATION = "mutual_information"
# Figure -> title and form of a column of the table.
_COLUMNS = {
    "distance": ("total variation to MCBN", ".4f"),
    "mutual_information": ("mutual information, nats", ".4f"),
    "mutual_information_ood": ("out of the domain", ".4f"),
    "nll": ("NLL, nats", ".4f"),
    "ece": ("ECE, %", ".2f"),
    "auroc": ("AUROC by entropy, %", ".2f"),
    "auroc_information": ("by mutual information", ".2f"),
    "error": ("error, %", ".2f"),
}


def load(name):
    """Returns the `Splits` of a network, with images out of the domain."""
    if name != "lenet5":
        return datasets.load("cifar10", _DATA_DIR.value, held_out=list("56789"))
    splits = datasets.load("mnist", _DATA_DIR.value)
    outside = datasets.load_notmnist(_DATA_DIR.value, _OOD_FILE.value)
    return datasets.with_ood(splits, *outside, datasets.NOTMNIST_CLASSES)


def build(name, splits, seed):
    """Returns an untrained network, scaled images to logits."""
    keras.utils.set_random_seed(seed)
    width, _ = NETWORKS[name]
    if name == "mobilenet_v2":
        return keras.applications.MobileNetV2(
            splits.image_shape,
            width,
            weights=None,
            classes=splits.num_classes,
            classifier_activation=None,
        )
    network = getattr(models, name)
    return network(splits.image_shape, splits.num_classes, width=width, seed=seed)


def train(name, splits, images, seed):
    """Returns a network trained by Adam, its rate falling linearly from 0.001 to 0."""
    model, (_, epochs) = build(name, splits, seed), NETWORKS[name]
    steps = epochs * -(-len(images) // _BATCH.value)
    rate = keras.optimizers.schedules.PolynomialDecay(1e-3, steps, 0.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)
    labels = splits.train.labels[: len(images)]
    model.fit(images, labels, _BATCH.value, epochs, verbose=2)
    return model


def within_layers(model):
    """Returns a copy of a network whose layers do not share the draws of the law.

    Each has rows of its own in a factor of as many ranks as there are layers.
    """
    new = bayesnorm.copy_weights(model, keras.models.clone_model(model))
    layers = stochastic_batch_normalizations(new)
    for i, layer in enumerate(layers):
        factor = keras.ops.convert_to_numpy(layer.law_factor)
        rank = len(factor)
        layer.set_law_rank(rank * len(layers))
        whole = np.zeros(layer.law_factor.shape, "float32")
        whole[i * rank : (i + 1) * rank] = factor
        layer.law_factor.assign(whole)
    return new


def measure(name, seed):
    """Yields a row of figures for each law of the statistics of a network."""
    splits = load(name)
    images = splits.inputs(splits.train.images[: _TRAIN.value])
    inside = splits.inputs(splits.test.images[: _TEST.value])
    outside = splits.inputs(splits.ood.images[: _OUTSIDE.value])
    labels = splits.test.labels[: len(inside)]
    model = bayesnorm.to_stochastic(train(name, splits, images, seed), seed=seed)

    def predicted(sampled, **arguments):
        arguments = {
            "samples": _SAMPLES.value,
            "seed": seed,
            "batch_size": 250,
            "from_logits": True,
            "verbose": False,
            **arguments,
        }
        return [bayesnorm.predict(sampled, x, **arguments) for x in (inside, outside)]

    def figures(law, prediction):
        test, ood = prediction
        distance = 0.5 * np.abs(test.probs - reference[0].probs).sum(-1).mean()
        summary = metrics.classification_summary(test.probs, labels)
        entropy = np.concatenate([test.entropy, ood.entropy])
        information = np.concatenate([p.mutual_information for p in prediction])
        is_outside = np.arange(len(entropy)) >= len(inside)
        row = {
            "distance": distance,
            "mutual_information": test.mutual_information.mean(),
            "mutual_information_ood": ood.mutual_information.mean(),
            "nll": summary["nll"],
            "ece": summary["ece_equal_mass"],
            "auroc": 100 * metrics.auroc(entropy, is_outside),
            "auroc_information": 100 * metrics.auroc(information, is_outside),
            "error": summary["error"],
        }
        row = {key: float(value) for key, value in row.items()}
        return {"network": name, "seed": seed, "law": law, **row, **settings()}

    calibration = {"batch_size": _BATCH.value, "seed": seed, "verbose": False}
    bayesnorm.calibrate(model, images, law="independent", **calibration)
    batches = {"method": "minibatch", "train_data": images}
    reference = predicted(model, **batches)
    yield figures(REAL, reference)
    # Of another seed are the batches: there are no other draws.
    yield figures(AGAIN, predicted(model, **batches, seed=seed + 1000))
    yield figures("mean network", predicted(model, method="mean"))
    yield figures(INDEPENDENT, predicted(model))
    for rank in map(int, _RANKS.value):
        bayesnorm.calibrate(model, images, rank=rank, **calibration)
        yield figures(f"joint, rank {rank}", predicted(model))
        if rank == 16:
            apart = predicted(within_layers(model))
            yield figures("rank 16, each layer its own", apart)


def settings():
    """Returns what the figures of a row depend on, but for network, seed and law."""
    flags_ = _TRAIN, _TEST, _OUTSIDE, _BATCH, _SAMPLES
    return {flag.name: flag.value for flag in flags_} | {
        "command": command(),
        "hardware": timing.hardware(),
        "keras": f"Keras {keras.version()} on {keras.backend.backend()}",
    }


def page(rows):
    """Returns the report of all networks."""
    lines = [
        "# Laws of batch statistics",
        "",
        "Mean and standard deviation over the seeds. Out of the domain: notMNIST for "
        f"MNIST, the other five classes for {_CIFAR.value}.",
        "",
        "![Mutual information by law](mutual_information.png)",
    ]
    for name in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == name]
        seeds = sorted({row["seed"] for row in own})
        width, epochs = NETWORKS[name]
        data = "MNIST" if name == "lenet5" else f"five classes of {_CIFAR.value}"
        body = [
            [law, *(_cell(own, law, key, form) for key, (_, form) in _COLUMNS.items())]
            for law in dict.fromkeys(row["law"] for row in own)
        ]
        head = ["", *(title for title, _ in _COLUMNS.values())]
        about = own[-1]
        lines += [
            "",
            f"## {name}, width {width:g}, {epochs} epochs, {data}",
            "",
            f"`{about['command']}`",
            "",
            f"{about['hardware']}, {about['keras']}. {about['train_examples']} "
            f"training images, batches of {about['batch_size']}, {about['samples']} "
            f"sampled networks, {about['examples']} test images and "
            f"{about['ood_examples']} out of the domain, seeds "
            f"{', '.join(map(str, seeds))}.",
            "",
            tables.table(head, body),
        ]
    return "\n".join([*lines, ""])


def _values(rows, law, figure):
    return [row[figure] for row in rows if row["law"] == law]


def _cell(rows, law, figure, form):
    values = _values(rows, law, figure)
    if figure == "auroc_information" and max(_values(rows, law, _INFORMATION)) < 1e-6:
        return tables.number(None, form)
    stddev = np.std(values, ddof=1) if len(values) > 1 else None
    return tables.number(np.mean(values), form, stddev)


def figure(rows):
    """Returns a plot of the mutual information by law, in the domain and out of it."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["network"] for row in rows))
    figure, axes = plt.subplots(
        len(names), 2, figsize=(13, 4.2 * len(names)), squeeze=False
    )
    for name, pair in zip(names, axes, strict=True):
        own = [r for r in rows if r["network"] == name and r["law"] != "mean network"]
        laws = list(dict.fromkeys(row["law"] for row in own))
        parts = {"": "test", "_ood": "out of the domain"}
        for (ending, where), ax in zip(parts.items(), pair, strict=True):
            key = f"mutual_information{ending}"
            values = {law: _values(own, law, key) for law in laws}
            label = f"mutual information, {where} (nats)"
            plots.bar_comparison(values, label, title=name, ax=ax)
    figure.tight_layout()
    return figure


def main(argv):
    """Measures what is missing, prints the tables and writes them where asked."""
    del argv
    folder = None if _OUTPUT.value is None else pathlib.Path(_OUTPUT.value)
    rows = []
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "metrics.json").exists():
            rows = json.loads((folder / "metrics.json").read_text())["rows"]
    for name in _NETWORKS.value:
        for seed in map(int, _SEEDS.value):
            if any((row["network"], row["seed"]) == (name, seed) for row in rows):
                continue
            rows += measure(name, seed)
            print(page(rows), flush=True)
            if folder is not None:
                write(folder, rows)


def write(folder, rows):
    """Writes figures, page and plot."""
    text = json.dumps({"rows": rows}, indent=1)
    (folder / "metrics.json").write_text(text + "\n")
    (folder / "report.md").write_text(page(rows))
    figure(rows).savefig(folder / "mutual_information.png")


if __name__ == "__main__":
    app.run(main)
