"""The flags of all binaries, and how a binary starts."""

import logging as stdlib_logging
import math
import pathlib
import sys

from absl import app, flags, logging

from bayesnorm import datasets
from trainers import command
from trainers.loop import DivergenceError

FLAGS = flags.FLAGS

# Layers take consecutive seeds of 32 bits: those of two runs must not meet.
SEED_STRIDE = 1000
MAX_SEED = 2**32 // SEED_STRIDE - 1

# Of a noisy scale; what a run with batch normalization measures.
NOISE_FLAGS = ("scale_stddev", "shift_stddev")

# Flags that no figure depends on: a run goes on with other values of them.
_INDIFFERENT = {
    "workdir",
    "data_dir",
    "ood_file",
    "dataset_title",
    "config",
    "steps_per_call",
    "stream",
    "checkpoint_every",
    "tensorboard",
    "jobs",
    "parallel",
    "runs",
    "seeds",
    "share_learning_rate",
}

flags.DEFINE_string(
    "workdir", None, "Folder of the run. Defaults to runs/NAME-DATASET."
)
flags.DEFINE_string(
    "config",
    None,
    "File of flags, one --name=value a line, such as the flags.txt of another run; "
    "the command line goes before it.",
)
flags.DEFINE_string(
    "runs",
    None,
    "Instead of one run, those that a file lists, side by side; other flags hold for "
    "all of them. With the package come, for all_cnn, 'table1', 'batch_size' and "
    "'normalization_batch', and for cell_fcn 'segmentation' and 'activations'.",
)
flags.DEFINE_list("seeds", ["0"], "Seeds of each of --runs.")
flags.DEFINE_bool(
    "share_learning_rate",
    True,
    "With --runs and --learning_rate=auto: search with the first seed of each run, and "
    "use what is found for its other seeds.",
)
# Flags without a default here get the binary's own, for the data set (`set_defaults`).
flags.DEFINE_enum(
    "dataset",
    "digits",
    tuple(dict.fromkeys((*datasets.NAMES, *datasets.SEGMENTATION_NAMES))),
    "Data set; npz and image_folder are your own images. cell_fcn takes cells, by "
    "default, dic_hela and image_folder.",
)
flags.DEFINE_string(
    "data_dir",
    None,
    "TensorFlow Datasets directory; for npz the file, for image_folder one with a "
    "folder for each class (for cell_fcn with images/ and labels/).",
)
flags.DEFINE_string(
    "resize",
    None,
    "Size of the images of npz and image_folder, in pixels, as 32 or as 32x48 (height "
    "x width): they are scaled to cover it, and cut around their centre.",
)
flags.DEFINE_integer(
    "channels", None, "Channels of their images: 1 (grey) or 3; by default their own."
)
flags.DEFINE_integer("downscale", 1, "Factor by which cell images are made smaller.")
flags.DEFINE_integer(
    "tile", None, "Side in pixels of the tiles that cell images are then cut into."
)
flags.DEFINE_string("dataset_title", None, "Name of the data in the report.")
flags.DEFINE_list(
    "held_out", None, "Classes held out of training, the out-of-distribution data."
)
flags.DEFINE_enum("ood", None, ["notmnist"], "Another set as out-of-distribution data.")
flags.DEFINE_string(
    "ood_file", None, "NumPy archive of --ood (images, labels); else --data_dir's."
)
flags.DEFINE_integer("split_seed", 0, "Seed of the division of the data.")
for _name, _part in (("train", "training"), ("validation", "validation")):
    flags.DEFINE_integer(
        f"{_name}_examples",
        None,
        f"Only the first so many {_part} examples; all by default.",
    )
flags.DEFINE_integer(
    "seed", 0, "Seed of the initial weights, of the order and of all noise."
)

