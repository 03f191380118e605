import dataclasses
import os
import shutil
import subprocess
import sys
import zlib

import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats

from bayesnorm import datasets
from bayesnorm.backend import compiled

PARTS = ("train", "validation", "test")


def arrays(n=6, classes=3, shape=(4, 4, 1), dtype="uint8"):
    images = np.arange(n * np.prod(shape)).reshape(n, *shape) % 200
    return images.astype(dtype), np.arange(n) % classes


def checksum(array):
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def rows(split):
    """The images as a set, to compare parts."""
    return {image.tobytes() for image in split.images}


# Digits


def test_digits_parts():
    splits = datasets.load("digits")
    assert [len(getattr(splits, part)) for part in PARTS] == [1011, 144, 288]
    assert len(splits.ood) == 354
    assert splits.num_classes == 8
    assert splits.class_names == tuple("01234567")
    assert splits.ood_class_names == ("8", "9")
    assert splits.image_shape == (8, 8, 1)
    total = sum(len(rows(getattr(splits, p))) for p in (*PARTS, "ood"))
    assert len(set.union(*(rows(getattr(splits, p)) for p in (*PARTS, "ood")))) == total
    assert total == 1797


def test_digits_are_stratified():
    splits = datasets.load("digits")
    counts = np.array([np.bincount(getattr(splits, part).labels) for part in PARTS])
    assert np.abs(counts - [[0.7], [0.1], [0.2]] * counts.sum(0)).max() <= 1


def test_digits_split_stays_what_it_is():
    splits = datasets.load("digits")
    assert [checksum(getattr(splits, part).labels) for part in PARTS] == [
        3665311558,
        3483272535,
        1872552560,
    ]


def test_digits_labels_follow_the_images():
    from sklearn.datasets import load_digits

    raw = load_digits()
    known = {
        image.astype("uint8")[..., None].tobytes(): label
        for image, label in zip(raw.images, raw.target, strict=True)
    }
    splits = datasets.load("digits", held_out=(0, "5"))
    for part in (*PARTS, "ood"):
        names = splits.ood_class_names if part == "ood" else splits.class_names
        split = getattr(splits, part)
        found = [int(names[label]) for label in split.labels]
        assert found == [known[image.tobytes()] for image in split.images], part


def test_split_seed_leaves_the_test_part():
    one, other = (datasets.load("digits", split_seed=seed) for seed in (0, 1))
    again = datasets.load("digits", split_seed=1)
    np.testing.assert_array_equal(one.test.images, other.test.images)
    assert rows(one.validation) != rows(other.validation)
    np.testing.assert_array_equal(other.train.images, again.train.images)


def test_nothing_held_out():
    splits = datasets.load("digits", held_out=())
    assert splits.ood is None
    assert splits.num_classes == 10


def test_inputs_and_statistics():
    splits = datasets.load("digits")
    inputs = splits.inputs(splits.train.images)
    assert inputs.dtype == np.float32
    assert (inputs.min(), inputs.max()) == (0, 1)
    exact = splits.train.images / 16
    np.testing.assert_allclose(splits.channel_mean, [exact.mean()], rtol=1e-12)
    np.testing.assert_allclose(splits.channel_stddev, [exact.std()], rtol=1e-12)


def test_statistics_by_channel(rng):
    images = rng.normal(100, [1, 1e-3, 0], (700, 3, 2, 3)).astype("float32")
    mean, stddev = datasets.channel_statistics(images, 0.5)
    exact = images.astype("float64") / 2
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(stddev[:2], exact.std((0, 1, 2))[:2], rtol=1e-9)
    assert stddev[2] == 1


@pytest.mark.parametrize(
    ("name", "held_out", "match"),
    [
        ("cifar100", None, r"Unknown data set 'cifar100', expected one of .*digits"),
        ("digits", (10,), "no class 10"),
        ("digits", ("cat",), "no class 'cat'"),
        ("digits", (True,), "no class True"),
        ("digits", (1, "1"), "a class twice"),
        ("digits", range(9), "leaves 1 of 10 classes"),
        ("cifar10", ("zebra",), "names of .*'airplane'"),
    ],
)
def test_load_refuses(name, held_out, match):
    with pytest.raises(ValueError, match=match):
        datasets.load(name, held_out=held_out)


# A user's own arrays


def test_from_arrays():
    images, labels = arrays(dtype="float64", shape=(4, 4))
    splits = datasets.from_arrays(
        (images, labels.astype("int32")), arrays(dtype="f"), arrays(dtype="f"), images
    )
    assert splits.image_shape == (4, 4, 1)
    assert splits.train.images.dtype == np.float32
    assert splits.train.labels.dtype == np.int64
    assert splits.class_names == ("0", "1", "2")
    assert splits.scale == 1
    assert len(splits.ood) == 6
    assert datasets.from_arrays(*[arrays()] * 3).scale == 1 / 255
    assert datasets.validate(splits) is splits


