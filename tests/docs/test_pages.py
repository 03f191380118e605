"""The Python of README and of the guides runs, block by block, and says what is true.

The blocks of a page run in order, in one namespace. What a page takes as given, such as
the network that its reader has, a function in `PAGES` makes, and what has to come of it
another one checks.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers

import bayesnorm
from tests.docs.pages import GUIDES, blocks


@dataclasses.dataclass(frozen=True)
class Page:
    """How a page runs.

    Attributes:
        given: Function that makes the names that the page takes as given.
        check: Function of the names afterwards, and of the folder it ran in.
        shorter: Pairs of texts: what is replaced, to be done in seconds.
        needs: Modules without which it is skipped.
        tensorflow: Whether it needs that backend; else `export` alone is left out on
            others.
    """

    given: Callable = dict
    check: Callable = lambda names, folder: None
    shorter: tuple = ()
    needs: tuple = ()
    tensorflow: bool = False


@pytest.fixture(autouse=True)
def quiet():
    """`fit` as in a log: a line for each epoch, none for a step."""
    keras.config.disable_interactive_logging()
    yield
    keras.config.enable_interactive_logging()


@functools.cache
def digits():
    """scikit-learn's digits, all ten of them."""
    return bayesnorm.datasets.load("digits", held_out=())


