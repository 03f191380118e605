"""One's own images: class folders, NumPy archives, and the binaries on both."""

import io

import numpy as np
import pytest
from PIL import Image

from bayesnorm import datasets
from bayesnorm.datasets import division, pictures
from trainers import all_cnn, sbn, session
from trainers.evaluation.records import Records
from trainers.flags import defining
from trainers.report import run as report
from trainers.sections import batch_statistics, perturbations

PARTS = ("train", "validation", "test")


def save(path, pixels, **arguments):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(path, **arguments)


def grey(value, size=(6, 5)):
    return np.full(size, value, "uint8")


def make_folder(root, counts, start=0):
    """Class folders of grey pictures, of which no two are alike."""
    value = start
    for name, count in counts.items():
        for i in range(count):
            save(root / name / f"{i:03d}.png", grey(value))
            value += 1
    return root


def values(split):
    return split.images[:, 0, 0, 0].tolist()


# Pictures


def test_pictures_of_all_modes(tmp_path, rng):
    colours = rng.integers(0, 256, (4, 6, 3), "uint8")
    shades = rng.integers(0, 256, (4, 6), "uint8")
    alpha = np.zeros((4, 6, 1), "uint8")
    alpha[:2] = 255
    on_white = np.where(alpha > 0, colours, 255)
    deep = rng.integers(0, 65536, (4, 6)).astype("uint16")
    palette = Image.fromarray(shades % 4).convert("P")
    palette.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60, 250, 240, 230])
    palette.putdata((shades % 4).ravel().tolist())
    table = np.array([[0, 0, 0], [10, 20, 30], [40, 50, 60], [250, 240, 230]])
    cmyk = np.zeros((4, 6, 4), "uint8")
    cmyk[..., 0] = shades
    cases = {
        "rgb.png": (Image.fromarray(colours), colours),
        "rgba.png": (Image.fromarray(np.concatenate([colours, alpha], -1)), on_white),
        "grey.bmp": (Image.fromarray(shades), shades[..., None]),
        "la.png": (
            Image.fromarray(np.stack([shades, alpha[..., 0]], -1), "LA"),
            np.where(alpha > 0, shades[..., None], 255),
        ),
        "palette.png": (palette, table[shades % 4]),
        "bits.png": (Image.fromarray(shades > 99), 255 * (shades > 99)[..., None]),
        "cmyk.tif": (
            Image.fromarray(cmyk, "CMYK"),
            np.stack([255 - shades, grey(255, (4, 6)), grey(255, (4, 6))], -1),
        ),
        "deep.png": (Image.fromarray(deep), (deep / np.float32(65535))[..., None]),
        "deep.tif": (Image.fromarray(deep), (deep / np.float32(65535))[..., None]),
    }
    for name, (picture, expected) in cases.items():
        save(tmp_path / name, picture)
        found = pictures.read(tmp_path / name)
        assert found.dtype == (np.float32 if "deep" in name else np.uint8), name
        np.testing.assert_array_equal(found, expected, err_msg=name)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_the_orientation_of_a_camera_is_applied(tmp_path, ending):
    pixels = np.zeros((8, 16), "uint8")
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned by 90 degrees: its left is the top.
    save(tmp_path / f"a.{ending}", pixels, exif=exif)
    found = pictures.read(tmp_path / f"a.{ending}")[..., 0]
    assert found.shape == (16, 8)
    assert found[:8].min() > 250
    assert found[8:].max() < 5


def test_fit_covers_and_cuts_around_the_centre(rng):
    image = np.repeat(np.arange(4, dtype="uint8") * 50, 3)[None, :, None]
    image = np.repeat(image, 4, axis=0)
    # 12 wide, 4 high: the middle third remains, whole pixels.
    np.testing.assert_array_equal(pictures.fit(image, (4, 4)), image[:, 4:8])
    colours = rng.integers(0, 256, (10, 7, 3), "uint8")
    found = pictures.fit(colours, (5, 6))
    scaled = Image.fromarray(colours).resize(
        (6, 5), Image.Resampling.BILINEAR, (0, 10 / 2 - 35 / 12, 7, 10 / 2 + 35 / 12)
    )
    np.testing.assert_array_equal(found, np.asarray(scaled))
    floats = pictures.fit(colours / np.float32(255), (5, 6))
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats * 255, found, atol=1.01)


