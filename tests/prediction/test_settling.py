"""The stopping rules: their error rates, by Monte Carlo, on laws that try them."""

import itertools

import numpy as np
import pytest
from scipy import special, stats

from bayesnorm.prediction.settling import (
    BLOCK,
    Interval,
    Winner,
    influence,
    looks,
    rule_for,
    split_rate,
)
from bayesnorm.prediction.tasks import Output

SAMPLES = 200


def stopped(rule, values, error_rate):
    """Where each example stops: `[examples]`, looking as `predict` does."""
    examples = values.shape[1]
    state, used = rule.start(values.shape[1:]), np.full(examples, rule.samples)
    going, before = np.ones(examples, bool), 0
    for look in looks(rule.samples, rule.least)[:-1]:
        for start in range(before, look, BLOCK):
            block = values[start : min(start + BLOCK, look)]
            rule.update(state, block, start, error_rate)
        leaves = going & ~rule.unsettled(state).reshape(examples, -1).any(1)
        used[leaves], before = look, look
        going &= ~leaves
    return used


def average(values, used):
    """The mean over the first `used` networks of each example."""
    sums = np.cumsum(values, axis=0, dtype="float64")
    return sums[used - 1, np.arange(values.shape[1])] / used[:, None]


def logit_normal(rng, examples, classes, spread, center=1.0):
    """Networks whose logits are normal about those of the example."""
    center = center * rng.normal(size=(examples, classes))
    logits = center + spread * rng.normal(size=(SAMPLES, examples, classes))
    return special.softmax(logits, axis=-1).astype("float32")


def votes(rng, examples, share):
    """Networks that are certain, of one of two classes."""
    first = (rng.random((SAMPLES, examples)) < share).astype("float32")
    return np.stack([first, 1 - first], -1)


def rare(rng, examples):
    """Nearly all say 0.51 to 0.49, few are certain of the other class."""
    few = rng.random((SAMPLES, examples)) < 0.02
    first = np.where(few, 0.0, 0.51).astype("float32")
    return np.stack([first, 1 - first], -1)


LAWS = {
    "ten classes": lambda rng: logit_normal(rng, 4000, 10, 1.0),
    "three classes, wide": lambda rng: logit_normal(rng, 4000, 3, 3.0),
    "votes, one in two": lambda rng: votes(rng, 4000, 0.5),
    "votes, nearly": lambda rng: votes(rng, 4000, 0.55),
    "rare": lambda rng: rare(rng, 4000),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("error_rate", [0.05, 0.2])
def test_the_class_is_that_of_all_but_for_the_error_rate(law, error_rate):
    values = LAWS[law](np.random.default_rng(0))
    used = stopped(Winner(error_rate, SAMPLES), values, error_rate)
    whole = values.mean(0, dtype="float64").argmax(-1)
    wrong = (average(values, used).argmax(-1) != whole).sum()
    # Were the rate the stated one, as many would be seen in one of 10^4 runs.
    assert wrong <= stats.binom.isf(1e-4, values.shape[1], error_rate)


def test_the_error_rate_is_nearly_used_by_votes():
    """A law near the bound: the test is not merely too careful to err."""
    values = votes(np.random.default_rng(1), 20000, 0.5)
    used = stopped(Winner(0.2, SAMPLES), values, 0.2)
    whole = values.mean(0, dtype="float64").argmax(-1)
    wrong = (average(values, used).argmax(-1) != whole).mean()
    assert 0.02 < wrong < 0.2
    # Looking at the same places without a test errs far more.
    naive = (values[:16].mean(0).argmax(-1) != whole).mean()
    assert naive > 0.3


def test_the_bound_holds_for_an_order_of_given_networks():
    """The worst of populations: all orders of 100 votes to 100, and 99 to 101."""
    rng = np.random.default_rng(2)
    for first in (99, 100):
        population = np.repeat([1.0, 0.0], [first, SAMPLES - first])
        orders = rng.permuted(np.tile(population, (20000, 1)), axis=1).T
        values = np.stack([orders, 1 - orders], -1).astype("float32")
        used = stopped(Winner(0.1, SAMPLES), values, 0.1)
        right = 0 if first == 100 else 1  # The first of equals.
        wrong = (average(values, used).argmax(-1) != right).sum()
        assert wrong <= stats.binom.isf(1e-4, 20000, 0.1)


def test_certain_examples_leave_at_the_first_look():
    values = np.zeros((SAMPLES, 1, 10), "float32")
    values[..., 3] = 1.0
    assert stopped(Winner(0.01, SAMPLES), values, 0.01) == [16]
    assert stopped(Winner(0.05, SAMPLES), values, 0.05) == [8]
    assert Winner(0.01, SAMPLES).least == 10


def test_a_class_that_cannot_win_any_more_is_rejected():
    """With nothing to bet on, what is left is counted."""
    values = np.zeros((20, 1, 2), "float32")
    values[:11, :, 0], values[11:, :, 1] = 1.0, 1.0
    rule = Winner(1e-30, 20)
    state = rule.start((1, 2))
    rule.update(state, values[:10], 0, 1e-30)
    assert rule.unsettled(state).all()  # Ten to none: ten might be left.
    rule.update(state, values[10:11], 10, 1e-30)
    rule.update(state, values[11:12], 11, 1e-30)
    assert not rule.unsettled(state).any()


def test_equal_classes_go_on_to_the_end():
    values = np.full((SAMPLES, 1, 2), 0.5, "float32")
    assert stopped(Winner(0.01, SAMPLES), values, 0.01) == [SAMPLES]


@pytest.mark.parametrize("tolerance", [0.05, 0.2])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("center", "spread"), [(1.0, 0.5), (1.0, 1.5), (4.0, 2.0)])
def test_the_entropy_is_within_the_tolerance(tolerance, temperature, center, spread):
    values = logit_normal(np.random.default_rng(3), 4000, 10, spread, center)

    def entropy(probs):
        tempered = probs ** (1 / temperature)
        tempered = tempered / tempered.sum(-1, keepdims=True)
        return special.entr(tempered).sum(-1)

    rule = Interval("classification", tolerance, 0.05, SAMPLES, temperature)
    used = stopped(rule, values, 0.05)
    off = entropy(average(values, used)) - entropy(values.mean(0, dtype="float64"))
    wrong = (np.abs(off) > tolerance).sum()
    assert wrong <= stats.binom.isf(1e-4, 4000, 0.05)
    assert (used < SAMPLES).mean() > (0.5 if tolerance == 0.2 else 0.0)


