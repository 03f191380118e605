"""R-hat and effective sample size: against known laws, another implementation."""

import numpy as np
import pytest
from scipy import signal

from bayesnorm.samplers import effective_sample_size, r_hat


def chains(correlation, shape=(4, 5000), seed=0):
    """Draws of stationary AR(1) chains of variance 1."""
    noise = np.random.default_rng(seed).normal(size=shape)
    scale = np.sqrt(1 - correlation**2)
    noise[:, 0] /= scale
    return signal.lfilter([scale], [1, -correlation], noise, axis=1)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9, -0.4])
def test_size_of_autoregressive_chains(correlation):
    # tau = (1 + a) / (1 - a).
    draws = chains(correlation)
    truth = draws.size * (1 - correlation) / (1 + correlation)
    assert effective_sample_size(draws) == pytest.approx(truth, rel=0.15)
    assert r_hat(draws) < 1.01


def test_chains_that_disagree():
    draws = chains(0.0)
    draws[0] += 1.0
    assert r_hat(draws) > 1.09
    assert effective_sample_size(draws) < 100
    # The same mean and another spread: only the distances from the median tell.
    draws = chains(0.0)
    draws[0] *= 3.0
    assert r_hat(draws) > 1.05


def test_quantities_side_by_side():
    draws = np.stack([chains(0.0, (2, 100)), chains(0.9, (2, 100), 1)], axis=-1)
    draws = np.concatenate([draws, np.ones((2, 100, 1))], axis=-1)
    for function in (r_hat, effective_sample_size):
        values = function(draws)
        assert values.shape == (3,)
        np.testing.assert_allclose(values[0], function(draws[..., 0]))
        np.testing.assert_allclose(values[1], function(draws[..., 1]))
        assert np.isnan(values[2])
        assert np.isnan(function(np.where(np.arange(100) == 7, np.nan, draws[..., 0])))
        with pytest.raises(ValueError, match="4 draws"):
            function(np.zeros((2, 3)))


@pytest.mark.parametrize("shape", [(1, 20), (4, 101), (3, 1000)])
@pytest.mark.parametrize("correlation", [0.0, 0.8, -0.7])
def test_as_arviz_has_them(shape, correlation):
    arviz = pytest.importorskip("arviz", reason="the other implementation")
    for seed in range(3):
        draws = chains(correlation, shape, seed) + np.arange(shape[0])[:, None] / 10
        size = arviz.ess(draws, method="bulk")
        np.testing.assert_allclose(effective_sample_size(draws), size, rtol=1e-6)
        if shape[0] > 1:  # Of one chain it has none.
            value = arviz.rhat(draws, method="rank")
            np.testing.assert_allclose(r_hat(draws), value, rtol=1e-6)
