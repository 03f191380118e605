"""Conformal sets and intervals: coverage as its law says, by simulation."""

import math

import numpy as np
import pytest
from scipy import special, stats

import bayesnorm
from bayesnorm import ConformalIntervals, ConformalSets, Prediction

SCORES = ("lac", "aps", "randomized_aps")


def classified(rng, n, classes=5, sharpness=2.0):
    """Probabilities that are too sharp by far, and labels of the true ones."""
    logits = rng.normal(size=(n, classes))
    true = special.softmax(logits, axis=-1)
    labels = (rng.random((n, 1)) > true.cumsum(-1)).sum(-1).clip(max=classes - 1)
    return special.softmax(sharpness * logits, axis=-1), labels


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_the_coverage_has_its_law(score, alpha):
    """Over calibration sets of 49 the coverage is Beta(k, 50 - k)."""
    n, repeats = 49, 400
    probs, labels = classified(np.random.default_rng(0), 100_000)
    pool = np.arange(len(labels))
    coverages, rng = [], np.random.default_rng(1)
    for i in range(repeats):
        chosen = rng.choice(pool, n, replace=False)
        conformal = ConformalSets(probs[chosen], labels[chosen], alpha, score, seed=i)
        rest = rng.choice(pool, 4000)
        sets = conformal.sets(probs[rest])
        coverages.append(sets[np.arange(4000), labels[rest]].mean())
    low, high = conformal.coverage_bounds
    assert (low, high) == (1 - alpha, 1 - alpha + 1 / 50)
    law = conformal.coverage_law
    rank = math.ceil(50 * (1 - alpha))
    assert law.args == (rank, 50 - rank)
    # The mean lies between the bounds: the law's is k / (n + 1), exactly.
    error = law.std() / np.sqrt(repeats)
    assert abs(np.mean(coverages) - rank / 50) < stats.norm.isf(5e-5) * error
    # The whole law; 4000 examples add a deviation of less than a tenth of it.
    assert stats.kstest(coverages, law.cdf).pvalue > 1e-4
    assert stats.kstest(coverages, stats.beta(rank, 51 - rank).cdf).pvalue < 1e-3


def test_the_coverage_of_intervals_has_its_law():
    n, repeats, alpha = 39, 400, 0.2
    rng, coverages = np.random.default_rng(2), []
    for _ in range(repeats):
        deviation = rng.gamma(2.0, size=n + 2000)
        mean = rng.normal(size=n + 2000)
        targets = mean + 3 * deviation * rng.standard_t(3, size=n + 2000)
        first, rest = slice(None, n), slice(n, None)

        def part(rows, mean=mean, deviation=deviation):
            return Prediction(mean=mean[rows], variance=deviation[rows] ** 2)

        conformal = ConformalIntervals(part(first), targets[first], alpha)
        coverages.append(conformal.summary(part(rest), targets[rest])["coverage"] / 100)
    assert conformal.coverage_law.args == (32, 8)
    assert stats.kstest(coverages, conformal.coverage_law.cdf).pvalue > 1e-4


def test_sets_by_hand():
    probs = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
    labels = np.array([0, 2, 1])
    # Scores 0.4, 0.7, 0.8: of three the second for alpha 0.5.
    lac = ConformalSets(probs, labels, 0.5)
    assert lac.threshold == pytest.approx(0.7)
    assert lac.sets([[0.45, 0.35, 0.2]]).tolist() == [[True, True, False]]
    # Scores 0.6, 0.8, 0.9.
    aps = ConformalSets(probs, labels, 0.5, "aps")
    assert aps.threshold == pytest.approx(0.8)
    assert aps.sets([[0.15, 0.6, 0.25]]).tolist() == [[False, True, False]]
    assert aps.sets([[0.5, 0.25, 0.25]]).tolist() == [[True, True, False]]
    assert aps.sets([[0.85, 0.1, 0.05]]).tolist() == [[False, False, False]]
    never = ConformalSets(probs, labels, 0.5, "aps", allow_empty=False)
    assert never.sets([[0.85, 0.1, 0.05]]).tolist() == [[True, False, False]]
    assert never.sets([[0.5, 0.25, 0.25]]).tolist() == [[True, True, False]]
    assert aps.summary(probs, labels) == {
        "examples": 3,
        "coverage": pytest.approx(200 / 3),
        "set_size": pytest.approx(4 / 3),
        "empty": 0.0,
        "single": pytest.approx(200 / 3),
    }


def test_randomized_sets_cover_each_example_where_probabilities_are_right():
    rng = np.random.default_rng(3)
    probs, labels = classified(rng, 60_000, sharpness=1.0)
    half = 30_000
    conformal = ConformalSets(probs[:half], labels[:half], 0.1, "randomized_aps")
    sets = conformal.sets(probs[half:])
    covered = sets[np.arange(half), labels[half:]]
    certain = probs[half:].max(-1)
    for low, high in ((0, 0.4), (0.4, 0.6), (0.6, 1)):
        rows = (certain > low) & (certain <= high)
        error = 4 * np.sqrt(0.09 / rows.sum()) + 4 * np.sqrt(0.09 / half)
        assert abs(covered[rows].mean() - 0.9) < error
    again = ConformalSets(probs[:half], labels[:half], 0.1, "randomized_aps")
    np.testing.assert_array_equal(again.sets(probs[half:]), sets)


