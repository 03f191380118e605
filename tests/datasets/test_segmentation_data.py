"""Segmentation sets: synthetic, of a folder, of an archive; images and masks moving."""

import zipfile

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image
from scipy import ndimage, stats

from bayesnorm import datasets
from bayesnorm.backend import compiled_loop
from bayesnorm.datasets import mask_folder, segmentation

PARTS = ("train", "validation", "test")


def numbered(count, height=8, width=8):
    """Images that tell their index, with a mask of three instances."""
    images = [np.full((height, width), 10 + i, np.uint8) for i in range(count)]
    mask = np.zeros((height, width), np.uint16)
    mask[:2], mask[3:5, 3:5], mask[-1, -1] = 1, 2, 300
    return images, [mask] * count


def indices(split):
    return {int(image.flat[0]) - 10 for image in split.images}


# Labels of pixels


def dense(n=4, classes=2, dtype="uint8"):
    images = np.arange(n * 30, dtype="uint8").reshape(n, 5, 6, 1)
    return images, (images[..., 0] % classes).astype(dtype)


def test_labels_of_pixels():
    splits = datasets.from_arrays(dense(), dense(dtype="int64"), dense(dtype="bool"))
    assert splits.dense
    assert splits.train.labels.dtype == splits.test.labels.dtype == np.uint8
    assert splits.validation.labels.dtype == np.int64
    assert splits.num_classes == 2
    kept = datasets.from_arrays(*[dense(dtype="int32")] * 3, dense()[0])
    assert kept.train.labels.dtype == np.int64
    assert len(kept.ood) == 4
    labels = np.arange(4)
    assert not datasets.from_arrays(*[(dense()[0], labels)] * 3).dense


IMAGES, MASKS = dense()


@pytest.mark.parametrize(
    ("train", "test", "match"),
    [
        ((IMAGES, MASKS[:, 1:]), dense(), r"be \[4\], .* or \[4, 5, 6\], one a pixel"),
        ((IMAGES, MASKS[:3]), dense(), r"got shape \(3, 5, 6\)"),
        ((IMAGES, MASKS / 1), dense(), "int64 .* or a uint8 one, got float64"),
        ((IMAGES, MASKS[..., None]), dense(), r"got shape \(4, 5, 6, 1\)"),
        (dense(), dense(classes=3), r"0\.\.1, but 40 do not.* labels\[0, 0, 2\] = 2"),
        (dense(), (IMAGES, np.zeros(4, int)), r"one a pixel, but 'test' has .*\(4,\)"),
        ((IMAGES, np.arange(4) % 2), dense(), r"one a image, but 'test' has .*5, 6"),
    ],
)
def test_labels_of_pixels_refused(train, test, match):
    with pytest.raises(ValueError, match=match):
        datasets.from_arrays(train, train, test)


# Division, scale, tiles


def test_division_by_image():
    images, masks = numbered(20)
    one, other = (datasets.from_images(images, masks, "set", seed) for seed in (0, 1))
    assert [len(getattr(one, part)) for part in PARTS] == [11, 3, 6]
    assert set.union(*(indices(getattr(one, part)) for part in PARTS)) == set(range(20))
    np.testing.assert_array_equal(one.test.images, other.test.images)
    assert indices(one.validation) != indices(other.validation)
    assert one.class_names == ("background", "cell")
    assert one.scale == 1 / 255
    assert one.image_shape == (8, 8, 1)
    assert one.train.labels.dtype == np.uint8
    np.testing.assert_array_equal(one.train.labels[0], masks[0] > 0)
    least = datasets.from_images(*numbered(3), "set")
    assert [len(getattr(least, part)) for part in PARTS] == [1, 1, 1]


