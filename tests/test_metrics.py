import itertools

import numpy as np
import pytest
from scipy import optimize, special

from bayesnorm import metrics

PROBS = np.array(
    [
        [0.7, 0.2, 0.1],
        [0.1, 0.8, 0.1],
        [0.3, 0.3, 0.4],
        [0.25, 0.5, 0.25],
        [0.9, 0.05, 0.05],
        [0.34, 0.33, 0.33],
        [0.5, 0.5, 0.0],
        [0.2, 0.1, 0.7],
        [0.7, 0.1, 0.2],
        [0.05, 0.05, 0.9],
    ]
)
LABELS = np.array([0, 1, 0, 2, 0, 1, 1, 2, 1, 2])
SCORE = np.array([0.9, 0.8, 0.8, 0.7, 0.5, 0.5, 0.4, 0.2, 0.1])
POSITIVE = np.array([1, 1, 0, 1, 0, 1, 0, 0, 1], bool)


def random_predictions(rng, n=400, classes=5, decimals=1):
    """Predictions whose confidences tie often."""
    counts = rng.multinomial(10**decimals, np.full(classes, 1 / classes), size=n)
    return counts / 10**decimals, rng.integers(0, classes, n)


def two_class(confidence):
    confidence = np.asarray(confidence, float)
    return np.stack([1 - confidence, confidence], -1)


def test_known_values():
    assert metrics.nll(PROBS, LABELS) == pytest.approx(0.7841876534028756, rel=1e-9)
    np.testing.assert_allclose(
        metrics.predictive_entropy(PROBS),
        [
            0.8018185525433372,
            0.639031859650177,
            1.0888999753452238,
            1.0397207708399179,
            0.39439769144744274,
            1.0985126170507196,
            0.6931471805599453,
            0.8018185525433373,
            0.8018185525433373,
            0.39439769144744274,
        ],
        rtol=1e-9,
    )
    assert metrics.ece_equal_mass(PROBS, LABELS, 8) == pytest.approx(0.224, rel=1e-9)
    assert metrics.accuracy(PROBS, LABELS) == pytest.approx(0.5)
    assert metrics.error(PROBS, LABELS) == pytest.approx(0.5)
    coverage, risk = metrics.error_coverage(
        [0.8, 0.6, 1.1, 1.0, 0.4, 1.1, 0.7, 0.8, 0.8, 0.4],
        [0, 0, 1, 1, 0, 1, 1, 0, 1, 0],
    )
    expected = [0, 0, 0, 1 / 4, 4 / 15, 5 / 18, 2 / 7, 3 / 8, 4 / 9, 1 / 2]
    np.testing.assert_allclose(coverage, np.arange(1, 11) / 10, rtol=1e-12)
    np.testing.assert_allclose(risk, expected, rtol=1e-9)
    assert metrics.auroc(SCORE, POSITIVE) == pytest.approx(0.65, rel=1e-9)
    assert metrics.fpr_at_tpr(SCORE, POSITIVE) == 1.0


def test_brier_by_hand():
    assert metrics.brier([[0.7, 0.2, 0.1]], [0]) == pytest.approx(0.09 + 0.04 + 0.01)
    assert metrics.brier([[0.0, 1.0]], [0]) == 2.0
    assert metrics.brier([[0.0, 1.0]], [1]) == 0.0


def test_nll_of_impossible_label_is_infinite():
    assert metrics.nll([[0.5, 0.5], [0.0, 1.0]], [0, 0]) == np.inf


def test_dense_predictions_count_positions(rng):
    probs, labels = random_predictions(rng, 60)
    dense = probs.reshape(5, 3, 4, -1), labels.reshape(5, 3, 4)
    for name in ("nll", "accuracy", "brier", "ece_equal_width", "ece_equal_mass"):
        metric = getattr(metrics, name)
        assert metric(*dense) == pytest.approx(metric(probs, labels), rel=1e-12), name
    assert metrics.predictive_entropy(dense[0]).shape == (5, 3, 4)


@pytest.mark.parametrize("bins", [1, 2, 5, 10, 15, 20])
def test_bin_bounds_belong_to_the_lower_bin(bins):
    bounds = [i for i in range(bins + 1) if i / bins >= 0.5]
    for i in bounds:
        found = metrics.reliability_bins(two_class([i / bins]), [1], bins)
        assert np.flatnonzero(found.count) == [max(i - 1, 0)]


