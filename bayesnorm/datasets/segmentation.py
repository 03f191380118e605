"""Segmentation sets: images of any size with instance masks, made into a `Splits`.

What all of them share: division by image, so that no part sees a piece of another's
image; two classes, background and cell; 8-bit grey images. Frames of one film are
images of their own and may lie in different parts, and so may pieces of a picture that
come as files: test figures are then too good.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from bayesnorm.datasets import pictures, splits
from bayesnorm.datasets.splits import Splits

CLASS_NAMES = ("background", "cell")
# The test part does not follow `split_seed`: figures of all seeds share one test set.
TEST_SEED = 0
TEST_FRACTION = 0.3
VALIDATION_FRACTION = 0.2


def from_images(
    images: Sequence[np.ndarray] | np.ndarray,
    masks: Sequence[np.ndarray] | np.ndarray,
    name: str,
    split_seed: int = 0,
    downscale: int = 1,
    tile: int | None = None,
) -> Splits:
    """Makes a `Splits` with a label per pixel of images and instance masks.

    30 % of the images are the test part, the same for every `split_seed`; it draws a
    fifth of the others as validation part. The network sees `images / 255`.

    Args:
        images: Images `[height, width]` or `[height, width, channels]`, of sizes that
            may differ, as `to_grey` takes them.
        masks: As many integer or boolean masks `[height, width]`; 0 is background,
            every other number a cell.
        name: Name of the set.
        split_seed: Seed of the division into train and validation.
        downscale: Integer factor from 1. A pixel is the mean of `downscale**2` pixels
            of the image, and of a cell where at least half of them are; rows and
            columns that remain at the lower and right edge are left out.
        tile: Side in pixels, after downscaling, of the square tiles without overlap
            that images are cut into from the upper left corner; what remains is left
            out, as are images smaller than a tile (with a warning). All tiles of an
            image go to the same part. None for whole images, which need one size then.

    Returns:
        A `Splits`: images uint8 `[n, height, width, 1]`, labels uint8
        `[n, height, width]`, classes `background` and `cell`.

    Raises:
        ValueError: Images and masks do not fit together, their sizes differ without
            `tile`, or fewer than three images are left to divide.
    """
    _check_size("downscale", downscale)
    if tile is not None:
        _check_size("tile", tile)
    where = f"data set {name!r}"
    if len(images) != len(masks):
        raise ValueError(
            f"{where}: as many masks as images are needed, got {len(images)} images "
            f"and {len(masks)} masks."
        )
    pairs = [
        _prepare(f"{where}, image {i}", image, mask, downscale)
        for i, (image, mask) in enumerate(zip(images, masks, strict=True))
    ]
    stacks = _tiles(where, pairs, tile) if tile else _whole(where, pairs)
    if len(stacks) < 3:
        raise ValueError(
            f"{where}: train, validation and test need at least 3 images, got "
            f"{len(stacks)}."
        )
    parts: Any = [
        tuple(np.concatenate(arrays) for arrays in zip(*chosen, strict=True))
        for chosen in _divided(stacks, split_seed)
    ]
    found = np.unique(parts[0][1])
    if len(found) < 2:
        raise ValueError(
            f"{where}: all pixels of the training part are {CLASS_NAMES[found[0]]}. "
            "Masks need 0 for background and other numbers for cells."
        )
    return splits.from_arrays(*parts, name=name, class_names=CLASS_NAMES, scale=1 / 255)


def read_builder(builder: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """All images and masks of a prepared builder of `segmentation_builders`.

    Args:
        builder: A TensorFlow Datasets builder.

    Returns:
        `(images, masks)`: lists of arrays `[height, width]`, uint8 and uint16, in the
        stored order.
    """
    dataset = builder.as_dataset(split="train", shuffle_files=False)
    examples = list(dataset.as_numpy_iterator())
    images = [example["image"][..., 0] for example in examples]
    return images, [example["segmentation_mask"][..., 0] for example in examples]


def to_grey(image: np.ndarray) -> np.ndarray:
    """An image as 8-bit grey.

    8-bit images keep their values. 16-bit ones, whose cameras seldom fill the range,
    are stretched: their smallest value becomes 0 and their largest 255. Colours become
    their luma, 0.299 R + 0.587 G + 0.114 B; transparency is ignored.

    Args:
        image: uint8 or uint16, `[height, width]` or `[height, width, channels]` with
            1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) channels.

    Returns:
        `[height, width]` uint8.

    Raises:
        ValueError: The image is of another type or shape.
    """
    return np.round(_grey(image)).astype(np.uint8)


def _grey(image):
    """As `to_grey`, float64 and not yet rounded."""
    image = np.asarray(image)
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"An image must be uint8 or uint16, got {image.dtype}. Convert it, with "
            "its range in mind: `np.round(255 * image).astype('uint8')` if that is 0 "
            "to 1."
        )
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or not 1 <= channels <= 4 or 0 in image.shape:
        raise ValueError(
            "An image must be [height, width] or [height, width, channels] with 1 to 4 "
            f"channels, got shape {image.shape}."
        )
    grey = image if image.ndim == 2 else image[..., 0]
    if channels >= 3:
        grey = image[..., :3] @ pictures.LUMA
    grey = grey.astype(np.float64)
    if image.dtype == np.uint8:
        return grey
    low, high = grey.min(), grey.max()
    return (grey - low) * (255 / max(high - low, 1.0))


def _prepare(where, image, mask, downscale):
    """Grey image and binary mask `[height, width]`, downscaled, uint8."""
    try:
        grey = _grey(image)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    mask = np.asarray(mask)
    if not (np.issubdtype(mask.dtype, np.integer) or mask.dtype == np.bool_):
        raise ValueError(
            f"{where}: a mask must hold integers or booleans, got {mask.dtype}."
        )
    if mask.shape != grey.shape:
        raise ValueError(
            f"{where}: the mask must be {grey.shape} as the image, got {mask.shape}."
        )
    if min(grey.shape) < downscale:
        raise ValueError(
            f"{where}: `downscale`={downscale} leaves nothing of {grey.shape} pixels."
        )
    grey, share = (_area_mean(array, downscale) for array in (grey, mask > 0))
    return np.round(grey).astype(np.uint8), (share >= 0.5).astype(np.uint8)


def _area_mean(array, factor):
    """Means over squares of `factor` pixels' side."""
    height, width = (size // factor for size in array.shape)
    kept = array[: height * factor, : width * factor]
    return kept.reshape(height, factor, width, factor).mean((1, 3))


def _whole(where, pairs):
    """Each image as a stack of one."""
    shapes = sorted({image.shape for image, _ in pairs})
    if len(shapes) > 1:
        raise ValueError(
            f"{where}: images have {len(shapes)} sizes, from {shapes[0]} to "
            f"{shapes[-1]}. Cut them into tiles of one size: tile="
            f"{min(map(min, shapes))}."
        )
    return [(image[None, ..., None], mask[None]) for image, mask in pairs]


def _tiles(where, pairs, tile):
    """Each image as a stack of its tiles, without those that hold none."""
    stacks = [
        (_cut(image, tile)[..., None], _cut(mask, tile))
        for image, mask in pairs
        if min(image.shape) >= tile
    ]
    left_out = len(pairs) - len(stacks)
    if not stacks:
        raise ValueError(
            f"{where}: all {left_out} images are smaller than a tile of {tile}x{tile} "
            f"pixels. Take a smaller `tile`, or a smaller `downscale`."
        )
    if left_out:
        warnings.warn(
            f"{where}: {left_out} of {len(pairs)} images are smaller than a tile of "
            f"{tile}x{tile} pixels and left out.",
            stacklevel=3,
        )
    return stacks


def _cut(array, tile):
    rows, columns = (size // tile for size in array.shape)
    kept = array[: rows * tile, : columns * tile].reshape(rows, tile, columns, tile)
    return kept.swapaxes(1, 2).reshape(-1, tile, tile)


def _divided(stacks, split_seed):
    """The stacks of train, validation and test."""
    count = len(stacks)
    order = np.random.default_rng(TEST_SEED).permutation(count)
    num_test = max(1, round(TEST_FRACTION * count))
    test, rest = order[:num_test], order[num_test:]
    rest = np.random.default_rng(split_seed).permutation(np.sort(rest))
    num_validation = max(1, round(VALIDATION_FRACTION * len(rest)))
    parts = (rest[num_validation:], rest[:num_validation], test)
    return ([stacks[i] for i in np.sort(part)] for part in parts)


def _check_size(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"`{name}` must be an integer from 1, got {value!r}.")
