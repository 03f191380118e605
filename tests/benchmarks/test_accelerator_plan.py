"""The accelerator plan: equal to the trainers, resumed as if unbroken, in order."""

import contextlib
import csv
import json
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from bayesnorm.training.progress import Progress
from trainers import all_cnn
from trainers.evaluation.records import Records
from trainers.flags import parse, words

pytest.importorskip("jax")

from benchmarks.accelerator import context as contexts
from benchmarks.accelerator import device, page, plan, speed
from benchmarks.accelerator.clock import (
    Clock,
    OutOfTimeError,
    TimedCheckpoints,
)
from benchmarks.accelerator.ledger import BEGUN, DONE, FAILED, Ledger

pytestmark = pytest.mark.jax

WORDS = {
    "width": "0.05",
    "train_examples": "128",
    "validation_examples": "64",
    "epochs": "3",
    "search_epochs": "1",
    "search_evaluations": "2",
    "samples": "3",
    "seeds": "0,1",
}
BN = "learning_rate/bn_projection,table1_3/bn_projection"


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """One folder of compiled programs for all plans here."""
    return tmp_path_factory.mktemp("programs")


def run(out, programs, **values):
    """Runs the plan as its command line does."""
    flags = plan.defined()
    values = {"out": out, "budget_s": "1000"} | WORDS | values
    parse(flags, ["plan", *words(values)])
    keep = device.keep_programs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "keep_programs", lambda _: keep(programs))
        plan.main(flags, time.monotonic())


def figures_of(folder):
    """The figures of a run, without times and what says how it came about."""
    figures = Records.read(folder / "metrics.json").values
    return {k: v for k, v in figures.items() if not k.startswith(("seconds", "plan"))}