def test_channels_are_those_of_pillow(rng):
    colours = rng.integers(0, 256, (9, 7, 3), "uint8")
    found = pictures.with_channels(colours, 1)
    expected = np.asarray(Image.fromarray(colours).convert("L"))
    assert np.abs(found[..., 0].astype(int) - expected).max() <= 1
    assert (found[..., 0] != expected).mean() < 0.05
    np.testing.assert_array_equal(
        pictures.with_channels(found, 3), np.repeat(found, 3, -1)
    )
    with pytest.raises(ValueError, match="4 channels cannot be made ones of 3"):
        pictures.with_channels(np.zeros((1, 1, 4)), 3)


@pytest.mark.parametrize("size", [(6, 5), (150, 150)])
def test_what_is_read_keeps_its_order(tmp_path, size):
    files = []
    for i in range(12):
        save(tmp_path / f"{i:02d}.png", grey(i, size))
        files.append((tmp_path / f"{i:02d}.png").read_bytes())
    found = pictures.read_bytes(files, "x")
    assert found.shape == (12, *size, 1)
    np.testing.assert_array_equal(found[:, 3, 2, 0], range(12))


# Division


def test_classes_are_divided_alike():
    labels = np.repeat([0, 1, 2], [100, 10, 3])
    parts = division.stratified(labels, 3)
    counts = {part: np.bincount(labels[i]).tolist() for part, i in parts.items()}
    assert counts == {
        "train": [70, 7, 1],
        "validation": [10, 1, 1],
        "test": [20, 2, 1],
    }
    assert sorted(np.concatenate([*parts.values()])) == list(range(113))
    other = division.stratified(labels, 4)
    np.testing.assert_array_equal(parts["test"], other["test"])
    assert (parts["validation"] != other["validation"]).any()
    alone = division.stratified(labels, 3, ["validation"])
    assert np.bincount(labels[alone["validation"]]).tolist() == [12, 1, 1]
    assert "test" not in alone


# Class folders


def test_class_folder(tmp_path):
    make_folder(tmp_path, {"b": 10, "a": 10, ".hidden": 1})
    (tmp_path / "a" / "deep").mkdir()
    (tmp_path / "a" / "000.png").rename(tmp_path / "a" / "deep" / "x.PNG")
    (tmp_path / "a" / ".x.png").write_bytes(b"")
    splits = datasets.load("image_folder", tmp_path)
    assert splits.name == "image_folder"
    assert splits.class_names == ("a", "b")
    assert splits.image_shape == (6, 5, 1)
    assert [len(getattr(splits, part)) for part in PARTS] == [14, 2, 4]
    found = []
    for part in PARTS:
        split = getattr(splits, part)
        assert split.images.dtype == np.uint8
        found += values(split)
        # `b` was made first.
        np.testing.assert_array_equal(split.labels, np.array(values(split)) < 10)
    assert sorted(found) == list(range(20))
    other = datasets.load("image_folder", tmp_path, split_seed=1)
    assert values(other.test) == values(splits.test)
    assert values(other.validation) != values(splits.validation)


@pytest.mark.parametrize("validation", ["validation", "val", "valid", None])
def test_class_folder_with_parts(tmp_path, validation):
    make_folder(tmp_path / "Train", {"a": 8, "b": 8})
    make_folder(tmp_path / "test", {"a": 2, "b": 1}, 100)
    if validation:
        make_folder(tmp_path / validation, {"b": 2}, 50)
    splits = datasets.load("image_folder", tmp_path)
    assert values(splits.test) == [100, 101, 102]
    np.testing.assert_array_equal(splits.test.labels, [0, 0, 1])
    if validation:
        assert values(splits.train) == list(range(16))
        assert values(splits.validation) == [50, 51]
        np.testing.assert_array_equal(splits.validation.labels, [1, 1])
    else:
        assert len(splits.validation) == 2
        assert sorted(values(splits.train) + values(splits.validation)) == [*range(16)]


def test_class_folder_out_of_distribution(tmp_path):
    make_folder(tmp_path, {"a": 5, "b": 5})
    make_folder(tmp_path / "ood", {"x": 2, "y": 1}, 50)
    save(tmp_path / "ood" / "z.png", grey(99))
    splits = datasets.load("image_folder", tmp_path)
    assert splits.ood_class_names == ("ood", "x", "y")
    assert dict(zip(values(splits.ood), splits.ood.labels.tolist(), strict=True)) == {
        99: 0,
        50: 1,
        51: 1,
        52: 2,
    }
    assert splits.class_names == ("a", "b")
    make_folder(tmp_path, {"c": 5})
    with pytest.raises(ValueError, match=r"images of its own, and `held_out`=\('a',\)"):
        datasets.load("image_folder", tmp_path, held_out=("a",))


