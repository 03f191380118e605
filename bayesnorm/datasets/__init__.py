"""Image sets as NumPy arrays, and augmentation as graph operations.

`load("digits")` works with the plain install. Your own images come as files,
`load("npz", FILE)` and `load("image_folder", FOLDER)`, or as arrays, `from_arrays`.
`load("cifar10", data_dir=...)` and `load("mnist", data_dir=...)` read a TensorFlow
Datasets directory; only that call imports tensorflow and tensorflow_datasets, whatever
the backend. `python -m bayesnorm.datasets.convert` writes such a set as one of the
first two, which need neither. `load("imagenet2012", data_dir=...)` reads the training
part while it is trained on.

`load_segmentation` loads sets with a label for each pixel: `"cells"` with the plain
install, `"image_folder"` of your own images and masks, `"dic_hela"` of a TensorFlow
Datasets directory. `from_images` takes images and masks of any size.
"""

from __future__ import annotations

from collections.abc import Sequence

from bayesnorm.arguments import positive_integer
from bayesnorm.datasets import (
    class_folder,
    dic_hela,
    digits,
    imagenet,
    mask_folder,
    npz,
    synthetic_cells,
    tfds,
)
from bayesnorm.datasets.augment import (
    Augmentation,
    RandomElastic,
    RandomFlip,
    RandomShift,
    augmentation_for,
    deform_images,
    displacement_field,
    flip_images,
    shift_images,
)
from bayesnorm.datasets.notmnist import CLASS_NAMES as NOTMNIST_CLASSES
from bayesnorm.datasets.notmnist import load as load_notmnist
from bayesnorm.datasets.segmentation import from_images
from bayesnorm.datasets.splits import (
    Split,
    Splits,
    StreamedSplit,
    channel_statistics,
    from_arrays,
    validate,
    with_ood,
)
from bayesnorm.datasets.synthetic_cells import make_cells
from bayesnorm.types import StrPath

__all__ = [
    "NAMES",
    "NOTMNIST_CLASSES",
    "SEGMENTATION_NAMES",
    "Augmentation",
    "RandomElastic",
    "RandomFlip",
    "RandomShift",
    "Split",
    "Splits",
    "StreamedSplit",
    "augmentation_for",
    "channel_statistics",
    "deform_images",
    "displacement_field",
    "flip_images",
    "from_arrays",
    "from_images",
    "load",
    "load_notmnist",
    "load_segmentation",
    "make_cells",
    "shift_images",
    "validate",
    "with_ood",
]

# Of one's own files: function of the path that loads them.
_OWN = {"npz": npz.load, "image_folder": class_folder.load}
NAMES = ("digits", *tfds.SOURCES, *imagenet.NAMES, *_OWN)
SEGMENTATION_NAMES = ("cells", "dic_hela", "image_folder")