def with_pixel(value):
    images, labels = arrays(dtype="float32")
    images[4, 1, 2, 0] = value
    return images, labels


FLOAT = arrays(dtype="float32")


@pytest.mark.parametrize(
    ("train", "test", "match"),
    [
        (with_pixel(np.nan), FLOAT, r"'train'.* 1 of 6 images hold .*images\[4\]"),
        (FLOAT, with_pixel(np.inf), "part 'test': pixels must be finite"),
        (arrays(0), arrays(), "'train': there are no pixels"),
        (arrays(), arrays(0), "'test': there are no pixels"),
        (arrays(), arrays(classes=4), r"0\.\.2, but 1 do not.* labels\[3\] = 3"),
        (arrays(), (arrays()[0], -arrays()[1]), r"labels must lie in 0\.\.2"),
        (arrays(), arrays(shape=(4, 5, 1)), r"uint8 \(4, 4, 1\), but 'test'.*4, 5"),
        (arrays(), FLOAT, r"but 'test' has float32"),
        (arrays(dtype="int64"), arrays(), "uint8 or float32 NumPy array, got int64"),
        (arrays(shape=(4,)), arrays(), r"\[n, height, width, channels\]"),
        (arrays(), (arrays()[0], arrays()[1][:3]), r"`labels` must be \[6\]"),
        (arrays(), (arrays()[0], np.eye(6)), "int64 NumPy array, got float64"),
        (arrays(classes=1), arrays(classes=1), "at least 2 trained classes"),
        (arrays()[0], arrays(), r"must be a pair \(images, labels\)"),
    ],
)
def test_from_arrays_refuses(train, test, match):
    with pytest.raises(ValueError, match=match):
        datasets.from_arrays(train, train, test)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"scale": 0.0}, "`scale` must be finite and positive, got 0.0"),
        ({"channel_stddev": np.zeros(1)}, "needs 1 finite positive numbers"),
        ({"channel_mean": np.zeros(3)}, "`channel_mean` needs 1 finite"),
        ({"class_names": ("a", "a", "b")}, "3 different names"),
        ({"train": None}, r"must be a Split\(images, labels\), got NoneType"),
        ({"ood_class_names": ("x",), "ood": "train"}, r"'ood': labels must lie"),
    ],
)
def test_splits_refuse(changes, match):
    splits = datasets.from_arrays(*[arrays()] * 3)
    if changes.get("ood") == "train":
        changes = {**changes, "ood": splits.train}
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(splits, **changes)


# TensorFlow Datasets


def test_tfds_is_imported_only_on_use():
    code = (
        "import sys, keras; from bayesnorm import datasets; datasets.load('digits');"
        "datasets.load_segmentation('cells', downscale=4);"
        "assert 'tensorflow_datasets' not in sys.modules;"
        "assert keras.backend.backend() == 'tensorflow' or"
        " 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tfds_missing(monkeypatch, tmp_path):
    version = tmp_path / "cifar10" / "3.0.2"
    version.mkdir(parents=True)
    (version / "dataset_info.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        ImportError,
        match=r"needs the packages tensorflow .*datasets\.convert .*from_arr",
    ):
        datasets.load("cifar10", data_dir=tmp_path)


def fake_pixel(index):
    """Images that tell their index, their label being `index % 10`."""
    return np.full((32, 32, 3), index, "uint8")


COUNTS = {"train": 120, "test": 40}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A small `cifar10`, written by TensorFlow Datasets as it writes the real one."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")

    # The registered builder of this name is the one that reads the files again.
    class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.builder_cls("cifar10").VERSION
        name = "cifar10"

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(32, 32, 3)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            )
            return tfds.core.DatasetInfo(
                builder=self,
                features=features,
                supervised_keys=("image", "label"),
                disable_shuffling=True,
            )

        def _split_generators(self, manager):
            return {part: self._generate_examples(n) for part, n in COUNTS.items()}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"id": str(i), "image": fake_pixel(i), "label": i % 10}

    directory = tmp_path_factory.mktemp("tfds")
    Cifar10(data_dir=directory).download_and_prepare()
    return directory


def test_tfds_parts(data_dir):
    splits = datasets.load("cifar10", data_dir=data_dir)
    assert [len(getattr(splits, part)) for part in PARTS] == [108, 12, 40]
    for part in PARTS:
        split = getattr(splits, part)
        index = split.images[:, 0, 0, 0].astype(int)
        np.testing.assert_array_equal(split.images, [fake_pixel(i) for i in index])
        np.testing.assert_array_equal(split.labels, index % 10)
    order = np.random.default_rng(0).permutation(120)
    np.testing.assert_array_equal(splits.validation.images[:, 0, 0, 0], order[:12])
    np.testing.assert_array_equal(splits.train.images[:, 0, 0, 0], order[12:])
    np.testing.assert_array_equal(splits.test.images[:, 0, 0, 0], np.arange(40))
    assert splits.scale == 1 / 255
    assert splits.ood is None