def test_held_out_classes_are_named_before_they_are_counted(tmp_path):
    make_folder(tmp_path, {"5": 5, "7": 5, "9": 5, "cat": 5})
    splits = datasets.load("image_folder", tmp_path, held_out=["5", "3"])
    assert splits.ood_class_names == ("5", "cat")
    assert splits.class_names == ("7", "9")
    assert sorted(values(splits.ood)) == sorted(
        value
        for value in values(datasets.load("image_folder", tmp_path).test)
        if not 5 <= value < 15
    )


def test_mixed_pictures_become_colours_or_grey(tmp_path, rng):
    colours = rng.integers(0, 256, (6, 5, 3), "uint8")
    make_folder(tmp_path, {"a": 6})
    for i in range(5):
        save(tmp_path / "b" / f"{i}.png", colours)
    save(tmp_path / "b" / "deep.png", np.full((6, 5), 257, "uint16"))
    splits = datasets.load("image_folder", tmp_path)
    assert splits.image_shape == (6, 5, 3)
    images = np.concatenate([getattr(splits, part).images for part in PARTS])
    labels = np.concatenate([getattr(splits, part).labels for part in PARTS])
    assert images.dtype == np.float32
    expected = {(colours / np.float32(255)).tobytes()}
    expected.add(np.full((6, 5, 3), 257 / 65535, "float32").tobytes())
    assert {image.tobytes() for image in images[labels == 1]} == expected
    splits = datasets.load("image_folder", tmp_path, channels=1, resize=(3, 4))
    assert splits.image_shape == (3, 4, 1)


def test_files_of_other_endings_are_told(tmp_path):
    make_folder(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "a" / "notes.txt").write_text("by hand")
    save(tmp_path / "loose.png", grey(0))
    with pytest.warns(UserWarning, match=r"2 files are left out.*a/notes\.txt") as told:
        datasets.load("image_folder", tmp_path)
    assert len(told) == 1
    assert "loose.png" in str(told[0].message)


def lacking(root):
    root.rmdir()


def a_file(root):
    root.rmdir()
    root.write_text("")


def one_class(root):
    make_folder(root, {"a": 5})


def empty_class(root):
    make_folder(root, {"a": 5})
    (root / "b").mkdir()


def small_class(root):
    make_folder(root, {"a": 5, "b": 2})


def no_train(root):
    make_folder(root / "test", {"a": 5, "b": 5})


def parts_without_classes(root):
    make_folder(root, {"train": 2, "test": 2})


def class_beside_parts(root):
    make_folder(root / "train", {"a": 5, "b": 5})
    make_folder(root, {"c": 1})


def two_validations(root):
    for part in ("train", "val", "valid"):
        make_folder(root / part, {"a": 5, "b": 5})


def strange_class(root):
    make_folder(root / "train", {"a": 5, "b": 5})
    make_folder(root / "test", {"c": 1})


def sizes(root):
    make_folder(root, {"a": 3, "b": 3})
    save(root / "b" / "wide.png", grey(0, (6, 9)))


def broken(root):
    make_folder(root, {"a": 9, "b": 3})
    for i in range(7):
        (root / "a" / f"{i:03d}.png").write_bytes(b"\x89PNG")


def two_pages(root):
    make_folder(root, {"a": 3, "b": 3})
    frames = [Image.fromarray(grey(value)) for value in (0, 200)]
    frames[0].save(root / "b" / "x.gif", save_all=True, append_images=frames[1:])