def load(
    name: str,
    data_dir: StrPath | None = None,
    split_seed: int = 0,
    held_out: Sequence[int | str] | None = None,
    download: bool = False,
    resize: int | tuple[int, int] | None = None,
    channels: int | None = None,
) -> Splits:
    """Loads a data set by name.

    What the pixels look like and how each set is divided: `bayesnorm.datasets.digits`,
    `tfds`, `imagenet`, `npz` and `class_folder`.

    Args:
        name: One of `NAMES`.
        data_dir: TensorFlow Datasets directory of the sets read from one; of `npz` the
            file, of `image_folder` the folder that holds those of the classes; `digits`
            needs none and ignores it.
        split_seed: Seed of the division into train and validation. The test part is the
            same for every seed.
        held_out: Classes to hold out of training, by name or by label; they become the
            `ood` part and the others are relabelled `0..K-1` in their old order. None
            takes the default of the set: 8 and 9 for `digits`, else no class.
        download: Whether a set that is not in `data_dir` may be downloaded.
        resize: Size that images of `npz`, `image_folder` and `imagenet2012` are made,
            in pixels: an integer for squares, or `(height, width)`. They are scaled to
            cover it and cut around their centre; those of ImageNet are 224 by default
            and cut as `imagenet` says.
        channels: Channels that they get: 1, which makes colours grey, or 3.

    Returns:
        A `Splits`.

    Raises:
        ValueError: An argument or a held-out class is unknown, or what is in
            `data_dir` is missing or broken.
        ImportError: The set needs TensorFlow Datasets, which is not installed.
    """
    if name not in NAMES:
        hint = " `load_segmentation` loads that one." * (name in SEGMENTATION_NAMES)
        raise ValueError(f"Unknown data set {name!r}, expected one of {NAMES}.{hint}")
    if name in _OWN:
        if data_dir is None:
            raise ValueError(
                f"data set {name!r} needs `data_dir` (--data_dir): the path of the "
                f"{'.npz file' if name == 'npz' else 'folder'}."
            )
        if channels not in (None, 1, 3):
            raise ValueError(f"`channels` must be 1 or 3, got {channels!r}.")
        own = _OWN[name]
        return own(data_dir, split_seed, held_out or (), _size(resize), channels)
    if channels is not None:
        raise ValueError(
            f"data set {name!r} has its channels: `channels` (--channels) is of "
            f"{tuple(_OWN)}."
        )
    if name in imagenet.NAMES:
        if held_out:
            raise ValueError(
                f"No class of {name!r} can be held out, since it is read while it is "
                f"trained on. Received: held_out={tuple(held_out)}"
            )
        return imagenet.load(name, data_dir, _size(resize), download)
    if resize is not None:
        raise ValueError(
            f"data set {name!r} has one size: `resize` (--resize) is of "
            f"{(*imagenet.NAMES, *_OWN)}."
        )
    if name == "digits":
        return digits.load(split_seed, (8, 9) if held_out is None else held_out)
    return tfds.load(name, data_dir, split_seed, held_out or (), download)


def _size(resize):
    """`(height, width)` of what `load` takes, or None."""
    if resize is None:
        return None
    size = (resize, resize) if isinstance(resize, int) else tuple(resize)
    if len(size) != 2:
        raise ValueError(
            f"`resize` must be a number of pixels or (height, width), got {resize!r}."
        )
    return tuple(positive_integer("resize", side) for side in size)


def load_segmentation(
    name: str,
    data_dir: StrPath | None = None,
    split_seed: int = 0,
    downscale: int = 1,
    tile: int | None = None,
    download: bool = False,
) -> Splits:
    """Loads a segmentation set by name: cells and background, a label for each pixel.

    - `cells`: synthetic, `bayesnorm.datasets.synthetic_cells`; needs no files.
    - `dic_hela`: DIC-C2DH-HeLa of the Cell Tracking Challenge, read with TensorFlow
      Datasets.
    - `image_folder`: your own images and masks, `bayesnorm.datasets.mask_folder`.

    How all are divided and scaled: `bayesnorm.datasets.segmentation.from_images`.

    Args:
        name: One of `SEGMENTATION_NAMES`.
        data_dir: TensorFlow Datasets directory of `dic_hela`; of `image_folder` the
            folder itself, with `images` and `labels`; `cells` ignores it.
        split_seed: Seed of the division into train and validation. The test part is the
            same for every seed.
        downscale: Integer factor by which images are made smaller.
        tile: Side in pixels of the tiles that they are then cut into, or None.
        download: Whether `dic_hela` may be downloaded if it is not in `data_dir`.

    Returns:
        A `Splits`, uint8 images `[n, height, width, 1]` and uint8 labels
        `[n, height, width]`.

    Raises:
        ValueError: The name is unknown, or files are missing, broken or too small.
        ImportError: `dic_hela` needs TensorFlow Datasets, which is not installed.
    """
    if name not in SEGMENTATION_NAMES:
        hint = " `load` loads that one." * (name in NAMES)
        raise ValueError(
            f"Unknown segmentation set {name!r}, expected one of "
            f"{SEGMENTATION_NAMES}.{hint}"
        )
    if name == "cells":
        return synthetic_cells.load(split_seed, downscale, tile)
    if name == "dic_hela":
        return dic_hela.load(data_dir, split_seed, downscale, tile, download)
    if data_dir is None:
        raise ValueError(
            "data set 'image_folder' needs `data_dir`: a folder with the folders "
            "'images' and 'labels'."
        )
    return mask_folder.load(data_dir, split_seed, downscale, tile)
