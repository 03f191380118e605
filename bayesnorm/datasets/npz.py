"""Images and labels of a NumPy archive, under the names that are in use for them.

What each part is called, in capitals or not, `PART` being `train`, `validation` (`val`,
`valid`), `test` or `ood`:

- `PART_images`, `PART_x`, `PART_data`, or the other way round as in `x_train`; without
  a part it is `train`: `X`, `images`, `data`. `[n, height, width]` or `[n, height,
  width, channels]`: integers of 8 or 16 bits, floats in [0, 1], or floats that are
  whole numbers 0 to 255.
- `PART_labels`, `PART_y`, `PART_target`, likewise: `[n]` or `[n, 1]` integers or
  strings. `ood` needs none.
- `PART_offsets`: then `PART_images` holds files, JPEG or PNG, one behind the other:
  `[bytes]` uint8, of which image `i` is `offsets[i]` to `offsets[i + 1]`. The offsets
  are `[n + 1]` integers.
- `class_names` and `ood_class_names`: strings that the labels index. By default the
  classes are the sorted labels of `train`.
- `name`: of the set, such as `cifar10`, whose augmentation and title it then has.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import re
import warnings
from collections.abc import Sequence

import numpy as np

from bayesnorm.datasets import division, pictures, splits
from bayesnorm.datasets.splits import Splits
from bayesnorm.types import StrPath

_PARTS = {**division.NAMES, "ood": ("ood",)}
_KINDS = {
    "images": ("images", "image", "x", "data"),
    "labels": ("labels", "label", "y", "target", "targets"),
    "offsets": ("offsets",),
}
_SET = {"name": "name", "classnames": "class_names", "targetnames": "class_names"}
_SET |= {"oodclassnames": "ood_class_names"}
_EXPECTED = (
    "Expected a NumPy archive with train_images and train_labels, and perhaps the same "
    "of validation, test and ood"
)


def load(
    file: StrPath,
    split_seed: int = 0,
    held_out: Sequence[int | str] = (),
    resize: tuple[int, int] | None = None,
    channels: int | None = None,
) -> Splits:
    """Reads an archive into memory.

    Validation and test are drawn from train where they are missing
    (`division.stratified`). The network sees `images / 255` of 8-bit pixels; ones of 16
    bits and floats are float32 in [0, 1].

    Args:
        file: Path of the archive.
        split_seed: Seed of the division into train and validation, where it is drawn.
        held_out: Classes held out, as of `splits.divided`.
        resize: `(height, width)` that images are made by `pictures.fit`, or None.
        channels: 1 or 3, to make colours grey or grey images ones of three channels.

    Returns:
        A `Splits`, called `npz` if the archive has no `name`.

    Raises:
        ValueError: The file is no such archive, or its arrays are not as above.
    """
    path = pathlib.Path(os.path.expanduser(file))
    where = repr(str(path))
    found = _read(path)
    images = _images(where, found, resize, channels)
    labels = _labels(where, found, images)
    ood, ood_names = images.pop("ood", None), _names(where, "ood_class_names", found)
    if "ood" in labels:
        key = found["ood", "labels"][0]
        only = {"train": labels.pop("ood")}
        ood_names, only = _classes(where, {"train": key}, only, ood_names)
        ood = (ood, only["train"])
    keys = {part: found[part, "labels"][0] for part in labels}
    class_names, labels = _classes(
        where, keys, labels, _names(where, "class_names", found)
    )
    chosen = division.completed(where, labels, class_names, split_seed)
    divided = {
        part: (images[source][indices], labels[source][indices])
        for part, (source, indices) in chosen.items()
    }
    return splits.divided(
        divided["train"],
        divided["validation"],
        divided["test"],
        held_out,
        ood,
        name=_name(where, found),
        class_names=class_names,
        ood_class_names=ood_names,
    )


def _meanings():
    """Key, in small letters and without underscores -> `(part, kind)`, or a name."""
    meanings = dict(_SET)
    for kind, words in _KINDS.items():
        for word in words:
            meanings[word] = ("train", kind)
            for part, prefixes in _PARTS.items():
                for prefix in prefixes:
                    meanings[prefix + word] = meanings[word + prefix] = (part, kind)
    return meanings


def _read(path):
    """Meaning -> `(key, array)` of what is known in an archive."""
    where = repr(str(path))
    if not path.is_file():
        raise ValueError(
            f"{where} is a folder. {_EXPECTED}; a folder of pictures is the data set "
            "'image_folder'."
            if path.is_dir()
            else f"{where}: there is no such file. {_EXPECTED}."
        )
    try:
        archive = np.load(path, allow_pickle=False)
    # Of what is no archive NumPy says that it may be pickled, or raises whatever its
    # parsers come upon.
    except Exception as error:
        raise ValueError(
            f"{where} could not be read, it is no NumPy archive or not a whole one "
            f"({type(error).__name__}). {_EXPECTED}: write it with np.savez, or copy "
            "it again."
        ) from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError(
            f"{where} holds one array {archive.shape} (.npy). {_EXPECTED}: write it "
            "with np.savez."
        )
    with archive:
        keys = _keys(where, archive.files)
        found = {
            meaning: (key, _array(where, archive, key)) for meaning, key in keys.items()
        }
    for part in _PARTS:
        has = {kind for kind in _KINDS if (part, kind) in found}
        if (has or part == "train") and "images" not in has:
            _refuse_keys(where, part, "images", archive.files)
        if has and "labels" not in has and part != "ood":
            _refuse_keys(where, part, "labels", archive.files)
    return found


def _keys(where, names):
    """Meaning -> key, of the keys that mean something."""
    meanings, keys, unknown = _meanings(), {}, []
    for name in names:
        meaning = meanings.get(re.sub("[^a-z0-9]", "", name.lower()))
        if meaning is None:
            unknown.append(name)
        elif meaning in keys:
            raise ValueError(
                f"{where}: {keys[meaning]!r} and {name!r} are two names of the same. "
                "Take one of them out."
            )
        else:
            keys[meaning] = name
    if unknown and keys:
        warnings.warn(
            f"{where}: {len(unknown)} keys have no meaning here and are left out: "
            f"{pictures.listing(unknown)}.",
            stacklevel=4,
        )
    return keys


def _refuse_keys(where, part, kind, names):
    raise ValueError(
        f"{where}: there is no {part}_{kind} (or {', '.join(_aliases(part, kind))}), "
        f"but {', '.join(map(repr, names)) or 'nothing'}. {_EXPECTED}."
    )


def _aliases(part, kind):
    short = {"images": "x", "labels": "y"}[kind]
    return (f"{short}_{part}", short) if part == "train" else (f"{short}_{part}",)


def _array(where, archive, key):
    try:
        array = archive[key]
        if not isinstance(array, np.ndarray):
            raise ValueError("it is no array")
        return array
    except Exception as error:  # Whatever NumPy's parsers come upon.
        objects = "Object arrays" in str(error)
        mend = (
            "It holds Python objects: convert them, as with labels.astype(str) or "
            "np.stack(images), and write it again"
            if objects
            else "The file is not whole: copy or write it again"
        )
        raise ValueError(
            f"{where}: {key!r} could not be read ({type(error).__name__}: {error}). "
            f"{mend}."
        ) from error


def _images(where, found, resize, channels):
    """Part -> images `[n, height, width, channels]`, uint8 or float32 in [0, 1]."""
    parts = [part for part in _PARTS if (part, "images") in found]
    images = {
        part: _pixels(
            where,
            *found[part, "images"],
            found.get((part, "offsets")),
            resize,
            channels,
        )
        for part in parts
    }
    return _stored(where, {part: found[part, "images"][0] for part in parts}, images)


def _pixels(where, key, images, offsets, resize, channels):
    """Images `[n, height, width, channels]` of a part, type as stored.

    Args:
        where: Name of the archive.
        key: Key of the images.
        images: Array of it.
        offsets: `(key, array)` of the offsets, None without.
        resize: As in `load`, as is the last.
        channels: Number.
    """
    said = f"{where}: {key!r}"
    if offsets is not None:
        return _decoded(said, images, *offsets, resize, channels)
    if images.ndim == 3:
        images = images[..., None]
    _check_shape(said, images)
    if resize is not None and images.shape[1:3] != tuple(resize):
        (images,) = _stored(where, {"": key}, {"": images}).values()
        images = np.stack([pictures.fit(image, resize) for image in images])
    try:
        return images if channels is None else pictures.with_channels(images, channels)
    except ValueError as error:
        raise ValueError(f"{said}: {error}") from error


def _check_shape(said, images):
    shape = images.shape
    if images.ndim == 4 and 0 not in shape and not shape[1] <= 4 < shape[3]:
        return
    expected = "must be [n, height, width] or [n, height, width, channels]"
    if images.ndim == 4 and 0 not in shape:
        mend = "The channels go last: images.transpose(0, 2, 3, 1)"
    elif images.ndim == 2 and (side := round(shape[1] ** 0.5)) ** 2 == shape[1]:
        mend = f"Give the pixels their places: images.reshape(-1, {side}, {side})"
    elif images.ndim == 1:
        mend = "Files one behind the other need their offsets beside them"
    else:
        mend = "Give the pixels their places: images.reshape(-1, height, width)"
    raise ValueError(f"{said} {expected}, but is {list(shape)}. {mend}.")


def _decoded(said, data, offsets_key, offsets, resize, channels):
    """Images of files that stand one behind the other."""
    ends = offsets if offsets.ndim == 1 and offsets.dtype.kind in "iu" else np.empty(0)
    if (
        data.ndim != 1
        or data.dtype != np.uint8
        or len(ends) < 2
        or ends[0] != 0
        or ends[-1] != len(data)
        or (np.diff(ends.astype(np.int64)) < 0).any()
    ):
        raise ValueError(
            f"{said} with {offsets_key!r} must be the bytes of files, uint8 [bytes], "
            "and where each begins and the last ends, integers [n + 1] from 0 to the "
            f"number of bytes that never fall, but they are {data.dtype} "
            f"{list(data.shape)} and {offsets.dtype} {list(offsets.shape)}."
        )
    files = [data[start:end].tobytes() for start, end in itertools.pairwise(ends)]
    return pictures.read_bytes(files, said, resize, channels)


def _stored(where, keys, images):
    """Images of all parts as uint8, or as float32 in [0, 1].

    What the numbers mean is seen from all parts together.
    """
    kinds = {images[part].dtype: keys[part] for part in images}
    if len(kinds) > 1:
        said = " and ".join(f"{key!r} {dtype}" for dtype, key in kinds.items())
        raise ValueError(
            f"{where}: the images of all parts must be of one type, but there are "
            f"{said}. Convert one of them."
        )
    (dtype,) = kinds
    if dtype == np.uint8:
        return images
    if dtype == np.bool_:
        return {part: of_part * np.uint8(255) for part, of_part in images.items()}
    if dtype.kind not in "iuf":
        raise ValueError(
            f"{where}: {kinds[dtype]!r} must hold numbers, but holds {dtype}."
        )
    for part, of_part in images.items():
        low, high = of_part.min(), of_part.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError(
                f"{where}: {keys[part]!r} holds NaN or infinite pixels. Remove or "
                "repair these images."
            )
    lowest = min(of_part.min() for of_part in images.values())
    highest = max(of_part.max() for of_part in images.values())
    whole = dtype.kind in "iu" or all(
        np.array_equal(of_part, np.floor(of_part)) for of_part in images.values()
    )
    if lowest >= 0 and dtype.kind == "f" and highest <= 1:
        return {part: of_part.astype(np.float32) for part, of_part in images.items()}
    if lowest >= 0 and whole and highest <= 255:
        return {part: of_part.astype(np.uint8) for part, of_part in images.items()}
    if lowest >= 0 and dtype.kind in "iu" and highest <= 65535:
        return {part: of_part / np.float32(65535) for part, of_part in images.items()}
    raise ValueError(
        f"{where}: {' and '.join(map(repr, keys.values()))} must hold integers 0 to "
        f"255 or 0 to 65535, or floats in [0, 1], but {dtype} from {lowest:g} to "
        f"{highest:g} is there. Write images as they were before they were "
        "standardized, or divided by their largest value."
    )


def _labels(where, found, images):
    """Part -> labels `[n]`, int64 or strings."""
    labels = {}
    for part in images:
        if (part, "labels") not in found:
            continue
        key, array = found[part, "labels"]
        labels[part] = _checked_labels(f"{where}: {key!r}", array)
        if len(labels[part]) != len(images[part]):
            raise ValueError(
                f"{where}: every image needs a label, but "
                f"{found[part, 'images'][0]!r} has {len(images[part])} and {key!r} "
                f"{len(labels[part])}."
            )
    return labels


def _checked_labels(said, labels):
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        one_hot = labels.ndim == 2 and labels.dtype.kind in "iufb"
        mend = " One-hot rows become classes by labels.argmax(-1)." if one_hot else ""
        raise ValueError(
            f"{said} must be [n], a class for each image, but is "
            f"{list(labels.shape)}.{mend}"
        )
    if labels.dtype.kind == "S":
        return np.char.decode(labels, "utf-8")
    if labels.dtype.kind == "U":
        return labels
    whole = labels.dtype.kind in "iub" or (
        labels.dtype.kind == "f" and np.array_equal(labels, np.floor(labels))
    )
    if not whole:
        raise ValueError(
            f"{said} must hold integers or strings, a class for each image, but holds "
            f"{labels.dtype}."
        )
    return labels.astype(np.int64)


def _classes(where, keys, labels, class_names):
    """Names of the classes, and labels that index them.

    Args:
        where: Name of the archive.
        keys: Part -> key of its labels.
        labels: Part -> labels `[n]`, int64 or strings.
        class_names: The names that the archive has, perhaps none.

    Returns:
        `(class_names, labels)`.
    """
    known = np.unique(labels["train"])
    if class_names:
        indices = np.arange(len(class_names))
        if known.dtype.kind == "U":
            order = np.argsort(class_names)
            known, indices = np.array(class_names)[order], order
        elif np.isin(known, indices).all():
            known = indices
        elif len(known) != len(class_names):
            raise ValueError(
                f"{where}: {keys['train']!r} has {len(known)} classes, from {known[0]} "
                f"to {known[-1]}, and 'class_names' {len(class_names)} names, which "
                f"labels 0 to {len(class_names) - 1} would index."
            )
    else:
        class_names, indices = [str(label) for label in known], np.arange(len(known))
    found = {}
    for part, of_part in labels.items():
        if of_part.dtype.kind != known.dtype.kind:
            strange = of_part[:1]
        else:
            strange = of_part[~np.isin(of_part, known)]
        if len(strange):
            raise ValueError(
                f"{where}: {keys[part]!r} has the class {strange[0]!s}, which is none "
                f"of {pictures.listing(list(class_names), 10)}."
            )
        found[part] = indices[np.searchsorted(known, of_part)]
    return tuple(class_names), found


def _names(where, meaning, found):
    """Names of classes that an archive has, perhaps none."""
    if meaning not in found:
        return ()
    key, names = found[meaning]
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise ValueError(
            f"{where}: {key!r} must be strings, one a class, but is {names.dtype} "
            f"{list(names.shape)}."
        )
    names = np.char.decode(names, "utf-8") if names.dtype.kind == "S" else names
    return tuple(str(name) for name in names)


def _name(where, found):
    key, name = found.get("name", ("name", np.array("npz")))
    if name.shape != () or name.dtype.kind != "U":
        raise ValueError(
            f"{where}: {key!r} must be a string, but is {name.dtype} "
            f"{list(name.shape)}."
        )
    return str(name)
