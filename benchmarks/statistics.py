"""Channel statistics behind each normalization, over a real data set.

```
python -m benchmarks.statistics --dataset=cifar10 --data_dir=DIR --width=0.25 \
    --trained=AN:runs/NAME/an_projection-0,WN:runs/NAME/wn_projection-0 \
    --output=benchmarks/results/statistics
```

Analytic normalization computes what it subtracts and divides by from the weights
alone, assuming that channels and positions are independent. How near to mean 0
and standard deviation 1 its outputs are on images says what that assumption
costs; weight normalization beside it has no such aim.
"""

import json
import pathlib

import keras
import numpy as np

import bayesnorm
from bayesnorm import datasets, models, plots
from trainers import program
from trainers.flags import Flag, command, define
from trainers.groups import integer
from trainers.report import tables

_GROUP = (
    Flag("dataset", "string", "Data set.", "digits"),
    Flag("data_dir", "string", "TensorFlow Datasets directory.", stated="DIR"),
    Flag("dataset_title", "string", "Name of the data in the table."),
    Flag("width", "float", "Width factor of the untrained networks.", 0.25),
    integer("examples", "Training images measured on.", 10_000),
    Flag("seed", "integer", "Seed of the initial weights.", 0),
    Flag("trained", "list", "Trained networks, NAME:WORKDIR each.", []),
    Flag("output", "string", "Folder of table, figures and plot.", stated="DIR"),
)


def networks(flags, splits):
    """Yields `(name, model)`."""
    small = min(splits.image_shape[:2]) < 27
    for name, norm in (("AN", "analytic"), ("WN", "weight")):
        yield (
            f"{name}, untrained",
            models.all_cnn(
                splits.image_shape,
                splits.num_classes,
                norm=norm,
                scale="plain",
                width=flags.width,
                padding="same" if small else "valid",
                input_mean=splits.channel_mean,
                input_variance=splits.channel_stddev**2,
                seed=flags.seed,
            ),
        )
    for item in flags.trained:
        name, _, folder = item.partition(":")
        model = keras.saving.load_model(pathlib.Path(folder) / "model.keras")
        yield f"{name}, trained", model


def table(measured):
    """Returns name -> layer -> statistics as a Markdown table."""
    layers = list(next(iter(measured.values())))
    rows = [
        [
            layer.removesuffix("_norm"),
            *(
                f"{np.sqrt(np.mean(s[layer].mean ** 2)):.2f} / "
                f"{np.sqrt(np.mean(s[layer].stddev ** 2)):.2f}"
                for s in measured.values()
            ),
        ]
        for layer in layers
    ]
    return tables.table(["layer", *measured], rows)


def main(flags):
    """Measures, prints and writes."""
    splits = datasets.load(flags.dataset, flags.data_dir)
    images = splits.inputs(splits.train.images[: flags.examples])
    measured = {
        name: bayesnorm.channel_statistics(model, images)
        for name, model in networks(flags, splits)
    }
    title = flags.dataset_title or splits.name
    text = "\n".join(
        [
            f"# Channel statistics of the normalized outputs, {title}",
            "",
            f"{len(images)} training images; per layer, root mean square over the "
            "channels of the mean / of the standard deviation. 0 / 1 is the aim of "
            "analytic normalization (AN); weight normalization (WN) has none. Command:",
            "",
            "```",
            command(flags),
            "```",
            "",
            table(measured),
            "",
        ]
    )
    print(text)
    if flags.output:
        folder = pathlib.Path(flags.output)
        folder.mkdir(parents=True, exist_ok=True)
        page = f"{text}\n![channel statistics](channel_statistics.png)\n"
        (folder / "README.md").write_text(page)
        pairs = {
            name: {k: (v.mean, v.stddev) for k, v in layers.items()}
            for name, layers in measured.items()
        }
        plots.channel_statistics(pairs).savefig(folder / "channel_statistics.png")
        figures = {
            name: {k: [list(v.mean), list(v.stddev)] for k, v in layers.items()}
            for name, layers in measured.items()
        }
        (folder / "statistics.json").write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    program.start(main, define(_GROUP), "benchmarks.statistics")
