"""The SBP binary: it learns and prunes, resumes, starts from files; its report."""

import csv
import json

import keras
import numpy as np
import pytest

import bayesnorm
from bayesnorm import models
from tests.helpers import long
from tests.trainers import cards
from trainers import sbp, session
from trainers.report import run as report
from trainers.sections import pruning

if keras.backend.backend() == "jax":
    # Minutes, of a loop and a report that other binaries' tests run there.
    pytestmark = pytest.mark.slow

# Rates at which a few epochs prune: not those of a good network.
SMALL = {
    "network": "mlp",
    "width": 0.1,
    "epochs": 6,
    "pretrain_epochs": 4,
    "finetune_epochs": 2,
    "learning_rate": "0.003",
    "posterior_rate": 20.0,
    "samples": 3,
}


def flags_of(workdir, **values):
    return sbp.PROGRAM.flags({"workdir": workdir, **SMALL, **values})


def run_main(workdir, **values):
    return sbp.main(flags_of(workdir, **values)).values


@pytest.fixture
def no_export(monkeypatch):
    monkeypatch.setattr(report, "_export", lambda *args: "")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder and the figures of a run."""
    path = tmp_path_factory.mktemp("finished") / "run"
    return path, run_main(path)


def test_the_model_card_is_of_the_network_with_its_posteriors(finished, monkeypatch):
    path, _ = finished
    cards.check_figures(path, "one_pass")
    splits = session.load_data(flags_of(path))
    cards.check_code(path, splits, "test/nll_one_pass", monkeypatch)
    _, sections = cards.sections_of(path)
    assert "without noise" not in sections["Limits"]
    assert "Robustness to noise and to attacks was not" in sections["Limits"]


def test_it_learns_and_prunes(finished):
    path, figures = finished
    assert figures["test/error_one_pass"] < 20
    kept = {k: v for k, v in figures.items() if k.startswith("pruning/channels_kept")}
    assert list(kept) == [
        f"pruning/channels_kept/{name}" for name in ("flatten", "dense0", "dense1")
    ]
    # Many pixels of the border are black in every digit.
    assert 5 < kept["pruning/channels_kept/flatten"] < 60
    assert figures["pruning/macs_factor"] > 1.05
    assert figures["pruning/parameters_after"] < figures["pruning/parameters_before"]
    assert (
        figures["pruning/parameters_before"]
        == models.mlp((8, 8, 1), 8, width=0.1).count_params()
    )
    rows = (path / "history.csv").read_text().splitlines()
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    assert float(last["kept_flatten"]) == kept["pruning/channels_kept/flatten"]


def test_the_smaller_network_is_the_pruned_one(finished):
    path, figures = finished
    assert figures["pruning/largest_difference"] < 1e-5
    assert figures["test/error_pruned"] == figures["test/error_one_pass"]
    splits = session.load_data(flags_of(path))
    images = splits.inputs(splits.test.images)
    logits = [
        np.asarray(keras.models.load_model(path / name)(images))
        for name in ("model.keras", "pruned.keras")
    ]
    np.testing.assert_allclose(*logits, atol=1e-4)
    plain = keras.models.load_model(path / "pruned.keras")
    assert not bayesnorm.layers.posterior_layers(plain)
    error = 100 * (logits[1].argmax(-1) != splits.test.labels).mean()
    assert error == pytest.approx(figures["test/error_pruned"])
    tuned = keras.models.load_model(path / "finetuned.keras")
    assert [w.shape for w in tuned.weights] == [w.shape for w in plain.weights]
    assert figures["test/nll_finetuned"] != figures["test/nll_pruned"]


def test_the_report_shows_what_is_kept(finished):
    path, figures = finished
    page = (path / "report.md").read_text()
    for name in ("kept", "kept_over_epochs", "signal_to_noise"):
        assert f"({name}.png)" in page
        assert (path / f"{name}.png").stat().st_size > 5_000
    widths = "-".join(
        str(figures[f"pruning/channels_kept/{x}"])
        for x in ("flatten", "dense0", "dense1")
    )
    assert f"| this run | {widths} |" in page
    assert "kept of 64-50-30" in page
    # Published figures are of networks of other widths.
    assert "Louizos" not in page
    for title in ("before pruning", "after pruning", "MACs an example"):
        assert title in page
    assert "from 4 epochs without it" in page


def test_published_networks_have_their_macs():
    published = pruning._PUBLISHED
    for name, factors in (
        ("lenet5", {"SBP (Neklyudov et al., 2017)": 10.8}),
        ("mlp", {"SBP (Neklyudov et al., 2017)": 11.2, "SSL, as there": 6.06}),
    ):
        network = published[name]
        whole = network.macs(*network.widths)
        model = getattr(models, name)(norm=None)
        linear = [x for x in model.layers if hasattr(x, "kernel")]
        assert whole == sum(
            int(np.prod(x.kernel.shape)) * int(np.prod(x.output.shape[1:-1]))
            for x in linear
        )
        found = {method: whole / network.macs(*w) for method, _, w in network.rows}
        for method, factor in factors.items():
            assert found[method] == pytest.approx(factor, rel=5e-3)


class Killed(BaseException):
    """Stands for the end of the process."""


def histories(folder):
    found = []
    folders = folder / "pretrained", folder, folder / "finetuned"
    for path in (x / "history.csv" for x in folders):
        with open(path, newline="") as file:
            found.append([{**row, "seconds": 0} for row in csv.DictReader(file)])
    return found


def check_same(found, expected):
    """All figures but times are equal, to the last digit."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert key.startswith("seconds/") or found[key] == value, key


