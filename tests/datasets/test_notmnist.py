"""notMNIST: from a NumPy archive, and through its TensorFlow Datasets builder."""

import numpy as np
import pytest
from PIL import Image

from bayesnorm import datasets


@pytest.fixture
def arrays(rng):
    return rng.integers(0, 256, (20, 28, 28), "uint8"), np.arange(20) % 10


def test_archive(tmp_path, arrays):
    np.savez(tmp_path / "letters.npz", images=arrays[0], labels=arrays[1])
    images, labels = datasets.load_notmnist(file=tmp_path / "letters.npz")
    np.testing.assert_array_equal(images[..., 0], arrays[0])
    np.testing.assert_array_equal(labels, arrays[1])
    mnist = datasets.from_arrays(*[(arrays[0], arrays[1])] * 3)
    both = datasets.with_ood(mnist, images, labels, datasets.NOTMNIST_CLASSES)
    assert len(both.ood) == 20
    assert both.ood_class_names[3] == "D"


def test_wrong_archives(tmp_path, arrays):
    with pytest.raises(ValueError, match="FileNotFoundError"):
        datasets.load_notmnist(file=tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match="could not be read"):
        datasets.load_notmnist(file=tmp_path / "text.npz")
    np.savez(tmp_path / "small.npz", images=arrays[0][:, :8, :8], labels=arrays[1])
    with pytest.raises(ValueError, match=r"\[n, 28, 28\]"):
        datasets.load_notmnist(file=tmp_path / "small.npz")
    np.savez(tmp_path / "labels.npz", images=arrays[0], labels=arrays[1] + 5)
    with pytest.raises(ValueError, match="0 to 9"):
        datasets.load_notmnist(file=tmp_path / "labels.npz")
    with pytest.raises(ValueError, match="--ood_file"):
        datasets.load_notmnist(data_dir=tmp_path)


def test_builder_reads_the_archives_layout(tmp_path, arrays, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    from bayesnorm.datasets import notmnist_builder

    folder = tmp_path / "raw" / "notMNIST_small"
    for i, (pixels, label) in enumerate(zip(*arrays, strict=True)):
        letter = folder / datasets.NOTMNIST_CLASSES[label]
        letter.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(letter / f"{i:02d}.png")
    (folder / "A" / "broken.png").write_bytes(b"no picture")
    monkeypatch.setattr(
        tfds.download.DownloadManager,
        "download_and_extract",
        lambda self, url: tfds.core.Path(tmp_path / "raw"),
    )
    assert notmnist_builder.Notmnist.name == "notmnist"
    images, labels = datasets.load_notmnist(tmp_path / "tfds", download=True)
    assert len(images) == 20
    order = np.lexsort((images.reshape(20, -1)[:, 0], labels))
    expected = np.lexsort((arrays[0].reshape(20, -1)[:, 0], arrays[1]))
    np.testing.assert_array_equal(images[order][..., 0], arrays[0][expected])
    # Prepared once, it is read without the download.
    again, _ = datasets.load_notmnist(tmp_path / "tfds")
    np.testing.assert_array_equal(again, images)
