"""The weight of the posterior's KL in the loss: how it is found.

The loss of a batch is `mean NLL + kl_weight * KL`, the negative evidence lower
bound divided by the number N of training examples when `kl_weight = 1 / N`.
With P labels an example (segmentation, sequences) Keras takes the mean over these as
well: `1 / (N P)` is then the weight, and 1, 2 or 3 below say it; the layer counts
examples, not labels. It is found in this order:

1. `num_examples=N` (the weight 1 / N) or `kl_weight=x` given to the layer: it stays
   so, unless 2 or 3 are used.
2. `set_kl_weight(model, x)`, at any time: a variable, so that nothing compiles
   again. The package's own training loop does this.
3. The callback `KLWeight(num_examples=N, warmup_epochs=n)` of `model.fit`.
4. Otherwise the layer counts the examples of the first epoch of `model.fit`,
   during which the KL weighs nothing (a warm-up), and takes 1 / N from then on,
   counting again in each epoch. A warning says what it counted, for it cannot see
   whether the epoch was the whole training set, and the loss jumps. Where there is no
   epoch that it sees (a hand-written loop, a model whose `metrics` leave out those of
   its layers), a warning says that the KL weighs nothing.

What 1, 2 or 3 say is saved with the weights and stays.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from bayesnorm.arguments import check_number, positive_integer
from bayesnorm.layers.posterior import posterior_layers
from bayesnorm.types import Tensor


def kl_divergence(model: keras.Model) -> Tensor:
    """Returns the KL of the posterior of `model` to its prior, in nats.

    Args:
        model: A Keras model.

    Returns:
        A scalar float32 tensor, 0 where no layer has a posterior.
    """
    terms = [layer.kl_divergence() for layer in posterior_layers(model)]
    return sum(terms, start=ops.zeros((), "float32"))


def set_kl_weight(model: keras.Model, weight: float) -> None:
    """Sets the weight of the KL in the loss, without compiling anew.

    Args:
        model: A Keras model.
        weight: Number from 0; `1 / N` for the evidence lower bound of `N`
            training examples.

    Raises:
        ValueError: If `weight` is negative or not finite.
    """
    check_number("weight", weight)
    for layer in posterior_layers(model):
        layer.set_kl_weight(weight)


class KLWeight(keras.callbacks.Callback):
    """Sets the KL weight of a model in `fit`, and reports the KL.

    The weight of epoch e, counted from 0, is
    `min(1, (e + 1) / (warmup_epochs + 1)) / num_examples`. `logs` get `kl`
    (nats) and `kl_weight`.

    Args:
        num_examples: Number of training examples, times that of the labels of each.
        warmup_epochs: Integer, the epochs over which the weight rises.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, num_examples: int, warmup_epochs: int = 0) -> None:
        super().__init__()
        positive_integer("num_examples", num_examples)
        check_number("warmup_epochs", warmup_epochs)
        self.num_examples = num_examples
        self.warmup_epochs = warmup_epochs
        self._weight: Any = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the weight of this epoch."""
        self._weight = kl_weight_of_epoch(epoch, self.num_examples, self.warmup_epochs)
        set_kl_weight(self.model, self._weight)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds `kl` and `kl_weight` to the logs."""
        if logs is not None:
            logs["kl"] = float(kl_divergence(self.model))
            logs["kl_weight"] = self._weight


def kl_weight_of_epoch(
    epoch: int, num_examples: float, warmup_epochs: int = 0
) -> float:
    """Returns `min(1, (epoch + 1) / (warmup_epochs + 1)) / num_examples`."""
    return min(1.0, (epoch + 1) / (warmup_epochs + 1)) / num_examples
