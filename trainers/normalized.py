"""The binaries of networks with a normalization and a scale behind it."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

from bayesnorm.surgery.initialization import data_dependent_init
from trainers import groups, session
from trainers.comparison import main as comparison
from trainers.evaluation import methods
from trainers.evaluation.evaluate import evaluate
from trainers.report import run as report

# As many pixels as 128 images of CIFAR-10 have, and as many images at most.
_INIT_BATCH, _INIT_PIXELS = 128, 128 * 32 * 32
GROUPS = (
    groups.RUN,
    groups.DATA_PARALLEL,
    groups.COMPARISON,
    groups.JOBS,
    groups.DATA,
    groups.TRAINING,
    groups.WIDTH,
    groups.NORMALIZATION,
)


@dataclasses.dataclass(frozen=True)
class Network:
    """What differs between the networks.

    Attributes:
        name: Name of the binary.
        title: What the report calls the network.
        constructor: Function of `bayesnorm.models`.
        arguments: Function `(flags, splits)` that returns the arguments of this
            constructor only.
        sections: Functions of further sections of the report, as for
            `report.write`.
        columns: List of `(title, figure, format)` for the table of several runs: test
            figures of each way to predict.
        dense: Whether the network takes sets with a label for each pixel.
    """

    name: str
    title: str
    constructor: Callable
    arguments: Callable
    sections: tuple
    columns: list
    dense: bool = False

    def main(self, flags):
        """Trains and reports; returns the `Records`, or of `--runs` all contents."""
        if flags.runs:
            return comparison.main(f"trainers.{self.name}", flags, self.columns)
        if flags["seeds"].present:
            raise ValueError("--seeds is of several runs (--runs); of one give --seed.")
        keras.utils.set_random_seed(flags.seed)
        splits = session.load_data(flags, self.dense)
        workdir = session.open_workdir(flags, self.name)
        model = self.build(flags, splits)
        history = session.train(flags, model, splits, workdir)
        evaluation = evaluated(flags, model, splits, history)
        return report.write(workdir, evaluation, self.describe(flags), self.sections)

    def build(self, flags, splits):
        """Returns the network that the flags describe, initialized."""
        norm = None if flags.norm == "none" else flags.norm
        model = self.constructor(
            splits.image_shape,
            splits.num_classes,
            norm=norm,
            scale=flags.scale,
            projection=flags.projection,
            width=flags.width,
            input_mean=splits.channel_mean,
            input_variance=splits.channel_stddev**2,
            seed=groups.SEED_STRIDE * flags.seed,
            **self.arguments(flags, splits),
            **_scale_arguments(flags),
        )
        if norm in (None, "weight"):
            height, width, _ = splits.image_shape
            count = min(_INIT_BATCH, max(2, _INIT_PIXELS // (height * width)))
            images = splits.train.images
            # From everywhere: tiles stand image by image.
            chosen = np.linspace(0, len(images) - 1, min(count, len(images)))
            data_dependent_init(model, splits.inputs(images[chosen.astype(int)]))
        return model

    def describe(self, flags):
        """Returns what the flags train, as a noun phrase."""
        norm = "no" if flags.norm == "none" else flags.norm
        projected = ", projected kernels" if flags.projection else ""
        return (
            f"{self.title} of width {flags.width:g} with {norm} normalization, "
            f"{flags.scale} scale{projected}, seed {flags.seed}"
        )


def evaluated(flags, model, splits, history, note=print):
    """Returns the `Evaluation` of a network by the ways to predict that it has."""
    found = methods.standard(
        model,
        flags.samples,
        flags.seed,
        note,
        chunk_size=methods.chunk_size(splits),
        **({"batch_size": flags.batch_size} if splits.dense else {}),
    )
    shown = methods.best(found)
    return evaluate(flags, splits, model, history, found, shown, note)


def _scale_arguments(flags):
    if flags.scale == "plain":
        return {}
    if flags.scale == "stochastic":
        return {"initial_stddev": flags.initial_stddev}
    found = {}
    for name in groups.NOISE_FLAGS:
        values = [float(value) for value in flags[name].value or ()]
        if not values:
            raise ValueError(
                f"--scale=noisy needs --{name}: a number, or one for each layer, such "
                "as the report of a run with --norm=batch gives."
            )
        found[name] = values[0] if len(values) == 1 else values
    return found
