"""Checkpoints: whole or not there, damage, killed runs."""

import csv
import os

import numpy as np
import pytest

from bayesnorm.training.checkpoints import Checkpoints, write_history


def history(epochs):
    return [{"epoch": i + 1, "nll": 0.1 / (i + 1)} for i in range(epochs)]


VALUES = [np.arange(6, dtype="float32").reshape(2, 3), np.array(7, "int64")]


def test_a_checkpoint_returns_what_was_saved_and_two_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.latest() is None
    for epochs in (1, 2, 3):
        checkpoints.save([v + epochs for v in VALUES], history(epochs))
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["epoch-000002.npz", "epoch-000003.npz"]
    saved = checkpoints.latest()
    assert saved.history == history(3)
    for value, expected in zip(saved.values, VALUES, strict=True):
        np.testing.assert_array_equal(value, expected + 3)
        assert value.dtype == (expected + 3).dtype


def test_old_drafts_of_killed_runs_are_removed(tmp_path):
    old, new = (tmp_path / f".epoch-000001.npz.{c * 32}" for c in "ab")
    other = tmp_path / f".other.npz.{'a' * 32}"
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    Checkpoints(tmp_path).save(VALUES, history(1))
    # The young one may be of a process that writes it.
    assert not old.exists()
    assert new.exists()
    assert other.exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path)
    for epochs in (1, 2):
        checkpoints.save(VALUES, history(epochs))
    path = tmp_path / "epoch-000002.npz"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        start = data.index(VALUES[0].tobytes())
        data[start + 5] ^= 1
    path.write_bytes({"cut": data[:-200], "empty": b""}.get(damage, data))
    assert len(checkpoints.latest().history) == 1
    (tmp_path / "epoch-000001.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="None of the checkpoints"):
        checkpoints.latest()


def test_pickled_content_is_not_loaded(tmp_path):
    np.savez(tmp_path / "epoch-000001.npz", header=np.array([print], dtype=object))
    with pytest.raises(ValueError, match=r"can be read.*pickle"):
        Checkpoints(tmp_path).latest()


def test_a_checkpoint_of_the_other_backend_is_refused(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(
            "bayesnorm.training.checkpoints.keras.backend.backend", lambda: "other"
        )
        checkpoints.save(VALUES, history(1))
    with pytest.raises(ValueError, match="KERAS_BACKEND=other"):
        checkpoints.latest()


def test_history_is_a_csv_with_all_digits(tmp_path):
    write_history(tmp_path / "history.csv", history(3))
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["nll"]) for row in rows] == [r["nll"] for r in history(3)]


def test_checkpoints_at_no_interval_are_refused(tmp_path):
    with pytest.raises(ValueError, match="every=0"):
        Checkpoints(tmp_path, 0)
