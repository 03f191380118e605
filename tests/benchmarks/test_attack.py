"""The attack finds what it is to find, and finds nothing."""

import os
import pickle

import numpy as np
import pytest

from bayesnorm.storage import ArchiveError, read_archive, write_archive
from bayesnorm.streams.arrays import as_arrays
from benchmarks import attack


@pytest.mark.parametrize(
    ("call", "way"),
    [
        (lambda: True, attack.ANSWER),
        (lambda: False, attack.FAULT),
        (lambda: {}["x"], attack.PASSED_ON),
        # As of NumPy: the words are not ours, whatever the type.
        (lambda: np.zeros(2) + np.zeros(3), attack.PASSED_ON),
        (lambda: write_archive("x.npz", {"header": 1}, {}), attack.REFUSAL),
    ],
)
def test_ways_to_end(call, way):
    assert attack.ended(call).way == way


def test_code_in_a_file_is_seen_when_it_runs(tmp_path):
    payload = attack.Payload(tmp_path / "ran")
    pickle.loads(pickle.dumps(payload))
    assert os.path.isdir(tmp_path / "ran")


def test_no_input_ends_in_a_fault(tmp_path):
    found = attack.attacked(90, tmp_path)
    assert len(found) == 9
    for title, ends in found.items():
        faults = [end for end in ends if end.way == attack.FAULT]
        assert len(ends) == 10
        assert not faults, title


def test_arrays_put_in_the_place_of_others_are_noticed(tmp_path):
    """Whole files, each member with a checksum that is right."""
    path = tmp_path / "a.npz"
    write_archive(path, {"x": np.ones(3), "y": np.zeros(2)}, {"n": 1})
    with np.load(path) as archive:
        whole = dict(archive)
    for changed in (
        {**whole, "x": np.zeros(3)},
        {**whole, "x": np.ones((3, 1))},
        {**whole, "x": np.ones(3, "float32")},
        {**whole, "z": np.ones(3)},
        {k: v for k, v in whole.items() if k != "y"},
        {k: v for k, v in whole.items() if k != "header"},
    ):
        np.savez(path, **changed)
        with pytest.raises(ArchiveError, match="cannot be read"):
            read_archive(path)
    np.savez(path, **whole)
    assert read_archive(path)[1] == {"n": 1}


def test_imaginary_parts_are_not_lost_in_silence():
    with pytest.raises(ValueError, match="imaginary part would be lost"):
        as_arrays(np.ones((2, 3), "complex64"))
