"""The SBN binary: members, resuming, parallel jobs, what the report holds."""

import dataclasses
import subprocess
import sys

import keras
import numpy as np
import pytest
from absl.testing import flagsaver

import bayesnorm
from bayesnorm import datasets
from trainers import sbn, session
from trainers.evaluation.records import Records
from trainers.flags import FLAGS
from trainers.report import run as report

SMALL = {"epochs": 2, "width": 0.1, "members": 2, "samples": 4}


@pytest.fixture(autouse=True)
def flags():
    with flagsaver.flagsaver():
        FLAGS(["sbn"])
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder and the figures of a run."""
    path = tmp_path_factory.mktemp("finished") / "run"
    with flagsaver.flagsaver():
        FLAGS(["sbn"])
        with flagsaver.flagsaver(workdir=str(path), **SMALL):
            return path, sbn.main()


def test_the_report_has_the_papers_table_and_figures(finished):
    path, records = finished
    figures = records.values
    page = (path / "report.md").read_text()
    methods = [
        "bn",
        "sbn",
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
    assert "`plain-0/`, whose `history.csv` is here as well" in page
    of_member = (path / "plain-0" / "history.csv").read_text()
    assert (path / "history.csv").read_text() == of_member


def test_the_saved_model_is_the_calibrated_network(finished):
    path, _ = finished
    model = keras.models.load_model(path / "model.keras")
    norms = bayesnorm.StochasticBatchNormalization
    layers = [x for x in model.layers if isinstance(x, norms)]
    assert all(x.calibration_batch_size == 16 for x in layers)
    # Twice: the layers and their copy must agree on how many batches there were.
    counts = {float(keras.ops.convert_to_numpy(x.statistics_count)) for x in layers}
    assert counts == {len(session.load_data().train) // 16}


def test_members_go_on_and_parallel_jobs_give_the_same(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_export", lambda *args: "")
    with flagsaver.flagsaver(workdir=str(tmp_path / "run"), **SMALL):
        sbn.flags.set_dataset_defaults(sbn._COMMON, sbn._DEFAULTS)
        splits = session.load_data()
        workdir = session.open_workdir("sbn")
        model, history = sbn.train_member(splits, workdir.path, "plain", 1)
        again, same = sbn.train_member(splits, workdir.path, "plain", 1)
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
        FLAGS.unparse_flags()
        with flagsaver.flagsaver():
            sbn.flags._parse(["sbn", f"--config={finished[0] / file}"])
            sbn.check_flags()
            assert (FLAGS.epochs, FLAGS.members) == (2, 2)
        assert "norm" not in (finished[0] / file).read_text()
    assert "\n# family=dropout\n# number=1\n" in (finished[0] / file).read_text()


def test_another_command_does_not_take_the_folder_of_a_run_that_was_stopped(tmp_path):
    arguments = {"workdir": str(tmp_path / "run"), **SMALL}
    with flagsaver.flagsaver(**arguments):
        sbn.flags.set_dataset_defaults(sbn._COMMON, sbn._DEFAULTS)
        session.open_workdir("sbn", sbn._IGNORED)
        (tmp_path / "run" / "plain-0" / "checkpoints").mkdir(parents=True)
    text = (tmp_path / "run" / "flags.txt").read_text()
    with (
        flagsaver.flagsaver(**(arguments | {"epochs": 3})),
        pytest.raises(ValueError, match="--epochs: 2 there, 3 now"),
    ):
        sbn.main()
    assert (tmp_path / "run" / "flags.txt").read_text() == text


@pytest.mark.parametrize(
    "argument",
    ["--norm=analytic", "--scale=plain", "--noprojection", "--kl_factor=1", "--tile=8"],
)
def test_flags_that_would_change_nothing_are_refused(argument):
    FLAGS(["sbn", argument])
    name = argument.split("=")[0].replace("--nop", "--p")
    with pytest.raises(ValueError, match=f"Received: {name}=.*Leave them out"):
        sbn.main()


def test_a_record_of_an_earlier_version_may_have_them_at_their_defaults(tmp_path):
    config = tmp_path / "flags.txt"
    config.write_text("# binary=sbn\n--kl_factor=1.0\n--norm=analytic\n--tile=8\n")
    FLAGS.unparse_flags()
    sbn.flags._parse(["sbn", f"--config={config}"])
    sbn.flags.set_dataset_defaults(sbn._COMMON, sbn._DEFAULTS)
    with pytest.raises(ValueError, match=r"Received: --tile=8\."):
        sbn.check_flags()


def test_clusters_that_are_not_installed_are_named(tmp_path, monkeypatch):
    from trainers import jobs

    monkeypatch.setitem(sys.modules, "ray.util.joblib", None)
    with (
        flagsaver.flagsaver(jobs=2, parallel="ray"),
        pytest.raises(ImportError, match="pip install ray"),
    ):
        jobs.run("trainers.sbn", "train_in_a_job", [(1,), (2,)])


def test_seeds_of_members_do_not_meet():
    seeds = set()
    for seed in range(3):
        with flagsaver.flagsaver(seed=seed, members=4):
            for family in ("plain", "dropout"):
                seeds |= {sbn.member_seed(family, i) for i in range(4)}
    assert len(seeds) == 24


def test_calibration_has_the_batches_of_training_however_few():
    """The batch size of the calibration is part of the posterior."""
    with flagsaver.flagsaver(dataset="digits", batch_size=64, augment=False):
        splits = datasets.load("digits")
        few = datasets.Split(splits.train.images[:100], splits.train.labels[:100])
        splits = dataclasses.replace(splits, train=few, validation=few)
        assert [len(batch) for batch in sbn.training_inputs(splits, 0)] == [64]
        assert [len(batch) for batch in sbn.held_out_inputs(splits, 0)] == [50, 50]
