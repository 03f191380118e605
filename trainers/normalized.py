"""The binaries of networks with a normalization and a scale behind it."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

from bayesnorm.surgery.initialization import data_dependent_init
from trainers import comparison_report, flags, report, session
from trainers.flags import FLAGS

# As many pixels as 128 images of CIFAR-10 have, and as many images at most.
_INIT_BATCH, _INIT_PIXELS = 128, 128 * 32 * 32


@dataclasses.dataclass(frozen=True)
class Binary:
    """What differs between the binaries.

    Attributes:
        name: Name of the module in `trainers`.
        network: What the report calls the network.
        constructor: Function of `bayesnorm.models`.
        arguments: Names of flags that are arguments of this constructor only.
        common: Default values of flags, by name.
        by_dataset: Data set -> default values of flags; the first is the default set.
        sections: Function `(splits, model, methods, figures, predictions)` that returns
            further sections of the report.
        columns: List of `(title, figure, format)` for the table of several runs: test
            figures of each way to predict.
        dense: Whether the network takes sets with a label for each pixel.
    """

    name: str
    network: str
    constructor: Callable
    arguments: tuple
    common: dict
    by_dataset: dict
    sections: Callable
    columns: list
    dense: bool = False

    def main(self):
        """Trains and reports; returns the content of `metrics.json`."""
        self.set_defaults()
        if FLAGS.runs:
            columns = columns_of(self.columns)
            return comparison_report.main(f"trainers.{self.name}", columns)
        keras.utils.set_random_seed(FLAGS.seed)
        splits = session.load_data(self.dense)
        workdir = session.open_workdir(self.name)
        model = self.network_of(splits)
        history = session.train(model, splits, workdir)
        methods = methods_of(model, splits)
        return report.write(
            workdir,
            model,
            splits,
            history,
            describe(self.network),
            methods,
            shown="averaged" if "averaged" in methods else "one_pass",
            samples=FLAGS.samples,
            title=FLAGS.dataset_title,
            sections=lambda figures, predictions: self.sections(
                splits, model, methods, figures, predictions
            ),
        )

    def set_defaults(self):
        """Sets the defaults of flags for the data set."""
        flags.set_dataset_defaults(self.common, self.by_dataset)

    def network_of(self, splits):
        """Returns the network that the flags describe, initialized."""
        arguments = {name: FLAGS[name].value for name in self.arguments}
        if "padding" in arguments:
            arguments["padding"] = session.padding_for(splits)
        return build(self.constructor, splits, **arguments)

    def run(self):
        """Runs the binary."""
        flags.run(self.main, f"trainers.{self.name}")


def methods_of(model, splits):
    """Returns the ways to predict that the flags ask for, by key."""
    return report.posterior_methods(
        model,
        FLAGS.samples,
        FLAGS.seed,
        chunk_size=report.chunk_size(splits),
        batch_size=FLAGS.batch_size if splits.dense else None,
    )


def columns_of(figures):
    """Columns in the layout of table 1 of Shekhovtsov & Flach (2018), and more."""
    methods = {
        "one pass": "one_pass",
        "MC-10": "averaged_10",
        f"MC-{FLAGS.samples}": "averaged",
    }
    tested = [
        (f"test {title}, {name}", f"test/{key}_{method}", form)
        for title, key, form in figures
        for name, method in methods.items()
    ]
    return [
        *tested,
        ("IoU of the best threshold, %", "baseline/iou_threshold", ".1f"),
        ("validation NLL", "validation/nll", ".3f"),
        ("training NLL", "train/nll", ".3f"),
        ("learning rate", "train/first_learning_rate", ".4f"),
        ("s / epoch", "seconds/epoch", ".1f"),
    ]


def build(constructor, splits, **arguments):
    """Returns a network, initialized.

    Args:
        constructor: Function of `bayesnorm.models`.
        splits: The `Splits`.
        **arguments: Those that only this constructor takes.
    """
    norm = None if FLAGS.norm == "none" else FLAGS.norm
    model = constructor(
        splits.image_shape,
        splits.num_classes,
        norm=norm,
        scale=FLAGS.scale,
        projection=FLAGS.projection,
        width=FLAGS.width,
        input_mean=splits.channel_mean,
        input_variance=splits.channel_stddev**2,
        seed=flags.SEED_STRIDE * FLAGS.seed,
        **arguments,
        **_scale_arguments(),
    )
    if norm in (None, "weight"):
        height, width, _ = splits.image_shape
        count = min(_INIT_BATCH, max(2, _INIT_PIXELS // (height * width)))
        images = splits.train.images
        # From everywhere: tiles stand image by image.
        chosen = np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)
        data_dependent_init(model, splits.inputs(images[chosen]))
    return model


def _scale_arguments():
    if FLAGS.scale == "plain":
        return {}
    if FLAGS.scale == "stochastic":
        return {"initial_stddev": FLAGS.initial_stddev}
    found = {}
    for name in flags.NOISE_FLAGS:
        values = [float(value) for value in FLAGS[name].value or ()]
        if not values:
            raise ValueError(
                f"--scale=noisy needs --{name}: a number, or one for each layer, such "
                "as the report of a run with --norm=batch gives."
            )
        found[name] = values[0] if len(values) == 1 else values
    return found


def describe(name):
    """Returns what the flags train, as a noun phrase.

    Args:
        name: Name of the network.
    """
    norm = "no" if FLAGS.norm == "none" else FLAGS.norm
    projected = ", projected kernels" if FLAGS.projection else ""
    return (
        f"{name} of width {FLAGS.width:g} with {norm} normalization, "
        f"{FLAGS.scale} scale{projected}, seed {FLAGS.seed}"
    )