def test_downscale(rng):
    images = rng.integers(0, 256, (5, 13, 11), "uint8")
    masks = rng.integers(0, 3, (5, 13, 11)) * rng.integers(0, 2, (5, 13, 11))
    splits = datasets.from_images(images, masks, "set", downscale=3)
    found = {}
    for part in PARTS:
        split = getattr(splits, part)
        pairs = zip(split.images, split.labels, strict=True)
        found.update({image.tobytes(): mask for image, mask in pairs})
    for image, mask in zip(images, masks, strict=True):
        grey, label = np.zeros((4, 3), "uint8"), np.zeros((4, 3), "uint8")
        for r in range(4):
            for c in range(3):
                area = slice(3 * r, 3 * r + 3), slice(3 * c, 3 * c + 3)
                grey[r, c] = round(image[area].astype(float).mean())
                label[r, c] = np.count_nonzero(mask[area]) >= 4.5
        np.testing.assert_array_equal(found[grey.tobytes()], label)


def test_half_a_pixel_is_a_cell():
    mask = np.array([[1, 2, 0, 1], [0, 0, 0, 0]])
    pairs = [np.zeros((2, 4), "uint8")] * 3, [mask] * 3
    splits = datasets.from_images(*pairs, "set", downscale=2)
    np.testing.assert_array_equal(splits.test.labels, [[[1, 0]]])


def test_tiles(rng):
    sizes = [(9, 13), (8, 8), (17, 5), (4, 4), (3, 90), (12, 9), (8, 4)]
    images = [rng.integers(0, 256, size, "uint8") for size in sizes]
    masks = [image > 99 for image in images]
    with pytest.warns(UserWarning, match="1 of 7 images are smaller than a tile of 4x"):
        splits = datasets.from_images(images, masks, "set", tile=4)
    cuts = {
        image[r : r + 4, c : c + 4].tobytes(): i
        for i, image in enumerate(images)
        for r in range(0, len(image) - 3, 4)
        for c in range(0, image.shape[1] - 3, 4)
    }
    owners = []
    for part in PARTS:
        split = getattr(splits, part)
        np.testing.assert_array_equal(split.labels, split.images[..., 0] > 99)
        owners.append([cuts.pop(image.tobytes()) for image in split.images])
    assert not cuts
    assert not set(owners[0]) & set(owners[1])
    assert not (set(owners[0]) | set(owners[1])) & set(owners[2])


def test_grey():
    image = np.array([[200, 700], [450, 1000]], "uint16")
    np.testing.assert_array_equal(segmentation.to_grey(image), [[0, 159], [80, 255]])
    flat = np.full((2, 2), 7, "uint16")
    np.testing.assert_array_equal(segmentation.to_grey(flat), 0)
    np.testing.assert_array_equal(segmentation.to_grey(flat.astype("uint8")), 7)
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (6, 5, 4), "uint8")
    luma = np.asarray(Image.fromarray(colours[..., :3]).convert("L"), float)
    for channels in (3, 4):
        found = segmentation.to_grey(colours[..., :channels])
        assert np.abs(found - luma).max() <= 1
    np.testing.assert_array_equal(
        segmentation.to_grey(colours[..., :2]), colours[..., 0]
    )


GREY, MASK = np.zeros((6, 6), "uint8"), np.zeros((6, 6), "uint8")


@pytest.mark.parametrize(
    ("images", "masks", "arguments", "match"),
    [
        ([GREY] * 2, [MASK] * 2, {}, "at least 3 images, got 2"),
        ([GREY] * 3, [MASK] * 2, {}, "3 images and 2 masks"),
        ([GREY / 1] * 3, [MASK] * 3, {}, "image 0: .* uint8 or uint16, got float64"),
        ([GREY[0]] * 3, [MASK] * 3, {}, r"1 to 4 channels, got shape \(6,\)"),
        ([GREY] * 3, [MASK, MASK[1:], MASK], {}, r"image 1: .*\(6, 6\) .*\(5, 6\)"),
        ([GREY] * 3, [MASK / 1] * 3, {}, "integers or booleans, got float64"),
        ([GREY, GREY[1:], GREY], [MASK, MASK[1:], MASK], {}, r"2 sizes, .*tile=5"),
        ([GREY] * 3, [MASK] * 3, {"tile": 7}, "all 3 images are smaller than .* 7x7"),
        ([GREY] * 3, [MASK] * 3, {"tile": 0}, "`tile` must be an integer from 1"),
        ([GREY] * 3, [MASK] * 3, {"downscale": 1.5}, r"`downscale` .*got 1\.5"),
        ([GREY] * 3, [MASK] * 3, {"downscale": 7}, r"`downscale`=7 leaves nothing"),
    ],
)
def test_from_images_refuses(images, masks, arguments, match):
    with pytest.raises(ValueError, match=match):
        datasets.from_images(images, masks, "set", **arguments)