def floats(root):
    make_folder(root, {"a": 3, "b": 3})
    save(root / "b" / "x.tif", np.zeros((6, 5), "float32"))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lacking, r"is not there\. Expected a folder for each class"),
        (a_file, r"is no folder\. .* NumPy archive is the data set 'npz'"),
        (lambda root: None, "two classes at least, but has none"),
        (one_class, "two classes at least, but has 'a' alone"),
        (empty_class, r"class folder '.*b' holds no pictures\. Expected files \.png"),
        (
            small_class,
            "validation and test are drawn .*takes 3 of .* are of 'b' 2. Add some",
        ),
        (no_train, "has the part 'test', but no 'train'"),
        (parts_without_classes, "train' must hold a folder for each class"),
        (class_beside_parts, r"parts, train, and beside them c\. .*'ood'"),
        (two_validations, "has 'val' and 'valid', which are one part"),
        (strange_class, "test has the classes c, which train lacks"),
        (sizes, r"a/000.png is 6x5 and b/wide.png is 6x9 .*--resize=6x5"),
        (broken, r"7 of 12 pictures .* a/000.png could not.*a/004.*; and 2 more"),
        (two_pages, r"1 of 7 pictures .*b/x.gif must hold one picture, but holds 2"),
        (floats, r"1 of 7 .*b/x.tif must hold integers of 8 or 16 bits.* float32"),
    ],
)
def test_folders_that_are_refused(tmp_path, make, match):
    root = tmp_path / "folder"
    root.mkdir()
    make(root)
    with pytest.raises(ValueError, match=match):
        datasets.load("image_folder", root)


def test_a_class_may_be_called_train(tmp_path):
    make_folder(tmp_path, {"car": 3, "train": 3})
    assert datasets.load("image_folder", tmp_path).class_names == ("car", "train")


# Archives


def images_of(n, start=0):
    return np.stack([grey(start + i) for i in range(n)])