def history_of(folder):
    with open(folder / "history.csv") as file:
        rows = list(csv.DictReader(file))
    return [{k: float(v) for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, programs):
    """The folder of a plan that nothing stopped."""
    out = tmp_path_factory.mktemp("unbroken")
    run(out, programs, only=BN, at_once="2")
    return out


def test_a_run_is_that_of_the_trainer(unbroken, tmp_path):
    """The first seed searches and trains at once with another; the trainer alone."""
    values = {k: v for k, v in WORDS.items() if k != "seeds"} | {
        "norm": "batch",
        "scale": "plain",
        "learning_rate": "auto",
        "optimizer": "sgd",
        "initial_stddev": "0.1",
        "augment": "true",
        "workdir": tmp_path / "run",
    }
    trained = all_cnn.PROGRAM.main(all_cnn.PROGRAM.flags(values)).values
    planned = figures_of(unbroken / "table1_3" / "bn_projection-0")
    for key, value in planned.items():
        if isinstance(value, float) and not key.startswith("noise/chi_square"):
            np.testing.assert_allclose(
                value, trained[key], rtol=2e-3, atol=1e-6, err_msg=key
            )
    for ours, theirs in zip(
        history_of(unbroken / "table1_3" / "bn_projection-0"),
        history_of(tmp_path / "run"),
        strict=True,
    ):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            np.testing.assert_allclose(
                value, theirs[key], rtol=2e-4, atol=1e-6, err_msg=key
            )


class Killed(BaseException):
    """What no code catches."""


def test_killed_twice_and_out_of_time_it_ends_as_unbroken(
    unbroken, tmp_path, programs, monkeypatch
):
    arguments = {"only": BN, "at_once": "2", "checkpoint_s": "0"}
    note = Progress.note

    def kill_in_the_search(self, text):
        note(self, text)
        if text.startswith("learning rate 0"):
            raise Killed

    def kill_in_the_training(self, row, epochs):
        if row["epoch"] == 1:
            raise Killed

    for name, killer in (("note", kill_in_the_search), ("epoch", kill_in_the_training)):
        with monkeypatch.context() as patch:
            patch.setattr(Progress, name, killer)
            with pytest.raises(Killed):
                run(tmp_path, programs, **arguments)
    ledger = Ledger(tmp_path / "pieces.json", ledger_flags(unbroken))
    assert ledger.state("learning_rate/bn_projection") == DONE
    assert ledger.state("table1_3/bn_projection/0-1") == BEGUN

    resumed = []
    with monkeypatch.context() as patch:
        # The budget ends in the second epoch.
        patch.setattr(TimedCheckpoints, "is_due", out_of_time_after(2))
        run(tmp_path, programs, **arguments)
    assert not (tmp_path / "table1_3" / "bn_projection-0" / "metrics.json").exists()
    assert len(history_of(tmp_path / "table1_3" / "bn_projection-0")) == 2
    monkeypatch.setattr(
        Progress, "epoch", lambda self, row, epochs: resumed.append(row["epoch"])
    )
    run(tmp_path, programs, **arguments)
    assert resumed == [3]
    for name in ("bn_projection-0", "bn_projection-1"):
        ours, theirs = tmp_path / "table1_3" / name, unbroken / "table1_3" / name
        assert history_of(ours) == history_of(theirs)
        assert figures_of(ours) == figures_of(theirs)
        with np.load(ours / "weights.npz") as a, np.load(theirs / "weights.npz") as b:
            assert a.files == b.files
            assert all(np.array_equal(a[key], b[key]) for key in a.files)
    assert not any((tmp_path / "table1_3" / "checkpoints").glob("*"))


def ledger_flags(out):
    return json.loads((out / "pieces.json").read_text())["flags"]


def out_of_time_after(epochs):
    def is_due(self, epoch):
        self.is_over = epoch >= epochs
        return True

    return is_due


def test_the_report_has_what_there_is(unbroken):
    text = (unbroken / "report.md").read_text()
    assert "| BN + projection, 3 epochs, seeds 0, 1 | done |" in text
    assert "| learning rate of WN |  |  |" in text
    table = (unbroken / "table1_3" / "report.md").read_text()
    assert "- WN, seed 0: it has not run yet" in table
    assert "| BN + projection | " in table
    assert (unbroken / "table1_3" / "curves_projection.png").is_file()
    result = json.loads((unbroken / "pieces.json").read_text())["pieces"]
    assert result["table1_3/bn_projection/0-1"]["result"]["networks_at_once"] == 2


def test_other_flags_are_refused(unbroken, programs):
    with pytest.raises(ValueError, match=r"width: 0\.05 there, 0\.1 now"):
        run(unbroken, programs, width="0.1")


def test_a_piece_that_fails_does_not_stop_the_others(tmp_path, programs, monkeypatch):
    begun = []

    def pieces(self):
        def fails():
            raise RuntimeError("out of memory\nand so on")

        def stops():
            raise OutOfTimeError("1 s is left")

        def piece(name, function, least=0.0):
            return contexts.Piece(
                name, name, 5.0, least, lambda: begun.append(name) or function()
            )

        return [
            piece("fails", fails),
            piece("stops", stops),
            piece("long", dict, least=5000.0),
            piece("does", lambda: {"found": 1}),
        ]

    monkeypatch.setattr(plan.Plan, "pieces", pieces)
    run(tmp_path, programs)
    assert begun == ["fails", "stops", "does"]
    ledger = Ledger(tmp_path / "pieces.json", ledger_flags(tmp_path))
    states = [ledger.state(name) for name in ("fails", "stops", "long", "does")]
    assert states == [FAILED, BEGUN, None, DONE]
    assert ledger.result("fails") == {"error": "out of memory"}
    assert "and so on" in (tmp_path / "errors.txt").read_text()
    assert "failed: out of memory" in (tmp_path / "report.md").read_text()


def fake_context(tmp_path, **arguments):
    """A context of the digits whose ledger is empty."""
    return contexts.Context(
        out=tmp_path,
        data=contexts.Data(None),
        ledger=Ledger(tmp_path / "pieces.json", {}),
        clock=Clock(100.0),
        progress=Progress(),
        given={"width": "0.05", "train_examples": "128"},
        command="",
        seeds=[0, 1, 2],
        precision="tf32",
        **arguments,
    )


def record_speed(context, kind, batch, at_once, rate, seconds=1.0):
    result = {
        "kind": kind,
        "batch": batch,
        "at_once": at_once,
        "network_steps_per_second": rate,
        "compile_s": 7.0,
    }
    context.ledger.record(
        speed.name_of(kind, batch, at_once), DONE, seconds, result=result
    )


def test_networks_at_once_are_those_with_the_most_steps_per_second(tmp_path):
    context = fake_context(tmp_path)
    kind = "All-CNN, BN"
    assert speed.best_at_once(context, kind, 32, 3) == 1  # a CPU, nothing measured
    for at_once, rate in ((1, 100.0), (3, 250.0), (6, 400.0)):
        record_speed(context, kind, 32, at_once, rate)
    record_speed(context, "All-CNN, AN", 32, 1, 300.0)
    assert speed.best_at_once(context, kind, 32, 8) == 6
    assert speed.best_at_once(context, kind, 32, 5) == 3
    assert speed.best_at_once(context, kind, 32, 2) == 1
    # Of another kind the one that was measured best says it.
    assert speed.best_at_once(context, "All-CNN, WN", 32, 8) == 6
    pinned = fake_context(tmp_path, at_once=4)
    assert [speed.best_at_once(pinned, kind, 32, n) for n in (3, 8)] == [3, 4]


def test_epochs_are_estimated_by_the_nearest_speed(tmp_path):
    context = fake_context(tmp_path)
    record_speed(context, "All-CNN, BN", 32, 3, 300.0)
    seconds = speed.epoch_seconds(context, "All-CNN, BN", 32, 3, 9600)
    # 300 steps of each of three networks, at 300 steps of a network a second.
    np.testing.assert_allclose(seconds, 3.0 * 1.05)
    # Another kind of the same operations, at the same operations a second.
    np.testing.assert_allclose(
        speed.epoch_seconds(context, "All-CNN, AN", 32, 3, 9600), seconds
    )
    assert speed.compile_seconds(context) == 7.0


def test_the_table_of_speeds_makes_way_after_two_minutes(tmp_path):
    context = fake_context(tmp_path)
    first, rest = speed.pieces(context)
    assert (len(first), len(rest)) == (1 + 6 * 2 * 3, 0)
    record_speed(context, "All-CNN, BN", 32, 1, 100.0, seconds=121.0)
    first, rest = speed.pieces(context)
    assert [piece.name for piece in first] == [speed.name_of("All-CNN, BN", 32, 1)]
    assert len(rest) == 6 * 2 * 3


def test_the_operations_of_a_forward_pass_are_those_of_its_convolutions():
    model = keras.Sequential(
        [
            keras.Input((9, 9, 2)),
            keras.layers.Conv2D(5, 3, use_bias=False),
            keras.layers.Flatten(),
            keras.layers.Dense(3, use_bias=False),
        ]
    )
    exact = 2 * (7 * 7 * 5) * (3 * 3 * 2) + 2 * (7 * 7 * 5) * 3
    found = device.forward_flops(model, (9, 9, 2))
    np.testing.assert_allclose(found, exact, rtol=0.02)


def test_precisions_differ_where_they_should():
    x = np.random.default_rng(0).normal(size=(64, 64)).astype("float32")
    with device.precision("bfloat16"):
        assert str(keras.layers.Dense(8)(x).dtype) == "bfloat16"
    assert keras.config.dtype_policy().name == "float32"
    with device.precision("float32"):
        assert str(keras.layers.Dense(8)(x).dtype) == "float32"
    assert device.ceiling() > 1e8


def test_the_clock_and_its_checkpoints(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock(50.0, start=90.0)
    assert clock.left() == 40.0
    with pytest.raises(OutOfTimeError, match="40 s are left, 41 s are needed"):
        clock.require(41.0)
    checkpoints = TimedCheckpoints(tmp_path, clock, 15.0)
    due = []
    for epoch in range(1, 5):
        now[0] += 9.0
        due.append((checkpoints.is_due(epoch), checkpoints.is_over))
        if due[-1][0]:
            over = pytest.raises(OutOfTimeError, match=f"after epoch {epoch}")
            with over if due[-1][1] else contextlib.nullcontext():
                checkpoints.save([np.zeros(1)], [{}] * epoch)
    assert len(checkpoints.latest().history) == 4
    # After 18 s by the seconds between them; after 36 of 40 s the next does not fit.
    assert due == [(False, False), (True, False), (False, False), (True, True)]


def test_the_plan_says_what_it_would_do(tmp_path, capsys):
    context = fake_context(tmp_path)
    context.ledger.record("a", DONE, 61.0, {})
    pieces = [
        contexts.Piece("a", "first", 30.0, 1.0, dict),
        contexts.Piece("b", "second", 90.0, 1.0, dict),
    ]
    lines = page.table(context, pieces).splitlines()[2:]
    assert lines == [
        "| first | done | 1:01 |  |  |",
        "| second |  |  | 1:30 | 1:30 |",
    ]


def test_it_imports_no_tensorflow(tmp_path):
    code = (
        "import sys; from benchmarks.accelerator import plan; "
        "print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'tensorflow', 'tensorflow_datasets', 'joblib', 'PIL'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "tensorflow" not in done.stdout


@pytest.mark.slow
def test_a_chain_out_of_time_goes_on(tmp_path, programs, monkeypatch):
    small = contexts._PROTOCOLS["atmc"] | {"depth": "11", "width": "0.25"}
    monkeypatch.setitem(contexts._PROTOCOLS, "atmc", small)
    values = {"only": "atmc_digits/atmc-0", "epochs": "4", "seeds": "0"}
    values |= {"width": "0.25", "batch_size": "32", "checkpoint_s": "0"}
    with monkeypatch.context() as patch:
        patch.setattr(TimedCheckpoints, "is_due", out_of_time_after(2))
        run(tmp_path / "broken", programs, **values)
    folder = tmp_path / "broken" / "atmc_digits" / "atmc-0"
    assert len(history_of(folder / "chain-0")) == 2
    assert not (folder / "metrics.json").exists()
    run(tmp_path / "broken", programs, **values)
    run(tmp_path / "unbroken", programs, **values)
    unbroken = tmp_path / "unbroken" / "atmc_digits" / "atmc-0"
    assert history_of(folder / "chain-0") == history_of(unbroken / "chain-0")
    assert figures_of(folder) == figures_of(unbroken)
    # Half of four epochs burn in; a sample after each of the others.
    assert len(list((folder / "chain-0" / "samples").glob("*.npz"))) == 2
    ledger = Ledger(
        tmp_path / "broken" / "pieces.json", ledger_flags(tmp_path / "broken")
    )
    assert ledger.result("atmc_digits/atmc-0/chain")["epoch_s"] > 0
    assert "test/nll_posterior" in ledger.result("atmc_digits/atmc-0/report")