# Synthetic cells


def iou(found, mask):
    return np.sum(found & mask) / np.sum(found | mask)


def test_cells():
    images, labels = datasets.make_cells(12, seed=3)
    assert images.shape == (12, 64, 64, 1)
    assert (images.dtype, labels.dtype) == (np.uint8, np.uint16)
    for label in labels:
        assert set(np.unique(label)) == set(range(label.max() + 1))
        assert label.max() >= 3
    again, _ = datasets.make_cells(5, seed=3)
    np.testing.assert_array_equal(again, images[:5])
    assert (datasets.make_cells(1, seed=4)[0] != images[0]).any()
    assert datasets.make_cells(1, 40, coverage=0.01)[0].shape == (1, 40, 40, 1)


def test_no_threshold_segments_the_cells():
    images, labels = datasets.make_cells(30)
    grey, mask = images[..., 0].astype(float), labels > 0
    assert 0.4 < mask.mean() < 0.55
    assert abs(grey[mask].mean() - grey[~mask].mean()) < 0.15 * grey[~mask].std()
    best = max(
        iou(found, mask)
        for level in range(0, 256, 3)
        for found in (grey > level, grey <= level)
    )
    assert best < 0.55
    # What a threshold misses is there: the cells are rougher than the background.
    slow = ndimage.gaussian_filter(grey, (0, 8, 8))
    rough = np.sqrt(ndimage.gaussian_filter(np.square(grey - slow), (0, 2, 2)))
    assert max(iou(rough > level, mask) for level in range(2, 30)) > 0.62


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"count": 0}, "`count` must be an integer from 1, got count=0"),
        ({"count": 1, "size": 8}, "`size` must be an integer from 16"),
        ({"count": 1, "radius": 2}, "3 pixels or more"),
        ({"count": 1, "coverage": 0.9}, r"lie in \(0, 0\.7\]"),
        ({"count": 1, "seed": -1}, "`seed` must be"),
    ],
)
def test_cells_refuse(arguments, match):
    with pytest.raises(ValueError, match=match):
        datasets.make_cells(**arguments)


def test_load_cells():
    splits = datasets.load_segmentation("cells")
    assert [len(getattr(splits, part)) for part in PARTS] == [34, 8, 18]
    assert splits.image_shape == (64, 64, 1)
    assert splits.dense
    small = datasets.load_segmentation("cells", split_seed=1, downscale=2, tile=16)
    assert [len(getattr(small, part)) for part in PARTS] == [136, 32, 72]
    with pytest.raises(ValueError, match=r"'cells', expected .*`load_segmentation`"):
        datasets.load("cells")
    with pytest.raises(ValueError, match=r"segmentation set 'mnist', .*`load` loads"):
        datasets.load_segmentation("mnist")


# A folder


@pytest.fixture
def folder(tmp_path, rng):
    """Five images of several kinds with 16-bit masks, and what they hold."""
    root = tmp_path / "folder"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    kinds = [
        ("a.png", "uint8", ()),
        ("b.tif", "uint16", ()),
        ("c.png", "uint16", ()),
        ("d.bmp", "uint8", (3,)),
        ("e.tiff", "uint8", ()),
    ]
    truth = []
    for name, dtype, channels in kinds:
        image = rng.integers(0, 256, (10, 12, *channels)).astype(dtype)
        mask = rng.integers(0, 2, (10, 12)).astype("uint16") * 700
        Image.fromarray(image).save(root / "images" / name)
        ending = ".png" if name < "c" else ".tif"
        Image.fromarray(mask).save(root / "labels" / f"{name[0]}{ending}")
        truth.append((name[0], image, mask))
    (root / "images" / ".hidden.png").write_bytes(b"")
    (root / "labels" / "notes.txt").write_text("by hand")
    return root, truth


