"""The SBN binary: members, resuming, parallel jobs, what the report holds."""

import dataclasses
import subprocess
import sys

import keras
import numpy as np
import pytest

import bayesnorm
from bayesnorm import datasets
from tests.trainers import cards
from trainers import jobs, sbn, session
from trainers.evaluation.records import Records
from trainers.report import run as report

SMALL = {"epochs": 2, "width": 0.1, "members": 2, "samples": 4}


def flags_of(workdir, **values):
    return sbn.PROGRAM.flags({"workdir": workdir, **SMALL, **values})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder and the figures of a run."""
    path = tmp_path_factory.mktemp("finished") / "run"
    return path, sbn.main(flags_of(path))


def test_the_model_card_has_the_spread_over_members(finished):
    path, _ = finished
    cards.check_figures(path, "sbn")
    _, sections = cards.sections_of(path)
    assert "means over 2 networks; this is the first" in sections["How to use it"]
    assert "one training run" not in sections["Limits"]


def test_the_report_has_the_papers_table_and_figures(finished):
    path, records = finished
    figures = records.values
    page = (path / "report.md").read_text()
    methods = [
        "bn",
        "sbn",
        "sbn_independent",
        "mcbn",
        "ensemble",
        "ensemble_sbn",
        "dropout",
        "dropout_sbn",
    ]
    for method in methods:
        assert 0 < figures[f"test/nll_{method}"] < 10
        assert 0 <= figures[f"ood/auroc_{method}"] <= 100
    assert records.find("test", "nll", "sbn").stddev > 0
    assert records.find("test", "nll", "ensemble").stddev is None
    for title in ("table 1", "Entropy out of the domain", "real batches", "conv1"):
        assert title in page
    for name in ("entropy_cdf_methods", "statistics"):
        assert f"({name}.png)" in page
        assert (path / f"{name}.png").stat().st_size > 10_000
    assert 0 < figures["statistics/ks_mean/conv0"] < 0.5
    assert figures["distance/mcbn_sbn"] > 0
    # The joint law is nearer to real batches, in the directions that it has above all.
    joint, independent = (
        figures[f"statistics/ks_directions_{m}"] for m in ("sbn", "sbn_independent")
    )
    assert joint < 0.7 * independent
    assert "from the joint law" in page
    real = figures["distance/mutual_information_mcbn"]
    errors = [
        abs(figures[f"distance/mutual_information_{m}"] - real)
        for m in ("sbn", "sbn_independent")
    ]
    assert errors[0] < errors[1]
    assert "`plain-0/`, whose `history.csv` is here as well" in page
    of_member = (path / "plain-0" / "history.csv").read_text()
    assert (path / "history.csv").read_text() == of_member


def test_the_saved_model_is_the_calibrated_network(finished):
    path, _ = finished
    splits = session.load_data(flags_of(path))
    model = keras.models.load_model(path / "model.keras")
    norms = bayesnorm.StochasticBatchNormalization
    layers = [x for x in model.layers if isinstance(x, norms)]
    assert all(x.calibration_batch_size == 16 for x in layers)
    # Twice: the layers and their copy must agree on how many batches there were.
    counts = {float(keras.ops.convert_to_numpy(x.statistics_count)) for x in layers}
    assert counts == {len(splits.train) // 16}


def test_members_go_on_and_parallel_jobs_give_the_same(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_export", lambda *args: "")
    flags = flags_of(tmp_path / "run")
    splits = session.load_data(flags)
    workdir = session.open_workdir(flags, "sbn")
    model, history = sbn.train_member(flags, splits, workdir.path, "plain", 1)
    again, same = sbn.train_member(flags, splits, workdir.path, "plain", 1)
    assert history == same
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    # The run of the fixture trained the same member after another one.
    rows = (finished[0] / "plain-1" / "history.csv").read_text().splitlines()
    other = (tmp_path / "run" / "plain-1" / "history.csv").read_text().splitlines()
    assert [r.rsplit(",", 1)[0] for r in rows] == [r.rsplit(",", 1)[0] for r in other]


@pytest.mark.slow
def test_two_jobs_at_a_time(finished, tmp_path):
    arguments = [f"--{name}={value}" for name, value in SMALL.items()]
    command = [sys.executable, "-m", "trainers.sbn", *arguments, "--jobs=2"]
    command.append(f"--workdir={tmp_path}/run")
    subprocess.run(command, check=True)
    figures = Records.read(tmp_path / "run" / "metrics.json").values
    for key in ("test/nll_bn", "test/nll_sbn", "test/nll_dropout_sbn"):
        assert figures[key] == pytest.approx(finished[1].values[key], rel=1e-4)


def test_the_flags_of_a_run_and_of_a_member_can_be_given_again(finished):
    for file in ("flags.txt", "dropout-1/flags.txt"):
        flags = sbn.PROGRAM.flags({"config": finished[0] / file})
        assert (flags.epochs, flags.members) == (2, 2)
    assert "\n# family=dropout\n# number=1\n" in (finished[0] / file).read_text()


def test_another_command_does_not_take_the_folder_of_a_run_that_was_stopped(tmp_path):
    session.open_workdir(flags_of(tmp_path / "run"), "sbn")
    (tmp_path / "run" / "plain-0" / "checkpoints").mkdir(parents=True)
    text = (tmp_path / "run" / "flags.txt").read_text()
    with pytest.raises(ValueError, match="--epochs: 2 there, 3 now"):
        sbn.main(flags_of(tmp_path / "run", epochs=3))
    assert (tmp_path / "run" / "flags.txt").read_text() == text


def test_clusters_that_are_not_installed_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.util.joblib", None)
    flags = flags_of(tmp_path, jobs=2, parallel="ray")
    with pytest.raises(ImportError, match="pip install ray"):
        jobs.run(sbn.PROGRAM, "train_in_a_job", flags, [(1,), (2,)])


def test_seeds_of_members_do_not_meet(tmp_path):
    seeds = set()
    for seed in range(3):
        flags = flags_of(tmp_path, seed=seed, members=4)
        for family in ("plain", "dropout"):
            seeds |= {sbn.member_seed(flags, family, i) for i in range(4)}
    assert len(seeds) == 24


def test_calibration_has_the_batches_of_training_however_few(tmp_path):
    """The batch size of the calibration is part of the posterior."""
    flags = flags_of(tmp_path, batch_size=64)
    splits = datasets.load("digits")
    few = datasets.Split(splits.train.images[:100], splits.train.labels[:100])
    splits = dataclasses.replace(splits, train=few, validation=few)
    assert [len(batch) for batch in sbn.training_inputs(flags, splits, 0)] == [64]
    assert [len(b) for b in sbn.held_out_inputs(flags, splits, 0)] == [50, 50]
