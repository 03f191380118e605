"""The segmentation binary: what a run leaves, baselines, where the uncertainty is."""

import dataclasses
import types

import keras
import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import jaccard_score

import bayesnorm
from bayesnorm import datasets, metrics
from tests.trainers import cards
from trainers import cell_fcn, session
from trainers.evaluation import methods
from trainers.evaluation.records import Records
from trainers.report import run as report
from trainers.sections import batch_noise, segmentation

SMALL = {
    "epochs": 2,
    "width": 0.1,
    "samples": 3,
    "train_examples": 8,
    "batch_size": 2,
    "kl_warmup_epochs": 1,
}


def run_main(workdir):
    flags = cell_fcn.PROGRAM.flags({"workdir": workdir, **SMALL})
    return cell_fcn.PROGRAM.main(flags).values


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder and the figures of a run."""
    path = tmp_path_factory.mktemp("finished") / "run"
    return path, run_main(path)


def test_a_run_leaves_a_report_with_maps(finished):
    path, figures = finished
    page = (path / "report.md").read_text()
    assert page.startswith("# synthetic cells")
    for name in ("training", "uncertainty_maps", "reliability", "scale_uncertainty"):
        assert (path / f"{name}.png").stat().st_size > 5000
        assert f"({name}.png)" in page
    assert "test pixels" in page
    assert (path / "model.keras").exists()
    assert figures["train/kl_weight"] == pytest.approx(0.1 / (8 * 64 * 64))
    for method in ("one_pass", "averaged", "moments"):
        assert 0 < figures[f"test/nll_{method}"] < 3
        assert 0 < figures[f"uncertainty/entropy_border_{method}"] <= np.log(2)
    assert figures["test/examples_one_pass"] == 18 * 64 * 64


def test_the_model_card_says_what_was_measured_and_its_code_runs(finished, monkeypatch):
    path, _ = finished
    cards.check_figures(path, "averaged")
    flags = cell_fcn.PROGRAM.flags({"workdir": path, **SMALL})
    splits = session.load_data(flags, dense=True)
    cards.check_code(path, splits, "test/nll_averaged", monkeypatch)
    header, sections = cards.sections_of(path)
    assert "pipeline_tag: image-segmentation" in header
    assert "images of other classes was not measured" in sections["Limits"]


@pytest.mark.slow
def test_figures_are_those_of_the_saved_model(finished):
    path, figures = finished
    model = keras.models.load_model(path / "model.keras")
    splits = datasets.load_segmentation("cells")
    inputs, labels = splits.inputs(splits.test.images), splits.test.labels
    arguments = {
        "one_pass": {"method": "mean"},
        "averaged": {"samples": 3, "seed": 0},
        "moments": {"method": "moments"},
    }
    for method, values in arguments.items():
        found = bayesnorm.predict(model, inputs, from_logits=True, **values)
        expected = 100 * jaccard_score(labels.ravel(), found.probs.argmax(-1).ravel())
        assert figures[f"test/iou_{method}"] == pytest.approx(expected, abs=0.05)


@pytest.mark.slow
def test_the_same_command_goes_on_to_the_same_figures(finished, monkeypatch):
    path, figures = finished
    monkeypatch.setattr(report, "_export", lambda *args: "")
    again = run_main(path)
    for key in figures:
        if not key.startswith("seconds/"):
            assert again[key] == figures[key], key


@pytest.mark.parametrize("bright", [False, True])
def test_the_threshold_is_the_best_of_training(bright):
    splits = datasets.load_segmentation("cells")

    def part(name):
        labels = getattr(splits, name).labels
        images = getattr(splits, name).images // (1 + labels[..., None])
        return 255 - images if bright else images, labels

    parts = [part(name) for name in ("train", "validation", "test")]
    changed = datasets.from_arrays(*parts, scale=1 / 255)
    images, cells = changed.train.images[..., 0], changed.train.labels > 0
    candidates = []
    for level in range(256):
        for above, chosen in ((0, images < level), (1, images >= level)):
            iou = (chosen & cells).sum() / (chosen | cells).sum()
            candidates.append((iou, level, above))
    _, level, above = max(candidates)
    assert above == bright
    test = changed.test.images[..., 0]
    chosen = test >= level if above else test < level
    expected = jaccard_score(changed.test.labels.ravel(), chosen.ravel())
    assert segmentation._threshold(changed) == pytest.approx(expected, abs=0.01)
    assert expected > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("normalization_batch", [None, 1024])
def test_the_noise_of_a_set_of_one_batch_is_that_of_its_augmentations(
    normalization_batch,
):
    splits = datasets.load_segmentation("cells")
    few = datasets.Split(splits.train.images[:5], splits.train.labels[:5])
    splits = dataclasses.replace(splits, train=few)
    values = {"norm": "batch", "scale": "plain", "batch_size": 4, "width": 0.05}
    values["normalization_batch"] = normalization_batch
    flags = cell_fcn.PROGRAM.flags(values)
    model = cell_fcn.NETWORK.build(flags, splits)
    evaluation = types.SimpleNamespace(flags=flags, splits=splits, model=model)
    records = Records(batch_noise.section(evaluation).records)
    # Elastic deformations move what a batch shows; the same images would give 1e-8.
    assert records.values["noise/scale_stddev/conv0_0"] > 1e-3


def test_masks_without_cells_are_refused():
    images = [np.full((8, 8), i, "uint8") for i in range(4)]
    with pytest.raises(ValueError, match="all pixels of the training part are back"):
        datasets.from_images(images, [np.zeros((8, 8), int)] * 4, "mine")


def test_large_images_go_a_few_at_a_time(rng):
    images = rng.integers(0, 255, (6, 400, 300, 1), "uint8")
    labels = rng.integers(0, 2, (6, 400, 300), "uint8")
    splits = datasets.from_arrays(*[(images, labels)] * 3, scale=1 / 255)
    assert methods.chunk_size(splits) == 8
    values = {"norm": "weight", "scale": "plain", "width": 0.05}
    model = cell_fcn.NETWORK.build(cell_fcn.PROGRAM.flags(values), splits)
    # Of two images: scale and bias standardize what they were found on.
    scale = np.asarray(model.get_layer("conv0_0_scale").scale)
    assert np.isfinite(scale).all()
    assert not np.allclose(scale, 1)


def test_borders_are_pixels_near_the_other_class(rng):
    labels = (ndimage.gaussian_filter(rng.normal(size=(3, 30, 40)), (0, 3, 3)) > 0) * 2
    for image, found in zip(labels > 0, segmentation.border(labels, 2), strict=True):
        inward, outward = (
            ndimage.distance_transform_cdt(x, "taxicab") for x in (image, ~image)
        )
        np.testing.assert_array_equal(found, (inward + outward) <= 2)


def test_intersection_over_union(rng):
    labels = rng.integers(0, 3, (4, 5, 6))
    probs = rng.dirichlet(np.ones(3), (4, 5, 6))
    found = metrics.intersection_over_union(probs, labels)
    expected = jaccard_score(labels.ravel(), probs.argmax(-1).ravel(), average=None)
    np.testing.assert_allclose(found, expected)
    never = np.pad(probs, [(0, 0)] * 3 + [(0, 1)])
    assert np.isnan(metrics.intersection_over_union(never, labels)[3])
