"""Storage: whole or not there, without pickle, damage is seen."""

import os

import numpy as np
import pytest

from bayesnorm.storage import (
    ArchiveError,
    drafted,
    read_archive,
    write_archive,
    write_atomically,
)

ARRAYS = {
    "weights": np.arange(6, dtype="float32").reshape(2, 3),
    "step": np.array(7, "int64"),
    "names": np.array(["a", "bc"]),
}
HEADER = {"history": [{"nll": 0.1}], "text": "ä"}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "file.npz"
    write_archive(path, ARRAYS, HEADER)
    arrays, header = read_archive(path)
    assert header == HEADER
    assert arrays.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], value)
        assert arrays[name].dtype == value.dtype
    assert [p.name for p in path.parent.iterdir()] == ["file.npz"]


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "text"])
def test_damage_is_seen(tmp_path, damage):
    path = tmp_path / "file.npz"
    write_archive(path, ARRAYS, HEADER)
    data = bytearray(path.read_bytes())
    data[data.index(ARRAYS["weights"].tobytes()) + 5] ^= 1
    cases = {"cut": data[:-200], "empty": b"", "text": b"no archive", "flipped": data}
    path.write_bytes(cases[damage])
    with pytest.raises(ArchiveError, match=r"file.npz cannot be read"):
        read_archive(path)


def test_no_pickle_in_either_direction(tmp_path):
    path = tmp_path / "file.npz"
    with pytest.raises(ValueError, match=r"'x' holds Python objects"):
        write_archive(path, {"x": np.array([print], dtype=object)}, {})
    with pytest.raises(ValueError, match="another name"):
        write_archive(path, {"header": np.zeros(2)}, {})
    assert not path.exists()
    np.savez(path, header=np.array([print], dtype=object))
    with pytest.raises(ArchiveError, match="pickle"):
        read_archive(path)
    with pytest.raises(FileNotFoundError):
        read_archive(tmp_path / "none.npz")


@pytest.mark.parametrize("in_block", [True, False])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, in_block
):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(*args):
        raise OSError

    monkeypatch.setattr(os, "fsync" if in_block else "replace", fail)
    with pytest.raises(OSError):
        write_atomically(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_a_folder_comes_whole_or_not(tmp_path):
    path = tmp_path / "folder"

    def make(fails):
        with drafted(path) as draft:
            draft.mkdir()
            (draft / "file").write_text("x")
            assert not path.exists()
            if fails:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(fails=True)
    assert not list(tmp_path.iterdir())
    make(fails=False)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    assert (path / "file").read_text() == "x"
