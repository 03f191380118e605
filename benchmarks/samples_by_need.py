"""What `predict(tolerance=)` saves, and what it changes, on a trained network.

```
TFDS_DATA_DIR=... python -m benchmarks.samples_by_need --dataset=mnist
```

A small convolutional network with batch normalization and dropout is trained, converted
and calibrated. Then `predict(samples=200)` takes turns with the same of a tolerance;
ratios of time are taken turn by turn. Classes and entropies are compared with those of
all samples over several seeds.
"""

import json
import os
import pathlib

import keras
import numpy as np
from absl import app, flags
from keras import layers

import bayesnorm
from bayesnorm import datasets, metrics
from benchmarks import timing
from trainers.report import tables

_DATASET = flags.DEFINE_enum(
    "dataset", "digits", ["digits", "mnist", "cifar10"], "Data to train on."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "TensorFlow Datasets directory; $TFDS_DATA_DIR by default."
)
_EPOCHS = flags.DEFINE_integer("epochs", 3, "Epochs of training.", 1)
_EXAMPLES = flags.DEFINE_integer("examples", 2000, "Test examples.", 1)
_SAMPLES = flags.DEFINE_integer("samples", 200, "Samples.", 1)
_TURNS = flags.DEFINE_integer("turns", 3, "Timed turns, each of a seed of its own.", 1)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the table.")

# Of `predict`: tolerance, error rate.
_RULES = (("class", 0.01), ("class", 0.05), (0.2, 0.05), (0.1, 0.05), (0.05, 0.05))


def trained(splits):
    """Returns a network trained in this process, converted and calibrated."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(splits.image_shape)
    x = layers.Normalization(
        mean=splits.channel_mean, variance=splits.channel_stddev**2
    )(inputs)
    for i, width in enumerate((16, 32, 64)):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        if i < 2:
            x = layers.MaxPooling2D()(x)
    x = layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(x))
    outputs = layers.Dense(splits.num_classes, activation="softmax")(x)
    model = keras.Model(inputs, outputs)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    images = splits.inputs(splits.train.images)
    model.fit(
        images, splits.train.labels, batch_size=64, epochs=_EPOCHS.value, verbose=2
    )
    model = bayesnorm.to_stochastic(model, dropout=True)
    return bayesnorm.calibrate(model, images[:10000], batch_size=64, verbose=False)


def compare(model, images, labels):
    """Returns a dict of figures for each rule, and those of all samples."""
    predictions = {rule: [] for rule in (None, *_RULES)}

    def candidate(rule):
        def run():
            seed = len(predictions[rule])
            more = {} if rule is None else dict(tolerance=rule[0], error_rate=rule[1])
            predictions[rule].append(
                bayesnorm.predict(
                    model, images, _SAMPLES.value, seed=seed, verbose=False, **more
                )
            )

        return run

    seconds = timing.take_turns({r: candidate(r) for r in predictions}, _TURNS.value)
    rows = []
    for rule, found in predictions.items():
        ratios = np.array(seconds[rule]) / seconds[None]
        pairs = list(zip(found, predictions[None], strict=True))
        entropy_gaps = np.array([np.abs(a.entropy - b.entropy) for a, b in pairs])
        used = [_SAMPLES.value if rule is None else p.samples_used for p in found]
        rows.append(
            {
                "rule": rule,
                "seconds": float(np.median(seconds[rule])),
                "ratio": float(np.median(ratios)),
                "ratio_min": float(ratios.min()),
                "ratio_max": float(ratios.max()),
                "samples_used": float(np.mean(used)),
                "all_samples": 100 * float(np.mean(np.array(used) == _SAMPLES.value)),
                "other_class": 100
                * float(np.mean([a.classes != b.classes for a, b in pairs])),
                "entropy_rms": float(np.sqrt(np.mean(entropy_gaps**2))),
                "entropy_off": None
                if rule is None or rule[0] == "class"
                else 100 * float((entropy_gaps > rule[0]).mean()),
                "accuracy": float(
                    100 * np.mean([metrics.accuracy(p.probs, labels) for p in found])
                ),
            }
        )
    return rows


def table(summary):
    """Returns the figures as a Markdown table."""
    head = [
        "tolerance",
        "time, ratio",
        "min - max",
        "samples used",
        "of all, %",
        "other class, %",
        "entropy, rms",
        "outside, %",
        "accuracy, %",
    ]
    rows = [
        [
            "none"
            if row["rule"] is None
            else f"{row['rule'][0]}, error rate {row['rule'][1]:g}",
            f"{row['ratio']:.3f}",
            f"{row['ratio_min']:.3f} - {row['ratio_max']:.3f}",
            f"{row['samples_used']:.1f}",
            f"{row['all_samples']:.1f}",
            f"{row['other_class']:.3f}",
            f"{row['entropy_rms']:.4f}",
            tables.number(row["entropy_off"], ".3f"),
            f"{row['accuracy']:.2f}",
        ]
        for row in summary["rows"]
    ]
    return (
        f"### {summary['dataset']}, {summary['examples']} test examples, "
        f"{summary['samples']} samples, {summary['seeds']} seeds "
        f"({summary['backend']}, {summary['hardware']})\n\n{tables.table(head, rows)}\n"
    )


def main(argv):
    """Trains, compares, prints."""
    del argv
    data_dir = _DATA_DIR.value or os.environ.get("TFDS_DATA_DIR")
    splits = datasets.load(_DATASET.value, data_dir, held_out=())
    model = trained(splits)
    images = splits.inputs(splits.test.images[: _EXAMPLES.value])
    labels = splits.test.labels[: _EXAMPLES.value]
    summary = {
        "dataset": _DATASET.value,
        "examples": len(labels),
        "samples": _SAMPLES.value,
        "seeds": _TURNS.value + 1,  # The first turn compiles.
        "backend": keras.backend.backend(),
        "hardware": timing.hardware(),
        "rows": compare(model, images, labels),
    }
    print(table(summary), flush=True)
    if _OUTPUT.value:
        folder = pathlib.Path(_OUTPUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{_DATASET.value}_{summary['backend']}"
        (folder / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n")
        (folder / f"{name}.md").write_text(table(summary))


if __name__ == "__main__":
    app.run(main)