def archive(tmp_path, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return tmp_path / "a.npz"


@pytest.mark.parametrize(
    "keys",
    [
        ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test"),
        (
            "train_images",
            "train_labels",
            "val_images",
            "val_labels",
            "test_images",
            "test_labels",
        ),
        ("X", "y", "valid_X", "valid_y", "X_test", "Y_test"),
        ("data", "target", "data_valid", "target_valid", "test_data", "test_target"),
        (
            "images",
            "labels",
            "validation_images",
            "validation_labels",
            "TEST_IMAGES",
            "Test_Labels",
        ),
    ],
)
def test_names_that_are_in_use(tmp_path, keys):
    labels = np.arange(6) % 3
    file = archive(
        tmp_path,
        **{
            key: labels[:, None] if i % 2 else images_of(6, 20 * i)
            for i, key in enumerate(keys)
        },
    )
    splits = datasets.load("npz", file)
    assert splits.name == "npz"
    assert splits.image_shape == (6, 5, 1)
    assert splits.scale == 1 / 255
    for i, part in enumerate(PARTS):
        split = getattr(splits, part)
        assert values(split) == list(range(40 * i, 40 * i + 6))
        np.testing.assert_array_equal(split.labels, labels)


def test_missing_parts_are_drawn_from_train(tmp_path):
    file = archive(tmp_path, X=images_of(20), y=np.arange(20) // 10)
    splits = datasets.load("npz", file)
    folder = make_folder(tmp_path / "folder", {"a": 10, "b": 10})
    expected = datasets.load("image_folder", folder)
    for part in PARTS:
        assert values(getattr(splits, part)) == values(getattr(expected, part))
        np.testing.assert_array_equal(
            getattr(splits, part).labels, getattr(expected, part).labels
        )


def test_names_of_an_archive(tmp_path):
    file = archive(
        tmp_path,
        name="cifar10",
        class_names=["cat", "ant"],
        ood_class_names=["bee"],
        images=images_of(6),
        labels=[0, 1] * 3,
        ood_images=images_of(2, 50),
        ood_labels=[0, 0],
    )
    splits = datasets.load("npz", file)
    assert splits.name == "cifar10"
    assert splits.class_names == ("cat", "ant")
    assert splits.ood_class_names == ("bee",)
    assert values(splits.ood) == [50, 51]


@pytest.mark.parametrize(
    ("labels", "class_names", "expected_names", "expected"),
    [
        (["b", "a", "c"], None, ("a", "b", "c"), [1, 0, 2]),
        ([b"b", b"a", b"c"], None, ("a", "b", "c"), [1, 0, 2]),
        (["b", "a", "c"], ["c", "b", "a"], ("c", "b", "a"), [1, 2, 0]),
        ([7, 5, 9], None, ("5", "7", "9"), [1, 0, 2]),
        ([7, 5, 9], ["v", "s", "n"], ("v", "s", "n"), [1, 0, 2]),
        ([2.0, 0.0, 1.0], None, ("0", "1", "2"), [2, 0, 1]),
        ([3, 0, 1], ["a", "b", "c", "d"], ("a", "b", "c", "d"), [3, 0, 1]),
    ],
)
def test_labels_of_an_archive(tmp_path, labels, class_names, expected_names, expected):
    given = {} if class_names is None else {"class_names": class_names}
    parts = {
        f"{part}_{kind}": array
        for part in PARTS
        for kind, array in (("images", images_of(3)), ("labels", labels))
    }
    splits = datasets.load("npz", archive(tmp_path, **parts, **given))
    assert splits.class_names == expected_names
    np.testing.assert_array_equal(splits.test.labels, expected)


@pytest.mark.parametrize(
    ("pixels", "stored"),
    [
        (np.array([0, 7, 255], "uint8"), np.array([0, 7, 255], "uint8")),
        (np.array([0, 7, 255], "int64"), np.array([0, 7, 255], "uint8")),
        (np.array([0, 7, 255], "float64"), np.array([0, 7, 255], "uint8")),
        (np.array([0, 1, 1], "bool"), np.array([0, 255, 255], "uint8")),
        (np.array([0, 7, 65535], "uint16"), np.array([0, 7 / 65535, 1], "float32")),
        (np.array([0, 0.5, 1], "float64"), np.array([0, 0.5, 1], "float32")),
    ],
)
def test_pixels_of_an_archive(tmp_path, pixels, stored):
    images = np.broadcast_to(pixels[:, None, None, None], (3, 4, 4, 3))
    arrays = {f"{part}_images": images for part in PARTS}
    arrays |= {f"{part}_labels": [0, 1, 0] for part in PARTS}
    found = datasets.load("npz", archive(tmp_path, **arrays)).train.images
    assert found.dtype == stored.dtype
    np.testing.assert_array_equal(found[:, 1, 1, 1], stored)


def encoded(arrays, form="png"):
    """Bytes of files, and their offsets."""
    files = []
    for array in arrays:
        file = io.BytesIO()
        Image.fromarray(array).save(file, form)
        files.append(file.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    return np.frombuffer(b"".join(files), "uint8"), offsets


def test_files_in_an_archive(tmp_path, rng):
    arrays = rng.integers(0, 256, (12, 6, 5, 3), "uint8")
    data, offsets = encoded(arrays)
    np.savez_compressed(
        tmp_path / "a.npz",
        train_images=data,
        train_offsets=offsets,
        train_labels=np.arange(12) % 2,
    )
    splits = datasets.load("npz", tmp_path / "a.npz")
    plain = datasets.load("npz", archive(tmp_path, X=arrays, y=np.arange(12) % 2))
    for part in PARTS:
        np.testing.assert_array_equal(
            getattr(splits, part).images, getattr(plain, part).images
        )
    small = datasets.load("npz", tmp_path / "a.npz", resize=3, channels=1)
    assert small.image_shape == (3, 3, 1)


def test_size_and_channels_of_an_archive(tmp_path, rng):
    arrays = rng.integers(0, 256, (12, 6, 5, 3), "uint8")
    file = archive(tmp_path, X=arrays, y=np.arange(12) % 2)
    plain = datasets.load("npz", file)
    small = datasets.load("npz", file, resize=(4, 3), channels=1)
    for one, other in zip(plain.test.images, small.test.images, strict=True):
        expected = pictures.with_channels(pictures.fit(one, (4, 3)), 1)
        np.testing.assert_array_equal(other, expected)


X, Y = images_of(6), np.arange(6) % 2
DATA, OFFSETS = encoded(X)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        (
            {"x_train": X},
            r"no train_labels \(or y_train, y\), but 'x_train'\. Expected",
        ),
        ({"y_train": Y}, r"no train_images \(or x_train, x\), but 'y_train'"),
        ({"foo": X}, "no train_images"),
        ({"X": X, "y": Y, "x_test": X}, r"no test_labels \(or y_test\)"),
        ({"X": X, "images": X, "y": Y}, "'X' and 'images' are two names of the same"),
        ({"X": X, "y": Y[:4]}, "needs a label, but 'X' has 6 and 'y' 4"),
        ({"X": X, "y": np.eye(2)[Y]}, r"'y' must be \[n\].*\[6, 2\].*argmax\(-1\)"),
        ({"X": X, "y": Y + 0.5}, "'y' must hold integers or strings.* float64"),
        ({"X": X.reshape(6, 30), "y": Y}, r"\[6, 30\]\. .*reshape\(-1, height, width"),
        ({"X": np.zeros((6, 784)), "y": Y}, r"\[6, 784\]\. .*reshape\(-1, 28, 28\)"),
        ({"X": np.zeros((6, 3, 8, 8)), "y": Y}, r"\[6, 3, 8, 8\].*transpose\(0, 2, 3"),
        ({"X": np.zeros((0, 8, 8)), "y": Y[:0]}, r"'X' must be.* is \[0, 8, 8, 1\]"),
        ({"X": X * np.nan, "y": Y}, "'X' holds NaN or infinite pixels"),
        ({"X": X - 1.0, "y": Y}, r"'X' must hold .*float64 from -1 to 4 .*Write"),
        ({"X": X + 0.5, "y": Y}, r"'X' must hold .*float64 from 0.5 to 5.5"),
        ({"X": X * np.int64(70000), "y": Y}, r"'X' must hold .*int64 from 0 to 350000"),
        ({"X": X.astype(complex), "y": Y}, "'X' must hold numbers.* complex128"),
        ({"X": X, "y": Y, "x_test": X / 9, "y_test": Y}, "'X' uint8 and 'x_test' flo"),
        ({"X": X, "y": Y, "x_test": X, "y_test": Y + 1}, "'y_test' has the class 2, "),
        ({"X": X, "y": Y, "x_test": X, "y_test": ["a"] * 6}, "class a, .*none of 0; 1"),
        ({"X": X, "y": Y + 4, "class_names": list("abc")}, "2 classes, .*3 names"),
        ({"X": X, "y": Y, "class_names": [1, 2]}, "'class_names' must be strings"),
        ({"X": X, "y": Y, "name": ["a", "b"]}, "'name' must be a string"),
        ({"X": X[:4], "y": [0, 0, 0, 1]}, "takes 3 of .* of '1' 1"),
        ({"X": X, "y": np.array([*"aabbcc"], object)}, r"'y' could.*objects.*astype"),
        ({"X": DATA, "y": Y}, r"is .*need their offsets"),
        ({"X": DATA, "y": Y, "offsets": OFFSETS[:-1]}, "'X' with 'offsets' must be"),
        ({"X": DATA, "y": Y, "offsets": OFFSETS[[0, 2, 1, 3, 4, 5, 6]]}, "never fall"),
        ({"X": DATA[::-1], "y": Y, "offsets": OFFSETS}, "6 of 6 pictures.*image 0 cou"),
    ],
)
def test_archives_that_are_refused(tmp_path, arrays, match):
    file = archive(tmp_path, **arrays)
    with pytest.raises(ValueError, match=match) as error:
        datasets.load("npz", file)
    assert str(file) in str(error.value)


def test_files_that_are_no_archives(tmp_path):
    def refused(name, match):
        with pytest.raises(ValueError, match=match):
            datasets.load("npz", tmp_path / name)

    refused(
        "none.npz", r"there is no such file\. Expected a NumPy archive with train_im"
    )
    refused("", r"is a folder\. .*'image_folder'")
    np.save(tmp_path / "a.npy", X)
    refused("a.npy", r"holds one array \(6, 6, 5\) \(.npy\). .*np.savez")
    (tmp_path / "text.npz").write_text("no archive")
    refused("text.npz", "could not be read, .* copy it again")
    whole = archive(tmp_path, X=X, y=Y).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:-40])
    refused("cut.npz", "could not be read, .* not a whole one")
    garbled = whole[:150] + b"\xff" * 8 + whole[158:]
    (tmp_path / "garbled.npz").write_bytes(garbled)
    refused("garbled.npz", "'X' could not be read .*not whole")


