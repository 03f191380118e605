"""Image sets in parts, and the one check that all of them pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import numpy as np

from bayesnorm.types import ArrayLike, Labelled

PARTS = ("train", "validation", "test", "ood")
# Images that are scaled at a time where not all can be.
_CHUNK = 512


@dataclasses.dataclass(frozen=True)
class Split:
    """Images and labels of one part of a data set.

    Attributes:
        images: `[n, height, width, channels]`, uint8 or float32, as stored: multiply
            by `Splits.scale` (or call `Splits.inputs`) for what the network sees.
        labels: `[n]` int64, a class for each image; or `[n, height, width]`, uint8 or
            int64, a class for each pixel (segmentation).
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> Self:
        """Returns the part with its first `count` examples alone."""
        return dataclasses.replace(
            self, images=self.images[:count], labels=self.labels[:count]
        )


@dataclasses.dataclass(frozen=True)
class StreamedSplit(Split):
    """A training part that is read, and augmented, while it is trained on.

    Attributes:
        images: Some of its images without augmentation, `[n, height, width, channels]`.
        labels: Their labels `[n]`.
        num_examples: How many examples it has, its length.
        read: Function `(seed, epoch, augment, num_examples)` that returns an iterable
            of batches `(images, labels)` of the first so many examples, in an order
            that is a function of seed and epoch.
    """

    num_examples: int
    read: Callable

    def __len__(self) -> int:
        return self.num_examples

    def first(self, count: int) -> Self:
        """Returns the part with its first `count` examples alone."""
        return dataclasses.replace(super().first(count), num_examples=count)


@dataclasses.dataclass(frozen=True)
class Splits:
    """A data set, checked by `validate` when it is made.

    The network sees `images * scale`, float32. The scale has no offset: a stored zero
    is a zero for the network, so augmentation with zero padding may run on stored or on
    scaled images alike. Standardization by `channel_mean` and `channel_stddev` is the
    model's part (its first layer) and comes after the augmentation.

    Attributes:
        name: Name of the set.
        train: Training part.
        validation: Part held back from training, for tuning.
        test: Test part.
        num_classes: Number `K` of trained classes; labels of `train`, `validation` and
            `test` are `0..K-1`.
        class_names: The `K` names, in the order of the labels.
        channel_mean: `[channels]` float64, mean of `train.images * scale` per channel.
        channel_stddev: `[channels]` float64, standard deviation likewise; 1 for a
            channel that is constant, so that standardizing it gives 0.
        scale: Factor from stored pixels to network inputs.
        ood: Out-of-distribution part, or None. Its labels index `ood_class_names`
            where there are such names.
        ood_class_names: Names of the classes of `ood`, perhaps empty.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    class_names: tuple[str, ...]
    channel_mean: np.ndarray
    channel_stddev: np.ndarray
    scale: float = 1.0
    ood: Split | None = None
    ood_class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        validate(self)

    @property
    def dense(self) -> bool:
        """Whether there is a label for each pixel: a segmentation set."""
        return self.train.labels.ndim > 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape `(height, width, channels)` of one image."""
        return self.train.images.shape[1:]

    def inputs(self, images: np.ndarray) -> np.ndarray:
        """Stored images `[n, ...]` as the network sees them, float32."""
        return np.multiply(images, np.float32(self.scale), dtype=np.float32)

    def part_inputs(self, part: Literal["validation", "test", "ood"]) -> Any:
        """Returns the inputs of a part, as `bayesnorm.predict` takes them.

        Args:
            part: `"validation"`, `"test"` or `"ood"`.

        Returns:
            What `inputs` returns; of images that are mapped into memory, which are
            too many for it, a generator of it.
        """
        images = getattr(self, part).images
        if not isinstance(images, np.memmap):
            return self.inputs(images)
        starts = range(0, len(images), _CHUNK)
        return (self.inputs(images[start : start + _CHUNK]) for start in starts)


