"""The noise that batch normalization adds, measured in a trained network."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
from scipy import stats

from bayesnorm.arguments import check_model, positive_integer
from bayesnorm.graph import layers_of
from bayesnorm.layers.stochastic_batch_norm import stochastic_batch_normalizations
from bayesnorm.measurement.minibatch import record_statistics
from bayesnorm.streams.batches import number_of_batches
from bayesnorm.surgery.to_stochastic import to_stochastic
from bayesnorm.types import Inputs

_BINS = 10


@dataclasses.dataclass(frozen=True)
class BatchNoise:
    """The noise of a normalization in training, `(x_hat + V) U`.

    Attributes:
        layer: Name of the layer.
        batch_size: Examples of a batch.
        positions: Positions of an example that the layer averages over, from the
            shape of its input; 1 for vectors.
        scale_stddev: Standard deviation of U = sigma / S over batches, the root of the
            mean over channels of its variance.
        shift_stddev: The same of V = (mu - M) / sigma.
        effective_from_scale: The number of independent values that a batch is worth by
            the variance of U, `1 / (2 scale_stddev^2)`.
        effective_from_shift: The same by that of V, `1 / shift_stddev^2`.
        chi_square_p: Median over the channels of the p-value of Pearson's test of
            `n S^2 / sigma^2` against the chi-square law of n - 1 degrees of freedom,
            n = batch_size * positions, in 10 bins of equal probability. Small where
            positions are correlated.
    """

    layer: str
    batch_size: int
    positions: int
    scale_stddev: float
    shift_stddev: float
    effective_from_scale: float
    effective_from_shift: float
    chi_square_p: float


def batch_noise(
    model: keras.Model,
    data: Inputs,
    batch_size: int,
    batches: int = 200,
    seed: int = 0,
    steps: int | None = None,
) -> list[BatchNoise]:
    """Measures the noise of every batch normalization of a trained network.

    Sends random training batches through the network in training mode. With M and S^2
    the mean and variance of a channel over a batch, mu = E M and
    sigma^2 = E(S^2 + M^2) - mu^2 over all batches.

    Args:
        model: A Functional or Sequential model with `keras.layers.BatchNormalization`,
            or one with `StochasticBatchNormalization`.
        data: Training inputs, as for `bayesnorm.calibrate`; many batches of them, since
            a batch is drawn without replacement: of N inputs its mean has
            `1 - batch_size / N` of the variance that it has in training.
        batch_size: Integer.
        batches: Integer from 2, the number of batches.
        seed: Integer from 0, of their order.
        steps: Number of the stream's batches to go through before it is started anew;
            None for all, as many as it takes of a stream without an end.

    Returns:
        A list of `BatchNoise`, one for each call of a normalization, in order.

    Raises:
        ValueError: If an argument is out of range, the data are arrays of fewer than
            two batches, or the model has no batch normalization.

    Reference:
        Shekhovtsov & Flach, 2018, "Stochastic Normalizations as Bayesian Learning",
        section 3.1, figure 4 (whose caption has n - 1 for the n of the biased S^2).
    """
    positive_integer("batch_size", batch_size)
    if positive_integer("batches", batches) < 2:
        raise ValueError(f"`batches` must be 2 or more. Received: {batches}")
    rows = number_of_batches(data, 1)
    if rows is not None and rows < 2 * batch_size:
        raise ValueError(
            "`data` must be two batches or more: all batches would hold the same "
            f"examples. Received: {rows} examples, batch_size={batch_size}"
        )
    check_model(model)
    # A stochastic one among plain ones does not speak for them.
    plain = (
        type(layer) is keras.layers.BatchNormalization for layer in layers_of(model)
    )
    if any(plain) or not stochastic_batch_normalizations(model):
        model = to_stochastic(model)
    recorded = record_statistics(model, data, batches, batch_size, seed, steps)
    found = []
    for layer, mean, log_variance in recorded.by_call():
        mean, log_variance = mean.astype("float64"), log_variance.astype("float64")
        variance = np.maximum(np.exp(log_variance) - layer.epsilon, 0.0)
        found.append(_noise(layer, batch_size, mean, variance))
    if not np.ptp(recorded.values, axis=0).any():
        raise ValueError(
            "`data` must be two batches or more: all batches hold the same examples."
        )
    return found


def _noise(layer, batch_size, mean, variance):
    mu = mean.mean(0)
    sigma2 = (variance + mean**2).mean(0) - mu**2
    # A channel that is constant has no noise to speak of.
    live = (sigma2 > 1e-12 * (1.0 + mu**2)) & (variance.min(0) > 0)
    mean, variance, mu, sigma2 = (x[..., live] for x in (mean, variance, mu, sigma2))
    if not live.any():
        raise ValueError(
            f"All channels of layer {layer.name!r} are constant over some batch: "
            "expected inputs that vary. Is the batch too small?"
        )
    scale_variance = np.sqrt(sigma2 / variance).var(0, ddof=1).mean()
    shift_variance = ((mu - mean) / np.sqrt(sigma2)).var(0, ddof=1).mean()
    positions = _positions(layer)
    n = batch_size * positions
    return BatchNoise(
        layer=layer.name,
        batch_size=batch_size,
        positions=positions,
        scale_stddev=float(np.sqrt(scale_variance)),
        shift_stddev=float(np.sqrt(shift_variance)),
        effective_from_scale=float(1.0 / (2.0 * scale_variance)),
        effective_from_shift=float(1.0 / shift_variance),
        chi_square_p=float(np.median(_p_values(n * variance / sigma2, n))),
    )


def _positions(layer):
    shape = layer.input.shape if not isinstance(layer.input, list) else (None,)
    axis = layer.axis % len(shape)
    sizes = [size for i, size in enumerate(shape) if i not in (0, axis)]
    if None in sizes:
        raise ValueError(
            f"Layer {layer.name!r} has an input of unknown size {tuple(shape)}: give "
            "the model's Input a fixed shape."
        )
    return int(np.prod(sizes, dtype="int64"))


def _p_values(ratios, n):
    """Pearson's test of `[batches, channels]` against chi-square, per channel."""
    u = stats.chi2.cdf(ratios, n - 1)
    counts = np.stack([np.histogram(c, _BINS, (0.0, 1.0))[0] for c in u.T])
    expected = len(ratios) / _BINS
    statistic = ((counts - expected) ** 2 / expected).sum(1)
    return stats.chi2.sf(statistic, _BINS - 1)
