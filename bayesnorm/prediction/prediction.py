"""What `predict` returns."""

from __future__ import annotations

import dataclasses

import numpy as np

from bayesnorm.types import MaybeNone


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """Predictions for n examples, NumPy arrays.

    Attributes:
        probs: `[n, ..., classes]`, probabilities averaged over the samples; of
            independent labels `[n, ..., labels]`, the probability of each; None for
            regression.
        entropy: `[n, ...]`, entropy of `probs` in nats, `[n, ..., labels]` of labels;
            None for regression.
        mutual_information: Like `entropy`, mutual information between the label and
            the network in nats, at least 0: the part of `entropy` that comes from
            the networks' disagreement; None for regression.
        mean: `[n, ...]`, mean of the outputs; None for classification.
        variance: `[n, ...]`, variance of the outputs; None for classification.
        samples: `[samples, n, ...]`, probabilities or outputs of each network, or
            None.
        samples_used: `[n]`, int64: the number of networks, of an ensemble for each
            member, that each example was averaged over; None without a tolerance.
    """

    probs: np.ndarray | MaybeNone = None
    entropy: np.ndarray | MaybeNone = None
    mutual_information: np.ndarray | MaybeNone = None
    mean: np.ndarray | MaybeNone = None
    variance: np.ndarray | MaybeNone = None
    samples: np.ndarray | MaybeNone = None
    samples_used: np.ndarray | MaybeNone = None

    @property
    def classes(self) -> np.ndarray:
        """The most probable class, `[n, ...]`, int64."""
        if self.probs is None:
            raise ValueError(
                "A regression has no classes: use `mean`, or predict with "
                "task='classification'."
            )
        if self.entropy.ndim == self.probs.ndim:
            raise ValueError(
                "Independent labels are not classes, of which one is right: compare "
                "`probs` with a threshold, say probs > 0.5."
            )
        return self.probs.argmax(-1)

    def __len__(self) -> int:
        return len(self.mean if self.probs is None else self.probs)
