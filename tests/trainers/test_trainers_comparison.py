"""Several runs side by side: what is run, with which flags, and what is concluded."""

import csv
import json
import pathlib
import subprocess
import sys
import types

import pytest

from trainers import all_cnn, atmc, cell_fcn, comparison
from trainers.comparison import execution, main, report
from trainers.comparison.execution import Outcome
from trainers.comparison.plan import Finding, read_plan
from trainers.evaluation.records import Record, Records
from trainers.flags import define, parse

PLAN = """
[table]
paper = paper: error

[common]
width = 0.5
epochs = 9

[BN]
norm = batch
paper = 1.2

[WN, noise]
norm = weight
scale = noisy
noise_of = BN
epochs = 4

[figure: one]
title = Both
runs = BN; WN, noise

[finding: noise helps]
lower = WN, noise : validation/nll
higher = BN : validation/nll
"""


FLAGS = all_cnn.PROGRAM.flags()


@pytest.fixture
def plan_file(tmp_path):
    path = tmp_path / "plan.ini"
    path.write_text(PLAN)
    return path


def test_a_file_is_read(plan_file):
    plan = read_plan(plan_file, FLAGS)
    assert plan.runs["BN"].flags == {"norm": "batch", "width": "0.5", "epochs": "9"}
    noisy = plan.runs["WN, noise"]
    assert (noisy.noise_of, noisy.paper, noisy.flags["epochs"]) == ("BN", "", "4")
    assert (plan.runs["BN"].paper, plan.paper) == ("1.2", "paper: error")
    assert plan.figures["one"].runs == ("BN", "WN, noise")
    finding = plan.findings[0]
    assert finding.lower == ("WN, noise", "validation/nll")
    assert (finding.higher, finding.text) == (("BN", "validation/nll"), "noise helps")


def test_the_command_line_wins_over_common_flags_and_a_run_over_both(plan_file):
    flags = all_cnn.PROGRAM.flags({"epochs": 2, "width": 0.1, "seeds": "1"})
    plan = read_plan(plan_file, flags)
    assert "seeds" not in plan.runs["BN"].flags
    assert plan.runs["BN"].flags["epochs"] == "2"
    assert plan.runs["BN"].flags["width"] == "0.1"
    assert plan.runs["WN, noise"].flags["epochs"] == "4"


CONFIGS = pathlib.Path(comparison.__file__).parents[1] / "configs"


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.ini")))
def test_the_files_of_the_package_are_right(name):
    others = {"segmentation": cell_fcn, "activations": cell_fcn}
    others |= dict.fromkeys(("atmc", "atmc_imagenet", "atmc_small"), atmc)
    program = others.get(name, all_cnn).PROGRAM
    plan = read_plan(name, program.flags())
    assert plan.figures
    assert len(plan.runs) >= 3
    for run in plan.runs.values():
        program.flags(run.flags)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no section of a run"),
        ("[a]\nnorm = batch\n[a]\n", "already exists"),
        ("[a]\nnrom = batch", "'nrom', which there is not"),
        ("[a]\nseed = 1", "for the whole comparison"),
        ("[a]\nnoise_of = b", "no run 'b', only \\['a'\\]"),
        ("[a]\n[figure: x]\nruns = a", r"section \[figure: x\] needs 'title'"),
        ("[a]\n[figure: x]\ntitle = t\nruns = a; c", "no run 'c'"),
        ("[a]\n[finding: x]\nlower = a : k\nhigher = d : k", "no run 'd'"),
        ("[a]\nnorm = weight\n[b]\nnoise_of = a", "must have norm = batch"),
        ("[a b]\n[a + b]", "must differ"),
        ("[sigma]\n[\u03c3]", "must differ"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, match):
    path = tmp_path / "plan.ini"
    path.write_text(text)
    with pytest.raises(ValueError, match=match):
        read_plan(path, FLAGS)


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(ValueError, match=r"table2: .*'table1'"):
        read_plan("table2", FLAGS)


