"""A folder of micrographs with their instance masks, read with Pillow."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from bayesnorm.datasets import pictures, segmentation
from bayesnorm.datasets.pictures import JPEG, LOSSLESS
from bayesnorm.datasets.splits import Splits
from bayesnorm.types import StrPath

MASK_FOLDERS = ("labels", "masks")


def load(
    folder: StrPath, split_seed: int = 0, downscale: int = 1, tile: int | None = None
) -> Splits:
    """A folder's images as `Splits`, divided by image.

    Args:
        folder: As in `pairs`.
        split_seed: As in `segmentation.from_images`, as are the others.
        downscale: Factor.
        tile: Side in pixels.

    Returns:
        A `Splits`, named `image_folder`.

    Raises:
        ValueError: The folder or a file in it is not as `read` and
            `segmentation.from_images` need it.
    """
    _, images, masks = zip(*read(folder), strict=True)
    return segmentation.from_images(
        images, masks, "image_folder", split_seed, downscale=downscale, tile=tile
    )


def pairs(folder: StrPath) -> list[tuple[str, pathlib.Path, pathlib.Path]]:
    """The files of a folder that belong together.

    Args:
        folder: Path of a folder with the folders `images` and `labels` (or `masks`),
            whose files have equal names up to the ending: `.png`, `.tif`, `.tiff`,
            `.bmp`, and of images also `.jpg` or `.jpeg`, which would change labels.
            Hidden files and ones of other endings are not looked at.

    Returns:
        List of `(stem, image path, mask path)`, sorted by stem.

    Raises:
        ValueError: A folder is missing, holds no pictures, two with one name, or one
            without partner.
    """
    root = pathlib.Path(os.path.expanduser(folder))
    found = [name for name in MASK_FOLDERS if (root / name).is_dir()]
    if not (root / "images").is_dir() or len(found) != 1:
        if not root.is_dir():
            reason = "there is no such folder"
        elif len(found) == 2:
            reason = "it has both 'labels' and 'masks'; move one away"
        else:
            entries = sorted(entry.name for entry in root.iterdir())[:8]
            reason = f"it holds {', '.join(entries) or 'nothing'}"
        raise ValueError(
            f"{str(root)!r} must be a folder with the folders 'images' and 'labels' "
            f"(or 'masks'), but {reason}."
        )
    images = _files(root / "images", LOSSLESS + JPEG)
    masks = _files(root / found[0], LOSSLESS)
    if not images and not masks:
        raise ValueError(
            f"There are no pictures in {str(root / 'images')!r}. Expected files "
            f"{', '.join(LOSSLESS + JPEG)}."
        )
    alone = sorted(images.keys() ^ masks.keys())
    if alone:
        names = ", ".join(
            str((images.get(stem) or masks[stem]).relative_to(root))
            for stem in alone[:5]
        )
        raise ValueError(
            f"In {str(root)!r} every image needs a mask of the same name and no JPEG, "
            f"and every mask an image, but {len(alone)} of them are alone: {names}"
            f"{', ...' if len(alone) > 5 else ''}."
        )
    return [(stem, images[stem], masks[stem]) for stem in sorted(images)]


def read(folder: StrPath) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Reads the pairs of a folder, one after the other.

    Args:
        folder: As in `pairs`.

    Yields:
        `(stem, image, mask)`: the image uint8 or uint16 `[height, width]` or
        `[height, width, channels]`, the mask uint8 or uint16 `[height, width]`. Masks
        with a palette give its indices; in ones of colours every pixel that is not
        black is 1.

    Raises:
        ValueError: As `pairs`, or a file cannot be read, or image and mask differ in
            size.
    """
    for stem, image_path, mask_path in pairs(folder):
        image, mask = read_image(image_path), read_mask(mask_path)
        if image.shape[:2] != mask.shape:
            raise ValueError(
                f"{str(image_path)!r} and its mask must have one size, but are "
                f"{image.shape[:2]} and {mask.shape} pixels (height, width)."
            )
        yield stem, image, mask


def read_image(path: StrPath) -> np.ndarray:
    """An image file as array: uint8 or uint16, `[height, width(, channels)]`.

    Raises:
        ValueError: The file is no such image.
    """
    picture = pictures.open_picture(path)
    if picture.mode in ("1", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    return pictures.integers(np.asarray(picture), repr(str(path)))


def read_mask(path: StrPath) -> np.ndarray:
    """A mask file as array `[height, width]`, uint8 or uint16.

    Raises:
        ValueError: The file is no such image.
    """
    picture = pictures.open_picture(path)
    mask: Any = np.asarray(picture)
    if mask.ndim == 3:
        colours = mask if picture.mode == "RGB" else np.asarray(picture.convert("RGB"))
        mask = colours.any(axis=-1)
    mask = mask.astype(np.uint8) if mask.dtype == np.bool_ else mask
    return pictures.integers(mask, repr(str(path)))


def _files(folder, endings):
    """Stem -> path of the pictures in a folder."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in endings or path.name.startswith("."):
            continue
        if path.stem in files:
            raise ValueError(
                f"{str(folder)!r} must hold one file of a name, but has "
                f"{files[path.stem].name} and {path.name}."
            )
        files[path.stem] = path
    return files
