"""Predictions by moments against sampled ones, in ratios of mutual information.

```
python -m benchmarks.moments --output benchmarks/results/moments      # TensorFlow
```

One member of each family of batch normalization in `keras.applications`, a small
vision transformer with a stochastic batch normalization in each block and a text
classifier. Weights are random (`weights=None`); the statistics are those of a
calibration on random inputs. `predict(method="moments")` is compared with
`predict(method="sample")` on the same inputs. A network that the folder has with the
same settings is not run again, so that a broken run goes on.
"""

import json
import pathlib

import keras
import numpy as np
from absl import app, flags
from keras import layers

import bayesnorm
from benchmarks import timing
from trainers import flags as trainer_flags
from trainers.report import tables

_NETWORKS = flags.DEFINE_list("networks", [], "Networks, none for all.")
_SAMPLES = flags.DEFINE_integer("samples", 1000, "Samples.", 1)
_EXAMPLES = flags.DEFINE_integer("examples", 8, "Examples.", 1)
_SIZE = flags.DEFINE_integer("size", 64, "Width of images, at least.", 32)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, inputs and samples.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the table and figures.")

_CLASSES = 5
# Arguments of the family's member, and the smallest width that it takes.
FAMILIES = {
    "MobileNet": ({"alpha": 0.25}, 32),
    "MobileNetV2": ({"alpha": 0.35}, 32),
    "MobileNetV3Small": ({}, 32),
    "ResNet50": ({}, 32),
    "ResNet50V2": ({}, 32),
    "EfficientNetB0": ({}, 32),
    "EfficientNetV2B0": ({}, 32),
    "DenseNet121": ({}, 32),
    "Xception": ({}, 71),
    "NASNetMobile": ({}, 224),
    "InceptionV3": ({}, 75),
    "InceptionResNetV2": ({}, 75),
}


def application(name):
    """A network of `keras.applications`, its normalizations made stochastic."""
    arguments, least = FAMILIES[name]
    size = max(_SIZE.value, least)
    model = getattr(keras.applications, name)(
        weights=None, classes=_CLASSES, input_shape=(size, size, 3), **arguments
    )
    return bayesnorm.to_stochastic(model)


def vision_transformer():
    """Patches of 8, two blocks of attention, a batch normalization in each."""
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(32, 8, strides=8)(inputs)
    x = layers.Reshape((16, 32))(x)
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(4, 8)(y, y)])
        y = layers.Dense(64)(layers.LayerNormalization()(x))
        y = layers.Activation("gelu")(bayesnorm.StochasticBatchNormalization()(y))
        x = layers.Add()([x, layers.Dense(32)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(_CLASSES, "softmax")(x))


def text_classifier():
    """Embeddings of 100 words, two convolutions, the maximum over 20 places."""
    x = inputs = keras.Input((20,), dtype="int32")
    x = layers.Embedding(100, 16)(x)
    for _ in range(2):
        x = layers.Conv1D(32, 3, padding="same")(x)
        x = layers.ReLU()(bayesnorm.StochasticBatchNormalization()(x))
    x = layers.GlobalMaxPooling1D()(x)
    return keras.Model(inputs, layers.Dense(_CLASSES, "softmax")(x))


NETWORKS = {
    "small ViT": vision_transformer,
    "text classifier": text_classifier,
    **{name: lambda name=name: application(name) for name in FAMILIES},
}


def inputs_of(model, number, rng):
    """Random inputs: words, or images of smooth colours with noise."""
    shape = model.input_shape[1:]
    if len(shape) == 1:
        return rng.integers(0, 100, size=(number, *shape))
    colours = rng.uniform(0, 255, size=(number, 1, 1, shape[-1]))
    noise = rng.normal(scale=40.0, size=(number, *shape))
    return np.clip(colours + noise, 0, 255).astype("float32")


def compare(name):
    """Returns the figures of one network, a dict."""
    keras.utils.set_random_seed(_SEED.value)
    rng = np.random.default_rng(_SEED.value)
    model = NETWORKS[name]()
    bayesnorm.calibrate(model, inputs_of(model, 64, rng), batch_size=16)
    x = inputs_of(model, _EXAMPLES.value, rng)
    sampled, moments = (
        bayesnorm.predict(
            model,
            x,
            samples=_SAMPLES.value,
            method=method,
            seed=_SEED.value,
            chunk_size=64,
            verbose=False,
        )
        for method in ("sample", "moments")
    )
    return {
        "network": name,
        "sampled": float(sampled.mutual_information.mean()),
        "moments": float(moments.mutual_information.mean()),
        "difference": float(np.abs(sampled.probs - moments.probs).max()),
    }


def table(rows, settings):
    """The figures as a Markdown page."""
    head = ["network", "sampled", "moments", "ratio"]
    head.append("largest difference of probabilities")
    cells = [
        [
            row["network"],
            f"{row['sampled']:.2e}",
            f"{row['moments']:.2e}",
            f"{row['moments'] / max(row['sampled'], 1e-12):.2f}",
            f"{row['difference']:.3f}",
        ]
        for row in rows
    ]
    lines = [
        "# Moments against samples",
        "",
        f"`{settings['command']}`",
        "",
        f"Keras {settings['keras']} on {settings['backend']}, {settings['hardware']}; "
        f"{settings['samples']} samples, {settings['examples']} examples, seed "
        f"{settings['seed']}. Mutual information in nats, mean over the examples.",
        "",
        tables.table(head, cells),
    ]
    missing = [n for n in NETWORKS if n not in {row["network"] for row in rows}]
    if missing:
        lines += ["", f"Not run: {', '.join(missing)}."]
    return "\n".join([*lines, ""])


def main(argv):
    """Runs the comparison and writes after each network what there is."""
    del argv
    settings = {
        "command": trainer_flags.command(),
        "size": _SIZE.value,
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "hardware": timing.hardware(),
        "samples": _SAMPLES.value,
        "examples": _EXAMPLES.value,
        "seed": _SEED.value,
    }
    rows = _earlier(settings)
    for name in _NETWORKS.value or NETWORKS:
        if name not in {row["network"] for row in rows}:
            rows.append(compare(name))
            print(rows[-1], flush=True)
        if _OUTPUT.value:
            folder = pathlib.Path(_OUTPUT.value)
            folder.mkdir(parents=True, exist_ok=True)
            figures = json.dumps({**settings, "rows": rows}, indent=2)
            (folder / "metrics.json").write_text(figures + "\n")
            (folder / "report.md").write_text(table(rows, settings))


def _earlier(settings):
    """The rows that the folder has with the same settings."""
    path = pathlib.Path(_OUTPUT.value or "", "metrics.json")
    if not (_OUTPUT.value and path.exists()):
        return []
    found = json.loads(path.read_text())
    same = all(found.get(k) == v for k, v in settings.items() if k != "command")
    return found["rows"] if same else []


if __name__ == "__main__":
    app.run(main)
