"""Weights of a network for one of the same form whose layers are stochastic."""

from __future__ import annotations

import keras

from bayesnorm import graph
from bayesnorm.arguments import check_model
from bayesnorm.layers import StructuredBayesianPruning

_BIASES = {"bias", "beta"}


def copy_weights(source: keras.Model, target: keras.Model) -> keras.Model:
    """Gives a network the weights of another one of the same structure.

    For a model whose code now makes `bayesnorm.StochasticBatchNormalization` where it
    made `keras.layers.BatchNormalization`, as networks without a graph must: the plain
    one is trained or loaded as ever, and its weights come over layer by layer, wherever
    the layers stand. (`load_weights` finds those in a list by the names of their
    classes, which have changed.)

    ```python
    plain = Network(keras.layers.BatchNormalization)
    plain(images[:1])
    plain.load_weights("trained.weights.h5")
    model = Network(bayesnorm.StochasticBatchNormalization)
    model(images[:1])
    bayesnorm.copy_weights(plain, model)
    bayesnorm.calibrate(model, images, batch_size=32)
    ```

    Args:
        source: A built model.
        target: A built model with as many layers, of these shapes, in this order.

    Returns:
        `target`.

    Raises:
        TypeError: If one of them is not a Keras model.
        ValueError: If one is not built, or they differ in the number of layers, a
            layer's kind or its weights' shapes. Nothing is copied then.
    """
    for name, model in (("source", source), ("target", target)):
        check_model(model)
        if not model.built:
            raise ValueError(
                f"`{name}` is not built: call it on a batch of data first."
            )
    olds, news = graph.layers_of(source), graph.layers_of(target)
    if len(olds) != len(news):
        raise ValueError(
            "`source` and `target` must have the same layers in the same order. "
            f"Received: {len(olds)} and {len(news)} layers."
        )
    # Of the models themselves only the layers count, whatever their class.
    for old, new in zip(olds[1:], news[1:], strict=True):
        _check_pair(old, new)
    graph.copy_weights(source, target)
    return target


def _check_pair(old, new):
    kinds = type(old), type(new)
    shapes = [_shapes(layer) for layer in (old, new)]
    stochastic = issubclass(kinds[1], keras.layers.BatchNormalization) and issubclass(
        kinds[1], kinds[0]
    )
    same = kinds[0] is kinds[1] and shapes[0] == shapes[1]
    # A model that holds stochastic layers has their moments besides.
    holds = kinds[0] is kinds[1] and len(graph.layers_of(old)) > 1
    first = shapes[1][: len(shapes[0])] == shapes[0]
    if not (same or holds or (stochastic and first)):
        raise ValueError(
            "`source` and `target` must have the same layers in the same order. "
            f"Received: {old.name!r} ({kinds[0].__name__}, weights {shapes[0]}) and "
            f"{new.name!r} ({kinds[1].__name__}, weights {shapes[1]})."
        )


def _shapes(layer):
    # A law of another rank is taken over with its rank.
    factor = getattr(layer, "law_factor", None)
    return [tuple(w.shape) for w in layer.weights if w is not factor]


def start_pruning(source: keras.Model, target: keras.Model) -> keras.Model:
    """Gives a network with structured Bayesian pruning the weights of a trained one.

    The authors of the method start from a trained network. `source` is that network,
    `target` the same one with `bayesnorm.StructuredBayesianPruning` in it, such as
    `models.lenet5(norm=None)` and `models.lenet5(norm=None, scale="pruning")`. Layers
    are found by their names. A bias that a layer has in `source` alone, of a linear
    layer or of a batch normalization, becomes that of the pruning layer behind it. At
    the posterior's start theta is all but 1, and the outputs are those of `source` to a
    per cent; where `source` has pruning layers of these names, they are copied as well.

    Args:
        source: A built model.
        target: A built Functional or Sequential model.

    Returns:
        `target`.

    Raises:
        TypeError: If one of them is not a Keras model.
        ValueError: If a layer of `target` has weights and none of its name in `source`
            has the like. Nothing is copied then.

    Reference:
        Neklyudov et al., 2017, arXiv:1705.07283, section 5.
    """
    for model in (source, target):
        check_model(model)
    trained = {layer.name: layer for layer in _weighted(graph.Index(source))}
    index = graph.Index(target)
    layers = _weighted(index)
    known = {layer.name for layer in layers}
    for name, layer in trained.items():
        if name not in known and not isinstance(layer, StructuredBayesianPruning):
            raise ValueError(
                f"`target` has no layer {name!r}, of which `source` has weights. "
                f"Received: layers {sorted(known)}"
            )
    pairs = []
    for layer in layers:
        old = trained.get(layer.name)
        if isinstance(layer, StructuredBayesianPruning):
            # Else it stays at its start, but for the bias.
            if isinstance(old, StructuredBayesianPruning):
                pairs += _paired(old, layer, layer.weights)
        elif old is None:
            raise ValueError(
                f"`source` has no layer {layer.name!r}, of which `target` has weights. "
                f"Received: layers {sorted(trained)}"
            )
        else:
            behind = _bias_behind(index, layer, old)
            pairs += _paired(old, layer, [*layer.weights, *behind])
    for old, new in pairs:
        new.assign(old.numpy())
    return target


def _weighted(index):
    """The layers that a model calls and that have weights, each once."""
    found = {id(call.operation): call.operation for call in index.calls}
    return [layer for layer in found.values() if getattr(layer, "weights", None)]


def _bias_behind(index, layer, old):
    """The bias of the pruning layer behind one, if it is for a bias of `old`'s."""
    if not {w.name for w in old.weights} & _BIASES - {w.name for w in layer.weights}:
        return []
    (output,) = index.calls_of(layer)[0].outputs
    takers = [call.operation for call in index.consumers(output)]
    return [
        taker.bias
        for taker in takers
        if isinstance(taker, StructuredBayesianPruning) and taker.bias is not None
    ]


def _paired(old, layer, news):
    """Pairs of weights; a bias is one whatever it is called, and last."""

    def ordered(weights):
        return sorted(weights, key=lambda w: w.name in _BIASES)

    olds, news = ordered(old.weights), ordered(news)
    if [w.shape for w in olds] != [w.shape for w in news]:
        raise ValueError(
            f"The weights of layer {layer.name!r}, with the bias of the pruning layer "
            "behind it, must be those that `source` has. Received: "
            f"{[(w.name, tuple(w.shape)) for w in olds]} in `source` and "
            f"{[(w.name, tuple(w.shape)) for w in news]} in `target`."
        )
    return zip(olds, news, strict=True)
