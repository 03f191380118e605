"""notMNIST: letters A to J in many fonts, 28x28, out of distribution for MNIST."""

from __future__ import annotations

import os
import pathlib
import zipfile

import numpy as np

from bayesnorm.types import StrPath

CLASS_NAMES = tuple("ABCDEFGHIJ")
_SHAPE = (28, 28)


def load(
    data_dir: StrPath | None = None, file: StrPath | None = None, download: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Loads notMNIST's small part: white letters on black, uint8, as MNIST's digits.

    Args:
        data_dir: TensorFlow Datasets directory with the folder `notmnist`, prepared by
            `bayesnorm.datasets.notmnist_builder`; by default `$TFDS_DATA_DIR`, else
            `~/tensorflow_datasets`.
        file: Path of a NumPy archive (`.npz`) with `images` `[n, 28, 28]` uint8 and
            `labels` `[n]`, 0 to 9 for A to J, instead.
        download: Whether to download and prepare the set if it is not in `data_dir`.

    Returns:
        `(images, labels)`, uint8 `[n, 28, 28, 1]` and int64 `[n]`.

    Raises:
        ValueError: If file or directory are missing or broken.
    """
    images, labels = _from_file(file) if file else _from_tfds(data_dir, download)
    if images.ndim == 3:
        images = images[..., None]
    if (
        images.shape[1:] != (*_SHAPE, 1)
        or images.dtype != np.uint8
        or labels.shape != images.shape[:1]
        or not np.isin(labels, range(len(CLASS_NAMES))).all()
    ):
        raise ValueError(
            "notMNIST needs `images` uint8 [n, 28, 28] and `labels` [n] of 0 to 9. "
            f"Received: images {images.dtype} {images.shape}, labels {labels.dtype} "
            f"{labels.shape}"
        )
    return images, labels.astype("int64")


def _from_file(file):
    try:
        with np.load(os.path.expanduser(file), allow_pickle=False) as archive:
            return archive["images"], archive["labels"]
    except (AttributeError, EOFError, KeyError, OSError, TypeError) + (
        ValueError,
        zipfile.BadZipFile,
    ) as error:
        raise ValueError(
            f"notMNIST could not be read from {file!r}: {type(error).__name__}: "
            f"{error}. Expected a NumPy archive (.npz) with `images` and `labels`."
        ) from error


def _from_tfds(data_dir, download):
    directory = pathlib.Path(
        os.path.expanduser(
            data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        )
    )
    if not download and not any(directory.glob("notmnist/*/dataset_info.json")):
        raise ValueError(
            f"notMNIST is not in {str(directory)!r}: give file= (--ood_file) a .npz of "
            "it, or data_dir= of a directory where it is prepared. `python -c 'import "
            "bayesnorm.datasets; bayesnorm.datasets.load_notmnist("
            f'"{directory}", download=True)'
            "'` downloads it."
        )
    from bayesnorm.datasets import notmnist_builder

    builder = notmnist_builder.Notmnist(data_dir=str(directory))
    if download:
        builder.download_and_prepare()
    dataset = builder.as_dataset(split="test", as_supervised=True, shuffle_files=False)
    parts = list(dataset.batch(1024).as_numpy_iterator())
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