def test_folder(folder):
    root, truth = folder
    found = list(mask_folder.read(root))
    for one, other in zip(found, truth, strict=True):
        assert one[0] == other[0]
        np.testing.assert_array_equal(one[1], other[1])
        np.testing.assert_array_equal(one[2], other[2])
    assert found[1][1].dtype == np.uint16
    splits = datasets.load_segmentation("image_folder", root)
    expected = datasets.from_images(*list(zip(*truth, strict=True))[1:], "x")
    for part in PARTS:
        one, other = getattr(splits, part), getattr(expected, part)
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
    (root / "labels").rename(root / "masks")
    assert len(mask_folder.pairs(root)) == 5


def test_masks_of_colours(tmp_path):
    labels = np.array([[0, 1], [2, 0]], "uint8")
    picture = Image.fromarray(labels).convert("P")
    picture.putpalette([0, 0, 0, 0, 0, 0, 0, 0, 255])
    picture.putdata(labels.ravel())
    picture.save(tmp_path / "palette.png")
    found = mask_folder.read_mask(tmp_path / "palette.png")
    np.testing.assert_array_equal(found, labels)
    colours = np.zeros((2, 2, 4), "uint8")
    colours[..., 3] = 255
    colours[0, 1, 2] = 9
    Image.fromarray(colours).save(tmp_path / "rgba.png")
    found = mask_folder.read_mask(tmp_path / "rgba.png")
    np.testing.assert_array_equal(found, [[0, 1], [0, 0]])
    Image.fromarray(labels > 0).save(tmp_path / "bits.png")
    found = mask_folder.read_mask(tmp_path / "bits.png")
    np.testing.assert_array_equal(found, labels > 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_folder_refuses(folder):
    root, _ = folder

    def refused(match, path=root):
        with pytest.raises(ValueError, match=match):
            datasets.load_segmentation("image_folder", path)

    refused("needs `data_dir`", None)
    refused("there is no such folder", root / "none")
    refused(r"'images' and 'labels' .* it holds .*a\.png", root / "images")
    (root / "masks").mkdir()
    refused("both 'labels' and 'masks'")
    (root / "masks").rmdir()

    broken = root / "labels" / "c.tif"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40])
    refused(r"c\.tif' could not be read as a picture")
    Image.fromarray(np.zeros((10, 11), "uint8")).save(broken)
    refused(r"one size, but are \(10, 12\) and \(10, 11\)")
    Image.fromarray(np.zeros((10, 12), "float32")).save(broken)
    refused("8 or 16 bits, but holds float32")
    page = Image.fromarray(np.zeros((10, 12), "uint8"))
    page.save(broken, save_all=True, append_images=[page])
    refused(r"must hold one picture, but holds 2")
    broken.rename(root / "labels" / "z.tif")
    refused(r"2 of them are alone: images/c\.png, labels/z\.tif")
    (root / "labels" / "z.tif").unlink()
    page.save(root / "labels" / "c.jpg")
    refused(r"no JPEG, .* 1 of them are alone: images/c\.png")
    page.save(root / "images" / "a.bmp")
    refused(r"one file of a name, but has a\.bmp and a\.png")
    for name in ("images", "labels"):
        for file in (root / name).iterdir():
            file.unlink()
    refused("There are no pictures in")


# TensorFlow Datasets


@pytest.fixture
def archive(tmp_path, rng):
    """An archive as the Cell Tracking Challenge's, and what it holds."""
    root = tmp_path / "raw" / "DIC-C2DH-HeLa"
    truth = {}
    names = {
        ("01", 0): ("t000", "man_seg000"),
        ("01", 5): ("t005", "man_seg_005"),
        ("02", 12): ("t0012", "man_seg0012"),
        ("02", 3): ("t003", "man_seg003"),
    }
    for (sequence, number), (frame, mask_name) in names.items():
        (root / sequence).mkdir(parents=True, exist_ok=True)
        (root / f"{sequence}_GT" / "SEG").mkdir(parents=True, exist_ok=True)
        image = rng.integers(300, 4000, (9, 7)).astype("uint16")
        mask = (image > 2000) * np.uint16(300 + number)
        Image.fromarray(image).save(root / sequence / f"{frame}.tif")
        seg = root / f"{sequence}_GT" / "SEG"
        Image.fromarray(mask).save(seg / f"{mask_name}.tif")
        truth[f"{sequence}/t{number:03d}"] = image, mask
    # Neither a frame without mask nor one slice's mask of a volume is an example.
    Image.fromarray(image).save(root / "01" / "t001.tif")
    Image.fromarray(mask).save(root / "01_GT" / "SEG" / "man_seg_001_002.tif")
    path = tmp_path / "DIC-C2DH-HeLa.zip"
    with zipfile.ZipFile(path, "w") as file:
        for entry in sorted(root.rglob("*.tif")):
            file.write(entry, entry.relative_to(root.parent))
    return path, dict(sorted(truth.items()))