def outcomes(**values):
    """Runs with the figures; `...` stands for one that failed."""

    def outcome(value):
        if value is ...:
            return Outcome(Records(), {}, "why")
        return Outcome(Records([Record(None, "k", value, "nats")]), {})

    return {name: [outcome(v) for v in of] for name, of in values.items()}


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        ([1.0, 1.1, 1.2], [2.0, 2.2, 2.1], "confirmed"),
        ([2.0, 2.2, 2.1], [1.0, 1.1, 1.2], "refuted"),
        ([1.0, 1.1, 2.2], [2.0, 2.2, 2.1], "open"),  # the seeds do not agree
        ([1.0, 1.0, 1.0], [1.1, 3.0, 1.1], "open"),  # they do, within the error
        ([1.5, 1.8], [2.0, 2.0], "open"),  # two seeds must agree better
        ([1.0], [2.0], "open"),  # one seed says nothing
        ([1.0, 1.1, ...], [2.0, 2.1, 0.0], "confirmed"),  # of those that ended
        ([1.0, 1.1, None], [2.0, 2.1, 2.0], "not measured"),  # an infinite NLL
        ([..., 1.0], [2.0, ...], "not measured"),
    ],
)
def test_findings_are_judged_seed_by_seed(low, high, verdict):
    finding = Finding("f", ("a", "k"), ("b", "k"))
    found = report.judge(finding, outcomes(a=low, b=high))
    assert found["verdict"] == verdict


def test_without_a_difference_a_verdict_is_rare(rng):
    finding = Finding("f", ("a", "k"), ("b", "k"))
    verdicts = []
    for low, high in rng.normal(size=(1000, 2, 3)):
        found = report.judge(finding, outcomes(a=low, b=high))
        verdicts.append(found["verdict"] != "open")
    # 50 expected, standard deviation 6.9: four of them fail at 6e-5.
    assert 22 < sum(verdicts) < 78


def test_mean_and_standard_error_of_the_differences():
    found = report.judge(
        Finding("f", ("a", "k"), ("b", "k")), outcomes(a=[1.0, 2.0, ...], b=[2, 5, 1])
    )
    assert found["differences"] == [-1.0, -3.0]
    assert (found["mean"], found["standard_error"]) == (-2.0, pytest.approx(1.0))


class Binary:
    """Stands for the processes: writes what a run leaves, and keeps the flags."""

    def __init__(self):
        self.calls = []
        self.killed = lambda values: False

    def __call__(self, words, stdout, stderr, env):
        values = dict(word[2:].split("=", 1) for word in words[3:])
        self.calls.append(values)
        folder = pathlib.Path(values["workdir"])
        if self.killed(values):
            return types.SimpleNamespace(returncode=-9)
        if folder.exists():
            there = json.loads((folder / "given.json").read_text())
            if there != {"learning_rate": "auto"} | values:
                stdout.write("error: other flags:\n  --epochs: 1 there\n")
                return types.SimpleNamespace(returncode=1)
            return types.SimpleNamespace(returncode=0)
        if values.get("scale") == "noisy" and values["seed"] == "7":
            stdout.write("epoch 1\nerror: Training diverged\n")
            return types.SimpleNamespace(returncode=1)
        folder.mkdir(parents=True)
        nll = 1.0 + (values["norm"] == "batch") + 0.01 * int(values["seed"])
        # That a run leaves such records is tested with `trainers.all_cnn`.
        records = Records(
            [
                Record("validation", "nll", nll, "nats"),
                Record("test", "error", 10 * nll, "%", "one_pass"),
                Record(None, "epochs", 2, "1"),
            ],
            dataset="digits",
            hardware={"cores": 2, "devices": ["CPU"]},
            versions={"keras": "3"},
            methods={"one_pass": "one pass"},
            shown="one_pass",
        )
        if values["norm"] == "batch":
            first = 0.04 + 0.01 * int(values["seed"])
            records.add(
                Record("noise", name, value, "1", axis="layer", at=f"conv{i}")
                for name, measured in (
                    ("scale_stddev", [first, 0.01]),
                    ("shift_stddev", [0.2, 0.125]),
                )
                for i, value in enumerate(measured)
            )
        given = {"learning_rate": "auto"} | values
        (folder / "given.json").write_text(json.dumps(given))
        records.write(folder / "metrics.json")
        lines = (f"--{key}={value}\n" for key, value in given.items())
        (folder / "flags.txt").write_text("".join(lines))
        with open(folder / "history.csv", "w") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", "learning_rate", "nll", "val_nll"])
            writer.writerows([[1, 0.03, 2.0, 2.5], [2, 0.01, nll, nll]])
        return types.SimpleNamespace(returncode=0)


