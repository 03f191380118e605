"""Pictures as arrays: opened and checked one by one, or read by the thousand."""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

LOSSLESS = (".png", ".tif", ".tiff", ".bmp")
JPEG = (".jpg", ".jpeg")
# What Pillow opens of the formats that hold photographs, drawings and scans.
ENDINGS = (*LOSSLESS, *JPEG, ".gif", ".webp", ".pbm", ".pgm", ".ppm")
# ITU-R BT.601, as Pillow's conversion to grey.
LUMA = np.array([0.299, 0.587, 0.114])
_GREY = ("L", "LA", "La", "1")
# Of smaller pictures Pillow's Python takes longer than the decoder, which alone runs
# beside other threads: they would only wait for each other (1.5 times as long).
_FEW_PIXELS = 128 * 128


def open_picture(source: Any, name: str | None = None) -> Any:
    """The only picture in a file, decoded.

    Args:
        source: Path, or binary file.
        name: What messages call it; by default the path.

    Returns:
        A `PIL.Image.Image`.

    Raises:
        ValueError: The file is no picture, or holds several.
    """
    from PIL import Image

    name = repr(str(source)) if name is None else name
    try:
        with contextlib.ExitStack() as stack:
            # Pillow leaves files that it cannot identify open.
            is_path = isinstance(source, (str, os.PathLike))
            file = stack.enter_context(open(source, "rb")) if is_path else source
            picture = stack.enter_context(Image.open(file))
            pages = getattr(picture, "n_frames", 1)
            picture.load()
            picture = picture.copy()
    # Pillow raises much more than its own errors on broken files.
    except Exception as error:
        raise ValueError(
            f"{name} could not be read as a picture: {type(error).__name__}: {error}"
        ) from error
    if pages != 1:
        raise ValueError(
            f"{name} must hold one picture, but holds {pages}. Save them to files of "
            "their own."
        )
    return picture


def integers(array: np.ndarray, name: str) -> np.ndarray:
    """A picture's array as uint8 or uint16; Pillow reads some 16-bit files as 32-bit.

    Raises:
        ValueError: It holds other numbers.
    """
    if array.dtype in (np.uint8, np.uint16):
        return array
    if not np.issubdtype(array.dtype, np.integer) or not (
        array.min() >= 0 and array.max() <= 65535
    ):
        raise ValueError(
            f"{name} must hold integers of 8 or 16 bits, but holds {array.dtype}, "
            f"{array.min()} to {array.max()}."
        )
    return array.astype(np.uint16)


def read(source: Any, name: str | None = None) -> np.ndarray:
    """A picture of any kind as grey or as colours.

    It stands as its EXIF orientation says. Grey are pictures that are stored as grey or
    as black and white; all others, ones with a palette or of CMYK among them, become
    RGB. What is transparent shows white.

    Args:
        source: As in `open_picture`.
        name: As in `open_picture`.

    Returns:
        `[height, width, 1 or 3]`: uint8, or float32 in [0, 1] of 16-bit grey.

    Raises:
        ValueError: As `open_picture`, or it holds floats.
    """
    from PIL import Image, ImageOps

    name = repr(str(source)) if name is None else name
    picture = ImageOps.exif_transpose(open_picture(source, name))
    if picture.mode.startswith(("I", "F")):
        deep = integers(np.asarray(picture), name)
        return (deep / np.float32(65535))[..., None]
    kind = "L" if picture.mode in _GREY else "RGB"
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    array = np.asarray(picture.convert(kind))
    return array if array.ndim == 3 else array[..., None]