def test_keys_without_meaning_are_told(tmp_path):
    file = archive(tmp_path, X=X, y=Y, DESCR="hand made")
    with pytest.warns(UserWarning, match="1 keys have no meaning here.*: DESCR"):
        datasets.load("npz", file)


def test_arguments_that_are_refused(tmp_path):
    file = archive(tmp_path, X=X, y=Y)
    with pytest.raises(ValueError, match=r"needs `data_dir` .*\.npz file"):
        datasets.load("npz")
    with pytest.raises(ValueError, match=r"'digits' has its channels.*--channels"):
        datasets.load("digits", channels=1)
    with pytest.raises(ValueError, match=r"'mnist' has one size.*--resize"):
        datasets.load("mnist", resize=8)
    with pytest.raises(ValueError, match="`channels` must be 1 or 3, got 2"):
        datasets.load("npz", file, channels=2)
    with pytest.raises(ValueError, match=r"`resize` must be .*got \(1, 2, 3\)"):
        datasets.load("npz", file, resize=(1, 2, 3))
    with pytest.raises(ValueError, match=r"`resize` must be an integer from 1.* 0"):
        datasets.load("npz", file, resize=0)


# Binaries


@pytest.fixture
def own(tmp_path, rng, monkeypatch):
    """A folder and an archive of two classes that are easily told apart."""
    monkeypatch.setattr(report, "_export", lambda *args: "")
    # What they add to a report does not ask where the images come from.
    monkeypatch.setattr(perturbations, "_section", lambda *args: None)
    for added in ("real_batches", "statistics"):
        monkeypatch.setattr(batch_statistics, added, lambda *args, **kwargs: None)
    labels = np.arange(120) % 2
    images = rng.integers(0, 100, (120, 12, 12), "uint8")
    images[labels == 1, :6] += 150
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        save(tmp_path / "own" / ("half" if label else "whole") / f"{i}.png", image)
    save(tmp_path / "own" / "ood" / "a.png", images[0])
    save(tmp_path / "own" / "ood" / "b.png", images[1])
    np.savez(
        tmp_path / "own.npz",
        x_train=images[:90],
        y_train=labels[:90],
        x_test=images[90:],
        y_test=labels[90:],
    )
    return tmp_path


