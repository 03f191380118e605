"""Accuracy, calibration, uncertainty and out-of-distribution detection.

NumPy functions in float64. Probabilities are `[n, ..., K]` with classes last, labels
`[n, ...]` integers `0..K-1`; each position of a dense prediction counts as an example.
Logarithms are natural, entropies and NLL in nats. The predicted class is the most
probable one, the first of equals; its probability is the confidence.

Nothing depends on the order of the examples: where examples are sorted, those that tie
share the mean of what they would get in all orders.

Reference:
    - [Guo et al., 2017](https://arxiv.org/abs/1706.04599): calibration error, bins of
      equal width, temperature scaling
    - [Nguyen & O'Connor, 2015](https://arxiv.org/abs/1508.05154): bins of equal mass
    - [Geifman & El-Yaniv, 2017](https://arxiv.org/abs/1705.08500): risk and coverage
    - [Houlsby et al., 2011](https://arxiv.org/abs/1112.5745): mutual information
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special

from bayesnorm.arguments import class_labels, finite_values, logits_array, probabilities
from bayesnorm.types import ArrayLike

__all__ = [
    "ReliabilityBins",
    "accuracy",
    "apply_temperature",
    "aupr",
    "aurc",
    "auroc",
    "brier",
    "classification_summary",
    "ece_equal_mass",
    "ece_equal_width",
    "entropy_cdf",
    "equal_mass_bins",
    "error",
    "error_coverage",
    "fit_temperature",
    "fpr_at_tpr",
    "intersection_over_union",
    "mutual_information",
    "nll",
    "ood_summary",
    "predictive_entropy",
    "reliability_bins",
    "temperature_scaling",
]


class ReliabilityBins(NamedTuple):
    """Calibration in bins of confidence, in increasing order.

    Attributes:
        edges: `[B+1]` bounds of the bins: bin `i` holds `edges[i] < confidence <=
            edges[i+1]`, the first one also `edges[0]`.
        confidence: `[B]` mean confidence in a bin, NaN in an empty one.
        accuracy: `[B]` share of right predictions in a bin, NaN in an empty one.
        count: `[B]` number of examples in a bin.
    """

    edges: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # not that of a tuple

    @property
    def calibration_error(self) -> float:
        """`sum_b n_b / n |confidence_b - accuracy_b|`."""
        return _calibration_error(self.confidence, self.accuracy, self.count)


def nll(probs: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log-likelihood `-log p_y`, nats; infinite where some `p_y` is 0."""
    probs, labels = _classification(probs, labels)
    with np.errstate(divide="ignore"):
        return float(-np.log(probs[np.arange(len(labels)), labels]).mean())


def accuracy(probs: ArrayLike, labels: ArrayLike) -> float:
    """Share of examples whose predicted class is the label, in [0, 1]."""
    probs, labels = _classification(probs, labels)
    return float((probs.argmax(-1) == labels).mean())


def error(probs: ArrayLike, labels: ArrayLike) -> float:
    """Share of examples whose predicted class is not the label, in [0, 1]."""
    return 1.0 - accuracy(probs, labels)


def brier(probs: ArrayLike, labels: ArrayLike) -> float:
    """Brier score `sum_k (p_k - [k = y])^2`, mean over examples, in [0, 2]."""
    probs, labels = _classification(probs, labels)
    target = np.arange(probs.shape[-1]) == labels[:, None]
    return float(np.square(probs - target).sum(-1).mean())


def reliability_bins(
    probs: ArrayLike, labels: ArrayLike, bins: int = 15
) -> ReliabilityBins:
    """Confidence and accuracy in `bins` bins of equal width on [0, 1].

    Args:
        probs: `[n, ..., K]`.
        labels: `[n, ...]`.
        bins: Number `B` of bins `(i/B, (i+1)/B]`; confidence 0 falls in the first.

    Returns:
        `ReliabilityBins`.
    """
    confidence, correct = _confidence(probs, labels)
    _check_bins(bins)
    edges = np.arange(bins + 1) / bins
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        return ReliabilityBins(
            edges,
            np.bincount(index, confidence, minlength=bins) / count,
            np.bincount(index, correct, minlength=bins) / count,
            count,
        )