def test_tfds_held_out_classes(data_dir):
    whole = datasets.load("cifar10", data_dir=data_dir)
    splits = datasets.load("cifar10", data_dir=data_dir, held_out=("dog", 0, 9))
    assert splits.ood_class_names == ("airplane", "dog", "truck")
    assert splits.num_classes == 7
    assert len(splits.ood) == 12
    for part in PARTS:
        old, new = getattr(whole, part), getattr(splits, part)
        kept = ~np.isin(old.labels, (0, 5, 9))
        np.testing.assert_array_equal(new.images, old.images[kept])
        names = [whole.class_names[i] for i in old.labels[kept]]
        assert [splits.class_names[i] for i in new.labels] == names


def test_tfds_default_directory(monkeypatch, data_dir):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert len(datasets.load("cifar10").test) == 40


def test_tfds_missing_directory(tmp_path, data_dir):
    with pytest.raises(ValueError, match=r"which does not exist\. .*download=True"):
        datasets.load("cifar10", data_dir=tmp_path / "none")
    with pytest.raises(ValueError, match="which holds nothing"):
        datasets.load("mnist", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"'mnist' is not at .* holds cifar10"):
        datasets.load("mnist", data_dir=data_dir)
    with pytest.raises(ValueError, match=f"did you mean data_dir='{data_dir}'"):
        datasets.load("cifar10", data_dir=data_dir / "cifar10")


@pytest.mark.parametrize("damage", ["shorten", "remove", "garble", "version"])
def test_tfds_broken_directory(tmp_path, data_dir, damage):
    copy = tmp_path / "copy"
    shutil.copytree(data_dir, copy)
    (version,) = (copy / "cifar10").iterdir()
    (records,) = version.glob("cifar10-train*")
    if damage == "shorten":
        os.truncate(records, records.stat().st_size // 2)
    elif damage == "remove":
        records.unlink()
    elif damage == "garble":
        (version / "dataset_info.json").write_text("{")
    else:
        version.rename(version.with_name("0.0.1"))
    with pytest.raises(ValueError, match=r"could not be read from .*\n?.*Expected"):
        datasets.load("cifar10", data_dir=copy)


@pytest.mark.parametrize(
    ("name", "counts", "shape"),
    [
        ("cifar10", (45000, 5000, 10000), (32, 32, 3)),
        ("mnist", (55000, 5000, 10000), (28, 28, 1)),
    ],
)
def test_tfds_real(name, counts, shape):
    directory = os.environ.get("BAYESNORM_DATA_DIR")
    if not directory:
        pytest.skip("set BAYESNORM_DATA_DIR to a TensorFlow Datasets directory")
    pytest.importorskip("tensorflow_datasets")
    splits = datasets.load(name, data_dir=directory)
    assert tuple(len(getattr(splits, part)) for part in PARTS) == counts
    assert splits.image_shape == shape
    assert (np.bincount(splits.test.labels) > 850).all()


# Augmentation


def numpy_shift(images, offsets):
    out = np.zeros_like(images)
    height, width = images.shape[1:3]
    for i, (down, right) in enumerate(offsets):
        for r in range(height):
            for c in range(width):
                if 0 <= r - down < height and 0 <= c - right < width:
                    out[i, r, c] = images[i, r - down, c - right]
    return out


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("shape", [(5, 7, 3), (6, 4, 1)])
def test_shift_and_flip(rng, dtype, shape):
    images = rng.integers(1, 255, (9, *shape)).astype(dtype)
    offsets = rng.integers(-3, 4, (9, 2))
    offsets[:2] = [[0, 0], [50, -50]]
    flipped = rng.random(9) < 0.5
    found = ops.convert_to_numpy(datasets.shift_images(images, offsets))
    np.testing.assert_array_equal(found, numpy_shift(images, offsets))
    assert found.dtype == dtype
    found = ops.convert_to_numpy(datasets.flip_images(images, flipped))
    expected = np.where(flipped[:, None, None, None], images[:, :, ::-1], images)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == dtype


def found_offsets(images):
    """Where the one bright pixel of each image lies."""
    flat = ops.convert_to_numpy(images).reshape(len(images), -1).argmax(-1)
    return np.stack(np.unravel_index(flat, images.shape[1:3]), -1)


def test_random_shift_is_uniform_and_independent():
    images = np.zeros((5000, 5, 5, 1), "float32")
    images[:, 2, 2] = 1
    offsets = found_offsets(datasets.RandomShift(2, seed=3)(images, training=True))
    counts = np.bincount(offsets @ [5, 1], minlength=25)
    assert counts.sum() == 5000
    # 25 cells of uniform pairs; wrong in one seed of a thousand.
    assert stats.chisquare(counts).pvalue > 1e-3


def test_random_flip_is_fair():
    images = np.zeros((5000, 1, 2, 1), "float32")
    images[:, :, 0] = 1
    flipped = datasets.RandomFlip(seed=3)(images, training=True)
    count = int(ops.convert_to_numpy(flipped)[:, 0, 1, 0].sum())
    assert stats.binomtest(count, 5000).pvalue > 1e-3


@pytest.mark.parametrize("layer", [datasets.RandomShift, datasets.RandomFlip])
def test_random_layers(rng, layer, tmp_path):
    images = rng.integers(0, 255, (16, 8, 8, 3)).astype("uint8")
    one = layer(seed=5)
    same = ops.convert_to_numpy(one(images))
    np.testing.assert_array_equal(same, images)
    np.testing.assert_array_equal(one(images, training=False), images)
    first = ops.convert_to_numpy(one(images, training=True))
    assert first.dtype == np.uint8
    assert (first != images).any()
    twin = layer.from_config(one.get_config())
    np.testing.assert_array_equal(twin(images, training=True), first)
    second = ops.convert_to_numpy(one(images, training=True))
    assert (second != first).any()

    inputs = keras.Input((8, 8, 3), dtype="uint8")
    model = keras.Model(inputs, one(inputs))
    assert model.output.dtype == "uint8"
    model.save(tmp_path / "model.keras")
    third = ops.convert_to_numpy(one(images, training=True))
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images, training=True), third)


