"""Conversion of TensorFlow Datasets sets to files that need no TensorFlow."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bayesnorm import datasets
from bayesnorm.datasets import tfds as named_sets

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("tensorflow")

from bayesnorm.datasets import convert  # noqa: E402

PARTS = ("train", "validation", "test")
CLASSES = named_sets.SOURCES["cifar10"].class_names


def prepare(
    directory, name, counts, shape, form, names, size=lambda i: None, file_format=None
):
    """Writes a set as TensorFlow Datasets does; returns its images by part."""
    rng = np.random.default_rng(0)
    truth = {
        part: [
            rng.integers(0, 256, size(i) or shape, "uint8").squeeze()
            for i in range(count)
        ]
        for part, count in counts.items()
    }

    def encoded(image):
        file = io.BytesIO()
        Image.fromarray(image).save(file, form, quality=75)
        return file.getvalue()

    def info(self):
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=shape, encoding_format=form),
            "label": tfds.features.ClassLabel(names=names),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def generate(self, part):
        for i, image in enumerate(truth[part]):
            file = io.BytesIO(encoded(image))
            yield i, {"id": str(i), "image": file, "label": i % len(names)}

    body = {
        "VERSION": tfds.core.Version("3.0.2"),
        "name": name,
        "_info": info,
        "_split_generators": lambda self, _: {
            part: self._generate_examples(part) for part in counts
        },
        "_generate_examples": generate,
    }
    base = tfds.core.GeneratorBasedBuilder
    builder = type("Small", (base,), body, skip_registration=True)
    builder(data_dir=directory, file_format=file_format).download_and_prepare()
    return {part: [*map(encoded, images)] for part, images in truth.items()}


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory):
    """A small `cifar10` of JPEG files, and these."""
    directory = tmp_path_factory.mktemp("jpeg")
    counts = {"train": 60, "test": 20}
    return directory, prepare(
        directory, "cifar10", counts, (32, 32, 3), "jpeg", CLASSES
    )


@pytest.fixture(scope="module")
def png(tmp_path_factory):
    """A small set of PNG files, and these."""
    directory = tmp_path_factory.mktemp("png")
    counts = {"train": 60, "test": 20}
    return directory, prepare(
        directory, "shades", counts, (6, 5, 1), "png", ["b", "a", "c"]
    )


@pytest.mark.parametrize("seed", [0, 3])
def test_an_archive_is_the_set_but_for_the_decoder(tmp_path, jpeg, seed):
    directory, files = jpeg
    file = tmp_path / "new" / "cifar10.npz"
    counts = convert.convert("cifar10", directory, file, split_seed=seed)
    assert counts == {"train": 54, "validation": 6, "test": 20}
    with np.load(file) as archive:
        data, offsets = archive["test_images"], archive["test_offsets"]
    assert data.tobytes() == b"".join(files["test"])
    assert offsets.tolist() == np.cumsum([0, *map(len, files["test"])]).tolist()
    found = datasets.load("npz", file)
    expected = datasets.load("cifar10", directory, split_seed=seed)
    assert found.name == "cifar10"
    assert found.class_names == expected.class_names
    for part in PARTS:
        one, other = getattr(found, part), getattr(expected, part)
        np.testing.assert_array_equal(one.labels, other.labels)
        difference = np.abs(one.images.astype(int) - other.images)
        # Another image of noise would differ by 85.
        assert difference.max() <= 8
    held_out = datasets.load("npz", file, held_out=["cat", "3", "9"][1:])
    assert held_out.ood_class_names == ("cat", "truck")


def test_decoders_of_jpeg_agree_on_the_accurate_transform(tmp_path, jpeg):
    import tensorflow as tf

    directory, files = jpeg
    convert.convert("cifar10", directory, tmp_path / "a.npz")
    found = datasets.load("npz", tmp_path / "a.npz").test.images
    for image, file in zip(found, files["test"], strict=True):
        exact = tf.io.decode_jpeg(file, dct_method="INTEGER_ACCURATE")
        np.testing.assert_array_equal(image, exact)


def test_pixels_of_png_files(tmp_path, png):
    directory, files = png
    convert.convert("shades", directory, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as archive:
        assert archive["train_images"].shape == (54, 6, 5, 1)
        assert str(archive["name"]) == "shades"
    found = datasets.load("npz", tmp_path / "a.npz")
    assert found.class_names == ("b", "a", "c")
    exact = [np.asarray(Image.open(io.BytesIO(file))) for file in files["test"]]
    np.testing.assert_array_equal(found.test.images[..., 0], exact)
    order = np.random.default_rng(0).permutation(60)
    np.testing.assert_array_equal(found.validation.labels, order[:6] % 3)
    np.testing.assert_array_equal(found.train.labels, order[6:] % 3)


def test_a_folder_holds_the_same_files(tmp_path, png):
    directory, files = png
    convert.convert("shades", directory, tmp_path / "own")
    convert.convert("shades", directory, tmp_path / "a.npz")
    assert (tmp_path / "own/test/c/02.png").read_bytes() == files["test"][2]
    assert len(list((tmp_path / "own").rglob("*.png"))) == 80
    folder = datasets.load("image_folder", tmp_path / "own")
    archive = datasets.load("npz", tmp_path / "a.npz")
    assert folder.class_names == ("a", "b", "c")
    for part in PARTS:
        pairs = [
            {
                (image.tobytes(), splits.class_names[label])
                for image, label in zip(split.images, split.labels, strict=True)
            }
            for splits in (folder, archive)
            for split in [getattr(splits, part)]
        ]
        assert pairs[0] == pairs[1]


def test_sizes_that_differ_and_no_test_part(tmp_path):
    sizes = [(6, 5, 3), (8, 9, 3), (20, 4, 3)]
    files = prepare(
        tmp_path,
        "photographs",
        {"train": 30},
        (None, None, 3),
        "png",
        ["a", "b"],
        lambda i: sizes[i % 3],
    )
    counts = convert.convert("photographs", tmp_path, tmp_path / "a.npz")
    assert counts == {"train": 27, "validation": 3}
    with np.load(tmp_path / "a.npz") as archive:
        offsets = archive["validation_offsets"]
    order = np.random.default_rng(0).permutation(30)[:3]
    assert np.diff(offsets).tolist() == [len(files["train"][i]) for i in order]
    with pytest.raises(ValueError, match="--resize="):
        datasets.load("npz", tmp_path / "a.npz")
    splits = datasets.load("npz", tmp_path / "a.npz", resize=8)
    assert splits.image_shape == (8, 8, 3)
    assert len(splits.train) + len(splits.test) == 27


def test_what_is_there_is_kept(tmp_path, png):
    directory, _ = png
    file = tmp_path / "a.npz"
    file.write_text("mine")
    with pytest.raises(ValueError, match=r"a\.npz' exists\. Pass --overwrite"):
        convert.convert("shades", directory, file)
    assert file.read_text() == "mine"
    convert.convert("shades", directory, file, overwrite=True)
    assert len(datasets.load("npz", file).test) == 20
    folder = tmp_path / "own"
    (folder / "photos").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds photos, which this program did not"):
        convert.convert("shades", directory, folder, overwrite=True)
    (folder / "photos").rename(folder / "train")
    convert.convert("shades", directory, folder, overwrite=True)
    assert len(datasets.load("image_folder", folder).test) == 20
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "own"}


def test_sets_that_are_refused(tmp_path, png, monkeypatch):
    directory, _ = png
    with pytest.raises(ValueError, match=r"'beans' is not at .*`tfds build beans"):
        convert.convert("beans", directory, tmp_path / "a.npz")
    info = tfds.core.DatasetInfo
    monkeypatch.setattr(info, "supervised_keys", ("image", "image"))
    with pytest.raises(ValueError, match=r"no set of images .*\('image', 'image'\)"):
        convert.convert("shades", directory, tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


def test_without_tensorflow(tmp_path, jpeg, monkeypatch):
    pytest.importorskip("array_record")
    counts = {"train": 60, "test": 20}
    files = prepare(
        tmp_path / "records",
        "cifar10",
        counts,
        (32, 32, 3),
        "jpeg",
        CLASSES,
        file_format="array_record",
    )
    monkeypatch.setattr(named_sets, "_has_tensorflow", lambda: False)
    splits = datasets.load("cifar10", tmp_path / "records")
    exact = [np.asarray(Image.open(io.BytesIO(file))) for file in files["test"]]
    np.testing.assert_array_equal(splits.test.images, exact)
    np.testing.assert_array_equal(splits.test.labels, np.arange(20) % 10)
    convert.convert("cifar10", tmp_path / "records", tmp_path / "a.npz")
    again = datasets.load("npz", tmp_path / "a.npz")
    np.testing.assert_array_equal(again.train.images, splits.train.images)
    with pytest.raises(ImportError, match=r"'cifar10' is read .*datasets\.convert"):
        datasets.load("cifar10", jpeg[0])
    with pytest.raises(ImportError, match="needs the packages tensorflow"):
        named_sets.read("cifar10", jpeg[0], False, lambda builder: builder)


def test_the_program(tmp_path, png):
    directory, _ = png
    command = [sys.executable, "-m", "bayesnorm.datasets.convert", "--dataset=shades"]
    command += [f"--data_dir={directory}", f"--output={tmp_path / 'a.npz'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "54 train, 6 validation, 20 test" in done.stdout
    assert "reading train" in done.stdout