def ece_equal_width(probs: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error over bins of equal width, in [0, 1].

    `sum_b n_b / n |confidence_b - accuracy_b|` over the bins of `reliability_bins`.
    """
    return reliability_bins(probs, labels, bins).calibration_error


def equal_mass_bins(
    probs: ArrayLike, labels: ArrayLike, bins: int = 8
) -> ReliabilityBins:
    """Confidence and accuracy in bins of equally many examples.

    Examples are sorted by confidence and cut into bins of `n // bins`, the first
    `n % bins` of them with one more. Examples of the same confidence all count as right
    to the degree to which they are so on average.

    Args:
        probs: `[n, ..., K]`.
        labels: `[n, ...]`.
        bins: Number of bins; with fewer examples, each has a bin.

    Returns:
        `ReliabilityBins`, whose edges are the lowest confidence and the highest of each
        bin.
    """
    confidence, correct = _confidence(probs, labels)
    _check_bins(bins)
    order = np.argsort(confidence)
    confidence, correct = confidence[order], _tie_mean(confidence, correct)[order]
    sizes = np.array([len(part) for part in np.array_split(order, bins) if len(part)])
    ends = np.cumsum(sizes)
    starts = ends - sizes
    return ReliabilityBins(
        np.concatenate([confidence[:1], confidence[ends - 1]]),
        np.add.reduceat(confidence, starts) / sizes,
        np.add.reduceat(correct, starts) / sizes,
        sizes,
    )


def ece_equal_mass(probs: ArrayLike, labels: ArrayLike, bins: int = 8) -> float:
    """Expected calibration error over bins of equally many examples, in [0, 1].

    `sum_b n_b / n |confidence_b - accuracy_b|` over the bins of `equal_mass_bins`.
    """
    return equal_mass_bins(probs, labels, bins).calibration_error


def predictive_entropy(probs: ArrayLike) -> np.ndarray:
    """Entropy `-sum_k p_k log p_k` of each prediction, nats.

    Args:
        probs: `[n, ..., K]`.

    Returns:
        `[n, ...]`, with `0 log 0 = 0`.
    """
    return _entropy(probabilities("probs", probs, 2))


def mutual_information(samples: ArrayLike) -> np.ndarray:
    """Mutual information of label and network, `H(mean p) - mean H(p)`, nats.

    Args:
        samples: `[S, n, ..., K]` probabilities of `S` sampled networks.

    Returns:
        `[n, ...]`, from 0 up.
    """
    samples = probabilities("samples", samples, 3)
    gap = _entropy(samples.mean(0)) - _entropy(samples).mean(0)
    return np.maximum(gap, 0.0)


def entropy_cdf(
    entropy: ArrayLike, at: ArrayLike | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Empirical distribution function `F(h) = #{H <= h} / n`.

    Args:
        entropy: `[n, ...]` entropies, nats (or any score).
        at: Points `h`; by default the different entropies, sorted.

    Returns:
        `(h, F(h))`, of one shape.
    """
    entropy = np.sort(finite_values("entropy", entropy).ravel())
    at = np.unique(entropy) if at is None else np.asarray(at, np.float64)
    return at, np.searchsorted(entropy, at, side="right") / len(entropy)


def auroc(score: ArrayLike, positive: ArrayLike) -> float:
    """Area under the ROC curve, `P(s+ > s-) + P(s+ = s-) / 2`, in [0, 1].

    Args:
        score: `[n, ...]`, higher for more likely positive.
        positive: `[n, ...]` booleans (out of distribution, for OOD detection).
    """
    from sklearn import metrics

    score, positive = _detection(score, positive)
    return float(metrics.roc_auc_score(positive, score))


def aupr(score: ArrayLike, positive: ArrayLike) -> float:
    """Average precision `sum_i (recall_i - recall_{i-1}) precision_i`, in [0, 1].

    The sum runs over the different scores as thresholds, from the highest down.

    Args:
        score: `[n, ...]`, higher for more likely positive.
        positive: `[n, ...]` booleans.
    """
    from sklearn import metrics

    score, positive = _detection(score, positive)
    return float(metrics.average_precision_score(positive, score))


def fpr_at_tpr(score: ArrayLike, positive: ArrayLike, tpr: float = 0.95) -> float:
    """Smallest false positive rate of a threshold that finds `tpr` of the positives.

    Thresholds are the scores themselves, nothing is interpolated.

    Args:
        score: `[n, ...]`, higher for more likely positive.
        positive: `[n, ...]` booleans.
        tpr: True positive rate to reach, in (0, 1].
    """
    from sklearn import metrics

    score, positive = _detection(score, positive)
    if not 0 < tpr <= 1:
        raise ValueError(f"`tpr` must lie in (0, 1], got {tpr!r}.")
    false, true, _ = metrics.roc_curve(positive, score, drop_intermediate=False)
    return float(false[np.argmax(true >= tpr)])


def error_coverage(
    uncertainty: ArrayLike, errors: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Error among the most certain examples, against their share of all.

    Args:
        uncertainty: `[n, ...]`, any score, such as the predictive entropy.
        errors: `[n, ...]`, 1 where the prediction is wrong, else 0 (or any loss).

    Returns:
        `(coverage, risk)`, each `[n]`: `coverage[k-1] = k / n` and the mean of `errors`
        over the `k` most certain examples, the mean over all orders of ties.
    """
    uncertainty = finite_values("uncertainty", uncertainty)
    errors = finite_values("errors", errors)
    if uncertainty.shape != errors.shape:
        raise ValueError(
            f"`uncertainty` and `errors` need one shape, got {uncertainty.shape} and "
            f"{errors.shape}."
        )
    uncertainty, errors = uncertainty.ravel(), errors.ravel()
    rank = np.arange(1, len(errors) + 1)
    errors = _tie_mean(uncertainty, errors)[np.argsort(uncertainty)]
    return rank / len(errors), np.cumsum(errors) / rank


def intersection_over_union(probs: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Intersection over union (Jaccard index) of the most probable class, per class.

    Pooled over everything given: `|predicted and true| / |predicted or true|`.

    Args:
        probs: `[n, ..., K]` predictions.
        labels: `[n, ...]`.

    Returns:
        `[K]`, from 0 to 1; NaN for a class that is neither there nor predicted.
    """
    from sklearn import metrics

    rows, classes = _classification(probs, labels)
    counts = metrics.confusion_matrix(
        classes, rows.argmax(-1), labels=np.arange(rows.shape[-1])
    )
    both = np.diag(counts)
    either = counts.sum(0) + counts.sum(1) - both
    with np.errstate(invalid="ignore"):
        return both / either


def aurc(uncertainty: ArrayLike, errors: ArrayLike) -> float:
    """Area under the error-coverage curve: the mean over its `n` points."""
    return float(error_coverage(uncertainty, errors)[1].mean())


def temperature_scaling(
    logits: ArrayLike, labels: ArrayLike, bounds: tuple[float, float] = (0.01, 100.0)
) -> float:
    """The temperature `T` that minimizes the mean NLL of `softmax(logits / T)`.

    Fit it on validation data, never on the test set. `apply_temperature` applies it.

    Args:
        logits: `[n, ..., K]` logits, or log-probabilities of averaged predictions.
        labels: `[n, ...]`.
        bounds: Range of `T`. The lower bound is the answer where all predictions are
            right, for then the NLL falls to 0 with `T`.

    Returns:
        `T`, to a relative accuracy of 1e-6.
    """
    logits = logits_array(logits)
    labels = class_labels(labels, logits.shape)
    logits = logits.reshape(-1, logits.shape[-1])
    chosen = logits[np.arange(len(labels)), labels]
    if not np.isfinite(chosen).all():
        raise ValueError(
            f"{(~np.isfinite(chosen)).sum()} labels have probability 0, so no "
            "temperature gives a finite NLL. Pass logits, or bound the probabilities "
            "below before taking the logarithm."
        )
    if not 0 < bounds[0] < bounds[1] < np.inf:
        raise ValueError(f"`bounds` must be 0 < low < high, both finite, got {bounds}.")

    # The NLL is convex in 1 / T, hence has one minimum in log T too.
    def loss(log_temperature: float) -> Any:
        beta = np.exp(-log_temperature)
        return np.mean(special.logsumexp(beta * logits, axis=-1) - beta * chosen)

    found = optimize.minimize_scalar(
        loss, bounds=np.log(bounds), method="bounded", options={"xatol": 1e-7}
    )
    # The search never tries the bounds themselves.
    candidates = [found.x, *np.log(bounds)]
    return float(np.exp(min(candidates, key=loss)))


def fit_temperature(
    probs: ArrayLike, labels: ArrayLike, bounds: tuple[float, float] = (0.01, 100.0)
) -> float:
    """The temperature of averaged predictions, for `predict` and `export`.

    The T that minimizes the mean NLL of `softmax(log p / T)`, p the average over the
    networks: `temperature_scaling` of its logarithm. Fit it on validation data, never
    on the test set.

    Args:
        probs: `[n, ..., K]`, predicted without a temperature.
        labels: `[n, ...]`.
        bounds: Range of `T`, as of `temperature_scaling`.

    Returns:
        `T`.

    Reference:
        Rahaman & Thiery, 2021, "Uncertainty Quantification and Deep Ensembles": of an
        average that is too cautious since its parts disagree, T lies below 1, and
        calibrating the parts instead leaves it so.
    """
    probs = probabilities("probs", probs, 2)
    # What float32 has rounded to 0 was less than this.
    logits = np.log(np.maximum(probs, np.finfo("float32").tiny))
    return temperature_scaling(logits, labels, bounds)


def apply_temperature(logits: ArrayLike, temperature: float) -> np.ndarray:
    """Probabilities `softmax(logits / temperature)`, `[n, ..., K]`."""
    if not 0 < temperature < np.inf:
        raise ValueError(
            f"`temperature` must be positive and finite, got {temperature!r}."
        )
    return special.softmax(logits_array(logits) / temperature, axis=-1)


def classification_summary(
    probs: ArrayLike, labels: ArrayLike, samples: ArrayLike | None = None
) -> dict[str, float]:
    """The figures of a classifier, as plain numbers for a report.

    Args:
        probs: `[n, ..., K]` predictions, averaged over samples if there are any.
        labels: `[n, ...]`.
        samples: `[S, n, ..., K]` probabilities of the single samples, or None.

    Returns:
        A dict: `examples` (count), `nll` (nats), `accuracy` (per cent), `error` (per
        cent), `brier` (0 to 2), `ece_equal_width` (15 bins, per cent), `ece_equal_mass`
        (8 bins, per cent), `aurc` (rejection by entropy, per cent), `entropy` (mean,
        nats), and with `samples` also `mutual_information` (mean, nats).
    """
    rows, classes = _classification(probs, labels)
    entropy = predictive_entropy(probs)
    wrong = rows.argmax(-1) != classes
    summary = {
        "examples": int(entropy.size),
        "nll": nll(probs, labels),
        "accuracy": 100 * accuracy(probs, labels),
        "error": 100 * error(probs, labels),
        "brier": brier(probs, labels),
        "ece_equal_width": 100 * ece_equal_width(probs, labels),
        "ece_equal_mass": 100 * ece_equal_mass(probs, labels),
        "aurc": 100 * aurc(entropy.ravel(), wrong),
        "entropy": float(entropy.mean()),
    }
    if samples is not None:
        information = mutual_information(samples)
        if information.shape != entropy.shape:
            raise ValueError(
                f"`samples` must be [S, *{np.shape(probs)}], the shape of `probs` "
                f"after the number of samples, got {np.shape(samples)}."
            )
        summary["mutual_information"] = float(information.mean())
    return summary


def ood_summary(entropy_in: ArrayLike, entropy_out: ArrayLike) -> dict[str, float]:
    """How well a score tells out-of-distribution data, which are the positives.

    Args:
        entropy_in: `[n, ...]` entropies (or another score, higher for stranger data)
            in the domain.
        entropy_out: `[m, ...]` those out of it.

    Returns:
        A dict: `examples_in`, `examples_out` (counts), `entropy_in`, `entropy_out`
        (means, nats), `auroc`, `aupr`, `fpr_at_95_tpr` (per cent).
    """
    inside = finite_values("entropy_in", entropy_in).ravel()
    outside = finite_values("entropy_out", entropy_out).ravel()
    score = np.concatenate([inside, outside])
    positive = np.arange(len(score)) >= len(inside)
    return {
        "examples_in": len(inside),
        "examples_out": len(outside),
        "entropy_in": float(inside.mean()),
        "entropy_out": float(outside.mean()),
        "auroc": 100 * auroc(score, positive),
        "aupr": 100 * aupr(score, positive),
        "fpr_at_95_tpr": 100 * fpr_at_tpr(score, positive, 0.95),
    }


def _entropy(probs: np.ndarray) -> np.ndarray:
    return special.entr(probs).sum(-1)


def _confidence(probs: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    probs, labels = _classification(probs, labels)
    return probs.max(-1), (probs.argmax(-1) == labels).astype(np.float64)


def _calibration_error(
    confidence: np.ndarray, right: np.ndarray, count: np.ndarray
) -> float:
    gap = np.where(count > 0, np.abs(confidence - right), 0.0)
    return float(gap @ count / count.sum())


def _tie_mean(key: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Replaces each value by the mean over the examples of the same key."""
    _, group = np.unique(key, return_inverse=True)
    return (np.bincount(group, values) / np.bincount(group))[group]


def _check_bins(bins: int) -> None:
    if isinstance(bins, bool) or not isinstance(bins, (int, np.integer)) or bins < 1:
        raise ValueError(f"`bins` must be a positive integer, got {bins!r}.")


def _classification(
    probs: ArrayLike, labels: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    probs = probabilities("probs", probs, 2)
    labels = class_labels(labels, probs.shape)
    return probs.reshape(-1, probs.shape[-1]), labels


def _detection(score: ArrayLike, positive: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    score = finite_values("score", score)
    positive = np.asarray(positive)
    if positive.dtype != bool or positive.shape != score.shape:
        raise ValueError(
            f"`positive` must be booleans of the shape of `score`, {score.shape}, got "
            f"{positive.dtype} {positive.shape}."
        )
    if positive.all() or not positive.any():
        raise ValueError(
            f"`positive` needs both kinds, got {positive.sum()} of {positive.size} "
            "positive."
        )
    return score.ravel(), positive.ravel()
