"""samples_needed: against the averages themselves, and closed forms."""

import keras
import numpy as np
import pytest
from scipy import special

import bayesnorm
from bayesnorm import Prediction, samples_needed
from bayesnorm.layers import StochasticScaleNorm


def predicted(values):
    """A classification of samples `[samples, n, ..., K]`."""
    probs = values.mean(0)
    entropy = special.entr(probs).sum(-1)
    return Prediction(probs=probs, entropy=entropy, samples=values)


def networks(rng, centers, number):
    logits = centers + 0.7 * rng.normal(size=(number, *centers.shape))
    return special.softmax(logits, axis=-1)


def test_it_foretells_averages_of_more_samples():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(3000, 4))
    pilot = networks(rng, centers, 32)
    endless = np.mean([networks(rng, centers, 200).mean(0) for _ in range(20)], 0)
    needed = samples_needed(predicted(pilot))
    for number in (4, 16, 64, 256):
        average = networks(rng, centers, number).mean(0)
        wrong = (average.argmax(-1) != endless.argmax(-1)).mean()
        off = special.entr(average).sum(-1) - special.entr(endless).sum(-1)
        said = np.interp(number, needed.counts, needed.other_class)
        # Both are of 3000 examples; the endless average has 4000 samples.
        assert said == pytest.approx(wrong, rel=0.25, abs=0.004)
        said = np.interp(number, needed.counts, needed.deviation)
        assert said == pytest.approx(np.sqrt(np.mean(off**2)), rel=0.15)


def test_what_it_calls_enough_is():
    rng = np.random.default_rng(1)
    centers = 2 * rng.normal(size=(3000, 4))
    pilot = predicted(networks(rng, centers, 32))
    endless = np.mean([networks(rng, centers, 200).mean(0) for _ in range(20)], 0)
    needed = samples_needed(pilot, error_rate=0.02).samples
    average = networks(rng, centers, needed).mean(0)
    wrong = (average.argmax(-1) != endless.argmax(-1)).mean()
    assert wrong == pytest.approx(0.02, abs=0.01)
    needed = samples_needed(pilot, tolerance=0.1, error_rate=0.05).samples
    average = networks(rng, centers, needed).mean(0)
    off = special.entr(average).sum(-1) - special.entr(endless).sum(-1)
    assert (np.abs(off) > 0.1).mean() == pytest.approx(0.05, abs=0.02)


def test_a_few_samples_have_a_bias():
    """Networks certain of their class: the average of two has half the entropy."""
    first = np.tile([1.0, 0.0], 20)[:, None]
    needed = samples_needed(predicted(np.stack([first, 1 - first], -1)))
    # No slope at even chances; sum var(p) / p / 2 is 1/2 (n - 1 below the variance).
    expected = 0.5 * 40 / 39 / needed.counts
    np.testing.assert_allclose(needed.deviation, expected, rtol=1e-6)


def test_two_classes_that_tie_are_arctangents():
    """With no gap seen the chance is atan(sqrt(n / N)) / pi."""
    values = np.tile([[0.4, 0.6], [0.6, 0.4]], (5, 1))[:, None]
    needed = samples_needed(predicted(values))
    expected = np.arctan(np.sqrt(10 / needed.counts)) / np.pi
    np.testing.assert_allclose(needed.other_class, expected, rtol=1e-9)
    # (n / N) = tan(0.01 pi)^2.
    assert needed.samples == pytest.approx(10 / np.tan(0.01 * np.pi) ** 2, rel=2e-3)


def test_the_chance_is_that_of_two_normal_averages():
    rng, n, count, gap, s = np.random.default_rng(2), 10, 25, 0.2, 0.5
    half = s * np.sqrt((n - 1) / n)
    first = 0.5 + (gap + half * np.repeat([1, -1], n // 2)) / 2
    values = np.stack([first, 1 - first], -1)[:, None]
    needed = samples_needed(predicted(values))
    got = np.interp(count, needed.counts, needed.other_class)
    true = gap + s / np.sqrt(n) * rng.normal(size=400_000)
    seen = true + s / np.sqrt(count) * rng.normal(size=400_000)
    assert got == pytest.approx((true * seen < 0).mean(), abs=0.01)


def test_regression():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(40, 50, 1))
    prediction = Prediction(
        mean=values.mean(0), variance=values.var(0, ddof=1), samples=values
    )
    needed = samples_needed(prediction, tolerance=0.1, error_rate=0.05)
    assert needed.other_class is None
    expected = np.sqrt(prediction.variance.mean() / needed.counts)
    np.testing.assert_allclose(needed.deviation, expected)
    # 1.96^2 / 0.1^2 for a deviation of 1, a little more where it differs.
    assert needed.samples == pytest.approx(384, rel=0.1)


def test_what_never_differs_needs_one():
    values = np.tile([0.7, 0.3], (8, 3, 1))
    for tolerance in ("class", 0.01):
        needed = samples_needed(predicted(values), tolerance)
        assert needed.samples == 1
        assert needed.other_class.max() == 0
        assert needed.deviation.max() == pytest.approx(0, abs=1e-12)


def test_members_and_labels():
    rng = np.random.default_rng(4)
    values = networks(rng, rng.normal(size=(20, 3)), 40)
    whole = samples_needed(predicted(values), members=4)
    assert whole.pilot == 10
    by_hand = samples_needed(predicted(values.reshape(4, 10, 20, 3).mean(0)))
    np.testing.assert_allclose(whole.other_class, by_hand.other_class)
    yes = values[..., 0]
    probs = yes.mean(0)
    labels = Prediction(probs=probs, entropy=probs, samples=yes)
    pairs = np.stack([1 - yes, yes], -1)
    np.testing.assert_allclose(
        samples_needed(labels).other_class,
        samples_needed(predicted(pairs)).other_class,
    )


def test_of_a_network():
    inputs = keras.Input((5,))
    x = StochasticScaleNorm(initial_stddev=0.3)(keras.layers.Dense(8)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    x = np.random.default_rng(5).normal(size=(50, 5)).astype("float32")
    prediction = bayesnorm.predict(model, x, samples=30, keep_samples=True, seed=0)
    needed = samples_needed(prediction, error_rate=0.05)
    assert needed.samples > 1
    assert np.all(np.diff(needed.other_class) <= 0)


def test_errors():
    values = np.full((8, 2, 2), 0.5)
    with pytest.raises(ValueError, match="keep_samples=True"):
        samples_needed(Prediction(probs=values[0], entropy=values[0, :, 0]))
    with pytest.raises(ValueError, match="4 samples or more"):
        samples_needed(predicted(values), members=3)
    with pytest.raises(ValueError, match="must be finite"):
        samples_needed(predicted(values * np.nan))
    with pytest.raises(ValueError, match="`tolerance` must be 'class'"):
        samples_needed(predicted(values), tolerance=-1)
    with pytest.raises(ValueError, match="`error_rate` must"):
        samples_needed(predicted(values), error_rate=1)
    regression = Prediction(mean=values[0], variance=values[0], samples=values)
    with pytest.raises(ValueError, match="is a regression"):
        samples_needed(regression)
