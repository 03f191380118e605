"""Stored samples: when they are taken, what is kept, what becomes of broken ones."""

import signal

import keras
import numpy as np
import pytest
from keras import layers

import bayesnorm
from bayesnorm import samplers
from bayesnorm.samplers import PosteriorSamples
from bayesnorm.training import DivergenceError

X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int64")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Kept(keras.callbacks.Callback):
    """Notes the weights after each epoch."""

    def __init__(self):
        super().__init__()
        self.weights = {}

    def on_epoch_end(self, epoch, logs=None):
        self.weights[epoch + 1] = [np.array(w) for w in self.model.get_weights()]


def chain(rate=0.001, seed=0):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3),
            layers.BatchNormalization(),
            layers.Dense(2),
        ]
    )
    model.compile(samplers.ATMC(32, rate, seed=seed, verbose=False), LOSS)
    return model


def run(model, callback, epochs=8, **kwargs):
    kept = Kept()
    model.fit(
        X,
        Y,
        batch_size=16,
        epochs=epochs,
        verbose=0,
        callbacks=[callback, kept],
        **kwargs,
    )
    return kept.weights


def test_samples_are_taken_at_the_ends_of_cycles(tmp_path):
    model = chain(samplers.CyclicalCosine(0.001, 4))
    weights = run(model, PosteriorSamples(tmp_path, cycle_epochs=2, burn_in_epochs=3))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "sample-000005.npz",
        "sample-000007.npz",
    ]
    posterior = PosteriorSamples.load(tmp_path, chain())
    assert len(posterior) == 2
    for found, epoch in zip(posterior, (5, 7), strict=True):
        for a, b in zip(found, weights[epoch], strict=True):
            np.testing.assert_array_equal(a, b)
    prediction = bayesnorm.predict(posterior, X, from_logits=True)
    truth = np.zeros((32, 2))
    for epoch in (5, 7):
        model.set_weights(weights[epoch])
        truth += keras.ops.convert_to_numpy(keras.ops.softmax(model(X))) / 2
    np.testing.assert_allclose(prediction.probs, truth, atol=1e-5)


def test_a_cycle_that_is_not_over_is_said(tmp_path):
    with pytest.warns(UserWarning, match="step 2 of a cycle of 4"):
        run(chain(samplers.CyclicalCosine(0.001, 4)), PosteriorSamples(tmp_path))


def test_only_the_last_are_kept(tmp_path):
    run(chain(), PosteriorSamples(tmp_path, max_samples=3), epochs=5)
    assert [p.name[-5] for p in sorted(tmp_path.iterdir())] == ["3", "4", "5"]


def test_damaged_samples_are_left_out(tmp_path):
    weights = run(chain(), PosteriorSamples(tmp_path), epochs=3)
    path = tmp_path / "sample-000002.npz"
    data = bytearray(path.read_bytes())
    path.write_bytes(bytes(data[: len(data) // 2]))
    with pytest.warns(UserWarning, match=r"1 of 3.*sample-000002"):
        posterior = PosteriorSamples.load(tmp_path, chain())
    for found, epoch in zip(posterior, (1, 3), strict=True):
        np.testing.assert_array_equal(found[0], weights[epoch][0])
    for each in tmp_path.iterdir():
        each.write_bytes(b"nothing")
    with (
        pytest.warns(UserWarning, match="3 of 3"),
        pytest.raises(ValueError, match="no sample that can be read"),
    ):
        PosteriorSamples.load(tmp_path, chain())


def test_a_run_that_goes_on_goes_on_with_the_samples(tmp_path):
    whole = run(chain(), PosteriorSamples(tmp_path / "whole"), epochs=4, shuffle=False)
    model = chain()
    run(model, PosteriorSamples(tmp_path / "a"), epochs=3, shuffle=False)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    run(
        again,
        PosteriorSamples(tmp_path / "a"),
        initial_epoch=3,
        epochs=4,
        shuffle=False,
    )
    posterior = PosteriorSamples.load(tmp_path / "a", model)
    assert len(posterior) == 4
    np.testing.assert_array_equal(posterior[3][0], whole[4][0])
    with pytest.warns(UserWarning, match="samples of later epochs"):
        run(chain(), PosteriorSamples(tmp_path / "a"), epochs=1)


@pytest.mark.parametrize(
    "unstable",
    [
        lambda: samplers.SGHMC(32, 1.0, mass=1.0, seed=0, verbose=False),
        lambda: samplers.SGLD(32, 1.0, seed=0, verbose=False),
    ],
    ids=["sghmc", "sgld"],
)
def test_a_chain_that_leaves_the_finite_range_stops(unstable, tmp_path):
    """Steps ten times beyond stability: the samples before them stay."""
    model = chain()
    run(model, PosteriorSamples(tmp_path), epochs=2)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    # A stiff prior of one layer, whose weights leave before the others'.
    model.layers[0].kernel_regularizer = keras.regularizers.L2(6.25)
    model.compile(unstable(), LOSS)
    message = r"'.*dense.*/kernel'.* left the finite range after \d+ of \d+ steps"
    with pytest.raises(DivergenceError, match=message) as raised:
        run(model, PosteriorSamples(tmp_path), initial_epoch=2, epochs=60)
    assert f"The samples in {tmp_path} are kept." in str(raised.value)
    kept = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert before.items() <= kept.items()
    for sample in PosteriorSamples.load(tmp_path, chain()):
        assert all(np.isfinite(weight).all() for weight in sample)
    with pytest.raises(DivergenceError, match="left the finite range"):
        run(model, samplers.SamplerDiagnostics(), epochs=1)


def test_a_full_disk_takes_no_sample_away(tmp_path):
    resource = pytest.importorskip("resource")
    model = chain()
    run(model, PosteriorSamples(tmp_path), epochs=2)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # No file of this process may be longer: writing fails as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(OSError, match=r"sample-000003.* could not be written"):
            run(model, PosteriorSamples(tmp_path), initial_epoch=2, epochs=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    # With room again the run goes on.
    run(model, PosteriorSamples(tmp_path), initial_epoch=2, epochs=3)
    assert len(PosteriorSamples.load(tmp_path, model)) == 3


def test_samples_of_another_architecture(tmp_path):
    run(chain(), PosteriorSamples(tmp_path), epochs=1)
    other = keras.Sequential([keras.Input((4,)), layers.Dense(5)])
    with pytest.raises(ValueError, match="sample-000001"):
        PosteriorSamples.load(tmp_path, other)


def test_arguments():
    with pytest.raises(ValueError, match="cycle_epochs"):
        PosteriorSamples("a", cycle_epochs=0)
    with pytest.raises(ValueError, match="max_samples"):
        PosteriorSamples("a", max_samples=0)
    with pytest.raises(ValueError, match="no sample"):
        PosteriorSamples.load("there is no such folder", chain())
