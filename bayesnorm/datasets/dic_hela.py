"""DIC-C2DH-HeLa of the Cell Tracking Challenge, through TensorFlow Datasets."""

from __future__ import annotations

from bayesnorm.datasets import segmentation, tfds
from bayesnorm.datasets.splits import Splits
from bayesnorm.types import StrPath


def load(
    data_dir: StrPath | None = None,
    split_seed: int = 0,
    downscale: int = 1,
    tile: int | None = None,
    download: bool = False,
) -> Splits:
    """HeLa cells in differential interference contrast, divided by image.

    The annotated frames of both sequences. Frames of a sequence show the same cells at
    other times, and may lie in different parts.

    Args:
        data_dir: TensorFlow Datasets directory with the folder `dic_hela`; by default
            `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
        split_seed: As in `segmentation.from_images`, as are the next two.
        downscale: Factor.
        tile: Side in pixels.
        download: Whether to download and prepare the set if it is not there.

    Returns:
        A `Splits`.

    Raises:
        ImportError: TensorFlow Datasets or TensorFlow is not installed.
        ValueError: The directory is missing or broken.
    """

    def make_builder(directory):
        from bayesnorm.datasets import segmentation_builders

        return segmentation_builders.DicC2dhHela(data_dir=directory)

    images, masks = tfds.read(
        "dic_hela",
        data_dir,
        download,
        segmentation.read_builder,
        make_builder,
        "load_segmentation",
    )
    return segmentation.from_images(
        images, masks, "dic_hela", split_seed, downscale=downscale, tile=tile
    )
