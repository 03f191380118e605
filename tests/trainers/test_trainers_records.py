"""Records, the tables made of them, and posteriors that appear by themselves."""

import json
import types

import keras
import numpy as np
import pytest
from keras import ops

import bayesnorm
from bayesnorm import datasets
from trainers.comparison import report as comparison_report
from trainers.comparison.execution import Outcome
from trainers.comparison.plan import Plan, Run
from trainers.evaluation import methods
from trainers.evaluation.evaluate import evaluate
from trainers.evaluation.records import Record, Records
from trainers.report import run as report
from trainers.report.tables import number, table

KEYS = {
    "epochs": Record(None, "epochs", 3, "1"),
    "train/nll": Record("train", "nll", 0.5, "nats"),
    "test/nll_averaged": Record("test", "nll", 0.25, "nats", "averaged", stddev=0.125),
    "test/mask/nll_averaged": Record("test", "nll", 1.5, "nats", "averaged", "mask"),
    "test/error_at_coverage_50_sbn": Record(
        "test", "error_at_coverage", 2.0, "%", "sbn", axis="coverage", at=50
    ),
    "noise/scale_stddev/conv0": Record(
        "noise", "scale_stddev", 0.1, "1", axis="layer", at="conv0"
    ),
    "perturbation/gaussian/0.1/accuracy_one_pass": Record(
        "perturbation/gaussian",
        "accuracy",
        90.0,
        "%",
        "one_pass",
        axis="perturbation",
        at=0.1,
    ),
    "plan/precision": Record("plan", "precision", "tf32", "1"),
    "test/nll_bn": Record("test", "nll", np.float64("inf"), "nats", "bn"),
}


@pytest.mark.parametrize("key", KEYS)
def test_the_keys_of_records(key):
    assert KEYS[key].key == key


def test_records_are_read_as_they_were_written(tmp_path):
    records = Records(KEYS.values(), dataset="digits", methods={"bn": "BN"})
    records.write(tmp_path / "metrics.json")
    read = Records.read(tmp_path / "metrics.json")
    assert list(read) == list(records) == list(KEYS.values())
    assert read.about == {"dataset": "digits", "methods": {"bn": "BN"}}
    text = (tmp_path / "metrics.json").read_text()
    assert '"stddev": 0.125 }' in text
    assert len(text.splitlines()) < 3 * len(KEYS)  # A line each.
    # JSON has no infinity.
    content = json.loads(text, parse_constant=pytest.fail)
    assert content["figures"]["test/nll_bn"]["value"] is None
    # Numbers of NumPy are plain ones.
    assert type(Record(None, "x", np.float32(0.5), "1").value) is float


def test_records_are_found_by_what_they_are():
    records = Records(KEYS.values())
    assert records.value("test", "nll", "averaged") == 0.25
    assert records.value("test", "nll", "averaged", output="mask") == 1.5
    assert records.value("test", "nll", "moments") is None
    assert records.find("test", "nll") is None
    assert [r.key for r in records.select(figure="nll", method="averaged")] == [
        "test/nll_averaged",
        "test/mask/nll_averaged",
    ]
    assert records.along(part="noise") == {"conv0": 0.1}
    with pytest.raises(ValueError, match="a record 'train/nll' already"):
        records.add([Record("train", "nll", 0.75, "nats")])
    with pytest.raises(ValueError, match="axis='depth', at=3"):
        Record("noise", "x", 1.0, "1", axis="depth", at=3)
    with pytest.raises(ValueError, match="or neither"):
        Record("noise", "x", 1.0, "1", axis="layer")


def test_tables():
    rows = [["a | b", "1.0", "yes"], ["c\nd", "", "no"]]
    assert table(["", "number", "word"], rows, left=(0, 2)).splitlines() == [
        "|  | number | word |",
        "| --- | ---: | --- |",
        "| a \\| b | 1.0 | yes |",
        "| c d |  | no |",
    ]
    with pytest.raises(ValueError, match=r"columns \['x'\]. Received: \['a', 'b'\]"):
        table(["x"], [["a", "b"]])
    assert number(0.126, ".2f") == "0.13"
    assert number(0.126, ".2f", 0.05) == "0.13 ± 0.05"
    assert (number(None, ".2f"), number(None, ".2f", none="")) == ("-", "")


