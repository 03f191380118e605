"""Deviations found without training: the NLL as a function of them, by hand."""

import keras
import numpy as np
import pytest
from scipy import special

from bayesnorm import fit_stddev, metrics, predict, to_posterior
from bayesnorm.layers import posterior_layers

L = keras.layers
N, SAMPLES = 400, 60


def classifier(gain=2.0):
    """Logits `gain * x` of three classes, over-confident; and data for it."""
    model = keras.Sequential(
        [
            keras.Input((3,)),
            L.BatchNormalization(epsilon=1e-9, name="logits"),
        ]
    )
    model.layers[0].gamma.assign(np.full(3, gain))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 3)).astype("float32")
    probs = special.softmax(x, axis=1)  # The truth: a gain of 1.
    y = np.array([rng.choice(3, p=p) for p in probs])
    return model, x, y


def by_hand(x, y, gain, stddev, draws):
    """NLL of softmax(gain (1 + stddev z) x), averaged over draws `[S, 3]` of z."""
    logits = gain * (1 + stddev * draws[:, None]) * x.astype("float64")
    return metrics.nll(special.softmax(logits, axis=-1).mean(0), y)


@pytest.fixture(scope="module")
def fitted():
    plain, x, y = classifier()
    model = to_posterior(plain)
    return model, x, y, fit_stddev(model, x, y, samples=SAMPLES, from_logits=True)


def draws_of(model, x, gain=2.0):
    """The draws of `predict`, read off its samples: logits are linear in them."""
    model.layers[0].set_stddev(0.5)
    found = predict(
        model, x[:1], samples=SAMPLES, seed=0, task="regression", keep_samples=True
    )
    return (found.samples[:, 0] / (gain * x[0]) - 1) / 0.5


def test_it_is_the_best_of_all(fitted):
    model, x, y, found = fitted
    draws = draws_of(model, x)
    grid = np.exp(np.linspace(np.log(1e-3), 0, 200))
    values = [by_hand(x, y, 2.0, s, draws) for s in grid]
    (stddev,) = found.stddev.values()
    # Within the precision of 5 %, where the NLL is flat.
    assert found.nll == pytest.approx(min(values), abs=1e-3)
    assert found.nll == pytest.approx(by_hand(x, y, 2.0, stddev, draws), abs=1e-4)
    assert found.plain_nll == pytest.approx(by_hand(x, y, 2.0, 0.0, draws), abs=1e-5)
    assert found.nll < found.plain_nll - 0.02
    assert len(found.evaluations) < 25


def test_it_is_set(fitted):
    model, x, y, _ = fitted
    found = fit_stddev(model, x, y, samples=SAMPLES, from_logits=True)
    (stddev,) = found.stddev.values()
    (layer,) = posterior_layers(model)
    np.testing.assert_allclose(layer.stddev_of("gain_0"), stddev, rtol=1e-5)
    probs = predict(model, x, samples=SAMPLES, seed=0, from_logits=True).probs
    assert metrics.nll(probs, y) == pytest.approx(found.nll, abs=1e-5)


def test_the_widest_that_is_tolerated():
    plain, x, y = classifier(gain=0.5)
    model = to_posterior(plain)
    found = fit_stddev(
        model,
        x,
        y,
        criterion="tolerance",
        tolerance=0.002,
        samples=SAMPLES,
        from_logits=True,
    )
    (stddev,) = found.stddev.values()
    draws = draws_of(model, x, 0.5)
    assert found.nll <= found.plain_nll + 0.002
    beyond = by_hand(x, y, 0.5, 1.1 * stddev, draws)
    assert beyond > found.plain_nll + 0.002


def test_layers_get_what_they_bear():
    inputs = keras.Input((3,))
    x = L.BatchNormalization(epsilon=1e-9, name="strong")(inputs)
    y = L.BatchNormalization(epsilon=1e-9, name="weak")(inputs)
    y = L.Rescaling(0.1)(y)
    model = to_posterior(keras.Model(inputs, L.Add()([x, y])))
    _, x, y = classifier()
    found = fit_stddev(model, x, y, per_layer=True, samples=SAMPLES, from_logits=True)
    ratio = found.stddev["weak_posterior"] / found.stddev["strong_posterior"]
    # The NLL is quadratic in the noise of the logits: ten times as small, ten times
    # as wide, to what the draws of 60 networks tell.
    assert 5 < ratio < 20
    assert found.nll <= found.plain_nll + 1e-3