@pytest.fixture
def binary(monkeypatch):
    binary = Binary()
    monkeypatch.setattr(execution.subprocess, "run", binary)
    return binary


def compare(tmp_path, plan_file, *arguments):
    flags = define(*all_cnn.PROGRAM.all_groups)
    argv = [f"--workdir={tmp_path}/all", f"--runs={plan_file}", *arguments]
    parse(flags, ["all_cnn", *argv])
    columns = [("error, %", "error", ".1f"), ("none", "x", ".1f")]
    return main.main("trainers.all_cnn", flags, columns)


def test_runs_their_flags_and_the_report(tmp_path, plan_file, binary, capsys):
    with pytest.raises(ValueError, match="1 of 6 runs failed"):
        compare(tmp_path, plan_file, "--seeds=1,7,2", "--data_dir=there")
    results = json.loads((tmp_path / "all" / "metrics.json").read_text())
    assert [(c["norm"], c["seed"]) for c in binary.calls] == [
        ("batch", "1"),
        ("weight", "1"),
        ("batch", "7"),
        ("batch", "2"),
        ("weight", "7"),
        ("weight", "2"),
    ]
    by_run = {(c["norm"], c["seed"]): c for c in binary.calls}
    # The noise measured in the first seed's run; the learning rate that it found.
    assert by_run["weight", "2"]["scale_stddev"] == "0.05,0.01"
    assert by_run["weight", "2"]["shift_stddev"] == "0.2,0.125"
    assert "learning_rate" not in by_run["batch", "1"]
    assert by_run["batch", "2"]["learning_rate"] == "0.03"
    assert by_run["batch", "1"]["data_dir"] == "there"
    assert not {"runs", "seeds", "jobs"} & set(by_run["batch", "1"])
    # A run that failed is named, and is in no figure.
    said = capsys.readouterr().out
    assert "FAILED: WN, noise, seed 7: Training diverged" in said
    assert results["runs"]["WN, noise"][1] == {}
    finding = results["findings"]["noise helps"]
    assert finding["differences"] == pytest.approx([-1.0, -1.0])
    page = (tmp_path / "all" / "report.md").read_text()
    assert "- WN, noise, seed 7: Training diverged" in page
    assert "| noise helps | -1.0000 ± 0.0000 | 2 of 2 | confirmed |" in page
    assert "|  | test error, %, one pass | validation NLL | paper: error |" in page
    assert "| BN | 20.3 ± 0.3 | 2.033 ± 0.032 | 1.2 |" in page
    assert "--data_dir=DIR" in page
    for name in ("curves_one", "layer_noise"):
        assert (tmp_path / "all" / f"{name}.png").stat().st_size > 1000


def test_what_was_run_is_not_run_again(tmp_path, plan_file, binary):
    compare(tmp_path, plan_file, "--seeds=1")
    del binary.calls[:]
    compare(tmp_path, plan_file, "--seeds=1,2")
    assert [c["seed"] for c in binary.calls] == ["2", "2"]


def test_a_given_learning_rate_is_not_waited_for(tmp_path, plan_file, binary):
    compare(tmp_path, plan_file, "--seeds=1,2", "--learning_rate=0.1")
    assert [c["norm"] for c in binary.calls] == ["batch", "batch", "weight", "weight"]
    # The noise is the first seed's nevertheless.
    assert {c["scale_stddev"] for c in binary.calls[2:]} == {"0.05,0.01"}


def test_other_flags_are_not_taken_for_done(tmp_path, plan_file, binary):
    compare(tmp_path, plan_file, "--seeds=1")
    for arguments in (["--width=0.3"], ["--samples=5"]):
        with pytest.raises(ValueError, match="All runs failed"):
            compare(tmp_path, plan_file, "--seeds=1", *arguments)