@pytest.fixture
def tfds(monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    return tfds


def stub_download(monkeypatch, tfds, path):
    """Extracts a local archive in place of the download."""
    urls = []

    def download_and_extract(self, url):
        urls.append(url)
        return self.extract(path)

    manager = tfds.download.DownloadManager
    monkeypatch.setattr(manager, "download_and_extract", download_and_extract)
    return urls


def test_dic_hela(tmp_path, archive, tfds, monkeypatch):
    path, truth = archive
    urls = stub_download(monkeypatch, tfds, path)
    directory = tmp_path / "tfds"
    with pytest.raises(ValueError, match=r"load_segmentation\('dic_hela'.*download=T"):
        datasets.load_segmentation("dic_hela", directory)
    splits = datasets.load_segmentation("dic_hela", directory, download=True)
    (url,) = urls
    assert url.endswith("/training-datasets/DIC-C2DH-HeLa.zip")
    from bayesnorm.datasets import segmentation_builders

    builder = segmentation_builders.DicC2dhHela(data_dir=directory)
    examples = list(builder.as_dataset(split="train").as_numpy_iterator())
    assert [example["key"].decode() for example in examples] == list(truth)
    for example, (image, mask) in zip(examples, truth.values(), strict=True):
        grey = segmentation.to_grey(image)
        np.testing.assert_array_equal(example["image"][..., 0], grey)
        assert example["segmentation_mask"].dtype == np.uint16
        np.testing.assert_array_equal(example["segmentation_mask"][..., 0], mask)
    expected = datasets.from_images(*zip(*truth.values(), strict=True), "dic_hela")
    again = datasets.load_segmentation("dic_hela", directory)
    for part in PARTS:
        for found in (splits, again):
            one, other = getattr(found, part), getattr(expected, part)
            np.testing.assert_array_equal(one.images, other.images)
            np.testing.assert_array_equal(one.labels, other.labels)


def test_dic_hela_incomplete(tmp_path, archive, tfds, monkeypatch):
    path, _ = archive
    smaller = tmp_path / "smaller.zip"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(smaller, "w") as new:
        for name in old.namelist():
            if not name.endswith("01/t005.tif"):
                new.writestr(name, old.read(name))
    stub_download(monkeypatch, tfds, smaller)
    with pytest.raises(ValueError, match=r"1 of them without image .*frame 5"):
        datasets.load_segmentation("dic_hela", tmp_path / "tfds", download=True)


def test_other_builders(tmp_path, folder, tfds):
    from bayesnorm.datasets import segmentation_builders as builders

    root, truth = folder
    config = builders.FolderConfig(name="mine", folder=str(root))
    named = builders.SegmentationFolder(config=config, data_dir=tmp_path / "tfds")
    named.download_and_prepare()
    manual = builders.SegmentationFolder(data_dir=tmp_path / "tfds")
    manual.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=root)
    )
    for builder in (named, manual):
        images, masks = segmentation.read_builder(builder)
        for i, (_, image, mask) in enumerate(truth):
            np.testing.assert_array_equal(images[i], segmentation.to_grey(image))
            np.testing.assert_array_equal(masks[i], mask)
    config = builders.CellsConfig(name="few", count=3, size=32, seed=2)
    builder = builders.SyntheticCells(config=config, data_dir=tmp_path / "tfds")
    builder.download_and_prepare()
    images, masks = segmentation.read_builder(builder)
    expected = datasets.make_cells(3, 32, 2)
    np.testing.assert_array_equal(images, expected[0][..., 0])
    np.testing.assert_array_equal(masks, expected[1])


