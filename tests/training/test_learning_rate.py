"""The search of the learning rate, on a loop with a known loss."""

import math

import numpy as np
import pytest

from bayesnorm.training.learning_rate import search


class Fake:
    """A loop whose loss after two epochs is (log10(rate) - best)^2, up to a limit."""

    def __init__(self, best=-1.3, limit=-0.5):
        self.best, self.limit = best, limit
        self.values = [0]
        self.epochs = 0

    def state(self):
        return list(self.values)

    def set_state(self, values):
        self.values = list(values)

    def train_epoch(self, epoch, learning_rate):
        assert self.values == [epoch]
        self.values = [epoch + 1]
        self.epochs += 1
        log = math.log10(learning_rate)
        # The first epoch's loss leads astray: the last one's counts.
        loss = (log - self.best) ** 2 if epoch == 1 else log
        return {"loss": loss if log < self.limit else math.nan}


def test_search_finds_the_best_rate_and_sets_back(tmp_path):
    loop = Fake()
    cache = tmp_path / "rates.json"
    rate = search(loop, 2, 1e-3, 1.0, evaluations=20, cache=cache)
    assert math.log10(rate) == pytest.approx(-1.3, abs=0.05)
    assert loop.values == [0]
    trained = loop.epochs
    assert search(loop, 2, 1e-3, 1.0, evaluations=20, cache=cache) == rate
    assert loop.epochs == trained


def test_search_turns_to_lower_rates_where_all_diverge():
    rate = search(Fake(best=-2.7, limit=-2.5), 2, 1e-3, 1.0, evaluations=20)
    assert math.log10(rate) == pytest.approx(-2.7, abs=0.1)


def test_stopped_search_goes_on_to_the_same_rate(tmp_path):
    cache = tmp_path / "rates.json"
    expected = search(Fake(), 2, 1e-3, 1.0)
    loop = Fake()
    train = loop.train_epoch

    def stop(*args, **kwargs):
        if loop.epochs == 7:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    loop.train_epoch = stop
    with pytest.raises(KeyboardInterrupt):
        search(loop, 2, 1e-3, 1.0, cache=cache)
    loop = Fake()
    assert search(loop, 2, 1e-3, 1.0, cache=cache) == expected
    uncached = Fake()
    search(uncached, 2, 1e-3, 1.0)
    assert loop.epochs < uncached.epochs


def test_search_refuses_what_cannot_work():
    with pytest.raises(ValueError, match="diverged at every"):
        search(Fake(), 2, 0.5, 1.0, evaluations=3)
    with pytest.raises(ValueError, match="low < high"):
        search(Fake(), 2, 1.0, 0.1)
    with pytest.raises(ValueError, match="evaluations=1"):
        search(Fake(), 2, evaluations=1)
    assert np.isfinite(search(Fake(), 2, 1e-3, 1.0, evaluations=2))