def test_a_run_goes_on_as_it_began_whichever_seed_is_first(tmp_path, plan_file, binary):
    compare(tmp_path, plan_file, "--seeds=1,2")
    del binary.calls[:]
    compare(tmp_path, plan_file, "--seeds=2,1,3")
    assert {c["seed"] for c in binary.calls} == {"3"}
    # A run that was stopped has its own flags, and no record of its end.
    (tmp_path / "all" / "logs" / "wn_noise-1.json").unlink()
    compare(tmp_path, plan_file, "--seeds=2,1")
    assert binary.calls[-1]["scale_stddev"] == "0.05,0.01"
    compare(tmp_path, plan_file, "--seeds=4")
    compare(tmp_path, plan_file, "--seeds=1,4")


def test_a_run_that_fails_takes_no_other_with_it(tmp_path, plan_file, binary, capsys):
    binary.killed = lambda values: values["norm"] == "batch"
    with pytest.raises(ValueError, match="All runs failed"):
        compare(tmp_path, plan_file, "--seeds=1")
    said = capsys.readouterr().out
    assert "FAILED: BN, seed 1: killed by signal 9" in said
    assert "the noise of 'BN' was not measured: killed by signal 9" in said
    binary.killed = lambda values: values["norm"] == "weight"
    with pytest.raises(ValueError, match="1 of 2 runs failed"):
        compare(tmp_path, plan_file, "--seeds=1")
    page = (tmp_path / "all" / "report.md").read_text()
    assert "- WN, noise, seed 1: killed by signal 9" in page
    assert "| noise helps | - | 0 of 0 | not measured |" in page
    binary.killed = lambda values: False
    compare(tmp_path, plan_file, "--seeds=1")


def test_a_file_of_flags_is_not_given_to_the_runs(tmp_path, plan_file, binary):
    config = tmp_path / "my.flags"
    config.write_text(f"--runs={plan_file}\n--width=0.3\n")
    compare(tmp_path, plan_file, f"--config={config}", "--width=0.3")
    assert all("config" not in call for call in binary.calls)


@pytest.mark.parametrize(
    ("argument", "match"), [("--seeds=1,1", "must differ"), ("--seed=3", "--seeds")]
)
def test_seeds_are_given_once(tmp_path, plan_file, binary, argument, match):
    with pytest.raises(ValueError, match=match):
        compare(tmp_path, plan_file, argument)


def test_each_seed_may_search_for_itself(tmp_path, plan_file, binary):
    compare(tmp_path, plan_file, "--seeds=1,2", "--noshare_learning_rate")
    assert all("learning_rate" not in call for call in binary.calls)


def test_the_folder_of_a_single_run_is_refused(tmp_path, plan_file, binary):
    (tmp_path / "all").mkdir()
    for name in ("flags.txt", "metrics.json"):
        (tmp_path / "all" / name).write_text("mine")
    with pytest.raises(ValueError, match=r"single run .* another --workdir"):
        compare(tmp_path, plan_file)
    assert not binary.calls
    assert (tmp_path / "all" / "metrics.json").read_text() == "mine"


def test_the_folder_of_another_comparison_is_refused(tmp_path, plan_file, binary):
    compare(tmp_path, plan_file)
    other = plan_file.with_name("other.ini")
    other.write_text(PLAN)
    with pytest.raises(ValueError, match="of --runs=plan, not of 'other'"):
        compare(tmp_path, other)
    # As an earlier version left it.
    (tmp_path / "all" / "runs.txt").unlink()
    del binary.calls[:]
    compare(tmp_path, plan_file)
    assert not binary.calls


@pytest.mark.slow
def test_from_the_command_line(tmp_path, plan_file):
    command = [sys.executable, "-m", "trainers.all_cnn", f"--runs={plan_file}"]
    command += ["--seeds=0,1", "--jobs=2", f"--workdir={tmp_path}/all", "--samples=2"]
    text = plan_file.read_text().replace("epochs = 4", "epochs = 2")
    plan_file.write_text(text.replace("epochs = 9", "epochs = 2"))
    subprocess.run([*command, "--width=0.05"], check=True)
    results = json.loads((tmp_path / "all" / "metrics.json").read_text())
    for content in results["runs"]["WN, noise"]:
        assert 0 < content["figures"]["test/nll_averaged"]["value"] < 3
