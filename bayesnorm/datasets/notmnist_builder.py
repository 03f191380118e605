"""TensorFlow Datasets builder of notMNIST; importing it imports TFDS."""

import numpy as np
import tensorflow_datasets as tfds

_LETTERS = tuple("ABCDEFGHIJ")
_URL = "http://yaroslavvb.com/upload/notMNIST/notMNIST_small.tar.gz"


class Notmnist(tfds.core.GeneratorBasedBuilder):
    """The hand-cleaned small part of notMNIST, all of it as `test`.

    The archive holds a folder of PNG files for each letter. Some two of them are
    known to be broken: files that are no pictures of 28x28 pixels are left out.
    """

    name = "notmnist"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(names=_LETTERS),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://yaroslavvb.blogspot.com/2011/09/notmnist-dataset.html",
            description="Letters A to J in many fonts, 28x28, white on black.",
        )

    def _split_generators(self, dl_manager):
        path = dl_manager.download_and_extract(_URL)
        return {"test": self._generate_examples(path / "notMNIST_small")}

    def _generate_examples(self, path):
        from matplotlib import image

        for letter in _LETTERS:
            for file in sorted((path / letter).glob("*.png")):
                try:
                    with file.open("rb") as picture:
                        pixels = image.imread(picture, format="png")
                except (OSError, SyntaxError, ValueError):
                    continue
                if pixels.shape != (28, 28):
                    continue
                yield (
                    f"{letter}/{file.name}",
                    {
                        "image": np.round(255 * pixels).astype("uint8")[..., None],
                        "label": letter,
                    },
                )