def run(binary, folder, dataset, data_dir, **values):
    small = {"samples": 2, "batch_size": 16, "tensorboard": False, "epochs": 1}
    place = {"dataset": dataset, "data_dir": folder / data_dir}
    flags = binary.PROGRAM.flags(
        {"workdir": folder / "run", **place, **small, **values}
    )
    return binary.PROGRAM.main(flags).values, defining(flags)


# What compiles fast.
SMALL = {"width": 0.05, "epochs": 2, "norm": "none", "scale": "plain"}


@pytest.mark.parametrize("form", [("image_folder", "own"), ("npz", "own.npz")])
def test_all_cnn_on_own_images(own, form):
    figures, defining = run(all_cnn, own, *form, **SMALL)
    assert figures["test/error_one_pass"] < 40
    assert ("ood/auroc_one_pass" in figures) == (form[0] == "image_folder")
    assert Records.read(own / "run" / "metrics.json").values == figures
    # Images of 12 pixels, which are padded; another folder would be another run.
    assert defining["data_dir"] == str(own / form[1])
    (own / form[1]).rename(own / "moved")
    with pytest.raises(ValueError, match="--data_dir"):
        run(all_cnn, own, form[0], "moved", **SMALL)


@pytest.mark.slow
def test_sbn_on_own_images(own):
    small = {"width": 0.1, "members": 2, "dropout": 0.0, "minibatch": False}
    figures, _ = run(sbn, own, "npz", "own.npz", flip=True, **small)
    assert 0 < figures["test/nll_sbn"] < 10
    assert (own / "run" / "report.md").exists()


def test_augmentation_of_own_images(tmp_path):
    masks = datasets.augmentation_for("image_folder", dense=True)
    assert masks == datasets.augmentation_for("cells")
    assert datasets.augmentation_for("image_folder") == datasets.Augmentation(2, False)
    splits = datasets.load("npz", archive(tmp_path, X=X, y=Y))

    def layers(splits, **values):
        flags = all_cnn.PROGRAM.flags({"dataset": "npz", **values})
        return session.make_augmentation(flags, splits, 0).layers

    (shift,) = layers(splits)
    assert shift.max_shift == 2
    assert len(layers(splits, flip=True)) == 2
    for name, count in (("cifar10", 2), ("flowers", 1)):
        named = datasets.load("npz", archive(tmp_path, X=X, y=Y, name=name))
        assert len(layers(named)) == count


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"resize": "8"}, "'digits' has one size.*--resize"),
        ({"dataset": "npz"}, "needs `data_dir` .*--data_dir"),
    ],
)
def test_flags_that_do_not_fit_the_set(values, match):
    with pytest.raises(ValueError, match=match):
        session.load_data(all_cnn.PROGRAM.flags(values))
