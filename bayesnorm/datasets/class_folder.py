"""Pictures in a folder for each class, read with Pillow.

Either `DIR/<class>/...`, at any depth, or parts of it, `DIR/train/<class>/...` with
`validation` (`val`, `valid`) and `test` likewise; and perhaps `DIR/ood/...`, pictures
out of distribution, with class folders or without. What is hidden is not looked at.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import warnings
from collections.abc import Sequence

import numpy as np

from bayesnorm.datasets import division, pictures, splits
from bayesnorm.datasets.splits import Splits
from bayesnorm.types import StrPath

_OOD = "ood"
_EXPECTED = (
    "Expected a folder for each class, DIR/<class>/*.jpg, or parts of them: "
    "DIR/train/<class>/*.jpg and likewise DIR/validation, DIR/test"
)


def load(
    folder: StrPath,
    split_seed: int = 0,
    held_out: Sequence[int | str] = (),
    resize: tuple[int, int] | None = None,
    channels: int | None = None,
) -> Splits:
    """Reads a folder into memory.

    Classes are in alphabetical order. Validation and test are drawn from train where
    they are missing, all of a folder without parts being train (`division.stratified`).
    What becomes of a picture: `pictures.read` and `pictures.read_all`.

    Args:
        folder: Path of the folder.
        split_seed: Seed of the division into train and validation, where it is drawn.
        held_out: Classes held out, as of `splits.divided`.
        resize: `(height, width)` that pictures are made by `pictures.fit`, or None.
        channels: 1 or 3, to make colours grey or grey pictures ones of three channels.

    Returns:
        A `Splits`, called `image_folder`.

    Raises:
        ValueError: The folder is not as above, or pictures cannot be read.
    """
    root = pathlib.Path(os.path.expanduser(folder))
    files, others = _find(root)
    if others:
        warnings.warn(
            f"{str(root)!r}: {len(others)} files are left out, which lie in no class "
            f"folder or have no ending of a picture ({', '.join(pictures.ENDINGS)}): "
            f"{pictures.listing(others)}.",
            stacklevel=3,
        )
    class_names = _class_names(root, files)
    labels = {part: _labels(files[part], class_names) for part in files if part != _OOD}
    chosen = division.completed(repr(str(root)), labels, class_names, split_seed)
    # Before minutes of reading.
    splits.resolve_classes("image_folder", held_out, class_names)
    images = _read(root, files, resize, channels)
    divided = {
        part: (_stack(images[source], indices), labels[source][indices])
        for part, (source, indices) in chosen.items()
    }
    ood, ood_class_names = None, ()
    if _OOD in files:
        ood_class_names = sorted({name for name, _ in files[_OOD]})
        ood_labels = _labels(files[_OOD], ood_class_names)
        ood = (_stack(images[_OOD], slice(None)), ood_labels)
    return splits.divided(
        divided["train"],
        divided["validation"],
        divided["test"],
        held_out,
        ood,
        name="image_folder",
        class_names=class_names,
        ood_class_names=ood_class_names,
    )


def _labels(files, class_names):
    number = {name: label for label, name in enumerate(class_names)}
    return np.array([number[name] for name, _ in files], np.int64)


def _stack(images, indices):
    return pictures.stack(images, np.arange(len(images))[indices])


def _read(root, files, resize, channels):
    """Part -> list of images, which are alike in all of them."""
    paths = [path for of_part in files.values() for _, path in of_part]
    names = [str(path.relative_to(root)) for path in paths]
    images = iter(pictures.read_all(paths, names, repr(str(root)), resize, channels))
    return {
        part: list(itertools.islice(images, len(of_part)))
        for part, of_part in files.items()
    }


def _find(root):
    """Part -> list of `(class, path)`, and the other files."""
    if not root.is_dir():
        mend = " A NumPy archive is the data set 'npz'." if root.is_file() else ""
        found = "is no folder" if root.is_file() else "is not there"
        raise ValueError(f"{str(root)!r} {found}. {_EXPECTED}.{mend}")
    ood = root / _OOD
    parts = _part_folders(root)
    files, others = {}, []
    for part, folder in parts.items():
        files[part], left_out = _classes(folder, ood)
        others += left_out
    if ood.is_dir():
        files[_OOD], left_out = _classes(ood, loose=_OOD)
        others += left_out
    if root not in parts.values():
        others += [path for path in _visible(root) if path.is_file()]
    return files, [str(path.relative_to(root)) for path in others]


def _part_folders(root):
    """Part -> its folder: of a folder without parts `train`, itself."""
    folders = [path for path in _visible(root) if path.is_dir() and path.name != _OOD]
    found = {
        part: [path for path in folders if path.name.lower() in names]
        for part, names in division.NAMES.items()
    }
    named = [path for of_part in found.values() for path in of_part]
    # A class may be called `train`, as of vehicles.
    if not any(path.is_dir() for folder in named for path in _visible(folder)):
        if named and len(named) == len(folders):
            raise ValueError(
                f"{str(root / named[0].name)!r} must hold a folder for each class, but "
                f"holds none. {_EXPECTED}."
            )
        return {"train": root}
    twice = [of_part for of_part in found.values() if len(of_part) > 1]
    if twice:
        names = " and ".join(repr(path.name) for path in twice[0])
        raise ValueError(f"{str(root)!r} has {names}, which are one part. Merge them.")
    if not found["train"]:
        raise ValueError(
            f"{str(root)!r} has the part {named[0].name!r}, but no 'train'. "
            f"{_EXPECTED}."
        )
    strange = [path.name for path in folders if path not in named]
    if strange:
        raise ValueError(
            f"{str(root)!r} has parts, {', '.join(path.name for path in named)}, and "
            f"beside them {pictures.listing(strange)}. Put classes into the parts, and "
            f"what is out of distribution into {_OOD!r}."
        )
    return {part: of_part[0] for part, of_part in found.items() if of_part}


def _classes(folder, ood=None, loose=None):
    """Pictures in class folders, and all other files.

    Args:
        folder: Path that holds class folders.
        ood: Path of a folder that is none.
        loose: Class of the pictures that lie in no class folder; None for none.

    Returns:
        `(files, others)`: a list of `(class, path)`, and one of paths.
    """
    files, others = [], []
    for path in _visible(folder):
        if path.is_dir() and path != ood:
            found, left_out = _pictures(_below(path))
            if not found:
                raise ValueError(
                    f"The class folder {str(path)!r} holds no pictures. Expected files "
                    f"{', '.join(pictures.ENDINGS)}; take it away if it is none."
                )
            files += [(path.name, picture) for picture in found]
            others += left_out
    found, left_out = _pictures(path for path in _visible(folder) if path.is_file())
    if loose is None:
        return files, others + left_out + found
    return files + [(loose, picture) for picture in found], others + left_out


def _pictures(paths):
    """The pictures among files, by their endings, and the others."""
    kinds = {True: [], False: []}
    for path in paths:
        kinds[path.suffix.lower() in pictures.ENDINGS].append(path)
    return kinds[True], kinds[False]


def _below(folder):
    """Yields the files of a folder and of those in it."""
    for path in _visible(folder):
        if path.is_dir():
            yield from _below(path)
        else:
            yield path


def _visible(folder):
    """Sorted paths in a folder, without the hidden ones."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _class_names(root, files):
    """Names of the classes of `train`; no other part may have others."""
    names = sorted({name for name, _ in files["train"]})
    if len(names) < 2:
        found = f"{names[0]!r} alone" if names else "none"
        raise ValueError(
            f"{str(root)!r} must hold two classes at least, but has {found}. "
            f"{_EXPECTED}."
        )
    for part in ("validation", "test"):
        strange = sorted({name for name, _ in files.get(part, ())} - {*names})
        if strange:
            raise ValueError(
                f"{str(root)!r}: {part} has the classes {pictures.listing(strange)}, "
                f"which train lacks. Put what is out of distribution into {_OOD!r}."
            )
    return names