def small_network(units=10, activation="softmax"):
    """A network with batch normalization, not trained."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(units, activation=activation),
        ]
    )


def trained_network():
    """The same, trained for a while."""
    model = small_network()
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    train = digits().train
    model.fit(digits().inputs(train.images), train.labels, epochs=12, verbose=0)
    return model


def calibrated(model):
    """Made stochastic."""
    images = digits().inputs(digits().train.images)
    model = bayesnorm.to_stochastic(model)
    return bayesnorm.calibrate(model, images, batch_size=32, verbose=False)


def accuracy(prediction, labels):
    return (prediction.probs.argmax(-1) == labels).mean()


def own_network():
    """What the reader of README or of the first page has."""
    data = digits()
    return {
        "model": trained_network(),
        "training_images": data.inputs(data.train.images),
        "training_labels": data.train.labels % 8,
        "new_images": data.inputs(data.test.images),
        "mean": data.channel_mean,
        "variance": data.channel_stddev**2,
    }


def check_readme(names, folder):
    assert names["prediction"].probs.shape == (len(digits().test), 8)
    assert accuracy(names["prediction"], digits().test.labels % 8) > 0.75
    if keras.backend.backend() == "tensorflow":
        assert (folder / "served/1/saved_model.pb").is_file()


def check_home(names, _):
    assert accuracy(names["prediction"], digits().test.labels) > 0.75
    assert (names["prediction"].mutual_information > 0).all()


def transfer():
    """A classifier on a frozen backbone, an endless stream, an ensemble."""
    backbone = keras.Sequential(small_network().layers[:-2])
    backbone.build((None, 8, 8, 1))
    backbone.trainable = False
    inputs = keras.Input((8, 8, 1))
    x = layers.GlobalAveragePooling2D()(backbone(inputs))
    classifier = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    images = digits().inputs(digits().train.images)

    def endless():
        rng = np.random.default_rng(1)
        while True:
            yield rng.permutation(images)[:32], np.zeros(32)

    members = [calibrated(small_network()) for _ in range(2)]
    return {"classifier": classifier, "stream": endless(), "members": members}


def check_trained_network(names, _):
    labels = names["splits"].test.labels
    found = names["information"]
    assert found["independent"] < 0.5 * found["real batches"]
    assert abs(found["joint"] / found["real batches"] - 1) < 0.5
    # Nothing is left of the noise in the network without it.
    np.testing.assert_array_equal(
        names["trained"](names["test"]), names["model"](names["test"])
    )
    assert names["prediction"].probs.shape == (64, 8)
    inside = bayesnorm.predict(names["model"], names["test"], seed=0, verbose=False)
    assert names["strange"].entropy.mean() > 2 * inside.entropy.mean()
    assert len(names["ensemble"]) == 2
    assert names["averaged"].probs.shape == (len(names["images"]), 10)
    assert len(names["found"].stddev) == 3
    assert names["found"].nll < names["found"].plain_nll + 0.02
    assert accuracy(names["uncertain"], labels) > 0.93
    entropies = [
        bayesnorm.predict(names["model"], x, seed=0, verbose=False).entropy.mean()
        for x in (names["test"], names["noisy"], names["attacked"])
    ]
    assert entropies[0] < min(entropies[1:])


def check_normalizations(names, _):
    labels = names["digits"].test.labels
    for name in ("prediction", "one_pass"):
        assert accuracy(names[name], labels) > 0.93
    assert len(names["projected"]) == 3
    assert names["skipped"] == []
    kernel = next(x for x in names["batch"].layers if x.name == names["projected"][0])
    norms = np.sqrt(np.square(np.asarray(kernel.kernel)).sum((0, 1, 2)))
    np.testing.assert_allclose(norms, 1.0, atol=1e-5)
    assert 0.01 < names["record"].scale_stddev < 0.5
    two = [names["always"](names["test"][:4]) for _ in range(2)]
    assert not np.allclose(*two)


def check_samples(names, folder):
    labels = names["digits"].test.labels
    assert accuracy(names["prediction"], labels) > 0.9
    assert names["prediction"].samples_used.mean() < 60
    assert names["needed"].samples > 1
    assert (folder / "samples.png").exists()
    assert accuracy(names["quick"], labels) > 0.9


def calibrated_digits():
    model = calibrated(trained_network())
    return {"bayesnorm": bayesnorm, "model": model, "digits": digits()}


def check_calibration(names, folder):
    labels = names["labels"]
    summary = names["conformal"].summary(names["plain"], labels)
    # Of a coverage of 98 %, the deviation of 360 examples is 0.7 %, as that of 288.
    assert 94 < summary["coverage"] <= 100
    assert 0.9 < summary["set_size"] < 4
    better = bayesnorm.metrics.nll(names["tempered"].probs, labels)
    assert better < 1.1 * bayesnorm.metrics.nll(names["plain"].probs, labels)
    assert (folder / "reliability.png").exists()
    assert (folder / "error_coverage.png").exists()


def check_segmentation(names, _):
    truth = names["truth"]
    assert names["maps"].shape == truth.shape
    wrong = (names["prediction"].classes != truth).mean()
    assert wrong < min(truth.mean(), 1 - truth.mean())  # That of one class for all.
    score = bayesnorm.metrics.auroc(
        names["prediction"].entropy.ravel(), names["wrong"].ravel()
    )
    assert score > 0.6


def check_multi_output(names, _):
    prediction, n = names["prediction"], len(digits().test)
    assert accuracy(prediction["kind"], digits().test.labels) > 0.7
    assert prediction["tags"].mutual_information.shape == (n, 2)
    assert (prediction["ink"].variance > 0).all()
    assert names["total"].shape == (n, 1)
    error = names["both"]["mean"].mean[:, 0] - names["test"].mean((1, 2, 3))
    # The network says how wrong it is, to a factor.
    assert 0.2 < np.square(error).mean() / names["total"].mean() < 5


def served():
    model = calibrated(trained_network())
    names = {"bayesnorm": bayesnorm, "model": model}
    names["onnxruntime"] = importlib.import_module("onnxruntime")
    return names | {"images": digits().inputs(digits().test.images)[:32]}


def check_served(names, folder):
    model, images = names["model"], names["images"]
    expected = bayesnorm.predict(model, images, samples=30, seed=0, verbose=False)
    np.testing.assert_allclose(names["probs"], expected.probs, atol=1e-4)
    information = expected.mutual_information
    np.testing.assert_allclose(names["information"], information, atol=1e-4)
    assert (folder / "mean.tflite").stat().st_size > 0


def check_pruning(names, folder):
    test, labels = digits().inputs(digits().test.images), digits().test.labels
    smaller, model = names["smaller"], names["model"]
    assert smaller.count_params() < 0.8 * names["trained"].count_params()
    np.testing.assert_allclose(smaller(test), model(test), atol=1e-4, rtol=1e-4)
    for network in (smaller, names["by_size"]):
        assert (np.asarray(network(test)).argmax(-1) == labels).mean() > 0.9
    assert (folder / "report/report.md").is_file()
    assert (folder / "smaller.keras").is_file()


def check_sampling(names, _):
    assert len(names["posterior"]) == 4
    assert accuracy(names["prediction"], digits().test.labels) > 0.93
    assert names["each"].shape == (4, len(digits().test), 10)


def check_training(names, _):
    history = names["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    # Two normal laws a distance of 8 apart, by 64 pixels: nearly no error.
    assert history[-1]["val_accuracy"] > 0.95
    assert history[-1]["nll"] < history[0]["nll"]


def check_extending(names, _):
    sampled, moments = names["sampled"], names["moments"]
    assert accuracy(sampled, digits().test.labels) > 0.9
    assert np.abs(sampled.probs - moments.probs).max() < 0.1
    np.testing.assert_allclose(names["found"].mean, 1.5)
    np.testing.assert_allclose(names["found"].variance, 2.5)


PAGES = {
    "README.md": Page(own_network, check_readme),
    "docs/index.md": Page(own_network, check_home),
    "docs/guides/trained_network.md": Page(transfer, check_trained_network),
    "docs/guides/normalizations.md": Page(check=check_normalizations),
    "docs/guides/samples.md": Page(check=check_samples),
    "docs/guides/calibration.md": Page(calibrated_digits, check_calibration),
    "docs/guides/segmentation.md": Page(check=check_segmentation),
    "docs/guides/multi_output.md": Page(check=check_multi_output),
    "docs/guides/serving.md": Page(
        served, check_served, needs=("tf2onnx", "onnxruntime"), tensorflow=True
    ),
    "docs/guides/pruning.md": Page(check=check_pruning),
    "docs/guides/sampling.md": Page(
        check=check_sampling,
        shorter=(("epochs=1000", "epochs=60"), ("epochs=300", "epochs=20")),
    ),
    "docs/guides/training.md": Page(check=check_training),
    "docs/guides/extending.md": Page(check=check_extending),
}


def test_every_page_with_python_is_run():
    assert {page for page in GUIDES if blocks(page, "python")} == set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_page_runs(name, tmp_path, monkeypatch):
    page = PAGES[name]
    for module in page.needs:
        pytest.importorskip(module)
    if keras.backend.backend() != "tensorflow":
        if page.tensorflow:
            pytest.skip("needs KERAS_BACKEND=tensorflow")
        monkeypatch.setattr(bayesnorm, "export", lambda *args, **kwargs: None)
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    names = {"__name__": "page"} | page.given()
    for block in blocks(name, "python"):
        for full, short in page.shorter:
            block = block.replace(full, short)
        exec(compile(block, name, "exec"), names)
    page.check(names, tmp_path)


@pytest.mark.parametrize("name", PAGES)
def test_what_is_made_shorter_is_there(name):
    code = "".join(blocks(name, "python"))
    assert all(full in code for full, _ in PAGES[name].shorter)
