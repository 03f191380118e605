"""Image classification sets as NumPy arrays, and augmentation as graph operations.

`load("digits")` works with the plain install. `load("cifar10", data_dir=...)` and
`load("mnist", data_dir=...)` read a TensorFlow Datasets directory; only that call
imports tensorflow and tensorflow_datasets, whatever the backend. `from_arrays` takes
your own images.
"""

from bayesnorm.datasets import digits, tfds
from bayesnorm.datasets.augment import (
    Augmentation,
    RandomFlip,
    RandomShift,
    augmentation_for,
    flip_images,
    shift_images,
)
from bayesnorm.datasets.notmnist import CLASS_NAMES as NOTMNIST_CLASSES
from bayesnorm.datasets.notmnist import load as load_notmnist
from bayesnorm.datasets.splits import (
    Split,
    Splits,
    channel_statistics,
    from_arrays,
    validate,
    with_ood,
)

__all__ = [
    "NAMES",
    "NOTMNIST_CLASSES",
    "Augmentation",
    "RandomFlip",
    "RandomShift",
    "Split",
    "Splits",
    "augmentation_for",
    "channel_statistics",
    "flip_images",
    "from_arrays",
    "load",
    "load_notmnist",
    "shift_images",
    "validate",
    "with_ood",
]

NAMES = ("digits", *tfds.SOURCES)


def load(name, data_dir=None, split_seed=0, held_out=None, download=False):
    """Loads a data set by name.

    What the pixels look like and how each set is divided: `bayesnorm.datasets.digits`
    and `bayesnorm.datasets.tfds`.

    Args:
        name: One of `NAMES`.
        data_dir: TensorFlow Datasets directory of the sets read from disk; `digits`
            needs none and ignores it.
        split_seed: Seed of the division into train and validation. The test part is the
            same for every seed.
        held_out: Classes to hold out of training, by label or by name; they become the
            `ood` part and the others are relabelled `0..K-1` in their old order. None
            takes the default of the set: 8 and 9 for `digits`, else no class.
        download: Whether a set that is not in `data_dir` may be downloaded.

    Returns:
        A `Splits`.

    Raises:
        ValueError: The name or a held-out class is unknown, or the directory is missing
            or broken.
        ImportError: The set needs TensorFlow Datasets, which is not installed.
    """
    if name not in NAMES:
        raise ValueError(f"Unknown data set {name!r}, expected one of {NAMES}.")
    if name == "digits":
        return digits.load(split_seed, (8, 9) if held_out is None else held_out)
    return tfds.load(name, data_dir, split_seed, held_out or (), download)
