"""The binaries of networks with a normalization and a scale behind it."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

from bayesnorm.surgery.initialization import data_dependent_init
from trainers import flags, session
from trainers.comparison import main as comparison
from trainers.evaluation import methods
from trainers.evaluation.evaluate import evaluate
from trainers.flags import FLAGS
from trainers.report import run as report

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
        sections: Functions of further sections of the report, as for
            `trainers.report.section.collect`.
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
    sections: tuple
    columns: list
    dense: bool = False

    def main(self):
        """Trains and reports; returns the `Records`, or of `--runs` all contents."""
        self.set_defaults()
        if FLAGS.runs:
            return comparison.main(f"trainers.{self.name}", self.columns)
        keras.utils.set_random_seed(FLAGS.seed)
        splits = session.load_data(self.dense)
        workdir = session.open_workdir(self.name)
        model = self.network_of(splits)
        history = session.train(model, splits, workdir)
        evaluation = evaluated(model, splits, history)
        return report.write(workdir, evaluation, describe(self.network), self.sections)

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


def evaluated(model, splits, history, note=print):
    """Returns the `Evaluation` of a network by the ways to predict that it has."""
    found = methods.standard(
        model,
        FLAGS.samples,
        FLAGS.seed,
        note,
        chunk_size=methods.chunk_size(splits),
        **({"batch_size": FLAGS.batch_size} if splits.dense else {}),
    )
    shown = methods.best(found)
    return evaluate(FLAGS, splits, model, history, found, shown, note)


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