def test_lac_has_the_smallest_sets():
    probs, labels = classified(np.random.default_rng(4), 20_000)
    sizes = {
        score: ConformalSets(probs, labels, 0.1, score).summary(probs, labels)
        for score in SCORES
    }
    sizes = {score: found["set_size"] for score, found in sizes.items()}
    assert sizes["lac"] < sizes["randomized_aps"] < sizes["aps"]


def test_intervals_by_hand():
    validation = Prediction(mean=np.zeros((3, 1)), variance=np.full((3, 1), 4.0))
    conformal = ConformalIntervals(validation, [[1.0], [-2.0], [6.0]], alpha=0.5)
    assert conformal.threshold == pytest.approx([1.0])
    new = Prediction(mean=np.array([[5.0]]), variance=np.array([[9.0]]))
    low, high = conformal.intervals(new)
    np.testing.assert_allclose([low, high], [[[2.0]], [[8.0]]])
    equal = ConformalIntervals(validation, [[1.0], [-2.0], [6.0]], 0.5, scaled=False)
    np.testing.assert_allclose(equal.intervals(new), [[[3.0]], [[7.0]]])
    assert equal.summary(new, [[6.9]]) == {
        "examples": 1,
        "coverage": 100.0,
        "length": pytest.approx(4.0),
    }


def test_too_few_calibration_examples_give_all():
    with pytest.warns(
        UserWarning, match="1 calibration example .* all classes.*Give 9"
    ):
        conformal = ConformalSets([[0.9, 0.1]], [0], 0.1)
    assert conformal.threshold == np.inf
    assert conformal.sets([[1.0, 0.0]]).all()
    assert conformal.coverage_law is None
    assert conformal.coverage_bounds == (0.9, 1.0)
    probs, labels = np.tile([0.9, 0.1], (9, 1)), np.zeros(9, int)
    assert ConformalSets(probs, labels, 0.1).threshold == pytest.approx(0.1)
    with pytest.warns(UserWarning, match="8 calibration examples .*Give 9"):
        ConformalSets(probs[:8], labels[:8], 0.1)
    one = Prediction(mean=np.zeros(1), variance=np.ones(1))
    with pytest.warns(UserWarning, match="infinite"):
        low, high = ConformalIntervals(one, [0.0]).intervals(one)
    assert (low, high) == (-np.inf, np.inf)


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.35), (9, 0.1), (99, 0.07)])
def test_the_rank_is_not_rounded_up(n, alpha):
    probs = np.stack([np.linspace(0.5, 1, n), 1 - np.linspace(0.5, 1, n)], -1)
    conformal = ConformalSets(probs, np.zeros(n, int), alpha)
    rank = round((n + 1) * (1 - alpha))
    assert conformal.coverage_law.args == (rank, n + 1 - rank)


def test_errors():
    probs, labels = np.full((20, 4), 0.25), np.zeros(20, int)
    for alpha in (0, 1, -0.1, 2, np.nan, "a", None):
        with pytest.raises(ValueError, match="`alpha` is the share"):
            ConformalSets(probs, labels, alpha)
    with pytest.raises(ValueError, match=r"must lie in 0\.\.3"):
        ConformalSets(probs, labels + 4)
    with pytest.raises(ValueError, match="must be integers"):
        ConformalSets(probs, labels + 0.5)
    with pytest.raises(ValueError, match="must be finite"):
        ConformalSets(probs * np.nan, labels)
    with pytest.raises(ValueError, match="is empty"):
        ConformalSets(probs[:0], labels[:0])
    with pytest.raises(ValueError, match="must sum to 1"):
        ConformalSets(probs * 2, labels)
    with pytest.raises(ValueError, match="`score` must be one of"):
        ConformalSets(probs, labels, score="raps")
    with pytest.raises(ValueError, match="not exchangeable"):
        ConformalSets(np.full((2, 3, 3, 2), 0.5), np.zeros((2, 3, 3), int))
    with pytest.raises(ValueError, match="Calibrated with 4 classes"):
        ConformalSets(probs, labels).sets(np.full((2, 5), 0.2))
    labelled = Prediction(probs=probs, entropy=probs)
    with pytest.raises(ValueError, match="Independent labels"):
        ConformalSets(labelled, labels)
    regression = Prediction(mean=np.zeros(20), variance=np.zeros(20))
    with pytest.raises(ValueError, match=r"use bayesnorm\.ConformalIntervals"):
        ConformalSets(regression, labels)
    with pytest.raises(ValueError, match="variance of 20 of 20 outputs is 0"):
        ConformalIntervals(regression, np.zeros(20))
    with pytest.raises(ValueError, match="must have the shape of the predicted mean"):
        ConformalIntervals(regression, np.zeros((20, 1)), scaled=False)
    with pytest.raises(ValueError, match="Prediction of task='regression'"):
        ConformalIntervals(np.zeros(20), np.zeros(20))
    with pytest.raises(ValueError, match="`targets` must be finite"):
        ConformalIntervals(regression, np.full(20, np.inf), scaled=False)
    with pytest.raises(ValueError, match="Calibrated with outputs of shape"):
        ConformalIntervals(regression, np.zeros(20), scaled=False).intervals(
            Prediction(mean=np.zeros((20, 1)), variance=np.ones((20, 1)))
        )


def test_it_is_public():
    assert bayesnorm.conformal.ConformalSets is bayesnorm.ConformalSets
