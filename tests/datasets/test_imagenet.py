"""ImageNet read while it is trained on: a small set of its layout."""

import io

import numpy as np
import pytest
from PIL import Image

from bayesnorm import datasets
from bayesnorm.training import Config, of_splits

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("tensorflow")

COUNTS = {"train": 260, "validation": 7}
SIZE = (48, 48)


def ramps(height, width, blue):
    """A JPEG file that shows where a crop was: red is x, green y, of 255."""
    image = np.empty((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, width)
    image[..., 1] = np.linspace(0, 255, height)[:, None]
    image[..., 2] = blue
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=98, subsampling=0)
    return file.getvalue()


def sides(i):
    """Height and width of image `i`."""
    return 120 + 10 * (i % 5), 200 - 10 * (i % 7)


def make_imagenet(directory):
    """Writes a set of ImageNet's layout, the label of image `i` is `i % 1000`."""

    # The registered builder of this name is the one that reads the files again.
    class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.builder_cls("imagenet2012").VERSION
        name = "imagenet2012"

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=1000),
                    "file_name": tfds.features.Text(),
                }
            )
            return tfds.core.DatasetInfo(
                builder=self,
                features=features,
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, manager):
            return {part: self._generate_examples(n) for part, n in COUNTS.items()}

        def _generate_examples(self, count):
            for i in range(count):
                file = io.BytesIO(ramps(*sides(i), blue=i % 256))
                yield i, {"image": file, "label": i % 1000, "file_name": f"{i}.JPEG"}

    Imagenet2012(data_dir=directory).download_and_prepare()
    return directory


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder of TensorFlow Datasets with the set."""
    return make_imagenet(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="module")
def splits(data_dir):
    """The set, opened."""
    return datasets.load("imagenet2012", data_dir=data_dir, resize=SIZE)


def windows(images, labels):
    """Top, left, height and width of crops in parts of the image, and flips."""
    images = images.astype(float) / 255

    def along(ramp, count):
        # From centres of pixels, 0 to 1, to parts of the side; away from the edges,
        # where scaling leaves something.
        part = (ramp * (count[:, None] - 1) + 0.5) / count[:, None]
        slope, centre = np.polyfit(np.arange(8, 40) - 23.5, part[:, 8:40].T, 1)
        return 48 * slope, centre

    rows, columns = np.array([sides(i) for i in labels]).T
    height, centre_y = along(images[..., 1].mean(2), rows)
    width, centre_x = along(images[..., 0].mean(1), columns)
    flipped, width = width < 0, np.abs(width)
    return centre_y - height / 2, centre_x - width / 2, height, width, flipped


def read(splits, seed=3, epoch=0, augment=True, count=None):
    """All examples of an epoch of the training part."""
    count = count or len(splits.train)
    found = list(splits.train.read(seed, epoch, augment, count))
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def test_parts(splits):
    # A 128th of 260, rounded up, is validation: the last three.
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [257, 3, 7]
    assert splits.image_shape == (*SIZE, 3)
    assert splits.num_classes == 1000
    assert splits.class_names[0] == "n01440764"
    train = read(splits)[1]
    together = np.sort(np.concatenate([train, splits.validation.labels]))
    np.testing.assert_array_equal(together, np.arange(260))
    np.testing.assert_array_equal(np.sort(splits.test.labels), np.arange(7))
    blue = splits.test.images[..., 2].mean((1, 2))
    np.testing.assert_allclose(blue, splits.test.labels, atol=2)


def test_centre_of_a_test_image(splits):
    test = splits.test
    top, left, height, width, flipped = windows(test.images, test.labels)
    rows, columns = np.array([sides(i) for i in test.labels]).T
    side = np.floor(0.875 * np.minimum(rows, columns))
    np.testing.assert_allclose(height, side / rows, atol=0.01)
    np.testing.assert_allclose(width, side / columns, atol=0.01)
    np.testing.assert_allclose(top, (1 - side / rows) / 2, atol=0.01)
    np.testing.assert_allclose(left, (1 - side / columns) / 2, atol=0.01)
    assert not flipped.any()


def test_random_crops(splits):
    images, labels = read(splits)
    top, left, height, width, flipped = windows(images, labels)
    rows, columns = np.array([sides(i) for i in labels]).T
    area, ratio = height * width, width * columns / (height * rows)
    assert area.min() > 0.06
    assert area.max() < 1.03
    assert ratio.min() > 0.72
    assert ratio.max() < 1.38
    assert top.min() > -0.02
    assert (top + height).max() < 1.02
    assert left.min() > -0.02
    assert (left + width).max() < 1.02
    # Half are flipped: 257 / 2 with a standard deviation of 8.
    assert abs(flipped.sum() - 128) < 40
    # Areas are uniform but for crops that do not fit: not all large, not all small.
    assert 0.3 < area.mean() < 0.7
    assert area.std() > 0.15
    assert top.std() > 0.05
    assert left.std() > 0.05


def test_order_and_crops_are_of_seed_and_epoch(splits):
    first = read(splits)
    for one, again in zip(first, read(splits), strict=True):
        np.testing.assert_array_equal(one, again)
    for other in ({"epoch": 1}, {"seed": 4}):
        images, labels = read(splits, **other)
        np.testing.assert_array_equal(np.sort(labels), np.sort(first[1]))
        assert (labels == first[1]).mean() < 0.1
        # The same image has another crop.
        match = images[np.argsort(labels)] == first[0][np.argsort(first[1])]
        assert match.all((1, 2, 3)).mean() < 0.1


def test_without_augmentation(splits):
    images, labels = read(splits, augment=False)
    shown = dict(zip(splits.train.labels, splits.train.images, strict=True))
    for image, label in zip(images, labels, strict=True):
        np.testing.assert_array_equal(image, shown[label])


def test_first_examples(splits):
    part = splits.train.first(40)
    assert len(part) == 40
    assert len(part.images) == 40
    labels = np.concatenate([y for _, y in part.read(0, 0, True, 40)])
    np.testing.assert_array_equal(np.sort(labels), np.sort(part.labels))
    assert set(part.labels) < set(splits.train.labels)


def test_sources(splits):
    sources = of_splits(splits, augment=True, seed=3)
    config = Config(epochs=2, batch_size=64, seed=3)
    (block,) = sources["train"].training(config, 0)
    assert block.steps == 4  # 257 // 64
    images, labels = read(splits)
    np.testing.assert_array_equal(np.asarray(block.labels)[:256], labels[:256])
    np.testing.assert_array_equal(np.asarray(block.images)[:256], images[:256])
    (block,) = sources["validation"].evaluation(config)
    assert block.weights.sum() == 3


def test_test_part_as_a_stream(splits, monkeypatch):
    monkeypatch.setattr("bayesnorm.datasets.splits._CHUNK", 3)
    chunks = list(splits.part_inputs("test"))
    assert [len(chunk) for chunk in chunks] == [3, 3, 1]
    np.testing.assert_array_equal(
        np.concatenate(chunks), splits.inputs(splits.test.images)
    )


def test_no_held_out_classes(data_dir):
    with pytest.raises(ValueError, match="No class of 'imagenet2012' can be held out"):
        datasets.load("imagenet2012", data_dir=data_dir, held_out=["n01440764"])


def test_missing(tmp_path):
    with pytest.raises(ValueError, match="data set 'imagenet2012' is not at"):
        datasets.load("imagenet2012", data_dir=tmp_path)
