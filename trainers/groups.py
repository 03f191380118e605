"""The flags that binaries share, in groups of which each takes what it means.

Flags without a default have one of the binary, for the data set.
"""

import math

from bayesnorm.training.optimization import OPTIMIZERS, SCHEDULES
from trainers.flags import Flag

# Layers take consecutive seeds of 32 bits: those of two runs must not meet.
SEED_STRIDE = 1000
_MAX_SEED = 2**32 // SEED_STRIDE - 1
# Data sets of a user's own.
_OWN_SETS = ("npz", "image_folder")
# Attributes: what no figure depends on, and what a comparison has as a whole.
_FREE = {"figures": False}
_WHOLE = {"figures": False, "of_runs": False}
_NOT_STATED = _WHOLE | {"stated": ""}


def integer(name, help_, default=None, least=1, **attributes):
    """Returns the `Flag` of an integer from `least`."""
    return Flag(
        name,
        "integer",
        help_,
        default,
        lambda value: value is None or value >= least,
        f"must be {least} or more",
        **attributes,
    )


def positive(name, help_):
    """Returns the `Flag` of a number above 0."""
    return Flag(
        name,
        "float",
        help_,
        valid=lambda value: value is None or 0 < value < math.inf,
        expected="must be a finite number above 0",
    )


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
    """Returns the check that `function` says yes, and raises no ValueError."""

    def check(value):
        try:
            return function(value)
        except ValueError:
            return False

    return check


