"""Sets of classes and intervals that contain the truth as often as they say.

Split conformal prediction: scores of calibration examples, which took no part in the
training, tell how large the sets of new ones must be. Where calibration and new
examples are exchangeable, a set contains the truth with a probability of

    1 - alpha <= P <= 1 - alpha + 1 / (n + 1)

over n calibration examples and a new one (the upper bound where no two scores are
equal), whatever the network and however wrong its probabilities: these only make sets
small. It is an average over examples, not a promise for a class or for a kind of
example. Given the calibration examples, the coverage of new ones has the law
`Beta(k, n + 1 - k)`, `k = ceil((n + 1) (1 - alpha))`: of 1000 it is within 2 % of
`1 - alpha = 0.9` in 97 of 100 cases.

Reference:
    - [Vovk, Gammerman & Shafer, 2005](https://doi.org/10.1007/b106715), and
      [Vovk, 2012](https://arxiv.org/abs/1209.2673): the bounds, and the law of coverage
    - [Lei et al., 2018](https://arxiv.org/abs/1604.04173): the upper bound, intervals
      scaled by a deviation
    - [Sadinle, Lei & Wasserman, 2019](https://arxiv.org/abs/1609.00451): `"lac"`
    - [Romano, Sesia & Candes, 2020](https://arxiv.org/abs/2006.02544): `"aps"`
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, Protocol

import numpy as np
from scipy import stats

from bayesnorm.arguments import (
    check_choice,
    class_labels,
    finite_values,
    probabilities,
    seed_integer,
)
from bayesnorm.types import ArrayLike

__all__ = ["ConformalIntervals", "ConformalSets"]

_SCORES = ("lac", "aps", "randomized_aps")


class _Classified(Protocol):
    """A `Prediction` of classes, as far as it counts here."""

    @property
    def probs(self) -> Any: ...
    @property
    def entropy(self) -> Any: ...


class _Regressed(Protocol):
    """A `Prediction` of a regression."""

    @property
    def mean(self) -> Any: ...
    @property
    def variance(self) -> Any: ...


class _Conformal:
    """The quantile of scores `[n, ...]`, one for each entry of `...`."""

    def __init__(self, scores: np.ndarray, alpha: float, full: str) -> None:
        self.alpha, self.examples = alpha, len(scores)
        n = self.examples
        # A product that is an integer must not be rounded to above it.
        self._rank = math.ceil((n + 1) * (1 - alpha) - 1e-9)
        if self._rank > n:
            least = math.ceil(1 / alpha - 1 - 1e-9)
            warnings.warn(
                f"{n} calibration example{'s' * (n > 1)} cannot tell what happens in "
                f"a share alpha={alpha:g} of cases: {full}. Give {least} or more, or "
                "a larger alpha.",
                stacklevel=3,
            )
            self.threshold = np.full(scores.shape[1:], np.inf)
        else:
            self.threshold = np.sort(scores, axis=0)[self._rank - 1]

    @property
    def coverage_bounds(self) -> tuple[float, float]:
        """The least and the most of the expected coverage, in [0, 1].

        The latter if no two scores are equal, as with continuous outputs.
        """
        return 1 - self.alpha, min(1.0, 1 - self.alpha + 1 / (self.examples + 1))

    @property
    def coverage_law(self) -> Any:
        """The law of the coverage of new examples over calibration sets of this size.

        A frozen distribution of SciPy; None where all is covered.
        """
        n, rank = self.examples, self._rank
        return None if rank > n else stats.beta(rank, n + 1 - rank)


class ConformalSets(_Conformal):
    """Sets of classes that contain the right one with a probability of `1 - alpha`.

    A class is in the set if its score is no higher than the k-th lowest of the n
    calibration examples, each with its label, `k = ceil((n + 1) (1 - alpha))`. Scores
    of class y:

    - `"lac"`: `1 - p_y`, which gives the smallest sets on average; where no class is
      probable the set may be empty.
    - `"aps"`: the probabilities of y and of all classes more probable, added up:
      larger sets, which grow for examples that are hard.
    - `"randomized_aps"`: as `"aps"`, but of `p_y` itself a uniform share u in [0, 1]
      for each example. With probabilities that are right it covers each example with
      `1 - alpha`, not only the average.

    Args:
        validation: A `Prediction` of the calibration examples, or its probabilities
            `[n, K]`: examples that neither the weights nor the choice of the network
            depend on.
        labels: `[n]` integers, their classes.
        alpha: The share of examples whose class may be missing, in (0, 1).
        score: One of the above.
        allow_empty: Whether sets may be empty. A network that errs less often than
            alpha reaches `1 - alpha` by that alone: empty are, by `"lac"`, the sets of
            the least certain examples, by `"aps"` those of the most certain. With
            False the most probable class is always in the set; the coverage is no
            less, and may be more than the upper bound.
        seed: Integer from 0, of `"randomized_aps"`.

    Attributes:
        threshold: The highest score of a class in a set; infinite with fewer than
            `1 / alpha - 1` calibration examples, where sets hold all classes.
        alpha: As given.
        examples: n.

    Raises:
        ValueError: If an argument is not as above, or probabilities are not.

    Warns:
        UserWarning: If the calibration examples are too few for alpha.
    """

    def __init__(
        self,
        validation: _Classified | ArrayLike,
        labels: ArrayLike,
        alpha: float = 0.1,
        score: Literal["lac", "aps", "randomized_aps"] = "lac",
        allow_empty: bool = True,
        seed: int = 0,
    ) -> None:
        _check_alpha(alpha)
        check_choice("score", score, _SCORES)
        self.score, self._seed = score, seed_integer(seed)
        self.allow_empty = allow_empty
        probs = _probabilities(validation)
        labels = class_labels(labels, probs.shape)
        scores = self._scores(probs, part=0)[np.arange(len(labels)), labels]
        self.classes = probs.shape[-1]
        super().__init__(scores, alpha, "the sets hold all classes")

    def sets(self, prediction: _Classified | ArrayLike) -> np.ndarray:
        """Returns which classes are in the sets, `[m, K]` booleans.

        Args:
            prediction: A `Prediction` of new examples, or its probabilities `[m, K]`,
                made as those of the calibration examples.
        """
        probs = _probabilities(prediction)
        if probs.shape[-1] != self.classes:
            raise ValueError(
                f"Calibrated with {self.classes} classes. Received probabilities of "
                f"shape {probs.shape}."
            )
        sets = self._scores(probs, part=1) <= self.threshold
        if not self.allow_empty:
            sets[np.arange(len(sets)), probs.argmax(-1)] = True
        return sets

    def summary(
        self, prediction: _Classified | ArrayLike, labels: ArrayLike
    ) -> dict[str, float]:
        """How often sets contain the label, and how large they are.

        Args:
            prediction: As of `sets`.
            labels: `[m]` integers.

        Returns:
            A dict: `examples` (a count), `coverage` (per cent), `set_size` (the mean
            number of classes), `empty` and `single` (sets of none and of one class,
            per cent).
        """
        sets = self.sets(prediction)
        labels = class_labels(labels, sets.shape)
        sizes = sets.sum(-1)
        return {
            "examples": len(labels),
            "coverage": 100 * float(sets[np.arange(len(labels)), labels].mean()),
            "set_size": float(sizes.mean()),
            "empty": 100 * float((sizes == 0).mean()),
            "single": 100 * float((sizes == 1).mean()),
        }

    def _scores(self, probs: np.ndarray, part: int) -> np.ndarray:
        """The scores of all classes, `[n, K]`; `part` tells uniform numbers apart."""
        if self.score == "lac":
            return 1 - probs
        order = np.argsort(-probs, axis=-1, kind="stable")
        ordered = np.take_along_axis(probs, order, -1)
        sums = np.cumsum(ordered, axis=-1)
        if self.score == "randomized_aps":
            u = np.random.default_rng([self._seed, part]).random((len(probs), 1))
            sums -= u * ordered
        scores = np.empty_like(probs)
        np.put_along_axis(scores, order, sums, -1)
        return scores


class ConformalIntervals(_Conformal):
    """Intervals that contain a regression's target with a probability of `1 - alpha`.

    `mean -+ q s`, with q the k-th lowest `|y - mean| / s` of the n calibration
    examples, `k = ceil((n + 1) (1 - alpha))`, and s the predicted standard deviation.
    That of the networks alone, without the noise of observations, is too small by
    itself and will do: q makes up for its scale. Entries of a target `[n, d]` have
    intervals of their own, each with the guarantee.

    Args:
        validation: A `Prediction` (or what has `mean` and `variance`, `[n, ...]`) of
            the calibration examples, which took no part in training.
        targets: `[n, ...]`, of the shape of `mean`.
        alpha: The share of targets that may lie outside, in (0, 1).
        scaled: Whether s is the square root of `variance`, else 1: all intervals are
            of one length.

    Attributes:
        threshold: `[...]`, q; infinite with fewer than `1 / alpha - 1` calibration
            examples.
        alpha: As given.
        examples: n.

    Raises:
        ValueError: If an argument is not as above, or a variance is 0.

    Warns:
        UserWarning: If the calibration examples are too few for alpha.
    """

    def __init__(
        self,
        validation: _Regressed,
        targets: ArrayLike,
        alpha: float = 0.1,
        scaled: bool = True,
    ) -> None:
        _check_alpha(alpha)
        self.scaled = scaled
        mean, deviation = self._parts(validation)
        targets = _targets(targets, mean)
        scores = np.abs(targets - mean) / deviation
        super().__init__(scores, alpha, "the intervals are infinite")

    def intervals(self, prediction: _Regressed) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ends `(low, high)`, `[m, ...]` both, of new examples."""
        mean, deviation = self._parts(prediction)
        if mean.shape[1:] != self.threshold.shape:
            raise ValueError(
                f"Calibrated with outputs of shape {('n', *self.threshold.shape)}. "
                f"Received: {mean.shape}"
            )
        half = self.threshold * deviation
        return mean - half, mean + half

    def summary(self, prediction: _Regressed, targets: ArrayLike) -> dict[str, float]:
        """How often intervals contain the target, and how long they are.

        Returns:
            A dict: `examples` (a count), `coverage` (per cent), `length` (the mean, in
            units of the target); over all entries of the targets.
        """
        low, high = self.intervals(prediction)
        targets = _targets(targets, low)
        inside = (low <= targets) & (targets <= high)
        return {
            "examples": len(targets),
            "coverage": 100 * float(inside.mean()),
            "length": float((high - low).mean()),
        }

    def _parts(self, prediction: _Regressed) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation, float64."""
        mean = getattr(prediction, "mean", None)
        if mean is None or callable(mean):
            raise ValueError(
                "Expected a Prediction of task='regression', with mean and variance. "
                f"Received: {type(prediction).__name__} without them"
            )
        mean = finite_values("mean", mean)
        if not self.scaled:
            return mean, np.ones_like(mean)
        variance = finite_values("variance", prediction.variance)
        if variance.min() <= 0:
            raise ValueError(
                f"The variance of {(variance <= 0).sum()} of {variance.size} outputs "
                "is 0, so no interval can be scaled by it. Predict with several "
                "samples, or pass scaled=False."
            )
        return mean, np.sqrt(variance)


def _check_alpha(alpha: float) -> None:
    if not isinstance(alpha, (int, float, np.number)) or not 0 < alpha < 1:
        raise ValueError(
            "`alpha` is the share of examples whose truth may be missing and must lie "
            f"between 0 and 1, both excluded. Received: alpha={alpha!r}"
        )


def _probabilities(prediction: Any) -> np.ndarray:
    """The probabilities `[n, K]`, float64."""
    probs = prediction
    if hasattr(prediction, "probs"):
        probs, entropy = prediction.probs, prediction.entropy
        if probs is None:
            raise ValueError(
                "A regression has no classes: use bayesnorm.ConformalIntervals."
            )
        if entropy.ndim == probs.ndim:
            raise ValueError(
                "Independent labels are not classes, of which one is right: take the "
                "probabilities of each label on its own, np.stack([1 - p, p], -1)."
            )
    probs = probabilities("probs", probs, 2)
    if probs.ndim != 2:
        raise ValueError(
            f"Expected probabilities [n, K] of examples. Received: shape {probs.shape}."
            " The positions of one image are not exchangeable, which coverage rests "
            "on: take one position of each image, say."
        )
    return probs


def _targets(targets: ArrayLike, mean: np.ndarray) -> np.ndarray:
    targets = finite_values("targets", targets)
    if targets.shape != mean.shape:
        raise ValueError(
            f"`targets` must have the shape of the predicted mean, {mean.shape}. "
            f"Received: {targets.shape}"
        )
    return targets
