"""The automatic choice of the learning rate."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from scipy import optimize

from bayesnorm.storage import write_atomically
from bayesnorm.types import StrPath

if TYPE_CHECKING:
    from bayesnorm.training.loop import Loop
    from bayesnorm.training.progress import Progress


# A finite loss that is worse than any real one. The logarithm of the rate is added:
# between two rates that diverge the search must turn to the lower one.
_DIVERGED = 1e3


def search(
    loop: Loop,
    epochs: int = 5,
    low: float = 1e-4,
    high: float = 1.0,
    evaluations: int = 12,
    cache: StrPath | None = None,
    progress: Progress | None = None,
    before_evaluation: Callable[[], Any] | None = None,
) -> float:
    """Finds the learning rate that gives the lowest training loss soon.

    Minimizes the mean loss of the last of `epochs` epochs over log10 of the learning
    rate by SciPy's bounded search (golden section and parabolas), each time from the
    same initial state, to which the loop is set back at the end.

    Args:
        loop: A `loop.Loop` in its initial state.
        epochs: Epochs of one evaluation.
        low: Lowest learning rate.
        high: Highest learning rate.
        evaluations: Number of evaluations.
        cache: Path of a JSON file that keeps the evaluations: a search that was
            stopped, or is over, does not repeat them.
        progress: A `progress.Progress`, or None.
        before_evaluation: Function without arguments, called before each evaluation
            that the cache does not have; what it raises stops the search.

    Returns:
        The learning rate with the lowest loss among those tried.

    Raises:
        ValueError: If training diverged at all learning rates, or the range is empty.

    Reference:
        Shekhovtsov & Flach, 2018, "Stochastic Normalizations as Bayesian
        Learning", appendix B.
    """
    if not 0 < low < high < float("inf"):
        raise ValueError(
            "The range of the learning rate must be 0 < low < high. Received: "
            f"low={low!r}, high={high!r}"
        )
    if evaluations < 2 or epochs < 1:
        raise ValueError(
            "`evaluations` must be 2 or more and `epochs` 1 or more. Received: "
            f"evaluations={evaluations!r}, epochs={epochs!r}"
        )
    tried: dict[float, float | None] = {}
    cache = None if cache is None else pathlib.Path(cache)
    if cache is not None and cache.exists():
        tried = dict(json.loads(cache.read_text()))
    initial = loop.state()

    def loss_at(log_rate):
        rate = 10.0 ** float(log_rate)
        if rate not in tried:
            if before_evaluation is not None:
                before_evaluation()
            tried[rate] = _loss_after(loop, initial, rate, epochs)
            if cache is not None:
                write_atomically(cache, json.dumps(list(tried.items())))
            if progress is not None:
                said = "diverged" if tried[rate] is None else f"{tried[rate]:.4f}"
                progress.note(f"learning rate {rate:.5f}: loss {said}")
        return _DIVERGED + log_rate if tried[rate] is None else tried[rate]

    optimize.minimize_scalar(
        loss_at,
        bounds=(math.log10(low), math.log10(high)),
        method="bounded",
        options={"maxiter": evaluations, "xatol": 0.02},
    )
    loop.set_state(initial)
    finite = {rate: loss for rate, loss in tried.items() if loss is not None}
    if not finite:
        raise ValueError(
            f"Training diverged at every learning rate from {low} to {high} within "
            f"{epochs} epochs: search lower ones."
        )
    best = min(finite, key=lambda rate: finite[rate])
    if progress is not None:
        progress.note(f"learning rate {best:.5f} chosen of {len(tried)} tried")
    return best


def _loss_after(loop, initial, rate, epochs):
    """Mean training loss of the last epoch, None if it is not finite."""
    loop.set_state(initial)
    for epoch in range(epochs):
        loss = loop.train_epoch(epoch, learning_rate=rate)["loss"]
        if not math.isfinite(loss):
            return None
    return min(loss, _DIVERGED)