# Augmentation


def smooth(rng, n=6, height=64, width=48):
    """Smooth images and where they are positive."""
    images = ndimage.gaussian_filter(
        rng.normal(size=(n, height, width, 1)), (0, 5, 5, 0)
    )
    images = (images / images.std()).astype("float32")
    return {
        "images": images,
        "segmentation_masks": (images[..., 0] > 0).astype("uint8"),
    }


def numpy_of(tensors):
    return {key: ops.convert_to_numpy(value) for key, value in tensors.items()}


def agreement(data):
    return np.mean((data["images"][..., 0] > 0) == data["segmentation_masks"])


def elastic_shifts(layer, n, height, width):
    """The displacements that a layer applies, read off images of coordinates."""
    grid = np.stack(np.mgrid[:height, :width], -1).astype("float32")
    images = np.broadcast_to(grid, (n, height, width, 2))
    return ops.convert_to_numpy(layer(images, training=True)) - images


def test_images_and_masks_move_together(rng):
    data = smooth(rng)
    moved = numpy_of(datasets.RandomElastic(7.0, 16, seed=1)(data, training=True))
    assert moved["segmentation_masks"].dtype == np.uint8
    assert moved["images"].dtype == np.float32
    assert agreement(moved) > 0.975
    # The same displacement is what does it: with others, or none, the test is red.
    other = numpy_of(datasets.RandomElastic(7.0, 16, seed=2)(data, training=True))
    mixed = {**moved, "segmentation_masks": other["segmentation_masks"]}
    assert agreement(mixed) < 0.95
    assert agreement({**moved, "segmentation_masks": data["segmentation_masks"]}) < 0.95


def test_deformation_against_scipy(rng):
    images = rng.normal(size=(3, 9, 11, 2)).astype("float32")
    shifts = rng.uniform(-6, 6, (3, 9, 11, 2)).astype("float32")
    labels = rng.integers(0, 200, (3, 9, 11, 1)).astype("uint8")
    found = ops.convert_to_numpy(datasets.deform_images(images, shifts))
    nearest = ops.convert_to_numpy(datasets.deform_images(labels, shifts, nearest=True))
    assert nearest.dtype == np.uint8
    grid = np.stack(np.mgrid[:9, :11], -1).astype("float32")
    for i in range(3):
        at = np.moveaxis(grid + shifts[i], -1, 0)
        for channel in range(2):
            expected = ndimage.map_coordinates(
                images[i, ..., channel], at, order=1, mode="mirror"
            )
            np.testing.assert_allclose(found[i, ..., channel], expected, atol=2e-5)
        expected = ndimage.map_coordinates(
            labels[i, ..., 0], at, order=0, mode="mirror"
        )
        np.testing.assert_array_equal(nearest[i, ..., 0], expected)


def test_integer_images_are_rounded():
    images = np.array([[[[10], [13], [20]]]], "uint8")
    images = np.repeat(images, 3, axis=1)
    shifts = np.full((1, 3, 3, 2), 0.0, "float32")
    shifts[..., 1] = 0.4
    found = ops.convert_to_numpy(datasets.deform_images(images, shifts))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0, 0, :2, 0], [11, 16])


def test_no_displacement_is_the_identity(rng):
    data = smooth(rng)
    same = datasets.RandomElastic(0.0)(data, training=True)
    np.testing.assert_array_equal(same["images"], data["images"])
    zeros = np.zeros((6, 64, 48, 2), "float32")
    found = datasets.deform_images(data["images"], zeros)
    np.testing.assert_array_equal(found, data["images"])


def test_field_is_a_cubic_spline(rng):
    """Against SciPy's splines; constant nodes give a constant field."""
    height, width, spacing = 30, 21, 8
    grid = [datasets.augment.grid_size(size, spacing) for size in (height, width)]
    assert grid == [7, 6]
    nodes = rng.normal(size=(2, *grid, 2)).astype("float32")
    found = ops.convert_to_numpy(
        datasets.displacement_field(nodes, height, width, spacing)
    )
    at = np.meshgrid(
        *[
            (np.arange(size) - (size - 1) / 2) / spacing + (count - 1) / 2
            for size, count in zip((height, width), grid, strict=True)
        ],
        indexing="ij",
    )
    for i in range(2):
        for axis in range(2):
            expected = ndimage.map_coordinates(
                nodes[i, ..., axis].astype(float), at, order=3, prefilter=False
            )
            np.testing.assert_allclose(found[i, ..., axis], expected, atol=1e-5)
    ones = datasets.displacement_field(np.ones((1, *grid, 2)), height, width, spacing)
    np.testing.assert_allclose(ops.convert_to_numpy(ones), 1, atol=1e-6)