flags.DEFINE_integer("epochs", None, "Number of epochs.")
flags.DEFINE_integer("batch_size", None, "Examples of a step.")
flags.DEFINE_integer(
    "normalization_batch",
    None,
    "Examples whose statistics a step normalizes by, the --batch_size of its loss "
    "among them (1024 in figure 2 of Shekhovtsov & Flach). Defaults to --batch_size.",
)
flags.DEFINE_enum("optimizer", None, ["sgd", "adam"], "SGD is Nesterov's, 0.9.")
flags.DEFINE_string(
    "learning_rate",
    None,
    "Learning rate of the first epoch, or 'auto': the one that gives the lowest "
    "training loss after --search_epochs.",
)
flags.DEFINE_integer("search_epochs", 5, "Epochs of a step of the search.")
flags.DEFINE_integer("search_evaluations", 12, "Steps of the search.")
flags.DEFINE_enum(
    "schedule",
    None,
    ["exponential", "linear"],
    "How the learning rate falls: by the factor --decay over --decay_epochs, or to 0.",
)
flags.DEFINE_float("decay", 0.01, "Factor of the learning rate over --decay_epochs.")
flags.DEFINE_integer("decay_epochs", None, "Defaults to --epochs.")
flags.DEFINE_integer(
    "kl_warmup_epochs", 0, "Epochs over which the weight of the KL rises to its last."
)
flags.DEFINE_float(
    "kl_factor", None, "Factor of the KL, which weighs 1 over the training labels."
)
flags.DEFINE_bool(
    "augment",
    None,
    "Random shifts, and flips where they make sense; of cells flips and deformations.",
)
flags.DEFINE_bool(
    "flip",
    None,
    "Whether random flips of left and right augment; the data set's choice by default, "
    "none for npz and image_folder.",
)
flags.DEFINE_bool(
    "augment_validation", True, "Augment the validation part as well (as the paper)."
)

flags.DEFINE_enum(
    "norm", "analytic", ["none", "batch", "weight", "analytic"], "Normalization."
)
flags.DEFINE_enum(
    "scale",
    "stochastic",
    ["plain", "noisy", "stochastic"],
    "Scale behind it: numbers, numbers with the fixed noise of --scale_stddev and "
    "--shift_stddev, or a learned posterior.",
)
flags.DEFINE_list(
    "scale_stddev",
    None,
    "Standard deviation of the noisy scale: a number, or one for each layer. The "
    "report of a run with --norm=batch measures it.",
)
flags.DEFINE_list(
    "shift_stddev", None, "Standard deviation of the noise before it, likewise."
)
flags.DEFINE_bool("projection", True, "Kernels of norm 1 after every step.")
flags.DEFINE_float("width", None, "Factor of the network's widths.")
flags.DEFINE_enum(
    "padding",
    None,
    ["valid", "same"],
    "'valid' as in the paper, or 'same', the default for images under 27 pixels.",
)
flags.DEFINE_float("initial_stddev", None, "Posterior deviation at the start.")

flags.DEFINE_integer("samples", 30, "Samples of the averaged prediction.")
flags.DEFINE_integer("steps_per_call", 100, "Steps of one compiled call.")
flags.DEFINE_bool(
    "stream",
    False,
    "Keep the images in the host's memory, and put those of the next steps on the "
    "device while it computes: for sets larger than the device.",
)
flags.DEFINE_integer("checkpoint_every", 1, "Epochs between checkpoints.")
flags.DEFINE_bool("tensorboard", True, "Write scalars for TensorBoard.")


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


def _is_size(text):
    try:
        image_size(text)
    except ValueError:
        return False
    return True


def _is_rate(value):
    try:
        return value in (None, "auto") or 0 < float(value) < math.inf
    except ValueError:
        return False


def _are_deviations(values):
    try:
        return all(0 <= float(value) < math.inf for value in values or ())
    except ValueError:
        return False


for _name in NOISE_FLAGS:
    flags.register_validator(
        _name, _are_deviations, "must be finite numbers from 0, separated by commas"
    )
flags.register_validator(
    "resize", _is_size, "must be a number of pixels or two, as 32 or 32x48"
)
flags.register_validator(
    "channels", lambda value: value in (None, 1, 3), "must be 1 or 3"
)
flags.register_validator(
    "learning_rate", _is_rate, "must be 'auto' or a finite number above 0"
)
for _name, _least in (
    ("epochs", 1),
    ("batch_size", 1),
    ("downscale", 1),
    ("tile", 1),
    ("train_examples", 1),
    ("validation_examples", 1),
    ("normalization_batch", 1),
    ("search_epochs", 1),
    ("search_evaluations", 2),
    ("decay_epochs", 1),
    ("kl_warmup_epochs", 0),
    ("samples", 1),
    ("steps_per_call", 1),
    ("checkpoint_every", 1),
    ("split_seed", 0),
):
    flags.register_validator(
        _name,
        lambda value, least=_least: value is None or value >= least,
        f"must be {_least} or more",
    )
