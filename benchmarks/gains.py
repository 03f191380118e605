"""Posteriors on trained gains against what else gives a trained network uncertainty.

```
python -m benchmarks.gains --seeds=0,1,2,3,4 --out=runs/gains
python -m benchmarks.gains --dataset=cifar10 --data_dir=DIR --train_examples=5000 \
    --network=vgg11 --width=0.25 --epochs=20
```

For each seed four networks are trained alike. The first is taken as it stands; with its
temperature fitted; with a posterior on its gains, whose deviations are found without
training (one for all, or by layer) or by a short fine-tune of them; with stochastic
batch normalization; with its dropout left on. The average of all four is the ensemble
that these are to replace. Temperatures and deviations are fitted on validation, the
fine-tune runs on training data; figures are of the test part.
"""

import dataclasses
import pathlib

import keras
import numpy as np
from absl import app, flags
from keras import layers

import bayesnorm
from bayesnorm import datasets, metrics, models
from bayesnorm.storage import write_atomically
from bayesnorm.training import Config, Loop, fit
from benchmarks.timing import hardware
from trainers.evaluation.records import to_json
from trainers.report.tables import table

_DATASET = flags.DEFINE_string("dataset", "digits", "Of `bayesnorm.datasets`.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where it lies.")
_TITLE = flags.DEFINE_string("dataset_title", None, "Its name in the report.")
_TRAIN = flags.DEFINE_integer("train_examples", None, "Only the first so many.")
_HELD = flags.DEFINE_integer("validation_examples", 1000, "Of validation, likewise.")
_TEST = flags.DEFINE_integer("test_examples", 2000, "Of the test part, likewise.")
_NETWORK = flags.DEFINE_enum("network", "cnn", ["cnn", "vgg11", "vit"], "Network.")
_WIDTH = flags.DEFINE_float("width", 1.0, "Width factor.", 0.01)
_EPOCHS = flags.DEFINE_integer("epochs", 60, "Epochs of a network.", 1)
_BATCH = flags.DEFINE_integer("batch_size", 32, "Examples of a step.", 1)
_RATE = flags.DEFINE_float("learning_rate", 2e-3, "Of Adam, falling to 0.", 0.0)
_MEMBERS = flags.DEFINE_integer("members", 4, "Networks of an ensemble.", 2)
_SAMPLES = flags.DEFINE_integer("samples", 30, "Sampled networks.", 2)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds.")
_OUT = flags.DEFINE_string("out", "runs/gains", "Folder of the results.")

_ENSEMBLE = "ensemble"
# Of the epochs of the training.
_FINE_TUNE = 0.05
_UNITS = {"nll": ".4f", "error": ".2f", "ece": ".2f", "aurc": ".3f", "auroc": ".1f"}


