"""The All-CNN binary: what a run leaves, resuming, refused folders."""

import csv
import dataclasses
import json
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
from scipy import special, stats

import bayesnorm
from bayesnorm import metrics
from tests.helpers import long
from tests.trainers import cards
from trainers import all_cnn, session
from trainers import flags as trainer_flags
from trainers.comparison import execution
from trainers.comparison import report as comparison_report
from trainers.comparison.plan import Figure, Finding, Plan, Run, read_plan
from trainers.evaluation.records import Records
from trainers.report import run as report
from trainers.sections import batch_noise

SMALL = {
    "epochs": 3,
    "augment": True,
    "kl_warmup_epochs": 1,
    "width": 0.05,
    "samples": 4,
    "batch_size": 64,
    "learning_rate": "0.01",
}


@pytest.fixture
def no_export(monkeypatch):
    monkeypatch.setattr(report, "_export", lambda *args: "")


def flags_of(workdir, **values):
    return all_cnn.PROGRAM.flags({"workdir": workdir, **SMALL, **values})


def run_main(workdir, **values):
    return all_cnn.PROGRAM.main(flags_of(workdir, **values)).values


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder and the figures of a run."""
    path = tmp_path_factory.mktemp("finished") / "run"
    return path, run_main(path)


def without_times(figures):
    return {k: v for k, v in figures.items() if not k.startswith("seconds/")}


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_figures(
    finished, tmp_path, monkeypatch, no_export
):
    with monkeypatch.context() as patch:
        write = session.write_history

        def kill(path, history):
            write(path, history)
            if len(history) == 2:
                raise Killed

        patch.setattr(session, "write_history", kill)
        with pytest.raises(Killed):
            run_main(tmp_path)
    assert not (tmp_path / "metrics.json").exists()
    resumed = run_main(tmp_path)
    path, figures = finished
    assert without_times(resumed) == without_times(figures)
    assert Records.read(tmp_path / "metrics.json").values == resumed
    rows = []
    for folder in (path, tmp_path):
        with open(folder / "history.csv", newline="") as file:
            rows.append([{**r, "seconds": 0} for r in csv.DictReader(file)])
    assert rows[0] == rows[1]
    assert len(rows[0]) == 3


def test_a_run_leaves_a_report_and_models(finished):
    path, figures = finished
    page = (path / "report.md").read_text()
    plots = {p.name for p in path.glob("*.png")}
    assert len(plots) == 8
    assert all(f"({name})" in page for name in plots)
    assert "scikit-learn digits" in page
    for key in ("test/nll_one_pass", "test/nll_averaged", "test/error_averaged"):
        assert 0 < figures[key] < 100
    assert 0 <= figures["ood/auroc_averaged"] <= 100
    assert figures["test/examples_one_pass"] == 288
    assert figures["ood/examples_out_one_pass"] == 354

    splits = session.load_data(flags_of(path))
    model = keras.models.load_model(path / "model.keras")
    logits = model.predict(splits.inputs(splits.test.images), verbose=0)
    error = 100 * np.mean(logits.argmax(-1) != splits.test.labels)
    assert error == pytest.approx(figures["test/error_one_pass"])
    if keras.backend.backend() == "tensorflow":
        assert (path / "saved_model" / "1" / "saved_model.pb").exists()
        assert list((path / "tensorboard").iterdir())


def test_the_report_has_what_validation_mends(finished):
    path, figures = finished
    assert "## Calibrated on validation" in (path / "report.md").read_text()
    splits = session.load_data(flags_of(path))
    model = keras.models.load_model(path / "model.keras")

    def probs(part):
        logits = model.predict(splits.inputs(part.images), verbose=0)
        return special.softmax(logits.astype("float64"), axis=-1)

    validation, test = probs(splits.validation), probs(splits.test)
    held, labels = splits.validation.labels, splits.test.labels
    temperature = metrics.temperature_scaling(np.log(validation), held)
    said = figures["validation/temperature_one_pass"]
    assert said == pytest.approx(temperature, rel=1e-3)
    nll = metrics.nll(metrics.apply_temperature(np.log(test), temperature), labels)
    assert figures["test/tempered_nll_one_pass"] == pytest.approx(nll, rel=1e-3)
    # The threshold by hand: the k-th highest probability of a right class.
    right = np.sort(validation[np.arange(len(held)), held])[::-1]
    threshold = right[int(np.ceil((len(held) + 1) * 0.9)) - 1]
    sets = test >= threshold
    assert figures["test/set_size_of_90_one_pass"] == pytest.approx(
        sets.sum(-1).mean(), abs=0.02
    )
    covered = 100 * sets[np.arange(len(labels)), labels].mean()
    assert figures["test/coverage_of_90_one_pass"] == pytest.approx(covered, abs=1)


def test_the_model_card_says_what_was_measured_and_its_code_runs(finished, monkeypatch):
    path, _ = finished
    cards.check_figures(path, "averaged")
    splits = session.load_data(flags_of(path))
    cards.check_code(path, splits, "test/nll_averaged", monkeypatch)
    header, sections = cards.sections_of(path)
    assert "pipeline_tag: image-classification" in header
    assert "Out-of-distribution detection was measured" in sections["Limits"]
    assert "Robustness" not in sections["Limits"]  # The report has perturbations.
    assert "(0, 1, 2, 3, 4, 5, 6, 7)" in sections["Intended use"]
    error = cards.figures_of(path)[0]["test/error_averaged"]["value"]
    exact = stats.binomtest(round(288 * error / 100), 288).proportion_ci(method="exact")
    interval = f"from {100 * exact.low:.2f} to {100 * exact.high:.2f} %"
    assert interval in sections["Figures"]
    data = sections["Training and evaluation data"]
    assert "`digits`" in data
    assert f"{len(splits.train):,} train" in data
    assert "354 images of 8, 9" in data
    # The flags, from which the same run follows.
    text = sections["Training"].split("```")[3]
    config = path / "card.txt"
    config.write_text(text)
    again = all_cnn.PROGRAM.flags({"config": config})
    config.unlink()
    assert trainer_flags.defining(again) == trainer_flags.defining(flags_of(path))


def test_a_workdir_of_other_flags_is_refused(finished):
    with pytest.raises(ValueError, match="--epochs: 3 there, 2 now"):
        run_main(finished[0], epochs=2)


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"norm": "none", "scale": "plain", "projection": False}, {"one_pass"}),
        long(
            {"norm": "weight", "samples": 11},
            {"one_pass", "averaged_10", "averaged", "moments"},
        ),
    ],
)
def test_other_networks(tmp_path, no_export, values, keys):
    figures = run_main(tmp_path, epochs=1, learning_rate="0.001", **values)
    found = {key.removeprefix("test/nll_") for key in figures if "test/nll" in key}
    assert found == keys


def test_a_comparison_finds_all_that_a_run_leaves(finished, tmp_path, monkeypatch):
    outcome = execution.read_outcome(finished[0])
    keys = set()
    for name in ("table1", "batch_size", "normalization_batch"):
        for finding in read_plan(name, flags_of(tmp_path)).findings:
            keys |= {finding.lower[1], finding.higher[1]}
    # Only where there are more samples than ten.
    keys.remove("test/nll_averaged_10")
    plan = Plan(
        {"BN": Run({}), "AN": Run({})},
        {"one": Figure("One", ("BN", "AN"))},
        [Finding(key, ("BN", key), ("AN", key)) for key in keys],
    )
    # What batch normalization measures, of a network that is not trained.
    monkeypatch.setattr(batch_noise, "_BATCH_SIZES", ())
    monkeypatch.setattr(batch_noise, "_BATCHES", 10)
    flags = flags_of(tmp_path, norm="batch", scale="plain")
    splits = session.load_data(flags)
    model = all_cnn.NETWORK.build(flags, splits)
    made = types.SimpleNamespace(flags=flags, splits=splits, model=model)
    noise = Records(batch_noise.section(made).records)
    measured = execution.measured_noise(execution.Outcome(noise, {}))
    flags = all_cnn.PROGRAM.flags(measured)
    assert len(flags.scale_stddev) == len(flags.shift_stddev) == 9
    records = Records(
        [
            *(r for r in outcome.records if r.part != "posterior"),
            *noise,
        ],
        **outcome.records.about,
    )
    of_bn = dataclasses.replace(outcome, records=records)
    outcomes = {"BN": [of_bn], "AN": [outcome]}
    columns = all_cnn.NETWORK.columns
    results = comparison_report.write(
        tmp_path, plan, outcomes, columns, ["0"], "command", False
    )
    for key in keys:
        assert results["findings"][key]["differences"] == [0.0]
    page = (tmp_path / "report.md").read_text()
    head = next(line for line in page.splitlines() if line.startswith("|  | test"))
    titles = [title for title, *_ in comparison_report._COLUMNS if "IoU" not in title]
    methods = ("one pass", f"MC-{SMALL['samples']}", "propagated moments")
    titles += [f"test {x[0]}, {method}" for x in columns for method in methods]
    assert all(f"| {title} |" in head for title in titles)
    row = next(line for line in page.splitlines() if line.startswith("| AN | "))
    value = outcome.records.value("test", "nll", "averaged")
    assert row.split(" | ")[5] == f"{value:.3f}"
    assert len(row.split(" | ")) == len(titles) + 1
    for name in (
        "curves_one",
        "layer_noise",
        "perturbation_gaussian",
        "perturbation_gradient_sign",
        "error_coverage",
    ):
        assert f"({name}.png)" in page
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert "| AN, sigma_S / s | " in page
    assert "| BN, sigma_U | " in page


@pytest.mark.slow
def test_the_noise_of_batch_normalization_goes_into_another_run(tmp_path, no_export):
    figures = run_main(tmp_path / "bn", norm="batch", scale="plain", epochs=2)
    page = (tmp_path / "bn" / "report.md").read_text()
    flag = next(word for word in page.split() if word.startswith("--scale_stddev="))
    stddevs = [float(value) for value in flag.partition("=")[2].split(",")]
    measured = [v for k, v in figures.items() if k.startswith("noise/scale_stddev/")]
    np.testing.assert_allclose(stddevs, measured, atol=5e-5)
    assert len(measured) == 9
    # Of other batches, at the batch size of training; 100 tell a deviation to 7 %.
    splits = session.load_data(flags_of(tmp_path))
    model = keras.models.load_model(tmp_path / "bn" / "model.keras")
    images = splits.inputs(splits.train.images)
    again = bayesnorm.batch_noise(model, images, 64, batches=100, seed=9)
    assert figures["noise/shift_stddev/conv0"] == pytest.approx(
        again[0].shift_stddev, rel=0.25
    )
    np.testing.assert_allclose(measured, [n.scale_stddev for n in again], rtol=0.25)
    noise = {"scale_stddev": map(str, stddevs), "shift_stddev": ["0.01"]}
    noise = {name: list(values) for name, values in noise.items()}
    figures = run_main(tmp_path / "wn", norm="weight", scale="noisy", epochs=1, **noise)
    assert "test/nll_averaged" in figures
    model = keras.models.load_model(tmp_path / "wn" / "model.keras")
    layers = [model.get_layer(f"conv{i}_scale") for i in range(9)]
    assert [layer.scale_stddev for layer in layers] == stddevs
    assert {layer.shift_stddev for layer in layers} == {0.01}


def test_a_noisy_scale_wants_its_noise(tmp_path):
    with pytest.raises(ValueError, match="--scale=noisy needs --scale_stddev"):
        run_main(tmp_path, scale="noisy")


def test_fewer_examples(tmp_path, no_export):
    values = {"train_examples": 100, "validation_examples": 50}
    splits = session.load_data(flags_of(tmp_path, **values))
    assert (len(splits.train), len(splits.validation)) == (100, 50)
    inputs = splits.inputs(splits.train.images)
    np.testing.assert_allclose(splits.channel_mean, inputs.mean(), rtol=1e-6)
    with pytest.raises(ValueError, match="--train_examples must be at most"):
        session.load_data(flags_of(tmp_path, train_examples=5000))


def test_perturbed_accuracy_starts_at_that_of_the_test_part(finished):
    figures = finished[1]
    for kind in ("gaussian", "gradient_sign"):
        accuracy = figures[f"perturbation/{kind}/0/accuracy_one_pass"]
        assert accuracy == pytest.approx(figures["test/accuracy_one_pass"])
        # Of the same samples.
        accuracy = figures[f"perturbation/{kind}/0/accuracy_averaged"]
        assert accuracy == pytest.approx(figures["test/accuracy_averaged"])
    # Against the gradient a network does worse, and the worse the farther.
    attacked = [
        figures[f"perturbation/gradient_sign/{size}/accuracy_one_pass"]
        for size in ("0", "0.02", "0.04")
    ]
    assert attacked == sorted(attacked, reverse=True)
    assert attacked[-1] < attacked[0]


@pytest.mark.slow
def test_the_learning_rate_is_searched_for_once(tmp_path, no_export):
    search = {"learning_rate": "auto", "search_epochs": 1, "search_evaluations": 3}
    figures = run_main(tmp_path, epochs=1, **search)
    tried = dict(json.loads((tmp_path / "learning_rate.json").read_text()))
    assert len(tried) == 3
    best = min(tried, key=tried.get)
    assert figures["train/learning_rate"] == best


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs=0"], "flag --epochs=0: must be 1 or more"),
        (["--workdir={path}"], "holds something other than a run"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(tmp_path, arguments, message):
    (tmp_path / "thesis.tex").write_text("x")
    arguments = [argument.format(path=tmp_path) for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "trainers.all_cnn", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
