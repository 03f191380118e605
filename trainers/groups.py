"""The flags that binaries share, in groups of which each takes what it means.

Flags without a default have one of the binary, for the data set.
"""

import math

from trainers.flags import Flag

# Layers take consecutive seeds of 32 bits: those of two runs must not meet.
SEED_STRIDE = 1000
_MAX_SEED = 2**32 // SEED_STRIDE - 1
# Data sets of a user's own.
OWN_SETS = ("npz", "image_folder")


def at_least(least):
    """Returns the check of an integer, as arguments of `Flag`."""
    return {
        "valid": lambda value: value is None or value >= least,
        "expected": f"must be {least} or more",
    }


_POSITIVE = {
    "valid": lambda value: value is None or 0 < value < math.inf,
    "expected": "must be a finite number above 0",
}


def image_size(text):
    """Returns the `(height, width)` of `--resize`; None for None.

    Raises:
        ValueError: If the text is neither one number nor two.
    """
    if text is None:
        return None
    sides = [int(side) for side in text.split("x")]
    if len(sides) > 2 or min(sides) < 1:
        raise ValueError(f"A size must be 32 or 32x48, got {text!r}.")
    return sides[0], sides[-1]


def _passes(function):
    def check(value):
        try:
            return function(value)
        except ValueError:
            return False

    return check


