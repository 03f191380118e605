"""Deviations of posteriors on trained gains, found without training."""

from __future__ import annotations

import collections
import dataclasses
import math
import warnings
from typing import Literal

import keras
import numpy as np
from scipy import optimize

from bayesnorm import graph, metrics
from bayesnorm.arguments import (
    check_choice,
    check_model,
    check_number,
    positive_integer,
    seed_integer,
)
from bayesnorm.layers import GainPosterior, posterior_layers
from bayesnorm.prediction.predict import predict
from bayesnorm.types import ArrayLike, Nest

_CRITERIA = ("best", "tolerance")
# Between which deviations are looked for, relative to the gains; with sensitivities,
# as a factor of those deviations that raise the NLL by about a nat in all.
_RANGE = (1e-3, 1.0)
_FACTORS = (1e-2, 10.0)
_WORST = 1e6
# Of the logarithm of a deviation: 5 per cent.
_PRECISION = 0.05
# Relative to the gains: small enough for the NLL to be quadratic in it.
_PROBE = 0.1
# Nats that are no more than rounding of the outputs.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class FittedStddev:
    """What `fit_stddev` found.

    Attributes:
        stddev: Name of each `GainPosterior` -> its deviation, relative to the gains;
            of a name that several layers have, in nested models, with its number
            behind it, `"name:0"`.
        nll: Mean NLL of the averaged prediction with these, nats per label.
        plain_nll: That of the network without noise.
        evaluations: List of `(deviation, NLL)` that were tried, in order; with
            `per_layer` of the factor that all share.
    """

    stddev: dict
    nll: float
    plain_nll: float
    evaluations: list


def fit_stddev(
    model: keras.Model,
    x: Nest[ArrayLike],
    y: ArrayLike,
    criterion: Literal["best", "tolerance"] = "best",
    tolerance: float = 0.0,
    per_layer: bool = False,
    samples: int = 20,
    batch_size: int = 256,
    seed: int = 0,
    from_logits: bool | None = None,
    verbose: bool | int = 0,
) -> FittedStddev:
    """Finds the deviations of posteriors on trained gains, without training.

    The deviation s that all gains of `bayesnorm.to_posterior` share, relative to the
    gain, is looked for on the scale of its logarithm, from 0.001 to 1, by the NLL of
    the prediction that is averaged over sampled networks, `NLL(s)`, with the same draws
    for every s:

    - `"best"`: the s of the lowest NLL (a bounded search by Brent's method);
    - `"tolerance"`: the largest s with `NLL(s) <= NLL(0) + tolerance`, by bisection
      from the best one up: the widest posterior that the data bear.

    With `per_layer=True` s is a factor of deviations that differ from layer to layer:
    those at which each layer alone raises the mean NLL of a sampled network by the same
    amount, to second order, `1 / sqrt(L a_l)`, of L layers, with the second difference
    `a_l = (NLL_l(2 d) - 2 NLL_l(d) + NLL(0)) / (2 d^2)` for a small d. If no layer
    raises it, all have the same deviation after all.

    Give data that the network was not trained on; those of its training know nothing of
    its errors.

    Args:
        model: A classifier with one output, of `bayesnorm.to_posterior`; its deviations
            are set.
        x: Inputs, an array or a nest of arrays, which are looked at 15 to 25 times.
        y: Labels `[n]`, or `[n, ...]` for dense predictions, integers.
        criterion: `"best"` or `"tolerance"`.
        tolerance: Nats per label, from 0.
        per_layer: Whether each layer gets its own deviation.
        samples: Number of networks.
        batch_size: Examples at a time.
        seed: Seed of the draws.
        from_logits: As of `bayesnorm.predict`.
        verbose: Whether each deviation that is tried is printed.

    Returns:
        A `FittedStddev`.

    Raises:
        ValueError: If the model has no `GainPosterior` or several outputs, there is one
            example alone, the NLL without noise is not finite, or an argument is out of
            range. The deviations then stay.
        TypeError: If `model` is not a Keras model.

    Warns:
        UserWarning: If no deviation is as good as the network without noise, within the
            tolerance: the smallest one is then set. If noise on no layer raises the
            NLL of a network, with `per_layer`.
    """
    check_model(model)
    check_choice("criterion", criterion, _CRITERIA)
    check_number("tolerance", tolerance)
    samples = positive_integer("samples", samples)
    seed = seed_integer(seed)
    layers = [p for p in posterior_layers(model) if isinstance(p, GainPosterior)]
    if not layers:
        raise ValueError(
            f"Model {model.name!r} has no GainPosterior: make it by "
            "bayesnorm.to_posterior(model)."
        )
    _check_one_output(model)
    labels = np.asarray(y)
    if labels.ndim == 0 or labels.dtype == object:
        raise ValueError(
            f"`y` must be an array of labels [n, ...]. Received: {type(y).__name__}"
        )
    if not np.array_equal(labels, np.round(labels)):
        raise ValueError(
            "`y` must be integers, the classes: deviations are looked for by the NLL "
            f"of a classifier. Received other numbers, of dtype {labels.dtype}. A "
            "regression learns its deviations by `fit`, or has them set by "
            "to_posterior(model, initial_stddev=...)."
        )
    if len(labels) < 2:
        raise ValueError(
            "Deviations need examples that differ: give 2 or more, some hundreds for "
            f"figures that mean something. Received: {len(labels)}"
        )

    def nll(method="sample", averaged=True):
        prediction = predict(
            model,
            x,
            samples=samples,
            method=method,
            batch_size=batch_size,
            seed=seed,
            keep_samples=not averaged,
            from_logits=from_logits,
            verbose=0,
        )
        if averaged:
            return metrics.nll(prediction.probs, labels)
        return float(np.mean([metrics.nll(p, labels) for p in prediction.samples]))

    before = [[np.array(rho) for rho in layer.rhos] for layer in layers]
    try:
        plain = nll("mean")
        if not math.isfinite(plain):
            raise ValueError(
                f"The NLL of the network without noise is {plain}: a label has "
                "probability 0. Check the labels and `from_logits`."
            )
        shape = np.ones(len(layers))
        low, high = _RANGE
        if per_layer:
            found = _sensitivities(layers, plain, lambda: nll(averaged=False))
            if found is not None:
                shape, (low, high) = found, _FACTORS
        search = _Search(layers, shape, nll, verbose)
        best = search.lowest(low, high)
        if criterion == "tolerance":
            best = search.largest(best, high, plain + tolerance)
        found = search(best)
    except BaseException:
        for layer, values in zip(layers, before, strict=True):
            for rho, value in zip(layer.rhos, values, strict=True):
                rho.assign(value)
        raise
    allowed = plain + (tolerance if criterion == "tolerance" else 0.0)
    if found > allowed + _ROUNDING:
        warnings.warn(
            f"Noise of any width raises the NLL of model {model.name!r}, from "
            f"{plain:.4g} to {found:.4g} nats with the smallest that was tried, which "
            "is set. The network is not over-confident on these data: take others, "
            "such as some it was not trained on, or a tolerance.",
            stacklevel=2,
        )
    stddev = {
        name: float(math.exp(best) * each)
        for name, each in zip(_names(layers), shape, strict=True)
    }
    return FittedStddev(stddev, found, plain, search.evaluations)