def fit(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image scaled to cover a size, and cut to it around its centre; bilinear.

    Args:
        array: `[height, width, channels]`, uint8 or float32.
        size: `(height, width)` in pixels.

    Returns:
        `[*size, channels]`, type of `array`.
    """
    from PIL import Image, ImageOps

    if array.shape[:2] == tuple(size):
        return array
    # Pillow knows no colours of floats, and resizes channels one by one anyway.
    planes = [
        ImageOps.fit(Image.fromarray(plane), size[::-1], Image.Resampling.BILINEAR)
        for plane in np.ascontiguousarray(np.moveaxis(array, -1, 0))
    ]
    return np.stack([np.asarray(plane) for plane in planes], -1)


def with_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """An image as grey (its luma) or as three channels.

    Args:
        array: `[..., 1 or 3]`, uint8 or float32.
        channels: 1 or 3.

    Returns:
        `[..., channels]`, type of `array`.

    Raises:
        ValueError: `array` has another number of channels.
    """
    if array.shape[-1] == channels:
        return array
    if array.shape[-1] not in (1, 3):
        raise ValueError(
            f"Images of {array.shape[-1]} channels cannot be made ones of {channels}: "
            "only grey (1) and colours (3) can."
        )
    if channels == 3:
        return np.repeat(array, 3, axis=-1)
    grey = (array @ LUMA)[..., None]
    if array.dtype == np.uint8:
        grey = np.round(grey)
    return grey.astype(array.dtype)


def read_all(
    sources: Sequence[Any],
    names: Sequence[str],
    where: str,
    resize: tuple[int, int] | None = None,
    channels: int | None = None,
) -> list[np.ndarray]:
    """Reads pictures, large ones in threads, and makes them alike.

    Where some are grey and some have colours, all get three channels; where some are
    of 8 and some of 16 bits, all become floats.

    Args:
        sources: List, as `source` of `read`.
        names: As many names, for messages.
        where: Name of the whole, for messages.
        resize: `(height, width)` that every picture is made by `fit`, or None.
        channels: 1 or 3, or None for what the pictures have.

    Returns:
        List of arrays `[height, width, channels]` of one shape and type, uint8 or
        float32 in [0, 1].

    Raises:
        ValueError: Pictures cannot be read, or differ in size without `resize`.
    """

    def decode(source, name):
        try:
            array = read(source, name)
        except ValueError as error:
            return error
        array = array if resize is None else fit(array, resize)
        return array if channels is None else with_channels(array, channels)

    arrays, broken = [], []
    # Closed on an error, it drops what has not begun.
    with contextlib.closing(_mapped(decode, sources, names)) as decoded:
        for array in decoded:
            if isinstance(array, ValueError):
                broken.append(str(array))
            elif arrays and not broken and array.shape[:2] != arrays[0].shape[:2]:
                _refuse_sizes(where, names, arrays, array)
            else:
                arrays.append(array)
    if broken:
        raise ValueError(
            f"{where}: {len(broken)} of {len(names)} pictures are not as needed. Mend "
            f"or remove them: {listing(broken)}"
        )
    _make_alike(arrays)
    return arrays


def read_bytes(
    files: Sequence[bytes],
    where: str,
    resize: tuple[int, int] | None = None,
    channels: int | None = None,
) -> np.ndarray:
    """Reads pictures that are in memory.

    Args:
        files: List of bytes.
        where: As in `read_all`, as are the others.
        resize: Size or None.
        channels: Number or None.

    Returns:
        `[n, height, width, channels]`, uint8 or float32.
    """
    names = [f"image {i}" for i in range(len(files))]
    sources = [io.BytesIO(file) for file in files]
    arrays = read_all(sources, names, where, resize, channels)
    return stack(arrays, range(len(arrays)))


def stack(arrays: list[Any], indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Moves images out of a list into one array `[n, height, width, channels]`.

    They leave the list as they come, so that memory holds each but once.
    """
    first = arrays[indices[0]]
    stacked = np.empty((len(indices), *first.shape), first.dtype)
    for i, index in enumerate(indices):
        stacked[i], arrays[index] = arrays[index], None
    return stacked


def listing(items: Sequence[Any], count: int = 5) -> str:
    """The first few of a list, and how many more there are."""
    more = f"; and {len(items) - count} more" if len(items) > count else ""
    return "; ".join(map(str, items[:count])) + more


def _mapped(decode, sources, names):
    """Yields what `decode` returns, in order."""
    first = decode(sources[0], names[0])
    yield first
    if isinstance(first, np.ndarray) and first.size <= _FEW_PIXELS * first.shape[-1]:
        yield from map(decode, sources[1:], names[1:])
        return
    with (
        concurrent.futures.ThreadPoolExecutor() as pool,
        contextlib.closing(pool.map(decode, sources[1:], names[1:])) as decoded,
    ):
        yield from decoded


def _refuse_sizes(where, names, arrays, array):
    (height, width), (other_height, other_width) = arrays[0].shape[:2], array.shape[:2]
    raise ValueError(
        f"{where}: pictures must have one size, but {names[0]} is {height}x{width} and "
        f"{names[len(arrays)]} is {other_height}x{other_width} pixels (height x "
        f"width). Have all made one size: --resize={height}x{width}, "
        f"resize=({height}, {width})."
    )


def _make_alike(arrays):
    """Gives images, in place, the channels and the type of the richest."""
    channels = max(array.shape[-1] for array in arrays)
    deep = any(array.dtype == np.float32 for array in arrays)
    for i, array in enumerate(arrays):
        if deep and array.dtype == np.uint8:
            array = array / np.float32(255)
        arrays[i] = with_channels(array, channels)
