"""The jobs, as a user starts them, must learn and must be calibrated."""

import subprocess
import sys

import pytest

from trainers.evaluation.records import Records


@pytest.mark.slow
@pytest.mark.tensorflow
def test_the_main_job_learns_and_knows_what_it_does_not_know(tmp_path):
    command = [sys.executable, "-m", "trainers.all_cnn", f"--workdir={tmp_path}/run"]
    subprocess.run(command, check=True)
    workdir = tmp_path / "run"
    figures = Records.read(workdir / "metrics.json").values
    assert figures["test/error_averaged"] <= 2
    assert figures["test/nll_averaged"] <= figures["test/nll_one_pass"]
    assert figures["test/ece_equal_width_averaged"] <= 3
    assert figures["ood/auroc_averaged"] >= 95
    # One pass of moments stands in for the samples.
    assert figures["test/nll_moments"] <= figures["test/nll_one_pass"]
    report = (workdir / "report.md").read_text()
    for plot in ("training", "reliability", "error_coverage", "entropy_cdf"):
        assert f"({plot}.png)" in report
        assert (workdir / f"{plot}.png").stat().st_size > 10_000
    assert (workdir / "model.keras").exists()
    assert (workdir / "saved_model" / "1" / "saved_model.pb").exists()


@pytest.mark.slow
@pytest.mark.tensorflow
def test_cells_are_found_and_their_borders_are_uncertain(tmp_path):
    command = [sys.executable, "-m", "trainers.cell_fcn", f"--workdir={tmp_path}/run"]
    subprocess.run(command, check=True)
    figures = Records.read(tmp_path / "run" / "metrics.json").values
    for method in ("one_pass", "averaged", "moments"):
        assert figures[f"test/iou_{method}"] > figures["baseline/iou_threshold"] + 20
        assert figures[f"test/ece_equal_width_{method}"] <= 10
        entropy = {
            place: figures[f"uncertainty/entropy_{place}_{method}"]
            for place in ("border", "cell", "background", "right", "wrong")
        }
        assert entropy["border"] > max(entropy["cell"], entropy["background"])
        assert entropy["wrong"] > 1.5 * entropy["right"]
        assert figures[f"uncertainty/error_auroc_{method}"] > 70
