"""Sets read with TensorFlow Datasets, imported only when one is loaded."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from bayesnorm.datasets import division, pictures, splits
from bayesnorm.datasets.splits import Splits
from bayesnorm.types import StrPath


@dataclasses.dataclass(frozen=True)
class Source:
    """What is read of a TensorFlow Datasets set.

    Attributes:
        image_shape: Shape `(height, width, channels)` of an image.
        class_names: Names in the order of the labels.
        validation_share: One example in so many of the training part is validation.
    """

    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    validation_share: int


SOURCES = {
    "cifar10": Source(
        (32, 32, 3),
        (
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
        10,
    ),
    "mnist": Source((28, 28, 1), tuple("0123456789"), 12),
}


def load(
    name: str,
    data_dir: StrPath | None = None,
    split_seed: int = 0,
    held_out: Sequence[int | str] = (),
    download: bool = False,
) -> Splits:
    """Reads a set of `SOURCES` into memory.

    Pixels are stored as uint8, 0..255, and the network sees `images / 255`, in [0, 1]:

    - `cifar10`: colour photographs, 32x32x3; 45,000 train, 5,000 validation and 10,000
      test images, as in Shekhovtsov & Flach (2018).
    - `mnist`: handwritten digits, 28x28x1, white (255) on black (0); 55,000 train,
      5,000 validation and 10,000 test images.

    Train and validation divide the official training part by a permutation of its
    indices, in the stored order, drawn from `split_seed`: the first tenth (`mnist`:
    twelfth) is validation. Classes are held out after the division, so an image stays
    in its part whatever is held out; the out-of-distribution part holds the test images
    of the held-out classes.

    Args:
        name: A key of `SOURCES`.
        data_dir: TensorFlow Datasets directory, the one that holds the folder `name`;
            by default `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
        split_seed: Seed of the division into train and validation.
        held_out: Classes held out, by label or by name.
        download: Whether to download and prepare the set if it is not there.

    Returns:
        A `Splits`.

    Raises:
        ImportError: TensorFlow Datasets or TensorFlow is not installed.
        ValueError: The directory is missing or broken, or a class is unknown.
    """
    source = SOURCES[name]
    # Before a minute of reading.
    splits.resolve_classes(name, held_out, source.class_names)
    arrays = read(
        name,
        data_dir,
        download,
        lambda builder: {
            part: _read_part(builder, part, source) for part in ("train", "test")
        },
        records=True,
    )
    images, labels = arrays["train"]
    train, validation = division.permuted(
        len(images), source.validation_share, split_seed
    )
    return splits.divided(
        (images[train], labels[train]),
        (images[validation], labels[validation]),
        arrays["test"],
        held_out,
        name=name,
        class_names=source.class_names,
    )


def read(
    name: str,
    data_dir: StrPath | None,
    download: bool,
    reader: Callable[[Any], Any],
    make_builder: Callable[[str], Any] | None = None,
    function: str | None = "load",
    records: bool = False,
) -> Any:
    """Reads a set that TensorFlow Datasets prepared, or prepares it.

    Args:
        name: Name of the set, and of its folder in `data_dir`.
        data_dir: As in `load`.
        download: As in `load`.
        reader: Function of the builder that returns what is read.
        make_builder: Function of the directory that returns the builder of a set that
            TensorFlow Datasets has none of.
        function: Function of `bayesnorm.datasets` that loads the set, for messages;
            None where there is none.
        records: Whether `reader` can do without TensorFlow, as `examples` can.

    Returns:
        What `reader` returns.

    Raises:
        ImportError: TensorFlow Datasets or TensorFlow is not installed.
        ValueError: The directory is missing or broken.
    """
    directory = str(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    )
    if "://" not in directory:
        directory = os.path.expanduser(directory)
        if not download:
            _check_directory(name, directory, function)
    tfds = _import_tfds(name, records)
    try:
        if make_builder is None:
            builder = tfds.builder(name, data_dir=directory)
        else:
            builder = make_builder(directory)
        if download:
            builder.download_and_prepare()
        return reader(builder)
    except ImportError:
        raise
    # TFDS raises anything from AssertionError to TensorFlow's own errors here.
    except Exception as error:
        # TensorFlow's errors begin with the address of a node in a graph.
        said = re.sub(r"\{\{.*?\}\}\s*", "", str(error))
        raise ValueError(
            f"data set {name!r} could not be read from {directory!r}: "
            f"{type(error).__name__}: {said}\nExpected a directory that TensorFlow "
            f"Datasets wrote, complete and of the version that the installed "
            f"tensorflow-datasets {tfds.__version__} reads. Copy it again, or remove "
            f"{os.path.join(directory, name)!r} and fetch the set on a machine that "
            f"has a network: {_fetching(name, directory, function)}"
        ) from error


def _check_directory(name, directory, function):
    path = pathlib.Path(directory)
    if any(path.glob(f"{name}/*/dataset_info.json")):
        return
    if not path.is_dir():
        found = "which does not exist"
    elif path.name == name or path.parent.name == name:
        parent = path.parent if path.name == name else path.parent.parent
        found = f"which is inside one; did you mean data_dir={str(parent)!r}?"
    else:
        entries = sorted(entry.name for entry in path.iterdir())[:8]
        found = f"which holds {', '.join(entries) or 'nothing'}"
    raise ValueError(
        f"data set {name!r} is not at {directory!r}, {found}. Expected a TensorFlow "
        f"Datasets directory with {name}/<version>/dataset_info.json: set data_dir "
        "(or the environment variable TFDS_DATA_DIR) to it, or fetch the set: "
        + _fetching(name, directory, function)
    )


def _fetching(name, directory, function):
    if function is None:
        return f"`tfds build {name} --data_dir={directory}`."
    call = f"bayesnorm.datasets.{function}({name!r}, {directory!r}, download=True)"
    return f'`python -c "import bayesnorm.datasets; {call}"`.'


def examples(builder: Any, part: str, image: str) -> Iterator[dict[str, Any]]:
    """Yields the examples of a part in the stored order, images as bytes of files.

    Without TensorFlow only array_record files can be read.

    Args:
        builder: A TensorFlow Datasets builder.
        part: Name of the part.
        image: Key of the image in an example, a dict.

    Raises:
        ImportError: TensorFlow is needed and not installed.
    """
    from tensorflow_datasets import decode

    decoders = {image: decode.SkipDecoding()}
    if _has_tensorflow():
        dataset = builder.as_dataset(split=part, shuffle_files=False, decoders=decoders)
        yield from dataset.as_numpy_iterator()
        return
    try:
        source = builder.as_data_source(split=part, decoders=decoders)
    except NotImplementedError as error:
        raise ImportError(_needed(builder.name)) from error
    yield from source


def _import_tfds(name, records):
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(_needed(name)) from error
    if not _has_tensorflow():
        if not records:
            raise ImportError(_needed(name))
    elif keras.backend.backend() != "tensorflow":
        import tensorflow as tf

        # TensorFlow only reads files here; it would take the accelerator's memory.
        tf.config.set_visible_devices([], "GPU")
    return tfds


def _has_tensorflow():
    return importlib.util.find_spec("tensorflow") is not None


def _needed(name):
    return (
        f"data set {name!r} is read with TensorFlow Datasets, which needs the packages "
        "tensorflow and tensorflow-datasets, also with the JAX backend: `pip install "
        "tensorflow-cpu tensorflow-datasets`. (Of sets that are stored as array_record "
        "tensorflow-datasets is enough.) Where they are installed, `python -m "
        "bayesnorm.datasets.convert --dataset=NAME --data_dir=DIR --output=FILE.npz` "
        "writes a set of images with classes as a file that needs neither, the data "
        "set 'npz'. Or take your own arrays, `bayesnorm.datasets.from_arrays`, or a "
        "set that comes with the install: 'digits' (segmentation: 'cells')."
    )


def _read_part(builder, part, source):
    """Images and labels of a part, in the stored order."""
    expected = builder.info.splits[part].num_examples
    read_it = _decoded_by_tensorflow if _has_tensorflow() else _decoded_by_pillow
    images, labels = read_it(builder, part, source, expected)
    if len(labels) != expected:
        raise ValueError(
            f"part {part!r} holds {len(labels)} examples, expected {expected}."
        )
    return images, labels


def _decoded_by_tensorflow(builder, part, source, expected):
    images = np.empty((expected, *source.image_shape), np.uint8)
    labels = np.empty(expected, np.int64)
    count = 0
    dataset = builder.as_dataset(split=part, as_supervised=True, shuffle_files=False)
    for batch_images, batch_labels in dataset.batch(1024).as_numpy_iterator():
        end = count + len(batch_labels)
        images[count:end], labels[count:end] = batch_images, batch_labels
        count = end
    return images[:count], labels[:count]


def _decoded_by_pillow(builder, part, source, expected):
    del expected
    found = list(examples(builder, part, "image"))
    images = pictures.read_bytes(
        [example["image"] for example in found],
        f"part {part!r}",
        channels=source.image_shape[-1],
    )
    return images, np.array([example["label"] for example in found], np.int64)