@pytest.mark.parametrize("spacing", [16, 20])
def test_displacements_are_bounded_smooth_and_of_the_size_asked_for(spacing):
    layer = datasets.RandomElastic(6.0, spacing, seed=0)
    shifts = elastic_shifts(layer, 300, 65, 65)[:, 7:-7, 7:-7]
    assert np.abs(shifts).max() < 6
    # Nodes uniform on +-6; the squares of the splines' weights average 151 / 315 an
    # axis. The tolerances are 3.5 standard deviations of the estimates, simulated.
    rms = 6 / np.sqrt(3) * 151 / 315
    np.testing.assert_allclose(shifts.std((0, 1, 2)), rms, rtol=0.05)
    np.testing.assert_allclose(shifts.mean((0, 1, 2)), 0, atol=0.17)
    components = shifts.reshape(-1, 2).T
    assert abs(np.corrcoef(components)[0, 1]) < 0.085
    # No fold: the determinant of the map's derivative stays positive.
    down, right = np.diff(shifts, axis=1)[:, :, :-1], np.diff(shifts, axis=2)[:, :-1]
    determinant = (1 + down[..., 0]) * (1 + right[..., 1]) - down[..., 1] * right[
        ..., 0
    ]
    assert determinant.min() > 0
    # Each image has its own.
    middle = shifts[:, 25, 25, 0]
    assert abs(np.corrcoef(middle, np.roll(middle, 1))[0, 1]) < 0.2


def test_flips_are_exact(rng):
    images = rng.integers(0, 256, (400, 3, 4, 2)).astype("uint8")
    masks = images[..., 0] // 2
    layer = datasets.RandomFlip(vertical=True, seed=1)
    data = {"images": images, "segmentation_masks": masks}
    found = numpy_of(layer(data, training=True))
    np.testing.assert_array_equal(
        found["images"][..., 0] // 2, found["segmentation_masks"]
    )
    counts = np.zeros(4, int)
    for image, other in zip(images, found["images"], strict=True):
        views = [image, image[:, ::-1], image[::-1], image[::-1, ::-1]]
        counts[[np.array_equal(view, other) for view in views].index(True)] += 1
    # Four cells of 1/4; wrong in one seed of a thousand.
    assert stats.chisquare(counts).pvalue > 1e-3
    only = datasets.RandomFlip(False, vertical=True, seed=1)
    found = ops.convert_to_numpy(only(images, training=True))
    turned = (found == images[:, ::-1]).all((1, 2, 3))
    assert ((found == images).all((1, 2, 3)) ^ turned).all()
    with pytest.raises(ValueError, match="would do nothing"):
        datasets.RandomFlip(horizontal=False)


def test_shifted_masks(rng):
    images = rng.integers(1, 256, (8, 6, 5, 1)).astype("uint8")
    data = {"images": images, "segmentation_masks": images[..., 0], "other": images}
    found = numpy_of(datasets.RandomShift(2, seed=1)(data, training=True))
    np.testing.assert_array_equal(found["images"][..., 0], found["segmentation_masks"])
    assert (found["images"] != images).any()
    np.testing.assert_array_equal(found["other"], images)


