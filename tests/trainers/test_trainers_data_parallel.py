"""Binaries that train on several devices or in several processes."""

import csv
import json
import subprocess
import sys

import keras
import numpy as np
import pytest

from bayesnorm.backend import EXIT_WORKER_LOST
from trainers import all_cnn, data_parallel, launch, workdir

_FLAGS = "--epochs=3 --samples=2 --width=0.1 --norm=weight --scale=plain --noprojection"


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"data_parallel": "workers", "runs": "table1"}, "of one run"),
        ({"data_parallel": "devices", "jobs": 2}, "--jobs=2"),
        ({"data_parallel": "workers"}, "is not set"),
    ],
)
def test_what_does_not_go_together_is_refused(values, match, tmp_path, monkeypatch):
    for name in ("TF_CONFIG", "KERAS_DISTRIBUTION_JOB_ADDRESSES"):
        monkeypatch.delenv(name, raising=False)
    flags = all_cnn.PROGRAM.flags(values)
    with (
        pytest.raises(ValueError, match=match),
        data_parallel.of(flags, tmp_path),
    ):
        pass


def test_runs_of_a_comparison_have_the_flag_themselves(tmp_path):
    flags = all_cnn.PROGRAM.flags({"data_parallel": "devices", "runs": "table1"})
    with data_parallel.of(flags, tmp_path):
        assert flags.workdir is None


def test_workers_find_each_other():
    addresses = launch.free_addresses(2)
    assert len(set(addresses)) == 2
    variables = launch.environment(1, addresses)
    if keras.backend.backend() == "jax":
        assert variables["KERAS_DISTRIBUTION_JOB_ADDRESSES"] == addresses[0]
        assert variables["KERAS_DISTRIBUTION_PROCESS_ID"] == "1"
    else:
        found = json.loads(variables["TF_CONFIG"])
        assert found["cluster"] == {"worker": addresses}
        assert found["task"] == {"type": "worker", "index": 1}


# A worker that notes each of its beginnings, and does something in the first.
_WORKER = """
import os, pathlib, sys, time
index = os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID")
if index is None:
    import json
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
file = pathlib.Path(__file__).parent / f"begun-{index}"
begun = file.read_text() if file.exists() else ""
file.write_text(begun + "x")
if not begun:
    if int(index) == 1:
        %s
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("does", "begun"),
    [
        ("os.kill(os.getpid(), 9)", 2),
        (f"sys.exit({EXIT_WORKER_LOST})", 2),
        # What it was given is wrong, and would be again.
        ("sys.exit('error: no such flag')", 1),
    ],
)
def test_all_begin_again_where_one_was_lost(does, begun, tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text(_WORKER % does)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(launch, "_PATIENCE_SECONDS", 0.1)
    codes, said = launch.run_once(["worker"], 2)
    assert launch.may_begin_again(codes) == (begun == 2)
    if begun == 1:
        assert said == ["error: no such flag\n"]
    else:
        assert launch.run_once(["worker"], 2)[0] == [0, 0]
    for index in range(2):
        assert (tmp_path / f"begun-{index}").read_text() == "x" * begun


def _history(folder):
    with open(folder / "history.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [[float(row["loss"]), float(row["val_nll"])] for row in rows]


@pytest.mark.slow
def test_workers_train_what_one_process_trains(tmp_path):
    """And the second writes nothing into the folder of the first."""
    one, two = tmp_path / "one", tmp_path / "two"
    words = ["trainers.all_cnn", *_FLAGS.split(), "--optimizer=sgd"]
    for command in (
        [*words, f"--workdir={one}"],
        ["trainers.launch", "--restarts=0", "--", *words, f"--workdir={two}"],
    ):
        subprocess.run([sys.executable, "-m", *command], check=True)
    np.testing.assert_allclose(_history(two), _history(one), rtol=0.02)
    np.testing.assert_allclose(_history(two)[0], _history(one)[0], rtol=1e-4)
    assert sorted(path.name for path in two.iterdir()) == sorted(
        path.name for path in one.iterdir()
    )
    assert workdir.read_flags(two / "flags.txt") == workdir.read_flags(
        one / "flags.txt"
    )
