"""Writes a TensorFlow Datasets classification set as files that need no TensorFlow.

    python -m bayesnorm.datasets.convert --dataset=cifar10 --data_dir=DIR --output=c.npz
    python -m bayesnorm.datasets.convert --dataset=beans --data_dir=DIR --output=beans

A file `.npz` or else a folder: what `bayesnorm.datasets.load` reads as `npz` and
`image_folder`. JPEG files are copied byte for byte; so are PNG files into a folder,
while an archive holds their pixels (files, where sizes differ). The parts are those of
`bayesnorm.datasets.load` with the same `--split_seed`: of a set that it does not know
and that has no validation part a tenth of train becomes that part, and a test part that
is missing is left to be drawn. Labels of a folder follow the names in alphabetical
order.

What is loaded again equals the set itself but for the decoder of JPEG: TensorFlow takes
the fast integer transform by default, Pillow the accurate one. On a copy of CIFAR-10 in
JPEG of quality 75 pixels differ by 1.0 of 255 on average and by 5 at most.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Literal

import keras
import numpy as np
from absl import app, flags, logging

from bayesnorm import storage
from bayesnorm.datasets import division, pictures, tfds
from bayesnorm.types import StrPath

_PARTS = ("train", "validation", "test")
_ENDINGS = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"BM": ".bmp", b"GIF8": ".gif"}
# Of a set that `bayesnorm.datasets.load` does not know.
_VALIDATION_SHARE = 10


def convert(
    name: str,
    data_dir: StrPath,
    output: StrPath,
    split_seed: int = 0,
    overwrite: bool = False,
    form: Literal["npz", "image_folder"] | None = None,
) -> dict[str, int]:
    """Writes a set; see the module.

    Args:
        name: Name of a prepared set, perhaps with a configuration, as `name/config`.
        data_dir: TensorFlow Datasets directory.
        output: Path of the file or folder.
        split_seed: Seed of the division into train and validation.
        overwrite: Whether a file or a folder that this wrote is replaced.
        form: `"npz"` or `"image_folder"`; None to tell by the ending of `output`.

    Returns:
        Dict from each part to its number of images.

    Raises:
        ImportError: TensorFlow Datasets or TensorFlow is not installed.
        ValueError: The set is missing, broken or no set of images with classes, or
            `output` exists.
    """
    path = pathlib.Path(os.path.expanduser(output))
    form = form or ("npz" if path.suffix == ".npz" else "image_folder")
    _check_output(path, overwrite)
    image, label, class_names = _features(_read(name, data_dir, lambda b: b.info))
    parts = _read(name, data_dir, lambda b: _files(b, image, label))
    if "validation" not in parts:
        source = tfds.SOURCES.get(name)
        share = source.validation_share if source else _VALIDATION_SHARE
        files, labels = parts["train"]
        chosen = division.permuted(len(files), share, split_seed)
        for part, indices in zip(("train", "validation"), chosen, strict=True):
            parts[part] = ([files[i] for i in indices], labels[indices])
    with storage.drafted(path) as draft:
        write = _write_archive if form == "npz" else _write_folder
        write(draft, parts, name.split("/")[0], class_names)
        if path.is_dir():
            shutil.rmtree(path)
    return {part: len(parts[part][0]) for part in _PARTS if part in parts}


def _check_output(path, overwrite):
    if not path.exists():
        return
    if not overwrite:
        raise ValueError(
            f"{str(path)!r} exists. Pass --overwrite to replace it, or another "
            "--output."
        )
    strange = path.is_dir() and {entry.name for entry in path.iterdir()} - {*_PARTS}
    if strange:
        raise ValueError(
            f"{str(path)!r} holds {pictures.listing(sorted(strange))}, which this "
            "program did not write and does not remove. Give another --output."
        )


def _read(name, data_dir, reader):
    return tfds.read(name, data_dir, False, reader, function=None, records=True)


def _features(info):
    """Keys of image and label in the examples, and the names of the classes."""
    keys = info.supervised_keys or ()
    features = [info.features[key] for key in keys if isinstance(key, str)]
    kinds = [type(feature).__name__ for feature in features]
    if kinds != ["Image", "ClassLabel"]:
        raise ValueError(
            f"data set {info.name!r} is no set of images with a class each: its "
            f"examples for training are {keys}, not an Image and a ClassLabel."
        )
    return *keys, tuple(features[1].names)


def _files(builder, image, label):
    """Part -> `(files, labels)`: a list of bytes, and `[n]` int64; as stored."""
    parts = {}
    for part in _PARTS:
        if part not in builder.info.splits:
            continue
        count = builder.info.splits[part].num_examples
        files, labels = [], np.empty(count, np.int64)
        progress = _progress(f"reading {part}", count)
        for i, example in enumerate(tfds.examples(builder, part, image)):
            files.append(example[image])
            labels[i] = example[label]
            progress.update(i + 1)
        parts[part] = files, labels
    return parts


def _progress(what, count):
    print(what)
    terminal = sys.stdout.isatty()
    return keras.utils.Progbar(count, verbose=1 if terminal else 2, unit_name="image")


def _write_archive(path, parts, name, class_names):
    arrays = {"name": np.array(name), "class_names": np.array(class_names)}
    arrays |= {f"{part}_labels": labels for part, (_, labels) in parts.items()}
    print("writing the archive")
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays, **_images_of(parts))


def _images_of(parts):
    """Key -> array of the images: pixels, or files one behind the other."""
    everything = [file for files, _ in parts.values() for file in files]
    if all(_ending(file) == ".png" for file in everything):
        with contextlib.suppress(ValueError):
            # One array cannot hold pictures of several sizes.
            pixels = pictures.read_bytes(everything, "images")
            ends = np.cumsum([len(files) for files, _ in parts.values()])[:-1]
            of_parts = zip(parts, np.split(pixels, ends), strict=True)
            return {f"{part}_images": of_part for part, of_part in of_parts}
    arrays = {}
    for part, (files, _) in parts.items():
        arrays[f"{part}_images"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"{part}_offsets"] = np.cumsum([0, *map(len, files)])
    return arrays


def _ending(file):
    for start, ending in _ENDINGS.items():
        if file.startswith(start):
            return ending
    raise ValueError(
        f"an image begins with {file[:8]!r}, which is no JPEG, PNG, BMP or GIF."
    )


def _write_folder(path, parts, name, class_names):
    del name
    bad = [c for c in class_names if c.startswith(".") or "/" in c or "\\" in c]
    if bad:
        raise ValueError(
            f"the classes {pictures.listing(bad)} cannot be names of folders. Write "
            "the set as .npz."
        )
    for part, (files, labels) in parts.items():
        progress = _progress(f"writing {part}", len(files))
        for class_label in np.unique(labels):
            (path / part / class_names[class_label]).mkdir(parents=True)
        digits = len(str(len(files) - 1))
        for i, (file, label) in enumerate(zip(files, labels, strict=True)):
            folder = path / part / class_names[label]
            (folder / f"{i:0{digits}d}{_ending(file)}").write_bytes(file)
            progress.update(i + 1)


def _define_flags():
    flags.DEFINE_string("dataset", None, "Name of a TensorFlow Datasets set.")
    flags.DEFINE_string("data_dir", None, "TensorFlow Datasets directory.")
    flags.DEFINE_string("output", None, "File .npz, or folder, to write.")
    flags.DEFINE_enum(
        "format", None, ["npz", "image_folder"], "By default what --output ends in."
    )
    flags.DEFINE_integer("split_seed", 0, "Seed of train and validation.", 0)
    flags.DEFINE_bool("overwrite", False, "Replace --output.")
    flags.mark_flags_as_required(["dataset", "output"])


def main(argv: Sequence[str]) -> None:
    """Converts what the flags say."""
    if argv[1:]:
        raise app.UsageError(f"Flags begin with --. Received: {argv[1:]}")
    given = flags.FLAGS
    if not given["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    try:
        counts = convert(
            given.dataset,
            given.data_dir,
            given.output,
            given.split_seed,
            given.overwrite,
            given.format,
        )
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    said = ", ".join(f"{count} {part}" for part, count in counts.items())
    print(f"wrote {given.output}: {said}")


if __name__ == "__main__":
    # Defined here: the training programs have flags of these names.
    _define_flags()
    app.run(main)