def test_elastic_layer_saves_its_state(rng, tmp_path):
    data = smooth(rng, 2)
    layer = datasets.RandomElastic(5.0, 12, seed=3)
    assert len(layer.variables) == 1
    unchanged = layer(data)
    np.testing.assert_array_equal(unchanged["images"], data["images"])
    first = numpy_of(layer(data, training=True))
    twin = datasets.RandomElastic.from_config(layer.get_config())
    again = numpy_of(twin(data, training=True))
    np.testing.assert_array_equal(again["images"], first["images"])
    state = ops.convert_to_numpy(layer.variables[0].value)
    second = numpy_of(layer(data, training=True))
    assert (second["images"] != first["images"]).any()
    layer.variables[0].assign(state)
    restored = numpy_of(layer(data, training=True))
    np.testing.assert_array_equal(restored["images"], second["images"])
    np.testing.assert_array_equal(
        restored["segmentation_masks"], second["segmentation_masks"]
    )
    inputs = keras.Input((64, 48, 1))
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "model.keras")
    third = ops.convert_to_numpy(layer(data["images"], training=True))
    loaded = keras.models.load_model(tmp_path / "model.keras")
    found = loaded(data["images"], training=True)
    np.testing.assert_array_equal(found, third)


def sequential(name="cells", seed=4):
    return keras.Sequential(datasets.augmentation_for(name).layers(seed))


def test_compiled_augmentation(rng):
    data = smooth(rng, 4)
    model, twin = sequential(), sequential()

    def body(i, last, images, masks):
        inputs = {"images": images, "segmentation_masks": masks}
        outputs = twin(inputs, training=True)
        return [outputs["images"], outputs["segmentation_masks"]]

    run = compiled_loop(body, twin.variables)
    tensors = [ops.convert_to_tensor(data[key]) for key in sorted(data)]
    for step in range(2):
        expected = numpy_of(model(data, training=True))
        last = [ops.zeros_like(tensor) for tensor in tensors]
        found = numpy_of(
            dict(zip(sorted(data), run(step, step + 1, last, *tensors), strict=True))
        )
        np.testing.assert_allclose(found["images"], expected["images"], atol=1e-4)
        differs = found["segmentation_masks"] != expected["segmentation_masks"]
        assert differs.mean() < 1e-3
        assert agreement(found) > 0.975
    states = np.array([ops.convert_to_numpy(v.value) for v in twin.variables])
    # No shift, two flips, one field: of each of the two calls, from three seeds.
    np.testing.assert_array_equal(states[:, 1], [0, 4, 2])
    assert len(set(states[:, 0])) == 3


def test_augmentation_of_cells():
    kind = datasets.augmentation_for("cells")
    assert kind == datasets.Augmentation(0, True, False, True, 6.0, 16)
    assert kind == datasets.augmentation_for("dic_hela")
    splits = datasets.load_segmentation("cells")
    data = {
        "images": splits.inputs(splits.train.images[:8]),
        "segmentation_masks": splits.train.labels[:8],
    }
    found = numpy_of(sequential()(data, training=True))
    assert set(np.unique(found["segmentation_masks"])) == {0, 1}
    low, high = data["images"].min(), data["images"].max()
    assert low <= found["images"].min() < found["images"].max() <= high
    share = data["segmentation_masks"].mean()
    assert abs(found["segmentation_masks"].mean() - share) < 0.05
    every = kind._replace(max_shift=3, flip=False).layers(0)
    assert [type(layer).__name__ for layer in every] == [
        "RandomShift",
        "RandomFlip",
        "RandomElastic",
    ]


def test_elastic_refuses():
    with pytest.raises(ValueError, match=r"`max_displacement` must be a finite number"):
        datasets.RandomElastic(-1)
    with pytest.raises(ValueError, match="`spacing` must be an integer from 1"):
        datasets.RandomElastic(1, 0)
    with pytest.raises(ValueError, match=r"might fold .* at most 7\.68"):
        datasets.RandomElastic(8, 16)
    with pytest.raises(ValueError, match="too much for images of 6x9"):
        datasets.RandomElastic(5)(np.zeros((1, 6, 9, 1)))
    with pytest.raises(ValueError, match=r"masks \[n, 6, 9\] .* got shape \(1, 6, 8\)"):
        datasets.RandomFlip()(
            {
                "images": np.zeros((1, 6, 9, 1)),
                "segmentation_masks": np.zeros((1, 6, 8)),
            }
        )
    with pytest.raises(ValueError, match=r"'segmentation_masks', got \['images'\]"):
        datasets.RandomFlip()({"images": np.zeros((1, 6, 9, 1))})