@keras.saving.register_keras_serializable("bayesnorm_tests_records")
class Shift(bayesnorm.VariationalLayer):
    """y = x + V, V ~ Normal(mean, 1/4), prior Normal(0, 1); no rule of moments."""

    def build(self, input_shape):
        self.mean = self.add_weight(shape=input_shape[-1:], initializer="ones")
        super().build(input_shape)

    @property
    def noise_shapes(self):
        return {"shift": tuple(self.mean.shape)}

    def kl_divergence(self):
        return ops.sum(0.5 * (0.25 + self.mean**2 - 1.0) + np.log(2.0))

    def call(self, inputs, training=None):
        z = self.standard_normal("shift", ops.shape(inputs)[0], training)
        return inputs + self.mean + (0.0 if z is None else 0.5 * z)


@keras.saving.register_keras_serializable("bayesnorm_tests_records")
class SpreadShift(Shift):
    """With something of its own to say."""

    def posterior_summary(self):
        return {"distance": (np.array([0.25, 1.0, 5.0]), "m")}


def test_a_layer_of_ones_own_appears_in_every_report(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(report, "_export", lambda *args: "")
    # The card tells of a program, its flags and its data, of which there are none.
    monkeypatch.setattr(report.model_card, "write", lambda *args: None)
    images, labels = rng.integers(0, 255, (12, 2, 2, 1), "uint8"), np.arange(12) % 3
    splits = datasets.from_arrays(*[(images, labels)] * 3, scale=1 / 255)
    model = keras.Sequential(
        [keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    for layer in (Shift(name="first", seed=0), SpreadShift(name="second", seed=1)):
        model.add(layer)
    row = {"epoch": 1, "seconds": 1.0, "learning_rate": 0.1, "kl_weight": 0.0}
    row |= dict.fromkeys(("nll", "kl", "accuracy", "val_nll", "val_accuracy"), 0.5)
    said = []
    found = methods.standard(model, 4, 0, said.append)
    assert list(found) == ["one_pass", "averaged"]
    assert "no propagated moments: No rule" in said[0]
    more = methods.standard(model, 11, 0, said.append)
    assert [more[key].short for key in ("averaged_10", "averaged")] == [
        "MC-10",
        "MC-11",
    ]
    flags = types.SimpleNamespace(samples=4, dataset_title="dots")
    evaluation = evaluate(flags, splits, model, [row], found, "averaged", said.append)
    report.write(tmp_path, evaluation, "A network", note=said.append)

    records = Records.read(tmp_path / "metrics.json")
    kl = records.find("posterior", "kl", axis="layer", at="first")
    assert (kl.value, kl.unit) == (pytest.approx(3 * (0.125 + np.log(2.0))), "nats")
    distance = records.find("posterior", "distance", axis="layer", at="second")
    assert (distance.value, distance.unit) == (1.0, "m")
    page = (tmp_path / "report.md").read_text()
    assert f"| first | kl | {kl.value:.4g} | nats |" in page
    assert "| second | distance | 1 | m |" in page
    assert "| average of 4 samples |" in page

    plan = Plan({"mine": Run({})}, {}, [])
    outcomes = {"mine": [Outcome(records, {})]}
    columns = [("NLL", "nll", ".3f")]
    comparison_report.write(tmp_path, plan, outcomes, columns, ["0"], "cmd", False)
    page = (tmp_path / "report.md").read_text()
    assert "test NLL, one pass | test NLL, MC-4 |" in page
    assert "over the seeds, unit nats.\n\n|  | first |\n" in page
    assert f"| mine | {kl.value:.4g} |" in page
    assert "|  | second |\n| --- | ---: |\n| mine | 1 |" in page