def cnn(shape, classes, width, seed):
    """Three convolutions with batch normalization, and dropout before the last."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input(shape)
    for filters, stride in ((32, 1), (64, 2), (64, 2)):
        size = max(1, round(width * filters))
        x = layers.Conv2D(size, 3, stride, "same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(classes)(x))


def vit(shape, classes, width, seed, depth=3, patch=None):
    """A small vision transformer: layer normalization before each half of a block."""
    keras.utils.set_random_seed(seed)
    patch = patch or max(1, shape[0] // 8)
    size = max(8, round(48 * width))
    inputs = keras.Input(shape)
    x = layers.Conv2D(size, patch, patch)(inputs)
    x = layers.Reshape((-1, size))(x)
    x = Positions()(x)
    for _ in range(depth):
        y = layers.LayerNormalization()(x)
        y = layers.MultiHeadAttention(4, size // 4)(y, y)
        x = x + layers.Dropout(0.1)(y)
        y = layers.Dense(2 * size, "gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dropout(0.1)(layers.Dense(size)(y))
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(classes)(x))


@keras.saving.register_keras_serializable("bayesnorm_benchmarks")
class Positions(layers.Layer):
    """Adds a learned vector for each position."""

    def build(self, input_shape):
        """Makes the vectors."""
        self.table = self.add_weight(shape=input_shape[1:], name="positions")

    def call(self, x):
        """Returns `x` with the vectors added."""
        return x + self.table


def vgg11(shape, classes, width, seed):
    """VGG-11 with batch normalization."""
    return models.vgg11(shape, classes, width=width, seed=seed)


def trained(splits, seed):
    """Returns a network, trained."""
    build = {"cnn": cnn, "vit": vit, "vgg11": vgg11}[_NETWORK.value]
    model = build(splits.image_shape, splits.num_classes, _WIDTH.value, seed)
    config = Config(
        epochs=_EPOCHS.value,
        batch_size=_BATCH.value,
        learning_rate=_RATE.value,
        schedule="cosine",
        augment_validation=False,
        seed=seed,
    )
    augmentation = datasets.augmentation_for(splits.name).layers(seed)
    loop = Loop(
        model,
        keras.optimizers.Adam(),
        splits,
        config,
        keras.Sequential(augmentation),
    )
    history = fit(loop)
    print(f"seed {seed}: validation NLL {history[-1]['val_nll']:.3f}", flush=True)
    return model


class Case:
    """The networks of a seed, and what is asked of them.

    Args:
        splits: The `Splits`.
        seed: Integer.
    """

    def __init__(self, splits, seed):
        self.splits, self.seed = splits, seed
        first = _MEMBERS.value * seed
        self.members = [trained(splits, first + i) for i in range(_MEMBERS.value)]
        self.model = self.members[0]

    def inputs(self, part):
        """Returns the images of a part as the networks see them."""
        return self.splits.inputs(getattr(self.splits, part).images)

    def probs(self, model, part, method="sample", temperature=None):
        """Returns the averaged probabilities of a model on a part."""
        return bayesnorm.predict(
            model,
            self.inputs(part),
            samples=_SAMPLES.value,
            method=method,
            seed=self.seed,
            from_logits=True,
            temperature=temperature,
            verbose=0,
        ).probs

    def tempered(self, model, method="sample"):
        """Returns a function of a part: probabilities at the temperature that fits."""
        probs = self.probs(model, "validation", method)
        temperature = metrics.fit_temperature(probs, self._labels())
        return lambda part: self.probs(model, part, method, temperature)

    def _labels(self):
        return self.splits.validation.labels

    def fitted(self, **arguments):
        """Returns the network with a posterior, its deviations found on validation."""
        model = bayesnorm.to_posterior(self.model, seed=self.seed)
        found = bayesnorm.fit_stddev(
            model,
            self.inputs("validation"),
            self._labels(),
            samples=_SAMPLES.value,
            from_logits=True,
            **arguments,
        )
        said = ", ".join(f"{value:.3g}" for value in found.stddev.values())
        print(f"  deviations {said}", flush=True)
        return model

    def fine_tuned(self):
        """Returns the network with a posterior, its deviations trained by the ELBO."""
        train = self.splits.train
        model = bayesnorm.to_posterior(
            self.model, seed=self.seed, initial_stddev=0.05, num_examples=len(train)
        )
        model.compile(
            # Deviations are logarithms, and have a few hundred steps to move.
            keras.optimizers.Adam(0.02),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        keras.utils.set_random_seed(self.seed)
        epochs = max(1, round(_FINE_TUNE * _EPOCHS.value))
        model.fit(
            self.inputs("train"),
            train.labels,
            batch_size=_BATCH.value,
            epochs=epochs,
            verbose=0,
        )
        return model

    def calibrated(self):
        """Returns the network with stochastic batch normalization."""
        model = bayesnorm.to_stochastic(self.model, seed=self.seed)
        return bayesnorm.calibrate(
            model, self.inputs("train"), batch_size=_BATCH.value, verbose=0
        )

    def methods(self):
        """Yields `(title, function of a part to probabilities)`."""

        def of(model, method="sample"):
            return lambda part: self.probs(model, part, method)

        yield "plain", of(self.model, "mean")
        yield "temperature", self.tempered(self.model, "mean")
        common = self.fitted()
        yield "gains, one deviation", of(common)
        yield "gains, temperature", self.tempered(common)
        yield "gains, by layer", of(self.fitted(per_layer=True))
        yield "gains, fine-tuned", of(self.fine_tuned())
        if any(isinstance(x, layers.BatchNormalization) for x in self.model.layers):
            yield "SBN", of(self.calibrated())
        if any(isinstance(x, layers.Dropout) for x in self.model.layers):
            model = bayesnorm.to_stochastic(self.model, noise=None, dropout=True)
            yield "dropout", of(model)
        yield _ENSEMBLE, of(self.members, "mean")


def figures(probs, labels, outside):
    """Returns the figures of a method, by name."""
    entropy = metrics.predictive_entropy(probs)
    found = metrics.classification_summary(probs, labels)
    keys = {"nll": "nll", "error": "error", "ece": "ece_equal_width", "aurc": "aurc"}
    found = {name: found[key] for name, key in keys.items()}
    if outside is not None:
        other = metrics.predictive_entropy(outside)
        found["auroc"] = metrics.ood_summary(entropy, other)["auroc"]
    return found


def page(results, splits):
    """Returns the table as Markdown: means and standard deviations over seeds."""
    title = _TITLE.value or splits.name
    names = list(next(iter(results.values()))[0])
    plain, ensemble = (
        np.array([found["nll"] for found in results[key]])
        for key in ("plain", _ENSEMBLE)
    )
    head = ["", "NLL, nats", "error, %", "ECE, %", "AURC, %"]
    head += ["AUROC, %"] * ("auroc" in names) + ["share of the gap, %"]
    rows = []
    for method, found in results.items():
        row = [method]
        for name in names:
            values = [each[name] for each in found]
            said = f"{np.mean(values):{_UNITS[name]}}"
            if len(values) > 1:
                said += f" ± {np.std(values, ddof=1):{_UNITS[name]}}"
            row.append(said)
        nll = np.array([each["nll"] for each in found])
        gap = np.mean(plain - ensemble)
        row.append(f"{100 * np.mean(plain - nll) / gap:.0f}" if gap > 0 else "")
        rows.append(row)
    return (
        f"# Gains with a posterior, {title}\n\n{_NETWORK.value}, width "
        f"{_WIDTH.value:g}, {len(splits.train):,} training images, {_EPOCHS.value} "
        f"epochs, {_MEMBERS.value} networks, {_SAMPLES.value} samples, seeds "
        f"{', '.join(_SEEDS.value[: len(plain)])}; {keras.backend.backend()}, "
        f"{hardware()}. The gap is that of the NLL between the plain network and the "
        "ensemble.\n\n" + table(head, rows) + "\n"
    )


def main(argv):
    """Runs all seeds, writing the results after each."""
    del argv
    splits = datasets.load(_DATASET.value, _DATA_DIR.value)
    counts = {"train": _TRAIN, "validation": _HELD, "test": _TEST}
    parts = {
        part: getattr(splits, part).first(count.value)
        for part, count in counts.items()
        if count.value
    }
    splits = dataclasses.replace(splits, **parts)
    out, results = pathlib.Path(_OUT.value), {}
    for seed in map(int, _SEEDS.value):
        case = Case(splits, seed)
        for title, probs in case.methods():
            outside = None if splits.ood is None else probs("ood")
            found = figures(probs("test"), splits.test.labels, outside)
            results.setdefault(title, []).append(found)
            print(f"  {title}: NLL {found['nll']:.4f}, {found['error']:.2f} %")
        write_atomically(out / "metrics.json", to_json(results))
        write_atomically(out / "report.md", page(results, splits))
        keras.backend.clear_session()
    print(page(results, splits))


if __name__ == "__main__":
    app.run(main)
