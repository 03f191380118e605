"""Weights of a network for one of the same code whose layers are stochastic."""

import keras

from bayesnorm import graph
from bayesnorm.arguments import check_model


def copy_weights(source, target):
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
    shapes = [[tuple(w.shape) for w in layer.weights] for layer in (old, new)]
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