def _check_one_output(model):
    # One without a graph shows its outputs when it is called.
    outputs = model.outputs if graph.is_graph(model) else [None]
    if len(outputs) != 1:
        raise ValueError(
            f"Model {model.name!r} has {len(outputs)} outputs, and deviations are "
            "looked for by the NLL of one. Give keras.Model(model.inputs, output) with "
            "the one that counts: it shares the layers, whose deviations are set."
        )


def _names(layers):
    """Returns a name for each layer, numbered where several have it."""
    counts = collections.Counter(layer.name for layer in layers)
    seen, names = collections.Counter(), []
    for layer in layers:
        several = counts[layer.name] > 1
        names.append(f"{layer.name}:{seen[layer.name]}" if several else layer.name)
        seen[layer.name] += 1
    return names


def _sensitivities(layers, plain, nll):
    """Returns the deviations at which each layer does its share of a nat.

    None, with a warning, if noise on no layer raises the NLL.
    """

    def rise(layer, stddev):
        for other in layers:
            other.set_stddev(stddev if other is layer else 1e-6)
        return nll() - plain

    # What the mean of few draws does to first order goes out.
    rises = [
        (rise(layer, 2 * _PROBE) - 2 * rise(layer, _PROBE)) / (2 * _PROBE**2)
        for layer in layers
    ]
    if max(rises) * _PROBE**2 <= _ROUNDING:
        warnings.warn(
            "Noise on the gains of no layer raises the NLL: the layers cannot be "
            "compared, and share one deviation.",
            stacklevel=3,
        )
        return None
    # Of what the network hardly reacts to, noise may seem to help.
    least = 1e-3 * max(rises)
    return 1.0 / np.sqrt(len(layers) * np.maximum(rises, least))


class _Search:
    """The NLL as a function of the logarithm of the common deviation."""

    def __init__(self, layers, shape, nll, verbose):
        self._layers, self._shape = layers, shape
        self._nll, self._verbose = nll, verbose
        self._known = {}
        self.evaluations = []

    def __call__(self, log_stddev):
        """Sets the deviations, and returns the NLL."""
        log_stddev = float(log_stddev)
        for layer, each in zip(self._layers, self._shape, strict=True):
            layer.set_stddev(math.exp(log_stddev) * each)
        if log_stddev not in self._known:
            # Of noise so wide that a label has probability 0: no more than this.
            value = self._known[log_stddev] = min(self._nll(), _WORST)
            self.evaluations.append((math.exp(log_stddev), value))
            if self._verbose:
                print(f"stddev {math.exp(log_stddev):.4f}  NLL {value:.4f}")
        return self._known[log_stddev]

    def lowest(self, low, high):
        """Returns the logarithm of the best deviation."""
        found = optimize.minimize_scalar(
            self,
            bounds=(math.log(low), math.log(high)),
            method="bounded",
            options={"xatol": _PRECISION},
        )
        # It does not look at the ends.
        return min(float(found.x), math.log(low), math.log(high), key=self)

    def largest(self, best, high, bound):
        """Returns that of the largest one, from the best up, within the bound."""
        low, high = best, math.log(high)
        if self(high) <= bound:
            return high
        while high - low > _PRECISION:
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self(middle) <= bound else (low, middle)
        return low
