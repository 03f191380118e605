"""The main job, as a user starts it, must learn and must be calibrated."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.tensorflow
def test_the_main_job_learns_and_knows_what_it_does_not_know(tmp_path):
    command = [sys.executable, "-m", "trainers.all_cnn", f"--workdir={tmp_path}/run"]
    subprocess.run(command, check=True)
    workdir = tmp_path / "run"
    figures = json.loads((workdir / "metrics.json").read_text())
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