RUN = (
    Flag(
        "workdir",
        "string",
        "Folder of the run. Defaults to runs/NAME-DATASET.",
        figures=False,
        of_runs=False,
        stated="",
    ),
    # What it holds is given to the runs of a comparison flag by flag.
    Flag(
        "config",
        "string",
        "File of flags, one --name=value a line, such as the flags.txt of another run; "
        "the command line goes before it.",
        figures=False,
        of_runs=False,
    ),
    Flag(
        "seed",
        "integer",
        "Seed of the initial weights, of the order and of all noise.",
        0,
        lambda value: 0 <= value <= _MAX_SEED,
        f"must be from 0 to {_MAX_SEED}",
        of_runs=False,
    ),
    Flag(
        "samples", "integer", "Samples of the averaged prediction.", 30, **at_least(1)
    ),
)
JOBS = (
    Flag(
        "jobs",
        "integer",
        "Networks trained at a time.",
        1,
        **at_least(1),
        figures=False,
        of_runs=False,
        stated="",
    ),
    Flag(
        "parallel",
        ("loky", "ray", "dask"),
        "What runs the jobs: processes on this machine, or a Ray or Dask cluster, "
        "which must be installed and, for Dask, started by the caller.",
        "loky",
        figures=False,
        of_runs=False,
        stated="",
    ),
)
COMPARISON = (
    Flag(
        "runs",
        "string",
        "Instead of one run, those that a file lists, side by side; other flags hold "
        "for all of them. With the package come, for all_cnn, 'table1', 'batch_size' "
        "and 'normalization_batch', and for cell_fcn 'segmentation' and 'activations'.",
        figures=False,
        of_runs=False,
    ),
    Flag(
        "seeds",
        "list",
        "Seeds of each of --runs.",
        ["0"],
        lambda values: values and all(value.isdigit() for value in values),
        "must be integers from 0, separated by commas",
        figures=False,
        of_runs=False,
    ),
    Flag(
        "share_learning_rate",
        "bool",
        "With --runs and --learning_rate=auto: search with the first seed of each run, "
        "and use what is found for its other seeds.",
        True,
        figures=False,
        of_runs=False,
    ),
)
DATA = (
    Flag(
        "data_dir",
        "string",
        "TensorFlow Datasets directory; for npz the file, for image_folder one with a "
        "folder for each class (for cell_fcn with images/ and labels/).",
        # Of own images it is the data, not the place where they lie.
        figures=lambda flags: flags.dataset in OWN_SETS,
        stated="DIR",
    ),
    Flag("dataset_title", "string", "Name of the data in the report.", figures=False),
    Flag(
        "split_seed", "integer", "Seed of the division of the data.", 0, **at_least(0)
    ),
    *(
        Flag(
            f"{name}_examples",
            "integer",
            f"Only the first so many {part} examples; all by default.",
            **at_least(1),
        )
        for name, part in (("train", "training"), ("validation", "validation"))
    ),
)
CLASSIFICATION = (
    Flag(
        "resize",
        "string",
        "Size of the images of npz and image_folder, in pixels, as 32 or as 32x48 "
        "(height x width): they are scaled to cover it, and cut around their centre.",
        valid=_passes(lambda value: image_size(value) or True),
        expected="must be a number of pixels or two, as 32 or 32x48",
    ),
    Flag(
        "channels",
        "integer",
        "Channels of their images: 1 (grey) or 3; by default their own.",
        valid=lambda value: value in (None, 1, 3),
        expected="must be 1 or 3",
    ),
    Flag(
        "held_out",
        "list",
        "Classes held out of training, the out-of-distribution data.",
    ),
    Flag("ood", ("notmnist",), "Another set as out-of-distribution data."),
    Flag(
        "ood_file",
        "string",
        "NumPy archive of --ood (images, labels); else --data_dir's.",
        figures=False,
        stated="FILE",
    ),
)
SEGMENTATION = (
    Flag(
        "downscale",
        "integer",
        "Factor by which images are made smaller.",
        1,
        **at_least(1),
    ),
    Flag(
        "tile",
        "integer",
        "Side in pixels of the tiles that they are then cut into.",
        **at_least(1),
    ),
)
TRAINING = (
    Flag("epochs", "integer", "Number of epochs.", **at_least(1)),
    Flag("batch_size", "integer", "Examples of a step.", **at_least(1)),
    Flag(
        "normalization_batch",
        "integer",
        "Examples whose statistics a step normalizes by, the --batch_size of its loss "
        "among them (1024 in figure 2 of Shekhovtsov & Flach). Defaults to "
        "--batch_size.",
        **at_least(1),
    ),
    Flag("optimizer", ("sgd", "adam"), "SGD is Nesterov's, 0.9."),
    Flag(
        "learning_rate",
        "string",
        "Learning rate of the first epoch, or 'auto': the one that gives the lowest "
        "training loss after --search_epochs.",
        valid=_passes(
            lambda value: value in (None, "auto") or 0 < float(value) < math.inf
        ),
        expected="must be 'auto' or a finite number above 0",
    ),
    *(
        Flag(
            f"search_{name}",
            "integer",
            said,
            default,
            **at_least(least),
            figures=lambda flags: flags.learning_rate == "auto",
        )
        for name, said, default, least in (
            ("epochs", "Epochs of a step of the search.", 5, 1),
            ("evaluations", "Steps of the search.", 12, 2),
        )
    ),
    Flag(
        "schedule",
        ("exponential", "linear"),
        "How the learning rate falls: by the factor --decay over --decay_epochs, or "
        "to 0.",
    ),
    Flag(
        "decay",
        "float",
        "Factor of the learning rate over --decay_epochs.",
        0.01,
        lambda value: 0 < value <= 1,
        "must be above 0 and at most 1",
    ),
    Flag("decay_epochs", "integer", "Defaults to --epochs.", **at_least(1)),
    Flag(
        "augment",
        "bool",
        "Random shifts, and flips where they make sense; of cells flips and "
        "deformations.",
    ),
    Flag(
        "flip",
        "bool",
        "Whether random flips of left and right augment; the data set's choice by "
        "default, none for npz and image_folder.",
    ),
    Flag(
        "augment_validation",
        "bool",
        "Augment the validation part as well (as the paper).",
        True,
    ),
    Flag(
        "steps_per_call",
        "integer",
        "Steps of one compiled call.",
        100,
        **at_least(1),
        figures=False,
    ),
    Flag(
        "checkpoint_every",
        "integer",
        "Epochs between checkpoints.",
        1,
        **at_least(1),
        figures=False,
    ),
    Flag("tensorboard", "bool", "Write scalars for TensorBoard.", True, figures=False),
)
NETWORK = (Flag("width", "float", "Factor of the network's widths.", **_POSITIVE),)
PADDING = (
    Flag(
        "padding",
        ("valid", "same"),
        "'valid' as in the paper, or 'same', the default for images under 27 pixels.",
    ),
)
# Of a noisy scale; what a run with batch normalization measures.
NOISE = tuple(
    Flag(
        name,
        "list",
        help_,
        valid=_passes(
            lambda values: all(0 <= float(v) < math.inf for v in values or ())
        ),
        expected="must be finite numbers from 0, separated by commas",
    )
    for name, help_ in (
        (
            "scale_stddev",
            "Standard deviation of the noisy scale: a number, or one for each layer. "
            "The report of a run with --norm=batch measures it.",
        ),
        ("shift_stddev", "Standard deviation of the noise before it, likewise."),
    )
)
NORMALIZATION = (
    Flag("norm", ("none", "batch", "weight", "analytic"), "Normalization.", "analytic"),
    Flag(
        "scale",
        ("plain", "noisy", "stochastic"),
        "Scale behind it: numbers, numbers with the fixed noise of --scale_stddev and "
        "--shift_stddev, or a learned posterior.",
        "stochastic",
    ),
    *NOISE,
    Flag("projection", "bool", "Kernels of norm 1 after every step.", True),
    Flag("initial_stddev", "float", "Posterior deviation at the start.", **_POSITIVE),
    Flag(
        "kl_warmup_epochs",
        "integer",
        "Epochs over which the weight of the KL rises to its last.",
        0,
        **at_least(0),
    ),
    Flag(
        "kl_factor",
        "float",
        "Factor of the KL, which weighs 1 over the training labels.",
        **_POSITIVE,
    ),
)
