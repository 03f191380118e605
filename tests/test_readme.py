"""README's guide for networks that people have, run as it stands."""

import pathlib
import re
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import bayesnorm

README = pathlib.Path(__file__).parents[1] / "README.md"


def blocks(title):
    """The Python of a section, a string a block."""
    text = README.read_text("utf-8")
    section = re.split(r"^#+ ", text.split(f" {title}\n", 1)[1], flags=re.M)[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.S)


def backbone():
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same")(inputs))
    return keras.Model(inputs, layers.ReLU()(x))


def classifier():
    base = backbone()
    base.trainable = False
    inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(base(inputs))
    outputs = [
        layers.Dense(3, activation="softmax", name="kind")(x),
        layers.Dense(2, activation="sigmoid", name="tags")(x),
        layers.Dense(1, name="age")(x),
    ]
    return keras.Model(inputs, outputs)


def small_classifier():
    base = backbone()
    x = layers.GlobalAveragePooling2D()(base.output)
    return keras.Model(base.input, layers.Dense(3, activation="softmax")(x))


def calibrated(model, images):
    return bayesnorm.calibrate(
        bayesnorm.to_stochastic(model), images, batch_size=16, verbose=False
    )


def test_the_guide_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if keras.backend.backend() != "tensorflow":
        monkeypatch.setattr(bayesnorm, "export", lambda *args, **kwargs: None)
    images = np.random.default_rng(0).normal(size=(160, 8, 8, 3)).astype("float32")
    base = backbone()
    y = layers.GlobalAveragePooling2D()(base.output)
    regression = {
        "mean": layers.Dense(1)(y),
        "variance": layers.Dense(1, activation="softplus")(y),
    }
    segmenter = keras.Model(base.input, layers.Conv2D(2, 1)(base.output))
    segmenter.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def endless():
        rng = np.random.default_rng(1)
        while True:
            yield rng.permutation(images)[:32], np.zeros(32)

    names = {
        "bayesnorm": bayesnorm,
        "classifier": classifier(),
        "images": images,
        "heteroscedastic": calibrated(keras.Model(base.input, regression), images),
        "segmenter": calibrated(segmenter, images),
        "stream": endless(),
        "members": [calibrated(small_classifier(), images) for _ in range(2)],
    }
    found = blocks("More than one image classifier")
    for block in found:
        exec(block, names)
    assert len(found) == 6
    assert len(names["ensemble"]) == 2
    assert names["averaged"].probs.shape == (160, 3)
    assert names["maps"].shape == (160, 8, 8)
    assert names["variance"].shape == (160, 1)
    assert names["prediction"]["tags"].mutual_information.shape == (64, 2)
    assert (names["prediction"]["age"].variance > 0).all()


def test_the_guides_on_digits(tmp_path, monkeypatch):
    """Samples by need, what validation examples mend, uncertain gains: one script."""
    monkeypatch.chdir(tmp_path)
    if keras.backend.backend() != "tensorflow":
        monkeypatch.setattr(bayesnorm, "export", lambda *args, **kwargs: None)
    keras.utils.set_random_seed(0)
    titles = (
        "As many samples as it takes",
        "Probabilities and sets that hold",
        "Uncertain gains",
    )
    first, second, third = (block for title in titles for block in blocks(title))
    names = {}
    exec(first, names)
    labels = names["digits"].test.labels
    prediction = names["prediction"]
    assert (prediction.classes == labels).mean() > 0.9
    assert prediction.samples_used.mean() < 60
    assert names["needed"].samples > 1
    assert (tmp_path / "samples.png").exists()
    exec(second, names)
    summary = names["conformal"].summary(names["plain"], labels)
    # Of a coverage of 98 %, the deviation of 360 examples is 0.7 %, as that of 288.
    assert 94 < summary["coverage"] <= 100
    assert 0.9 < summary["set_size"] < 3
    better = bayesnorm.metrics.nll(names["tempered"].probs, labels)
    assert better < 1.1 * bayesnorm.metrics.nll(names["plain"].probs, labels)
    exec(third, names)
    assert len(names["found"].stddev) == 2
    assert names["found"].nll < names["found"].plain_nll + 0.02
    assert (names["uncertain"].classes == labels).mean() > 0.9


def test_the_law_of_batch_statistics_on_digits():
    (code,) = blocks("The law of batch statistics")
    names = {}
    exec(code, names)
    found = names["information"]
    assert found["independent"] < 0.5 * found["real batches"]
    assert abs(found["joint"] / found["real batches"] - 1) < 0.5


def test_the_loop_takes_a_stream(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("Data larger than memory")
    names = {"__name__": "readme"}
    exec(code, names)
    history = names["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    # Two normal laws a distance of 8 apart, by 64 pixels: nearly no error.
    assert history[-1]["val_accuracy"] > 0.95
    assert history[-1]["nll"] < history[0]["nll"]


def test_the_guide_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    (code,) = blocks("Sample the weights")
    for full, short in (("epochs=1000", "epochs=60"), ("epochs=300", "epochs=20")):
        assert full in code
        code = code.replace(full, short)
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # Of a cycle that is not over.
        exec(code, names)
    assert len(names["posterior"]) == 4
    labels = names["digits"].test.labels
    assert (names["prediction"].probs.argmax(-1) == labels).mean() > 0.93


@pytest.mark.tensorflow
def test_the_guide_serves(tmp_path, monkeypatch):
    pytest.importorskip("tf2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32")
    model = calibrated(small_classifier(), images)
    names = {"bayesnorm": bayesnorm, "onnxruntime": onnxruntime}
    names |= {"model": model, "images": images}
    for code in blocks("Serve it"):
        exec(code, names)
    expected = bayesnorm.predict(model, images, samples=30, seed=0, verbose=False)
    np.testing.assert_allclose(names["probs"], expected.probs, atol=1e-4)
    information = expected.mutual_information
    np.testing.assert_allclose(names["information"], information, atol=1e-4)
    assert (tmp_path / "mean.tflite").stat().st_size > 0