@pytest.mark.parametrize(
    ("phase", "after"), [long("without pruning", 2), long("with pruning", 3)]
)
def test_a_killed_run_goes_on_to_the_same_figures(
    finished, tmp_path, monkeypatch, no_export, phase, after
):
    with monkeypatch.context() as patch:
        write = session.write_history

        def kill(path, history):
            write(path, history)
            within = "pretrained" in str(path)
            if len(history) == after and within == (phase == "without pruning"):
                raise Killed

        patch.setattr(session, "write_history", kill)
        with pytest.raises(Killed):
            run_main(tmp_path)
    assert not (tmp_path / "metrics.json").exists()
    resumed = run_main(tmp_path)
    path, figures = finished

    check_same(resumed, figures)
    assert histories(tmp_path) == histories(path)


@pytest.mark.slow
def test_training_goes_on_in_what_is_left(finished, tmp_path, monkeypatch, no_export):
    changes = {"shrink_epochs": "2,4"}
    write = session.write_history
    with monkeypatch.context() as patch:

        def kill(path, history):
            write(path, history)
            if "epoch_4" in str(path) and len(history) == 1:
                raise Killed

        patch.setattr(session, "write_history", kill)
        with pytest.raises(Killed):
            run_main(tmp_path / "run", **changes)
    resumed = run_main(tmp_path / "run", **changes)
    whole = run_main(tmp_path / "whole", **changes)
    check_same(resumed, whole)
    path, figures = finished
    assert whole["pruning/macs_before"] == figures["pruning/macs_before"]
    assert whole["pruning/macs_factor"] > 1.05
    assert whole["test/error_one_pass"] < 20
    assert whole["pruning/largest_difference"] < 1e-5

    def column(folder, name):
        with open(folder / "history.csv", newline="") as file:
            return [float(row[name]) for row in csv.DictReader(file)]

    for name in ("epoch", "learning_rate", "kl_weight"):
        assert column(tmp_path / "whole", name) == column(path, name)
    kept = column(tmp_path / "whole", "kept_flatten")
    assert kept[2:] == sorted(kept[2:], reverse=True)


def test_epochs_to_shrink_at_are_checked(tmp_path):
    for value, match in (
        ("4,2", "must rise"),
        ("0", "must rise"),
        ("6", "below --epochs"),
    ):
        with pytest.raises(ValueError, match=match):
            run_main(tmp_path / value, shrink_epochs=value, pretrain_epochs=0)
    with pytest.raises(ValueError, match="kl_warmup_epochs=3"):
        run_main(
            tmp_path / "a", shrink_epochs="2", kl_warmup_epochs=3, pretrain_epochs=0
        )
    with pytest.raises(ValueError, match="each of the 0 convolutions"):
        run_main(tmp_path / "b", conv_kl_factor="2,3", pretrain_epochs=0)


@pytest.mark.slow
def test_it_starts_from_a_file(finished, tmp_path, no_export, capsys):
    path, _ = finished
    flags = flags_of(path)
    splits = session.load_data(flags)
    workdir = session.open_workdir(flags, "sbp")
    trained = sbp.trained_network(flags, splits, workdir)
    trained.save(tmp_path / "trained.keras")
    capsys.readouterr()
    figures = run_main(tmp_path / "run", start=tmp_path / "trained.keras")
    assert "without pruning" not in capsys.readouterr().out
    assert not (tmp_path / "run" / "pretrained").exists()
    whole = json.loads((path / "metrics.json").read_text())["figures"]
    for key in ("test/nll_one_pass", "pruning/channels_kept/flatten"):
        assert figures[key] == whole[key]["value"]


@pytest.mark.parametrize("network", [long("resnet"), long("lenet5"), long("vgg_like")])
def test_other_networks_prune(network, tmp_path, no_export):
    figures = run_main(
        tmp_path,
        network=network,
        width=0.1 if network == "vgg_like" else 0.3,
        epochs=2,
        pretrain_epochs=0,
        depth=8,
        posterior_rate=100.0,
    )
    kept = [v for k, v in figures.items() if k.startswith("pruning/channels_kept")]
    assert len(kept) == {"resnet": 3, "lenet5": 4, "vgg_like": 15}[network]
    assert figures["pruning/largest_difference"] < 1e-4
    assert not (tmp_path / "pretrained").exists()


@pytest.mark.slow
def test_the_rate_of_the_posteriors_is_theirs_alone(tmp_path):
    flags = flags_of(tmp_path, pretrain_epochs=0, epochs=1, schedule="constant")
    splits = session.load_data(flags)
    moved = {}
    for rate in (1.0, 10.0):
        flags.posterior_rate = rate
        model = sbp.build(flags, splits, "plain")
        workdir = session.open_workdir(
            flags_of(tmp_path / str(rate), posterior_rate=rate), "sbp"
        )
        model, _, _ = sbp.train(flags, splits, model, workdir)
        layer = model.get_layer("dense0_pruning")
        moved[rate] = np.mean(np.asarray(layer.log_stddev) + 5.0)
    # Adam moves what has a steady gradient by the rate, in every step.
    assert moved[10.0] == pytest.approx(10 * moved[1.0], rel=0.2)


def test_a_diverged_posterior_is_said_to_be_one():
    model = models.mlp((4, 4, 1), 3, scale="pruning", width=0.02)
    assert pruning.figures(model) == {
        "kept_flatten": 16.0,
        "kept_dense0": 10.0,
        "kept_dense1": 6.0,
    }
    layer = model.get_layer("dense0_pruning")
    layer.log_stddev.assign(np.full(10, np.nan, "float32"))
    assert np.isnan(pruning.figures(model)["kept_dense0"])
    assert pruning.detail({"nll": 1.0}) == ""
    assert pruning.detail({"kept_a": 3.0, "kept_b": 18.0}) == "kept 3-18  "