def validate(splits: Splits) -> Splits:
    """Checks images, labels and statistics of a `Splits`.

    Args:
        splits: The `Splits` to check.

    Returns:
        `splits`, unchanged.

    Raises:
        ValueError: A part is empty or of another image shape or type, a pixel is NaN or
            infinite, a label is out of range, some parts have labels of images and
            others of pixels, or names, scale or statistics do not fit.
    """
    where = f"data set {splits.name!r}"
    _check_classes(where, splits.num_classes, splits.class_names)
    shape: Any = None
    dtype = None
    for part in PARTS:
        split = getattr(splits, part)
        if split is None and part == "ood":
            continue
        if not isinstance(split, Split):
            raise ValueError(
                f"{where}: `{part}` must be a Split(images, labels), got "
                f"{type(split).__name__}. Use `from_arrays` to make one of arrays."
            )
        label_range = splits.num_classes
        if part == "ood":
            label_range = len(splits.ood_class_names) or None
        check_split(f"{where}, part {part!r}", split, label_range)
        shape = shape or split.images.shape[1:]
        dtype = dtype or split.images.dtype
        if split.images.shape[1:] != shape or split.images.dtype != dtype:
            raise ValueError(
                f"{where}: all parts need the images of `train`, {dtype} {shape}, but "
                f"{part!r} has {split.images.dtype} {split.images.shape[1:]}. Resize "
                "or convert one of them."
            )
        # What is out of distribution may lack the labels that the others have.
        if part != "ood" and split.labels.ndim != splits.train.labels.ndim:
            kind = "a pixel" if splits.dense else "a image"
            raise ValueError(
                f"{where}: all parts need labels like those of `train`, one {kind}, "
                f"but {part!r} has labels {split.labels.shape}."
            )
    if not (np.isfinite(splits.scale) and splits.scale > 0):
        raise ValueError(
            f"{where}: `scale` must be finite and positive, got {splits.scale!r}."
        )
    for field, smallest in (("channel_mean", -np.inf), ("channel_stddev", 0)):
        value = np.asarray(getattr(splits, field))
        if value.shape != shape[-1:] or not np.all(
            np.isfinite(value) & (value > smallest)
        ):
            raise ValueError(
                f"{where}: `{field}` needs {shape[-1]} finite"
                f"{' positive' if smallest == 0 else ''} numbers, one a channel, got "
                f"{value}."
            )
    return splits


def _check_classes(where, num_classes, class_names):
    if num_classes < 2:
        raise ValueError(
            f"{where}: at least 2 trained classes are needed, got {num_classes}. Hold "
            "out fewer classes."
        )
    if len(class_names) != num_classes or len(set(class_names)) != num_classes:
        raise ValueError(
            f"{where}: `class_names` needs {num_classes} different names, one a class, "
            f"got {tuple(class_names)}."
        )


def check_split(where: str, split: Split, label_range: int | None) -> None:
    """Checks images and labels.

    Args:
        where: What they are, in words, for the error.
        split: A `Split`.
        label_range: Number of classes; None if it is not known.

    Raises:
        ValueError: As for `validate`.
    """
    images, labels = split.images, split.labels
    if not isinstance(images, np.ndarray) or images.dtype not in (np.uint8, np.float32):
        raise ValueError(
            f"{where}: `images` must be a uint8 or float32 NumPy array, got "
            f"{getattr(images, 'dtype', type(images).__name__)}. Convert with "
            "`images.astype('float32')`."
        )
    if images.ndim != 4:
        raise ValueError(
            f"{where}: `images` must be [n, height, width, channels], got shape "
            f"{images.shape}. Grey images need a last axis of length 1."
        )
    if 0 in images.shape:
        raise ValueError(
            f"{where}: there are no pixels, the images have shape {images.shape}. Give "
            "each part at least one image (fewer held-out classes, more examples)."
        )
    if images.dtype == np.float32:
        _check_finite(where, images)
    dense = getattr(labels, "ndim", 1) == 3
    allowed = (np.int64, np.uint8) if dense else (np.int64,)
    if not isinstance(labels, np.ndarray) or labels.dtype not in allowed:
        raise ValueError(
            f"{where}: `labels` must be an int64 NumPy array"
            f"{' or a uint8 one' if dense else ''}, got "
            f"{getattr(labels, 'dtype', type(labels).__name__)}. Class indices, not "
            "one-hot vectors, converted with `labels.astype('int64')`."
        )
    if labels.shape != (images.shape[:3] if dense else images.shape[:1]):
        raise ValueError(
            f"{where}: `labels` must be [{len(images)}], one a image, or "
            f"{list(images.shape[:3])}, one a pixel, got shape {labels.shape}."
        )
    highest = np.inf if label_range is None else label_range - 1
    wrong = (labels < 0) | (labels > highest)
    if wrong.any():
        first = tuple(int(i) for i in np.unravel_index(np.argmax(wrong), wrong.shape))
        raise ValueError(
            f"{where}: labels must lie in 0..{highest}, but {wrong.sum()} do not, the "
            f"first is labels[{', '.join(map(str, first))}] = {labels[first]}."
        )