flags.register_validator(
    "seed",
    lambda value: 0 <= value <= MAX_SEED,
    f"must be from 0 to {MAX_SEED}",
)
flags.register_validator(
    "seeds",
    lambda values: values and all(value.isdigit() for value in values),
    "must be integers from 0, separated by commas",
)
flags.register_validator(
    "decay", lambda value: 0 < value <= 1, "must be above 0 and at most 1"
)
for _name in ("width", "initial_stddev", "kl_factor"):
    flags.register_validator(
        _name,
        lambda value: value is None or 0 < value < math.inf,
        "must be a finite number above 0",
    )


_COMMON = {"batch_size": 32, "schedule": "exponential", "kl_factor": 1.0}


def set_defaults(values):
    """Sets the values of flags that were not given.

    Args:
        values: Dict from a flag's name to its value.
    """
    for name, value in values.items():
        FLAGS.set_default(name, value)


def set_dataset_defaults(common, by_dataset):
    """Sets the defaults of a binary for the data set.

    Args:
        common: Dict from a flag's name to its value, for all sets.
        by_dataset: Data set -> such a dict; the first is the binary's default set.

    Raises:
        ValueError: If `--dataset` is none of them.
    """
    set_defaults({"dataset": next(iter(by_dataset))})
    if FLAGS.dataset not in by_dataset:
        raise ValueError(
            f"--dataset={FLAGS.dataset} is not for this binary, which takes one of "
            f"{tuple(by_dataset)}."
        )
    if FLAGS["seeds"].present and not FLAGS.runs:
        raise ValueError("--seeds is of several runs (--runs); of one give --seed.")
    set_defaults(_COMMON | common | by_dataset[FLAGS.dataset])


def all_flags():
    """Returns the flags of the package's binaries that have a value, text by name."""
    return {
        flag.name: command.text(flag.value)
        for flag in command.defined("trainers")
        if flag.value is not None
    }


def defining_flags():
    """Returns the flags that figures depend on, as text, by name.

    Of the search for a learning rate only where there is one.
    """
    indifferent = _INDIFFERENT
    if FLAGS.dataset in ("npz", "image_folder"):
        # There it is the data, not the place where they lie.
        indifferent = indifferent - {"data_dir"}
    if FLAGS.learning_rate != "auto":
        indifferent = indifferent | {"search_epochs", "search_evaluations"}
    return {k: v for k, v in all_flags().items() if k not in indifferent}


def _parse(argv):
    """Parses the command line, and the file of flags behind it."""
    for flag in command.defined("trainers", "benchmarks"):
        # `--help` shows those of the program alone, which may have no module here.
        FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    config = None
    for i, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            config = value if equals else (argv[i + 1 : i + 2] or [""])[0]
    if config is not None:
        _check_config(config)
        argv = [argv[0], f"--flagfile={config}", *argv[1:]]
    return FLAGS(argv)


def _check_config(path):
    said = f"flag --config={path}: "
    try:
        pathlib.Path(path).read_text("utf-8")
    except FileNotFoundError:
        raise flags.IllegalFlagValueError(said + "there is no such file") from None
    except IsADirectoryError:
        raise flags.IllegalFlagValueError(
            said + "a directory; give the flags.txt in it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise flags.IllegalFlagValueError(f"{said}{error}") from error


def _parse_or_exit(argv):
    try:
        return _parse(argv)
    except flags.Error as error:
        sys.exit(f"error: {error}\nPass --help for the flags and what they mean.")


def run(main, module=None):
    """Runs a binary: parses the flags, calls `main()`, and says what went wrong.

    What a user can mend (a flag, a folder, data, a run that diverged) is said in plain
    words and ends with exit code 1; `--verbosity=1` shows where it was raised.

    Args:
        main: Function without arguments; what it returns is dropped.
        module: Name of the module whose docstring `--help` shows; None for main's.
    """
    program = sys.modules["__main__"]
    # Run with `python -m` the module is known by that name alone.
    program.__doc__ = sys.modules.get(module or main.__module__, program).__doc__

    def guarded(argv):
        if len(argv) > 1:
            raise app.UsageError(f"Flags begin with --. Received: {argv[1:]}")
        if not FLAGS["verbosity"].present:
            # At absl's own default TensorFlow says much that is of no use here.
            logging.set_verbosity(logging.WARNING)
            stdlib_logging.getLogger("tensorflow").setLevel("WARNING")
        try:
            main()
        except (ValueError, OSError, ImportError, DivergenceError) as error:
            logging.debug("%s", error, exc_info=True)
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            print("\nstopped: the same command goes on from the last checkpoint")
            sys.exit(130)

    app.run(guarded, flags_parser=_parse_or_exit)