def test_the_mean_of_a_regression_is_within_the_tolerance():
    rng = np.random.default_rng(4)
    values = rng.normal(size=(SAMPLES, 4000, 1)).astype("float32")
    used = stopped(Interval("regression", 0.4, 0.05, SAMPLES), values, 0.05)
    off = average(values, used) - values.mean(0, dtype="float64")
    wrong = (np.abs(off) > 0.4).sum()
    assert wrong <= stats.binom.isf(1e-4, 4000, 0.05)
    # t sqrt(1 / n (1 - n / 200)) = 0.35 at n = 64, where t is 2.8; D / n adds 0.05.
    assert np.median(used) == pytest.approx(64, abs=16)


def test_the_width_is_that_of_the_docstring():
    rng, n, all_samples = np.random.default_rng(6), 16, 40
    values = logit_normal(rng, 3, 4, 1.0)[:n]
    rule = Interval("classification", 0.1, 0.05, all_samples)
    state = rule.start((3, 4))
    squares, largest = 0.0, 0.0
    for start in (0, BLOCK):
        rule.update(state, values[start : start + BLOCK], start, 0.05)
        mean = values[: start + BLOCK].mean(0, dtype="float64")
        pull = influence(values[start : start + BLOCK], mean)
        squares += BLOCK * pull.var(0)
        largest = np.maximum(largest, np.abs(pull - pull.mean(0)).max(0))
    information = special.entr(mean).sum(-1) - special.entr(values).sum(-1).mean(0)
    quantile = stats.t.isf(0.05 / 2, n - 2)  # One look before the end, two means.
    left = 1 - n / all_samples
    expected = quantile * np.sqrt(squares / (n - 2) / n * left)
    expected += largest * np.log(2 / 0.05) / 3 / n * left
    expected += information * (1 / n - 1 / all_samples)
    np.testing.assert_allclose(state["width"], expected, rtol=1e-5)
    # Nothing is left open by all of them.
    rule.update(state, np.tile(values, (2, 1, 1))[:24], n, 0.05)
    np.testing.assert_allclose(state["width"], 0, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_the_influence_is_the_derivative_of_the_entropy(temperature):
    rng = np.random.default_rng(5)
    mean, values = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4), 6)

    def entropy(m):
        q = m ** (1 / temperature)
        q = q / q.sum()
        return special.entr(q).sum()

    step = 1e-5
    slopes = np.array(
        [
            (entropy(mean + step * e) - entropy(mean - step * e)) / (2 * step)
            for e in np.eye(4)
        ]
    )
    got = influence(values, mean, temperature)
    np.testing.assert_allclose(got, values @ slopes, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("samples", [1, 5, 8, 9, 30, 200, 1000])
def test_looks_are_whole_blocks_and_end_with_all(samples):
    found = looks(samples, 10)
    assert found[-1] == samples
    assert all(n % BLOCK == 0 and n >= 10 for n in found[:-1])
    assert all(a < b <= 2 * a for a, b in itertools.pairwise(found))


def test_positions_share_the_error_rate():
    assert split_rate(0.02, 1) == (0.02, 0.0)
    rate, open_share = split_rate(0.02, 64)
    assert rate + open_share == 0.02


def test_arguments():
    one = Output(None, "classification", True)
    with pytest.raises(ValueError, match=r"must be 'class' .* or a number above 0"):
        rule_for(one, "entropy", 0.01, 10)
    with pytest.raises(ValueError, match="or a number above 0"):
        rule_for(one, 0, 0.01, 10)
    for rate in (0, 1, np.nan):
        with pytest.raises(ValueError, match="`error_rate` must"):
            rule_for(one, "class", rate, 10)
    with pytest.raises(ValueError, match="output 'age' is a regression"):
        rule_for(Output("age", "regression", None), "class", 0.01, 10)