def test_layers_of_one_name_have_a_deviation_each():
    inner = keras.Sequential([keras.Input((3,)), L.LayerNormalization(name="norm")])
    inputs = keras.Input((3,))
    outputs = inner(L.BatchNormalization(name="norm")(inputs))
    model = to_posterior(keras.Model(inputs, outputs))
    _, x, y = classifier()
    found = fit_stddev(model, x, y, per_layer=True, samples=5, from_logits=True)
    assert list(found.stddev) == ["norm_posterior:0", "norm_posterior:1"]
    for stddev, layer in zip(
        found.stddev.values(), posterior_layers(model), strict=True
    ):
        np.testing.assert_allclose(layer.stddev_of("gain_0"), stddev, rtol=1e-5)


def test_layers_without_any_effect():
    inputs = keras.Input((3,))
    dead = L.Rescaling(0.0)(L.BatchNormalization()(inputs))
    model = to_posterior(keras.Model(inputs, L.Add()([inputs, dead])))
    _, x, y = classifier()
    with pytest.warns(UserWarning, match="no layer raises the NLL"):
        found = fit_stddev(model, x, y, per_layer=True, samples=5, from_logits=True)
    assert max(found.stddev.values()) <= 1.0


@pytest.mark.parametrize("criterion", ["best", "tolerance"])
def test_noise_that_helps_nothing_is_told(criterion):
    # Margins of 5 nats, of logits of 1e4: always right until there is noise.
    model, *_ = classifier(gain=1e4)
    x = np.random.default_rng(0).permuted(np.tile([1, 1.0005, 0], (N, 1)), axis=1)
    x, y = x.astype("float32"), x.argmax(1)
    with pytest.warns(UserWarning, match="Noise of any width raises the NLL"):
        found = fit_stddev(
            to_posterior(model), x, y, criterion, samples=50, from_logits=True
        )
    assert found.nll > found.plain_nll
    assert max(found.stddev.values()) == pytest.approx(1e-3, rel=0.1)


def test_one_output_and_an_array_of_labels():
    inputs = keras.Input((3,))
    x = L.BatchNormalization()(inputs)
    model = to_posterior(keras.Model(inputs, [x, L.Rescaling(2.0)(x)]))
    _, x, y = classifier()
    with pytest.raises(ValueError, match=r"has 2 outputs.*keras.Model\(model.inputs"):
        fit_stddev(model, x, [y, y], from_logits=True)
    one = keras.Model(model.inputs, model.outputs[0])
    fit_stddev(one, x, y, samples=2, from_logits=True)
    stddev = [np.array(layer.rho_0) for layer in posterior_layers(model)]
    np.testing.assert_array_equal(stddev, [np.array(one.layers[1].rho_0)])
    with pytest.raises(ValueError, match=r"array of labels.*dict"):
        fit_stddev(one, x, {"a": y}, from_logits=True)


def test_errors():
    plain, x, y = classifier()
    with pytest.raises(ValueError, match="to_posterior"):
        fit_stddev(plain, x, y)
    model = to_posterior(plain, initial_stddev=0.3)
    with pytest.raises(ValueError, match=r"2 or more.*Received: 1"):
        fit_stddev(model, x[:1], y[:1])
    with pytest.raises(ValueError, match=r"integers.*float.*regression.*`fit`"):
        fit_stddev(model, x, y + 0.5)
    with pytest.raises(ValueError, match="criterion"):
        fit_stddev(model, x, y, criterion="widest")
    with pytest.raises(ValueError, match="tolerance"):
        fit_stddev(model, x, y, tolerance=-1)
    # What fails leaves the deviations.
    with pytest.raises(ValueError, match="label"):
        fit_stddev(model, x, y + 7, from_logits=True)
    (layer,) = posterior_layers(model)
    np.testing.assert_allclose(layer.stddev_of("gain_0"), 0.3, rtol=1e-5)
