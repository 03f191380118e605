"""Perturbed inputs, to see how accuracy and uncertainty hold."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from bayesnorm import backend
from bayesnorm.arguments import check_number, positive_integer, seed_integer
from bayesnorm.graph import apply, build, compiled_for
from bayesnorm.layers.noise import noise_mode
from bayesnorm.prediction.outputs import two_classes
from bayesnorm.prediction.tasks import only_output
from bayesnorm.types import ArrayLike


def gaussian_noise(
    x: ArrayLike,
    stddev: float,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> np.ndarray:
    """Returns `x + Normal(0, stddev^2)`, float32, independent for each entry.

    Args:
        x: Array.
        stddev: Number from 0, in the units of x.
        seed: Integer from 0: the same draws for every `stddev`.
        bounds: `(low, high)` to clip the result to, or None.

    Raises:
        ValueError: If an argument is out of range.
    """
    check_number("stddev", stddev)
    x = np.asarray(x, "float32")
    noise = np.random.default_rng(seed_integer(seed)).standard_normal(x.shape, "f4")
    return _clipped(x + np.float32(stddev) * noise, bounds)


def gradient_sign(
    model: keras.Model,
    x: ArrayLike,
    labels: ArrayLike,
    epsilon: float,
    bounds: tuple[float, float] | None = None,
    batch_size: int = 256,
    from_logits: bool | None = None,
) -> np.ndarray:
    """Returns `x + epsilon sign(d NLL / d x)`: the step that hurts a classifier most.

    The gradient is that of the one network of mean weights, in evaluation. The step
    is the largest rise of the linearized NLL among all of `max |step| <= epsilon`.

    Args:
        model: A Keras classifier with one input and one output.
        x: Array `[n, ...]`.
        labels: Integers `[n]` (`[n, ...]` for an output with positions), 0 or 1 for a
            model with a single output.
        epsilon: Number from 0, in the units of x.
        bounds: `(low, high)` to clip the result to, or None.
        batch_size: Examples at a time.
        from_logits: As for `bayesnorm.predict`.

    Returns:
        Array like `x`, float32.

    Raises:
        ValueError: If an argument is out of range, a label is not a class, or `x` and
            `labels` have not one length.

    Reference:
        Goodfellow et al., 2015, "Explaining and Harnessing Adversarial Examples";
        Shekhovtsov & Flach, 2018, "Stochastic Normalizations as Bayesian Learning",
        appendix A.4.
    """
    check_number("epsilon", epsilon)
    positive_integer("batch_size", batch_size)
    x, labels = np.asarray(x, "float32"), np.asarray(labels)
    if len(x) != len(labels) or not len(x):
        raise ValueError(
            "`x` and `labels` must have one number of examples, 1 or more. Received: "
            f"{len(x)} and {len(labels)}"
        )
    build(model, x)
    logits = only_output(model, x[:1], from_logits).from_logits
    classes = _outputs(model, x[:1], logits).shape[-1]
    if labels.dtype.kind not in "iub" or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"`labels` must be integers from 0 to {classes - 1}, the classes of model "
            f"{model.name!r}. Received: {labels.dtype}, from {labels.min()} to "
            f"{labels.max()}"
        )

    step = compiled_for(model).get(_gradient, logits)
    parts = [
        ops.convert_to_numpy(step(x[i : i + batch_size], labels[i : i + batch_size]))
        for i in range(0, len(x), batch_size)
    ]
    return _clipped(x + np.float32(epsilon) * np.sign(np.concatenate(parts)), bounds)


def _outputs(model, x, logits):
    with noise_mode("mean"):
        (outputs,) = keras.tree.flatten(apply(model, x))
    return two_classes(ops.cast(outputs, "float32"), logits)


def _gradient(model, logits):
    def gradient(x, labels):
        def nll(x):
            losses = keras.losses.sparse_categorical_crossentropy(
                labels, _outputs(model(), x, logits), from_logits=logits
            )
            return ops.sum(losses)

        return backend.input_gradient(nll, x)

    return gradient


def _clipped(x, bounds):
    if bounds is None:
        return x
    low, high = bounds
    if not low < high:
        raise ValueError(f"`bounds` must be (low, high). Received: {bounds!r}")
    return np.clip(x, low, high)