def _check_finite(where, images):
    bad = 0
    first = None
    for start in range(0, len(images), 1024):
        wrong = ~np.isfinite(images[start : start + 1024]).all(axis=(1, 2, 3))
        if first is None and wrong.any():
            first = start + int(np.argmax(wrong))
        bad += int(wrong.sum())
    if bad:
        raise ValueError(
            f"{where}: pixels must be finite, but {bad} of {len(images)} images hold "
            f"NaN or infinity, the first is images[{first}]. Remove or repair them."
        )


def channel_statistics(
    images: np.ndarray, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel, in the units the network sees.

    Two passes in float64 over chunks of images, so uint8 images are never copied whole.

    Args:
        images: `[n, height, width, channels]`.
        scale: Factor from stored pixels to network inputs.

    Returns:
        `(mean, stddev)`, each `[channels]` float64; the standard deviation of a
        constant channel is given as 1.
    """

    def average(function):
        total = np.zeros(images.shape[-1])
        for start in range(0, len(images), 512):
            chunk = images[start : start + 512].astype(np.float64)
            total += function(chunk).sum(axis=(0, 1, 2))
        return total / np.prod(images.shape[:-1])

    mean = average(lambda chunk: chunk)
    stddev = np.sqrt(average(lambda chunk: np.square(chunk - mean)))
    return mean * scale, np.where(stddev > 0, stddev * scale, 1.0)


def from_arrays(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    ood: tuple[np.ndarray, np.ndarray] | np.ndarray | None = None,
    *,
    name: str = "arrays",
    class_names: Sequence[str] | None = None,
    ood_class_names: Sequence[str] = (),
    scale: float | None = None,
) -> Splits:
    """Makes a checked `Splits` of a user's own arrays.

    Args:
        train: `(images, labels)`; images `[n, height, width]` or
            `[n, height, width, channels]`, uint8 or floating (kept as float32), labels
            `[n]` integers `0..K-1`, one a image, or `[n, height, width]`, one a pixel
            (uint8 and boolean ones are kept as uint8).
        validation: `(images, labels)` likewise.
        test: `(images, labels)` likewise.
        ood: `(images, labels)`, images alone, or None.
        name: Name of the set, for messages and reports.
        class_names: The `K` class names; by default `K` is the highest label of
            `train` plus 1 and the names are `"0"`, `"1"`, ...
        ood_class_names: Names that the labels of `ood` index, if any.
        scale: Factor from stored pixels to network inputs; by default 1/255 for uint8
            images and 1 for floating ones.

    Returns:
        A `Splits`.

    Raises:
        ValueError: See `validate`.
    """
    if isinstance(ood, np.ndarray):
        ood = (ood, np.zeros(len(ood), np.int64))
    parts: dict[str, Any] = {
        part: None if arrays is None else _split(name, part, arrays)
        for part, arrays in zip(PARTS, (train, validation, test, ood), strict=True)
    }
    images, labels = parts["train"].images, parts["train"].labels
    if class_names is None:
        highest = int(labels.max()) if labels.size else -1
        class_names = [str(i) for i in range(highest + 1)]
    if scale is None:
        scale = 1 / 255 if images.dtype == np.uint8 else 1.0
    # Statistics of bad images would only warn; the check names the culprit.
    check_split(f"data set {name!r}, part 'train'", parts["train"], len(class_names))
    mean, stddev = channel_statistics(images, scale)
    return Splits(
        name=name,
        **parts,
        num_classes=len(class_names),
        class_names=tuple(class_names),
        channel_mean=mean,
        channel_stddev=stddev,
        scale=float(scale),
        ood_class_names=tuple(ood_class_names),
    )


def divided(
    train: Labelled,
    validation: Labelled,
    test: Labelled,
    held_out: Sequence[int | str] = (),
    ood: Labelled | np.ndarray | None = None,
    *,
    name: str,
    class_names: Sequence[str],
    ood_class_names: Sequence[str] = (),
) -> Splits:
    """Makes a checked `Splits` of a divided set, classes of it held out.

    An image stays in its part whatever is held out: the held-out classes leave all
    parts, and their test images become the out-of-distribution part.

    Args:
        train: `(images, labels)`, with labels in `0..len(class_names)-1`.
        validation: `(images, labels)` likewise.
        test: `(images, labels)` likewise.
        held_out: Classes held out, as of `resolve_classes`.
        ood: As of `from_arrays`; none with classes held out.
        name: Name of the set.
        class_names: Names of all classes.
        ood_class_names: Names that the labels of `ood` index, if any.

    Returns:
        A `Splits`.

    Raises:
        ValueError: A class is unknown, there are two kinds of out-of-distribution
            images, or see `validate`.
    """
    out = resolve_classes(name, held_out, class_names)
    parts = [train, validation, test]
    if out and ood is not None:
        raise ValueError(
            f"data set {name!r} has out-of-distribution images of its own, and "
            f"`held_out`={tuple(held_out)} would add others. Hold out no class, or "
            "take its own away."
        )
    if out:
        divisions = [hold_out(*part, out, len(class_names)) for part in parts]
        parts = [(kept.images, kept.labels) for kept, _ in divisions]
        ood = (divisions[2][1].images, divisions[2][1].labels)
        ood_class_names = [class_names[i] for i in out]
    train, validation, test = parts
    return from_arrays(
        train,
        validation,
        test,
        ood,
        name=name,
        class_names=[n for i, n in enumerate(class_names) if i not in out],
        ood_class_names=ood_class_names,
    )


def with_ood(
    splits: Splits,
    images: np.ndarray,
    labels: ArrayLike,
    class_names: Sequence[str] = (),
) -> Splits:
    """Returns `Splits` with other out-of-distribution data.

    Args:
        splits: A `Splits`.
        images: `[n, height, width]` or `[n, height, width, channels]`, of the type and
            scale of the others.
        labels: `[n]` integers.
        class_names: Names that they index, if any.

    Raises:
        ValueError: See `validate`.
    """
    return dataclasses.replace(
        splits,
        ood=_split(splits.name, "ood", (images, labels)),
        ood_class_names=tuple(class_names),
    )


def _split(name, part, arrays):
    try:
        images, labels = arrays
    except (TypeError, ValueError):
        raise ValueError(
            f"data set {name!r}: part {part!r} must be a pair (images, labels), got "
            f"{type(arrays).__name__}."
        ) from None
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 3:
        images = images[..., None]
    if np.issubdtype(images.dtype, np.floating):
        images = images.astype(np.float32)
    if labels.ndim == 3 and labels.dtype in (np.uint8, np.bool_):
        labels = labels.astype(np.uint8)
    elif np.issubdtype(labels.dtype, np.integer):
        labels = labels.astype(np.int64)
    return Split(images, labels)


def hold_out(
    images: np.ndarray, labels: np.ndarray, held_out: Sequence[int], num_classes: int
) -> tuple[Split, Split]:
    """Divides examples into trained classes and held-out ones (labels of images).

    Args:
        images: `[n, ...]`.
        labels: `[n]`, in `0..num_classes-1`.
        held_out: Labels of the classes to hold out.
        num_classes: Number of classes before holding out.

    Returns:
        `(kept, out)`: two `Split`s. The labels of `kept` are renumbered `0..K-1` in the
        old order, those of `out` index `held_out`.
    """
    renumbered = np.empty(num_classes, np.int64)
    is_out = np.isin(np.arange(num_classes), held_out)
    renumbered[~is_out] = np.arange(num_classes - len(held_out))
    renumbered[list(held_out)] = np.arange(len(held_out))
    mask = is_out[labels]
    new = renumbered[labels]
    if not mask.any():
        return Split(images, new), Split(images[:0], new[:0])
    return Split(images[~mask], new[~mask]), Split(images[mask], new[mask])


def resolve_classes(
    name: str, held_out: Sequence[int | str], class_names: Sequence[str]
) -> tuple[int, ...]:
    """Sorted labels of the classes named in `held_out`.

    Each is a name, or else a label: an integer, or a string of one. A class that is
    called "5" is meant by "5", whatever its label.

    Raises:
        ValueError: A class is unknown, given twice, or fewer than two would remain.
    """
    if isinstance(held_out, (str, int)):
        held_out = (held_out,)
    labels = []
    for item in held_out:
        label = int(item) if isinstance(item, str) and item.isdecimal() else item
        if isinstance(item, str) and item in class_names:
            labels.append(class_names.index(item))
        elif (
            isinstance(label, (int, np.integer))
            and not isinstance(label, bool)
            and 0 <= label < len(class_names)
        ):
            labels.append(int(label))
        else:
            raise ValueError(
                f"data set {name!r} has no class {item!r} to hold out. Give labels "
                f"0..{len(class_names) - 1} or names of {tuple(class_names)}."
            )
    if len(set(labels)) != len(labels):
        raise ValueError(
            f"data set {name!r}: `held_out` names a class twice: {tuple(held_out)}."
        )
    if len(class_names) - len(labels) < 2:
        raise ValueError(
            f"data set {name!r}: `held_out`={tuple(held_out)} leaves "
            f"{len(class_names) - len(labels)} of {len(class_names)} classes, at least "
            "2 are needed to train on. Hold out fewer."
        )
    return tuple(sorted(labels))
