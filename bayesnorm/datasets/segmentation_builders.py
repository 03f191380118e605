"""TensorFlow Datasets builders of segmentation sets; importing it imports TFDS.

All have one part, `train`, in the order of the names: dividing is left to
`bayesnorm.datasets.segmentation`, whose `read_builder` reads a prepared one. Images
are 8-bit grey, made so as `to_grey` does; masks number the cells from 1, 0 being
background.
"""

import dataclasses
import re

import numpy as np
import tensorflow_datasets as tfds

from bayesnorm.datasets import mask_folder, segmentation, synthetic_cells

_URL = "https://data.celltrackingchallenge.net/training-datasets/DIC-C2DH-HeLa.zip"
_MASK_NAME = re.compile(r"man_seg_?(\d{3,4})\.tif", re.IGNORECASE)
_IMAGE_NAME = re.compile(r"t(\d{3,4})\.tif", re.IGNORECASE)


class _SegmentationBuilder(  # type: ignore[call-arg]
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """What the builders here share: features, and examples of arrays."""

    VERSION = tfds.core.Version("1.0.0")

    def _features(self, description, homepage=None):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "key": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(None, None, 1)),
                    "segmentation_mask": tfds.features.Image(
                        shape=(None, None, 1), dtype=np.uint16, encoding_format="png"
                    ),
                }
            ),
            disable_shuffling=True,
            description=description,
            homepage=homepage,
        )

    @staticmethod
    def _example(key, image, mask):
        return (
            key,
            {
                "key": key,
                "image": segmentation.to_grey(image)[..., None],
                "segmentation_mask": mask.astype(np.uint16)[..., None],
            },
        )


class DicC2dhHela(_SegmentationBuilder):
    """DIC-C2DH-HeLa of the Cell Tracking Challenge: HeLa cells on glass.

    The frames of both training sequences that have a segmentation by hand, 512x512
    pixels of 0.19 micrometres, with keys such as `01/t000`.

    Reference:
        Maška et al., 2014, "A benchmark for comparison of cell tracking algorithms",
        Bioinformatics 30(11).
    """

    name = "dic_hela"

    def _info(self):
        return self._features(
            "HeLa cells in differential interference contrast microscopy, with "
            "instance masks.",
            "https://celltrackingchallenge.net/2d-datasets/",
        )

    def _split_generators(self, dl_manager):
        path = dl_manager.download_and_extract(_URL)
        return {"train": self._generate_examples(path / "DIC-C2DH-HeLa")}

    def _generate_examples(self, path):
        for sequence in ("01", "02"):
            frames = _numbered(path / sequence, _IMAGE_NAME)
            masks = _numbered(path / f"{sequence}_GT" / "SEG", _MASK_NAME)
            missing = sorted(masks.keys() - frames.keys())
            if missing or not masks:
                raise ValueError(
                    f"{str(path)!r} must hold masks {sequence}_GT/SEG/man_seg000.tif, "
                    f"... and an image {sequence}/t000.tif of each, but has "
                    f"{len(masks)} masks, {len(missing)} of them without image"
                    f"{f' (the first: frame {missing[0]})' if missing else ''}."
                )
            for number in sorted(masks):
                yield self._example(
                    f"{sequence}/t{number:03d}",
                    mask_folder.read_image(frames[number]),
                    mask_folder.read_mask(masks[number]),
                )


def _numbered(folder, pattern):
    """Frame number -> path of the files in a folder whose names match."""
    files = folder.iterdir() if folder.is_dir() else ()
    matches = ((pattern.fullmatch(file.name), file) for file in files)
    return {int(match[1]): file for match, file in matches if match}


@dataclasses.dataclass(eq=False)
class FolderConfig(tfds.core.BuilderConfig):
    """A folder of images and masks.

    Attributes:
        folder: Its path, as `bayesnorm.datasets.mask_folder.pairs` needs it.
    """

    folder: str | None = None


class SegmentationFolder(_SegmentationBuilder):
    """Images and masks of a folder, by default the one where TFDS looks for files.

    Sets of several folders need names:
    `SegmentationFolder(config=FolderConfig(name="mine", folder=...), data_dir=...)`.
    """

    name = "segmentation_folder"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put images into the folder `images` and masks of the same names into `labels`."
    )

    def _info(self):
        return self._features("Images and instance masks of a folder.")

    @property
    def manual_download_instructions(self):
        """None, as TFDS wants it, where the folder is known."""
        folder = getattr(self.builder_config, "folder", None)
        return None if folder else self.MANUAL_DOWNLOAD_INSTRUCTIONS

    def _split_generators(self, dl_manager):
        folder = getattr(self.builder_config, "folder", None) or dl_manager.manual_dir
        return {"train": self._generate_examples(folder)}

    def _generate_examples(self, folder):
        for example in mask_folder.read(folder):
            yield self._example(*example)


@dataclasses.dataclass(eq=False)
class CellsConfig(tfds.core.BuilderConfig):
    """Arguments of `bayesnorm.datasets.synthetic_cells.make_cells`.

    Attributes:
        count: Number of images.
        size: Height and width in pixels.
        seed: Integer from 0.
    """

    count: int = 60
    size: int = 64
    seed: int = 0


class SyntheticCells(_SegmentationBuilder):
    """Synthetic cells as TFDS set: `SyntheticCells(config=CellsConfig(name=...))`."""

    name = "synthetic_cells"
    BUILDER_CONFIGS = (CellsConfig(name="64x64", description="60 images of 64x64."),)

    def _info(self):
        return self._features("Synthetic cells in differential interference contrast.")

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(self.builder_config)}

    def _generate_examples(self, config):
        arrays = synthetic_cells.make_cells(config.count, config.size, config.seed)
        for i, (image, labels) in enumerate(zip(*arrays, strict=True)):
            yield self._example(f"{i:06d}", image, labels)