RUN = (
    Flag("workdir", "string", "Folder, by default runs/NAME-DATASET.", **_NOT_STATED),
    # What it holds is given to the runs of a comparison flag by flag.
    Flag(
        "config",
        "string",
        "File of flags, one --name=value a line, such as the flags.txt of another run; "
        "the command line goes before it.",
        **_WHOLE,
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
    integer("samples", "Samples of the averaged prediction.", 30),
)
JOBS = (
    integer("jobs", "Networks trained at a time.", 1, **_NOT_STATED),
    Flag(
        "parallel",
        ("loky", "ray", "dask"),
        "What runs the jobs: processes on this machine, or a Ray or Dask cluster, "
        "which must be installed and, for Dask, started by the caller.",
        "loky",
        **_NOT_STATED,
    ),
)
DATA_PARALLEL = (
    Flag(
        "data_parallel",
        ("none", "devices", "workers"),
        "Train a network on several devices at once, each with its part of a batch: "
        "those of this machine, or of the workers that TF_CONFIG lists (with JAX "
        "KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES and _PROCESS_ID), on each of "
        "which the same command runs.",
        "none",
        **_FREE,
    ),
    integer(
        "replicas",
        "Of --data_parallel=devices their number, by default all accelerators; "
        "without any the CPU stands for that many.",
        **_FREE,
    ),
)
COMPARISON = (
    Flag(
        "runs",
        "string",
        "Instead of one run, those that a file lists, side by side; other flags hold "
        "for all of them. With the package come, for all_cnn, 'table1', 'batch_size' "
        "and 'normalization_batch', for cell_fcn 'segmentation' and 'activations', and "
        "for atmc 'atmc', 'atmc_imagenet' and 'atmc_small'.",
        **_WHOLE,
    ),
    Flag(
        "seeds",
        "list",
        "Seeds of each of --runs.",
        ["0"],
        lambda values: values and all(value.isdigit() for value in values),
        "must be integers from 0, separated by commas",
        **_WHOLE,
    ),
    Flag(
        "share_learning_rate",
        "bool",
        "With --runs and --learning_rate=auto: search with the first seed of each run, "
        "and use what is found for its other seeds.",
        True,
        **_WHOLE,
    ),
)
DATA = (
    Flag(
        "data_dir",
        "string",
        "TensorFlow Datasets directory; for npz the file, for image_folder one with a "
        "folder for each class (for cell_fcn with images/ and labels/).",
        # Of own images it is the data, not the place where they lie.
        figures=lambda flags: flags.dataset in _OWN_SETS,
        stated="DIR",
    ),
    Flag("dataset_title", "string", "Name of the data in the report.", **_FREE),
    integer("split_seed", "Seed of the division of the data.", 0, least=0),
    integer("train_examples", "Only the first so many; all by default."),
    integer("validation_examples", "Only the first so many; all by default."),
)
CLASSIFICATION = (
    Flag(
        "resize",
        "string",
        "Size of the images of npz, image_folder and imagenet2012, in pixels, as 32 or "
        "as 32x48 (height x width): they are scaled to cover it, and cut around their "
        "centre.",
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
    Flag("held_out", "list", "Classes out of training: out-of-distribution data."),
    Flag("ood", ("notmnist",), "Another set as out-of-distribution data."),
    Flag(
        "ood_file",
        "string",
        "NumPy archive of --ood (images, labels); else --data_dir's.",
        stated="FILE",
        **_FREE,
    ),
)
SEGMENTATION = (
    integer("downscale", "Factor by which images are made smaller.", 1),
    integer("tile", "Side in pixels of the tiles that they are then cut into."),
)
_SEARCH = {"figures": lambda flags: flags.learning_rate == "auto"}
TRAINING = (
    integer("epochs", "Number of epochs."),
    integer("batch_size", "Examples of a step."),
    integer(
        "normalization_batch",
        "Examples whose statistics a step normalizes by, the --batch_size of its loss "
        "among them (1024 in figure 2 of Shekhovtsov & Flach), by default no others.",
    ),
    Flag("optimizer", tuple(sorted(OPTIMIZERS)), "Of Keras; sgd is Nesterov's, 0.9."),
    Flag(
        "learning_rate",
        "string",
        "Learning rate of the first epoch, or 'auto': the one that gives the lowest "
        "training loss after --search_epochs.",
        valid=_passes(lambda v: v in (None, "auto") or 0 < float(v) < math.inf),
        expected="must be 'auto' or a finite number above 0",
    ),
    integer("search_epochs", "Epochs of a step of the search.", 5, **_SEARCH),
    integer("search_evaluations", "Steps of the search.", 12, least=2, **_SEARCH),
    Flag(
        "schedule",
        SCHEDULES,
        "How the rate falls over --decay_epochs: by the factor --decay (exponential, "
        "epoch by epoch), to 0 (linear, epoch by epoch; cosine, step by step), or not.",
    ),
    Flag(
        "decay",
        "float",
        "Factor of the learning rate over --decay_epochs.",
        0.01,
        lambda value: 0 < value <= 1,
        "must be above 0 and at most 1",
    ),
    integer("decay_epochs", "Defaults to --epochs."),
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
    Flag("augment_validation", "bool", "Augment that part too, as the paper.", True),
    Flag(
        "precision",
        ("float32", "mixed_bfloat16", "mixed_float16"),
        "Keras's dtype policy: the mixed ones compute in 16 bits; weights, statistics, "
        "posteriors and their KL stay in 32. mixed_float16 scales the loss.",
        "float32",
    ),
    Flag(
        "xla",
        "bool",
        "Compile the steps with XLA, as JAX always does; noise is then other noise.",
        False,
    ),
    integer("steps_per_call", "Steps of one compiled call.", 100, **_FREE),
    Flag(
        "stream",
        "bool",
        "Keep the images in the host's memory, and put those of the next steps on the "
        "device while it computes: for sets larger than the device.",
        False,
        **_FREE,
    ),
    integer("checkpoint_every", "Epochs between checkpoints.", 1, **_FREE),
    Flag("tensorboard", "bool", "Write scalars for TensorBoard.", True, **_FREE),
)
WIDTH = (positive("width", "Factor of the network's widths."),)
PADDING = (
    Flag(
        "padding",
        ("valid", "same"),
        "'valid' as in the paper, or 'same', the default for images under 27 pixels.",
    ),
)
KL = (
    integer("kl_warmup_epochs", "Epochs in which the KL gains weight.", 0, least=0),
    positive("kl_factor", "Factor of the KL, which weighs 1 over the labels."),
)
# Of a noisy scale; what a run with batch normalization measures.
NOISE_FLAGS = ("scale_stddev", "shift_stddev")
NORMALIZATION = (
    Flag("norm", ("none", "batch", "weight", "analytic"), "Its kind.", "analytic"),
    Flag(
        "scale",
        ("plain", "noisy", "stochastic"),
        "Scale behind it: numbers, numbers with the fixed noise of --scale_stddev and "
        "--shift_stddev, or a learned posterior.",
        "stochastic",
    ),
    *(
        Flag(
            name,
            "list",
            f"Standard deviation of {said}: a number, or one for each layer, such as "
            "the report of a run with --norm=batch gives.",
            valid=_passes(lambda v: all(0 <= float(x) < math.inf for x in v or ())),
            expected="must be finite numbers from 0, separated by commas",
        )
        for name, said in zip(
            NOISE_FLAGS, ("the noisy scale", "the noise before it"), strict=True
        )
    ),
    Flag("projection", "bool", "Kernels of norm 1 after every step.", True),
    positive("initial_stddev", "Posterior deviation at the start."),
    *KL,
)