def test_ece_at_confidence_0_and_1():
    assert metrics.ece_equal_width([[1.0, 0.0]] * 2, [0, 1]) == pytest.approx(0.5)
    assert metrics.ece_equal_mass([[1.0, 0.0]] * 2, [0, 1]) == pytest.approx(0.5)
    assert metrics.ece_equal_width([[1.0, 0.0]], [0]) == 0.0
    # Round-off above 1 stays in the last bin.
    above = np.array([[1 + 1e-7, 0.0]])
    assert metrics.reliability_bins(above, [0]).count[-1] == 1


def test_ece_equal_width_brute_force(rng):
    probs, labels = random_predictions(rng)
    top, right = probs.max(-1), probs.argmax(-1) == labels
    total = 0
    for i in range(15):
        inside = (top > i / 15) & (top <= (i + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(top[inside].mean() - right[inside].mean())
    assert metrics.ece_equal_width(probs, labels) == pytest.approx(total, rel=1e-12)


def test_ece_equal_mass_without_ties_brute_force(rng):
    probs = rng.dirichlet(np.ones(4), 101)
    labels = rng.integers(0, 4, 101)
    top, right = probs.max(-1), probs.argmax(-1) == labels
    order = np.argsort(top)
    total, start = 0, 0
    bins = metrics.equal_mass_bins(probs, labels)
    assert len(bins.edges) == 9
    for i in range(8):
        part = order[start : start + 101 // 8 + (i < 101 % 8)]
        assert bins.confidence[i] == pytest.approx(top[part].mean())
        assert bins.accuracy[i] == pytest.approx(right[part].mean())
        assert bins.count[i] == len(part)
        assert bins.edges[i] <= top[part].min() <= top[part].max() == bins.edges[i + 1]
        total += len(part) / 101 * abs(top[part].mean() - right[part].mean())
        start += len(part)
    assert start == 101
    assert metrics.ece_equal_mass(probs, labels) == pytest.approx(total, rel=1e-12)


def test_order_of_examples_does_not_matter(rng):
    probs, labels = random_predictions(rng)
    expected = metrics.classification_summary(probs, labels)
    for _ in range(5):
        order = rng.permutation(len(labels))
        found = metrics.classification_summary(probs[order], labels[order])
        assert found == pytest.approx(expected, rel=1e-10)


def test_few_examples_in_many_bins():
    assert metrics.ece_equal_mass([[0.8, 0.2]], [0], 8) == pytest.approx(0.2)


def test_mutual_information(rng):
    same = np.repeat(rng.dirichlet(np.ones(3), 6)[None], 4, axis=0)
    np.testing.assert_allclose(metrics.mutual_information(same), 0, atol=1e-12)
    apart = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    np.testing.assert_allclose(metrics.mutual_information(apart), np.log(2))
    samples = rng.dirichlet(np.ones(3), (5, 7))
    mean = samples.mean(0)
    divergence = (samples * np.log(samples / mean)).sum(-1).mean(0)
    np.testing.assert_allclose(
        metrics.mutual_information(samples), divergence, rtol=1e-10
    )
    assert (metrics.mutual_information(samples) >= 0).all()


def test_entropy_cdf():
    h, cdf = metrics.entropy_cdf([0.2, 0.1, 0.2, 0.4])
    np.testing.assert_array_equal(h, [0.1, 0.2, 0.4])
    np.testing.assert_array_equal(cdf, [0.25, 0.75, 1.0])
    _, cdf = metrics.entropy_cdf([0.2, 0.1, 0.2, 0.4], at=[0, 0.1, 0.3, 5])
    np.testing.assert_array_equal(cdf, [0, 0.25, 0.75, 1])


@pytest.mark.parametrize("decimals", [1, 2, 12])
def test_detection_brute_force(rng, decimals):
    score = np.round(rng.random(60), decimals)
    positive = rng.random(60) < 0.3
    plus, minus = score[positive], score[~positive]
    pairs = (plus[:, None] > minus) + 0.5 * (plus[:, None] == minus)
    assert metrics.auroc(score, positive) == pytest.approx(pairs.mean(), rel=1e-12)
    area, previous, rates = 0, 0, []
    for threshold in sorted(set(score), reverse=True):
        taken = score >= threshold
        recall = positive[taken].sum() / positive.sum()
        area += (recall - previous) * positive[taken].mean()
        previous = recall
        rates.append((recall, (minus >= threshold).mean()))
    assert metrics.aupr(score, positive) == pytest.approx(area, rel=1e-12)
    for tpr in (0.5, 0.95, 1.0):
        expected = min(false for true, false in rates if true >= tpr)
        assert metrics.fpr_at_tpr(score, positive, tpr) == expected


def test_fpr_reaches_the_rate_exactly():
    # 19 of 20 positives are 95 %: the twentieth must not be asked for.
    score = np.concatenate([np.arange(1, 21), [0.5, 1.5]])
    positive = np.arange(22) < 20
    assert metrics.fpr_at_tpr(score, positive, 0.95) == 0.0
    assert metrics.fpr_at_tpr(score, positive, 1.0) == 0.5


def test_fpr_between_groups_of_ties():
    score = [3, 3, 2, 2, 1, 1]
    positive = np.array([1, 0, 1, 0, 1, 0], bool)
    assert metrics.fpr_at_tpr(score, positive, 0.5) == pytest.approx(2 / 3)


def test_ood_summary():
    found = metrics.ood_summary([0.1, 0.2, 0.3], [[0.4, 0.5]])
    assert found == pytest.approx(
        {
            "examples_in": 3,
            "examples_out": 2,
            "entropy_in": 0.2,
            "entropy_out": 0.45,
            "auroc": 100,
            "aupr": 100,
            "fpr_at_95_tpr": 0,
        }
    )
    constant = metrics.ood_summary(np.zeros(30), np.zeros(10))
    assert constant["auroc"] == pytest.approx(50)
    assert constant["aupr"] == pytest.approx(25)
    assert constant["fpr_at_95_tpr"] == 100


def test_error_coverage_is_the_mean_over_orders_of_ties():
    uncertainty = np.array([1, 1, 1, 0, 2, 2.0])
    errors = np.array([1, 0, 0, 0, 1, 0.0])
    curves = []
    for order in itertools.permutations(range(6)):
        order = np.array(order)
        if (np.diff(uncertainty[order]) >= 0).all():
            curves.append(np.cumsum(errors[order]) / np.arange(1, 7))
    _, risk = metrics.error_coverage(uncertainty, errors)
    np.testing.assert_allclose(risk, np.mean(curves, axis=0), rtol=1e-12)
    assert metrics.aurc(uncertainty, errors) == pytest.approx(np.mean(curves))


def test_temperature_undoes_a_known_scale(rng):
    logits = 2 * rng.normal(size=(4000, 5))
    labels = (special.log_softmax(logits, -1) + rng.gumbel(size=logits.shape)).argmax(
        -1
    )
    plain = metrics.temperature_scaling(logits, labels)
    assert plain == pytest.approx(1, abs=0.1)
    scaled = metrics.temperature_scaling(3 * logits, labels)
    assert scaled == pytest.approx(3 * plain, rel=1e-5)
    # The condition of first order, solved independently.
    beta = optimize.brentq(
        lambda b: (
            (special.softmax(b * logits, -1) * logits).sum(-1)
            - logits[np.arange(4000), labels]
        ).mean(),
        0.1,
        10,
    )
    assert plain == pytest.approx(1 / beta, rel=1e-5)
    log_probs = special.log_softmax(logits, -1)
    assert metrics.temperature_scaling(log_probs, labels) == pytest.approx(
        plain, rel=1e-5
    )
    np.testing.assert_allclose(
        metrics.apply_temperature(3 * logits, 3.0), np.exp(log_probs), rtol=1e-10
    )


def test_temperature_at_its_bounds():
    assert metrics.temperature_scaling([[9.0, 0.0]], [0], (0.5, 4)) == pytest.approx(
        0.5
    )
    assert metrics.temperature_scaling([[9.0, 0.0]], [1], (0.5, 4)) == pytest.approx(4)


def test_temperature_with_probability_zero():
    logits = np.log([[0.5, 0.5, 1e-300], [0.2, 0.8, 1e-300]])
    logits[:, 2] = -np.inf
    assert 0.01 <= metrics.temperature_scaling(logits, [0, 1]) <= 100
    with pytest.raises(ValueError, match="1 labels have probability 0"):
        metrics.temperature_scaling(logits, [0, 2])


def test_classification_summary(rng):
    samples = rng.dirichlet(np.ones(3), (4, 50))
    probs, labels = samples.mean(0), rng.integers(0, 3, 50)
    found = metrics.classification_summary(probs, labels, samples)
    assert list(found) == [
        "examples",
        "nll",
        "accuracy",
        "error",
        "brier",
        "ece_equal_width",
        "ece_equal_mass",
        "aurc",
        "entropy",
        "mutual_information",
    ]
    assert found["examples"] == 50
    assert found["accuracy"] + found["error"] == pytest.approx(100)
    assert found["nll"] == metrics.nll(probs, labels)
    wrong = probs.argmax(-1) != labels
    entropy = metrics.predictive_entropy(probs)
    assert found["aurc"] == pytest.approx(100 * metrics.aurc(entropy, wrong))
    information = metrics.mutual_information(samples).mean()
    assert found["mutual_information"] == pytest.approx(information)
    assert all(type(value) in (int, float) for value in found.values())
    assert "mutual_information" not in metrics.classification_summary(probs, labels)


@pytest.mark.parametrize(
    ("function", "args", "match"),
    [
        (metrics.nll, ([[0.5, 0.6]], [0]), r"must sum to 1 .* misses it by 0\.1"),
        (metrics.nll, ([[np.nan, 1]], [0]), "1 of 2 values are NaN"),
        (metrics.nll, ([[1.5, -0.5]], [0]), "must not be negative"),
        (metrics.nll, ([[1.0]], [0]), "at least 2 classes"),
        (metrics.nll, ([0.5, 0.5], [0]), r"must be \[n, ..., K\]"),
        (metrics.nll, (np.zeros((0, 3)), []), "`probs` is empty"),
        (metrics.classification_summary, ([[0.5, 0.5]], [0, 1]), "shape of the pred"),
        (metrics.brier, ([[0.5, 0.5]], [2]), r"must lie in 0\.\.1, got 2"),
        (metrics.brier, ([[0.5, 0.5]], [-1]), r"must lie in 0\.\.1, got -1"),
        (metrics.accuracy, ([[0.5, 0.5]], [0.0]), "must be integers, got float64"),
        (metrics.accuracy, ([[0.5, 0.5]], [0, 1]), r"\(1,\), got \(2,\)"),
        (metrics.ece_equal_width, ([[0.5, 0.5]], [0], 0), "positive integer"),
        (metrics.ece_equal_mass, ([[0.5, 0.5]], [0], 2.5), "positive integer"),
        (metrics.mutual_information, ([[0.5, 0.5]],), r"\[S, n, ..., K\]"),
        (metrics.auroc, ([0.1, 0.2], [True, True]), "needs both kinds, got 2 of 2"),
        (metrics.auroc, ([0.1, 0.2], [0, 1]), "must be booleans"),
        (metrics.aupr, ([0.1, np.inf], [True, False]), "must be finite"),
        (metrics.fpr_at_tpr, ([0.1, 0.2], [True, False], 0), r"lie in \(0, 1\]"),
        (metrics.error_coverage, ([0.1, 0.2], [1]), "need one shape"),
        (metrics.entropy_cdf, ([],), "`entropy` is empty"),
        (metrics.ood_summary, ([0.1], []), "`entropy_out` is empty"),
        (metrics.temperature_scaling, ([[0, np.nan]], [0]), "no NaN"),
        (metrics.temperature_scaling, ([[0, 1]], [0], (0, 1)), "0 < low < high"),
        (metrics.apply_temperature, ([[0, 1]], 0), "positive and finite, got 0"),
        (
            metrics.classification_summary,
            ([[0.5, 0.5]], [0], np.full((3, 2, 2), 0.5)),
            "the shape of `probs` after",
        ),
    ],
)
def test_bad_input(function, args, match):
    with pytest.raises(ValueError, match=match):
        function(*args)
