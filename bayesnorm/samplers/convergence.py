"""Whether chains agree: R-hat and the effective sample size."""

from __future__ import annotations

import numpy as np
from scipy import fft, special, stats

from bayesnorm.types import ArrayLike


def r_hat(draws: ArrayLike) -> np.ndarray:
    """Returns the rank-normalized split R-hat of quantities drawn by chains.

    Each chain is split in two; R-hat compares the variance between halves with that
    within, `sqrt(((n - 1) W / n + B / n) / W)`, of normal scores of the ranks, and of
    those of the distances from the median; the larger one counts. It is 1 where all
    halves are draws of one law; above 1.01 they are taken not to be.

    Args:
        draws: Array `[chains, draws, ...]`, 4 draws or more.

    Returns:
        Array of the other axes; NaN for what is constant or not finite.

    Raises:
        ValueError: If there are fewer draws.

    Reference:
        Vehtari et al., 2021, "Rank-Normalization, Folding, and Localization: An
        Improved R-hat for Assessing Convergence of MCMC".
    """
    halves = _halves(draws)
    middle = np.median(halves, axis=(0, 1))
    folded = np.abs(halves - middle)
    return np.fmax(_plain_r_hat(_scores(halves)), _plain_r_hat(_scores(folded)))


def effective_sample_size(draws: ArrayLike) -> np.ndarray:
    """Returns the number of independent draws that tell the mean as well.

    `S / tau` of S draws with the integrated autocorrelation time tau, summed up to
    where pairs of autocorrelations turn negative (Geyer), of normal scores of the
    ranks, over halves of chains ("bulk").

    Args:
        draws: Array `[chains, draws, ...]`, 4 draws or more.

    Returns:
        Array of the other axes; NaN for what is constant or not finite.

    Raises:
        ValueError: If there are fewer draws.

    Reference:
        Vehtari et al., 2021, as for `r_hat`, section 3.2.
    """
    scores = _scores(_halves(draws))
    flat = scores.reshape(*scores.shape[:2], -1)
    sizes = [_size(flat[..., i]) for i in range(flat.shape[-1])]
    return np.array(sizes).reshape(scores.shape[2:])


def _halves(draws):
    draws = np.asarray(draws, "float64")
    if draws.ndim < 2 or draws.shape[1] < 4:
        raise ValueError(
            "`draws` must be an array [chains, draws, ...] of 4 draws or more. "
            f"Received: shape {draws.shape}"
        )
    size = draws.shape[1] // 2
    # Of an odd number the one in the middle goes.
    return np.concatenate([draws[:, :size], draws[:, -size:]])


def _scores(draws):
    """Returns normal scores of the ranks among all draws."""
    chains, size = draws.shape[:2]
    flat = draws.reshape(chains * size, -1)
    ranks = stats.rankdata(flat, axis=0)
    scores = special.ndtri((ranks - 0.375) / (len(flat) + 0.25))
    bad = ~np.isfinite(flat).all(0) | (np.ptp(np.nan_to_num(flat), axis=0) == 0)
    scores[:, bad] = np.nan
    return scores.reshape(draws.shape)


def _plain_r_hat(draws):
    size = draws.shape[1]
    within = draws.var(1, ddof=1).mean(0)
    between = draws.mean(1).var(0, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt((size - 1) / size + between / within)


def _size(draws):
    """Returns the effective sample size of `[chains, draws]`."""
    chains, size = draws.shape
    if not np.isfinite(draws).all():
        return np.nan
    covariance = _autocovariance(draws).mean(0)
    within = covariance[0] * size / (size - 1)
    total = covariance[0]
    if chains > 1:
        total += draws.mean(1).var(ddof=1)
    correlation = 1 - (within - covariance) / total
    correlation[0] = 1.0
    # Pairs of even and odd lags: their sums are positive, and fall.
    count = max(1, (size - 1) // 2)
    pairs = correlation[: 2 * count].reshape(count, 2).sum(1)
    negative = np.flatnonzero(pairs < 0)
    end = negative[0] if len(negative) else count - 1
    pairs = np.minimum.accumulate(pairs[:end])
    time = -1 + 2 * pairs.sum()
    # The even one of the pair that turned negative, as anticorrelated chains need.
    time += max(0.0, correlation[2 * end])
    number = chains * size
    return number / max(time, 1 / np.log10(number))


def _autocovariance(draws):
    size = draws.shape[1]
    centred = draws - draws.mean(1, keepdims=True)
    padded = fft.next_fast_len(2 * size)
    spectrum = np.abs(fft.rfft(centred, padded, axis=1)) ** 2
    return fft.irfft(spectrum, padded, axis=1)[:, :size] / size