def test_inside_a_compiled_step(rng):
    images = rng.random((6, 8, 8, 3)).astype("float32")
    offsets = np.array([[1, 0], [0, 2], [-2, -1], [0, 0], [2, 2], [1, -1]])
    run = compiled(datasets.shift_images, [])
    np.testing.assert_array_equal(run(images, offsets), numpy_shift(images, offsets))

    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            datasets.RandomShift(2, seed=0),
            datasets.RandomFlip(seed=0),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    model.compile("sgd", "mse")
    layer = model.layers[0]
    before = ops.convert_to_numpy(layer.seed_generator.state.value)
    model.fit(images, np.zeros((6, 2)), batch_size=4, verbose=0)
    after = ops.convert_to_numpy(layer.seed_generator.state.value)
    # Two steps, two draws: the last batch is smaller.
    np.testing.assert_array_equal(after - before, [0, 2])
    outputs = model.predict(images, verbose=0)
    plain = images.reshape(6, -1) @ ops.convert_to_numpy(model.layers[-1].kernel)
    plain = plain + ops.convert_to_numpy(model.layers[-1].bias)
    np.testing.assert_allclose(outputs, plain, rtol=1e-4, atol=1e-5)


def test_no_shift_draws_nothing(rng):
    images = rng.random((2, 4, 4, 1)).astype("float32")
    found = datasets.RandomShift(0)(images, training=True)
    np.testing.assert_array_equal(found, images)


def test_augmentation_refuses():
    with pytest.raises(ValueError, match="0 or more pixels, got -1"):
        datasets.RandomShift(-1)
    with pytest.raises(TypeError, match=r"integer number of pixels, got 1\.5"):
        datasets.RandomShift(1.5)
    with pytest.raises(ValueError, match="8x4 out of sight"):
        datasets.RandomShift(4)(np.zeros((1, 8, 4, 1)))
    with pytest.raises(ValueError, match=r"takes images \[n, height"):
        datasets.RandomFlip()(np.zeros((1, 8)))


def test_augmentation_for_every_set():
    # A set that is streamed is augmented where it is read.
    names = set(datasets.NAMES + datasets.SEGMENTATION_NAMES) - {"imagenet2012"}
    for name in names:
        assert isinstance(datasets.augmentation_for(name), datasets.Augmentation)
    assert datasets.augmentation_for("cifar10") == datasets.Augmentation(2, True)
    with pytest.raises(ValueError, match=r"No default augmentation .*'letters'"):
        datasets.augmentation_for("letters")


def test_reflected_shifts_are_crops_of_a_padded_image(rng):
    images = rng.integers(0, 256, (9, 5, 6, 2), "uint8")
    offsets = rng.integers(-4, 5, (9, 2))
    got = datasets.shift_images(images, offsets, reflect=True)
    padded = np.pad(images, [(0, 0), (4, 4), (4, 4), (0, 0)], mode="reflect")
    for i, (down, right) in enumerate(offsets):
        expected = padded[i, 4 - down : 9 - down, 4 - right : 10 - right]
        np.testing.assert_array_equal(np.asarray(got)[i], expected)
