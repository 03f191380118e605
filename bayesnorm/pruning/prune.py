"""Removal of channels from the graph of any network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Literal

import keras
import numpy as np
from keras import ops

from bayesnorm.arguments import (
    check_choice,
    check_model,
    check_number,
    positive_integer,
)
from bayesnorm.graph import (
    Finished,
    Index,
    apply,
    functional,
    graph_of,
    layers_of,
    rewrite,
)
from bayesnorm.layers import ScaleNorm, StructuredBayesianPruning
from bayesnorm.layers.kernels import LINEAR_LAYERS, channel_axis
from bayesnorm.layers.linear import NormalizedLinear
from bayesnorm.pruning import cost
from bayesnorm.pruning.channelwise import axis_of
from bayesnorm.pruning.linear import obstacle
from bayesnorm.pruning.plain import plain
from bayesnorm.pruning.registry import rule_for
from bayesnorm.pruning.removal import Removal
from bayesnorm.pruning.report import LayerReport, PruningReport
from bayesnorm.pruning.walk import follow
from bayesnorm.types import ArrayLike

# Largest difference that is rounding, relative to the largest output, by precision.
_TOLERANCES = {"float16": 1e-2, "bfloat16": 5e-2}
_TOLERANCE = 1e-5
_CHECK_BATCH = 4
# A channel of which the posterior became the prior neither gains nor loses evidence;
# the rule of Wright et al.'s code lets one go for up to log(2 pi) / 2 nats.
_EVIDENCE_LOST = 0.5 * math.log(2 * math.pi)
# Layers of this package that are folded into plain ones.
_OWN = (NormalizedLinear, StructuredBayesianPruning)
_MASKABLE = (
    *LINEAR_LAYERS,
    NormalizedLinear,
    keras.layers.BatchNormalization,
    ScaleNorm,
    StructuredBayesianPruning,
)


def prune(
    model: keras.Model,
    threshold: float = 1.0,
    criterion: Literal["snr", "evidence"] = "snr",
    keep: Mapping[str, ArrayLike] | None = None,
    round_to: int | None = None,
    keep_posteriors: bool = False,
) -> tuple[keras.Model, PruningReport]:
    """Makes a smaller network of the same outputs, without the channels that are noise.

    Channels of a `bayesnorm.StructuredBayesianPruning` whose noise drowns them, of a
    filter or a scale that is 0, or masked by `keep`, hold a constant, `act(bias)`. What
    takes a constant does as well with a bias: the channel is removed, from all layers
    that it passes, and what it added is folded into the biases behind. A factor
    `E[theta]` goes into the kernel beside it. Where a constant is not the same at all
    positions (zero padding), one constant channel stays and stands for the others.

    Channels that a sum puts together stay or go together, so do those of layers that
    are used several times. Layers whose input keeps what they do not need (an input of
    the model, a residual sum) take their channels out of it.

    Args:
        model: A built Functional or Sequential model; nested models are gone into.
        threshold: Number, the signal-to-noise ratio `E[theta] / sd[theta]` below which
            a channel goes.
        criterion: `"snr"`, or `"evidence"`: a channel goes where the model without it
            has no less evidence, to log(2 pi) / 2 = 0.92 nats, and no threshold is
            chosen. Of a channel whose posterior became the prior, pure noise, the
            evidence is the same with and without it.
        keep: Dict from the names of layers to booleans `[channels]`, False for what is
            to go: of a dense or convolutional layer the filters (its bias stays), of a
            normalization the scales, of a `StructuredBayesianPruning` in the place of
            the criterion. None for none.
        round_to: Integer: layers keep a multiple of so many channels. None for 1.
        keep_posteriors: Whether pruning layers stay, with the posteriors of the
            channels that are left, so that training them can go on, for less. What goes
            is what these layers leave out in evaluation, by the `threshold` of each.

    Returns:
        `(pruned, report)`: a new model of plain Keras layers (those of this package
        that sample stay, thinned; wrappers do not, nor, without `keep_posteriors`, do
        pruning layers), compiled as the old one without the state of its optimizer, and
        a `PruningReport`.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it has no graph, weights are not finite, a mask has another
            length or is of a layer without channels, there is nothing to prune, or
            `keep_posteriors` is given with a criterion.
        RuntimeError: If the outputs on random inputs differ by more than 1e-5 of the
            largest (1e-2 in half precision), which is never to happen.

    Warns:
        UserWarning: Names layers of which all channels were to go: one stays; and
            pruning layers inside others (TimeDistributed), which stay as they are.

    Reference:
        Neklyudov et al., 2017, "Structured Bayesian Pruning via Log-Normal
        Multiplicative Noise"; Wright, Igel & Selvan, 2024, "BMRS: Bayesian Model
        Reduction for Structured Pruning".
    """
    check_model(model)
    graph_of(model)
    check_choice("criterion", criterion, ("snr", "evidence"))
    check_number("threshold", threshold)
    if round_to is not None:
        round_to = positive_integer("round_to", round_to)
    if keep_posteriors and (criterion != "snr" or threshold != 1.0):
        raise ValueError(
            "With `keep_posteriors` each pruning layer's own `threshold` says what it "
            "leaves out: set that of the layers. Received: "
            f"threshold={threshold!r}, criterion={criterion!r}"
        )
    _check_finite(model)
    masks = _masks(model, keep or {})
    own = [x for x in layers_of(model) if isinstance(x, _OWN)]
    _warn_of_hidden(model, own)
    if own:
        _check_same(
            model, plain(model, lambda x: _factors(x, _kept(x, x.threshold)), {})
        )

    def factors(layer):
        mask = masks.get(layer)
        return _factors(
            layer, _kept(layer, threshold, criterion) if mask is None else mask
        )

    masked = plain(model, None if keep_posteriors else factors, masks)
    trace = follow(masked)
    removal = Removal(trace, round_to)
    by_layer = any(isinstance(x, StructuredBayesianPruning) for x in own)
    if not by_layer and not masks and removal.alive.all():
        raise ValueError(
            f"Model {model.name!r} has nothing to prune: no StructuredBayesianPruning "
            "layer, and no filter that is 0. Give the masks of another criterion as "
            "keep={layer name: booleans}, such as bayesnorm.pruning.magnitude_masks "
            "makes."
        )
    thinned = {}
    pruned = rewrite(
        masked,
        lambda operation: _thinned(operation, removal, thinned),
        lambda nested: _nested_shapes(nested, trace, removal),
    )
    error = _check_same(masked, pruned)
    report = _report(trace, removal, thinned, error, model, pruned)
    if report.kept_alone:
        warnings.warn(
            f"Layers of model {model.name!r} would have no channel left, and keep one "
            f"that is constant: {', '.join(report.kept_alone)}. Their branch does "
            "nothing: take it out of the architecture, or prune less.",
            stacklevel=2,
        )
    return pruned, report


# --- what is asked for ---------------------------------------------------------------


def _check_finite(model):
    for layer in layers_of(model):
        for variable in () if isinstance(layer, keras.Model) else layer.weights:
            if not keras.backend.is_float_dtype(variable.dtype):
                continue
            if not np.isfinite(variable.numpy()).all():
                raise ValueError(
                    f"Weight {variable.path!r} of layer {layer.name!r} is not finite: "
                    "what it keeps cannot be told. Restore weights from before the "
                    "training diverged."
                )


def _warn_of_hidden(model, own):
    index = Index(model)
    hidden = [x.name for x in own if not index.calls_of(x)]
    if hidden:
        warnings.warn(
            f"Layers {', '.join(hidden)} of model {model.name!r} stand inside other "
            "layers (TimeDistributed, say), or are not called in its graph: they stay "
            "as they are, whatever the criterion. Put them into the graph itself.",
            stacklevel=3,
        )


def _factors(layer, mask):
    return layer.expected_scale() * mask


def _kept(layer, threshold, criterion="snr"):
    if criterion == "evidence":
        return layer.evidence() < -_EVIDENCE_LOST
    return layer.snr() >= threshold


def _masks(model, keep):
    """Returns the masks of `keep` by layer, checked."""
    index, masks = Index(model), {}
    layers = {}
    for layer in layers_of(model):
        layers.setdefault(layer.name, []).append(layer)
    for name, mask in keep.items():
        found = layers.get(name, [])
        if len(found) != 1:
            known = ", ".join(
                repr(x.name) for x in layers_of(model) if isinstance(x, _MASKABLE)
            )
            raise ValueError(
                f"`keep` names layer {name!r}, of which the model has {len(found)}. "
                f"Layers with channels of their own: {known}."
            )
        (layer,) = found
        calls = index.calls_of(layer)
        if not isinstance(layer, _MASKABLE) or not calls:
            raise ValueError(
                f"`keep` has a mask for layer {name!r} ({type(layer).__name__}), which "
                "makes no channels of its own, or is not called in the model's graph. "
                "Expected a dense or convolutional layer, a normalization or a "
                "StructuredBayesianPruning."
            )
        inner = layer.layer if isinstance(layer, NormalizedLinear) else layer
        reason = obstacle(inner) if isinstance(inner, LINEAR_LAYERS) else None
        if reason is not None:
            raise ValueError(
                f"`keep` has a mask for layer {name!r}, which {reason}: no filter of "
                "it can be left out. Prune before that is added."
            )
        mask = np.asarray(mask)
        size = _channels_of(layer, calls[0].outputs[0])
        if mask.shape != (size,) or not np.isin(mask, (0, 1)).all():
            raise ValueError(
                f"The mask of layer {name!r} must be {size} booleans, one for each of "
                f"its channels. Received: shape {mask.shape}, dtype {mask.dtype}"
            )
        masks[layer] = mask.astype(bool)
    return masks


def _channels_of(layer, output):
    if isinstance(layer, NormalizedLinear):
        return output.shape[layer.channel_axis]
    if isinstance(layer, LINEAR_LAYERS):
        return output.shape[channel_axis(layer)]
    return output.shape[axis_of(layer)]


# --- the smaller network -------------------------------------------------------------


def _thinned(operation, removal, thinned):
    if not removal.touches(operation):
        return None
    found = rule_for(operation).thin(operation, removal)
    if found is None:
        return None
    thinned[id(operation)] = found[-1]
    return Finished(found)


def _nested_shapes(nested, trace, removal):
    inputs, _ = trace.calls[id(nested)][0]
    # Its own shapes: it may be called on several numbers of positions.
    own = [tuple(x.shape) for x in functional(nested).inputs]
    return [
        removal.shape(x.replace(shape=shape) if len(shape) == len(x.shape) else x)
        for x, shape in zip(inputs, own, strict=True)
    ]


def _check_same(old, new):
    """Returns how far the outputs of two models differ, which must be rounding."""
    dtypes = {getattr(x, "compute_dtype", None) for x in layers_of(old)}
    tolerance = max([_TOLERANCE, *(_TOLERANCES.get(x, 0.0) for x in dtypes)])
    error = _difference(old, new)
    if not error <= tolerance:
        raise RuntimeError(
            f"The pruned copy of model {old.name!r} computes something else: outputs "
            f"differ by {error:.2g} of the largest, more than {tolerance}. Please "
            "report it, with the model."
        )
    return error


def _difference(old, new):
    """The largest difference of outputs, relative to the largest of each."""
    inputs = cost.random_inputs(old, _CHECK_BATCH)
    worst = 0.0
    pairs = [
        [ops.convert_to_numpy(x) for x in keras.tree.flatten(apply(model, inputs))]
        for model in (old, new)
    ]
    for a, b in zip(*pairs, strict=True):
        a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        if not same.all():
            # Where one alone is not finite that is no rounding.
            gap = np.nan_to_num(np.abs(a - b)[~same], nan=np.inf).max()
            largest = np.abs(a, where=np.isfinite(a), out=np.zeros_like(a)).max()
            worst = max(worst, float(gap / max(largest, 1e-30)))
    return worst


def _report(trace, removal, thinned, error, model, pruned):
    made = [
        x
        for x in trace.operations
        if id(x) in trace.made or isinstance(x, LINEAR_LAYERS)
    ]
    layers = [
        _layer_report(operation, thinned.get(id(operation), operation), trace, removal)
        for operation in made
    ]
    alone = list(dict.fromkeys(x.name for x in removal.vanishing))
    models = {"before": model, "after": pruned}
    return PruningReport(layers, _refused(trace, removal), alone, error, models)


def _layer_report(operation, new, trace, removal):
    inputs, outputs = removal.channels(operation)
    shape, taken = removal.shape(inputs), int(removal.kept(inputs.ids).sum())
    given = len(inputs.ids)
    if operation in [x.operation for x in trace.sinks]:
        sink = removal.sink(operation)
        shape, taken = removal.input_shape(sink), len(removal.rows(sink))
        given = len(sink.channels.ids)
    costs = [
        [cost.macs(layer, of(x), of(y)) for (x,), (y,) in trace.calls[id(operation)]]
        for layer, of in ((operation, lambda x: x.shape), (new, removal.shape))
    ]
    return LayerReport(
        name=operation.name,
        type=type(operation).__name__,
        kept=int(removal.kept(outputs.ids).sum()),
        of=len(outputs.ids),
        inputs=(given, taken),
        parameters=(operation.count_params(), new.count_params()),
        macs=tuple(None if None in x else sum(x) for x in costs),
        layers=((operation, inputs.shape), (new, shape)),
    )


def _refused(trace, removal):
    """Returns what is constant and stays: `(layer, channels, reason)`."""
    found, seen = [], set()
    restored = np.full(trace.size, -1)
    for i, (ids, _, _) in enumerate(removal.restored):
        restored[ids] = i
    for operation in trace.operations:
        if id(operation) not in trace.made:
            continue
        _, outputs = removal.channels(operation)
        stays = outputs.is_constant & removal.kept(outputs.ids)
        for i in np.unique(restored[outputs.ids[stays]]):
            _, by, reason = removal.restored[i]
            count = int((restored[outputs.ids[stays]] == i).sum())
            if by is not None:
                reason = f"{by.name} ({type(by).__name__}) {reason}"
            if (operation.name, reason) not in seen:
                seen.add((operation.name, reason))
                found.append((operation.name, count, reason))
    return found
