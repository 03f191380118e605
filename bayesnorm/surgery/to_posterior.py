"""Networks that people have, with a posterior on their trained gains."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from bayesnorm import graph
from bayesnorm.arguments import check_model, check_number, seed_integer
from bayesnorm.layers.gain_posterior import GainPosterior, normalizations_in
from bayesnorm.surgery.sameness import check_same


def to_posterior(
    model: keras.Model,
    initial_stddev: float = 0.01,
    per_channel: bool = True,
    freeze: bool = True,
    layers: Sequence[str] | None = None,
    num_examples: int | None = None,
    seed: int | None = None,
) -> keras.Model:
    """Makes a copy of a trained network whose normalizations have uncertain gains.

    Every layer that is a batch, layer, group or root mean square normalization with a
    gain, or that makes some in its own code (a transformer block of yours or of a
    library), is put into a `bayesnorm.GainPosterior`: the gain g of a channel becomes
    `g S`, `S ~ Normal(1, stddev^2)`. Nested models are gone into. The outputs in
    evaluation stay what they were, to the bit. `bayesnorm.predict` then samples, and
    the deviations are found without training, `bayesnorm.fit_stddev(model, x, y)`, or
    by a short fine-tune, `fit` with the KL in its loss:

    ```python
    model = bayesnorm.to_posterior(trained, num_examples=len(images))
    model.compile("adam", trained.loss)
    model.fit(images, labels, epochs=2)  # the deviations alone: freeze=True
    prediction = bayesnorm.predict(model, new_images)
    ```

    Args:
        model: A built Functional or Sequential model.
        initial_stddev: Standard deviations at the start, relative to the gains. Wide
            noise in a network that was trained without any loses its accuracy.
        per_channel: Whether each channel gets its own deviation; else one for each
            normalization.
        freeze: Whether all but the deviations is frozen; else what was trainable is.
        layers: Names of the layers to take; None for all that have gains.
        num_examples: N, the number of training examples: the KL then weighs 1 / N.
        seed: Integer of 32 bits, from which those of the layers follow; None for
            random ones.

    Returns:
        A new model with copies of the weights, compiled as the old one is, without the
        state of its optimizer.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it shows no graph (a subclassed model) or is not built, has no
            normalization with a gain, or a layer of `layers` is not there or has
            none.
    """
    check_model(model)
    check_number("initial_stddev", initial_stddev, positive=True)
    seed = None if seed is None else seed_integer(seed, bits=32)
    if not graph.is_graph(model):
        raise ValueError(
            f"Model {model.name!r} of type {type(model).__name__} shows no graph to "
            "put posteriors in: give a built Functional or Sequential model, or call "
            "bayesnorm.GainPosterior(model) on its inputs."
        )
    pairs = []

    def replace(layer):
        if not _is_taken(layer, layers):
            return None
        copy = graph.copy_of(layer)
        new = GainPosterior(
            copy,
            per_channel=per_channel,
            initial_stddev=initial_stddev,
            num_examples=num_examples,
            seed=None if seed is None else (seed + len(pairs)) % 2**32,
        )
        pairs.append((layer, copy, new))
        return graph.Finished([new])

    _check_names(model, layers)
    new = graph.rewrite(model, replace)
    if not pairs:
        raise ValueError(
            f"Model {model.name!r} has no normalization with a gain and without noise. "
            "Its layers are of the types "
            f"{sorted({type(x).__name__ for x in graph.layers_of(model)})}: put "
            "bayesnorm.StochasticScaleNorm behind a normalization and train, or take "
            "a model as it is if it has a posterior already."
        )
    for old, copy, _ in pairs:
        graph.copy_weights(old, copy)
    _set_trainable(new, pairs, freeze)
    check_same(model, new, "leave it out by `layers`")
    return new


def _is_taken(layer, names):
    if not isinstance(layer, keras.Layer) or not normalizations_in(layer):
        return False
    return names is None or layer.name in names


def _check_names(model, names):
    known = {layer.name: layer for layer in graph.layers_of(model)}
    for name in names or ():
        if name not in known or not normalizations_in(known[name]):
            found = "is not there" if name not in known else "has no gain"
            fitting = [
                layer.name
                for layer in graph.layers_of(model)
                if _is_taken(layer, None) and not graph.is_graph(layer)
            ]
            raise ValueError(
                f"`layers` must name normalizations, or layers that hold some. Layer "
                f"{name!r} {found}; expected some of {fitting}."
            )


def _set_trainable(model, pairs, freeze):
    """Lets the deviations be trained, and all else as it was or not at all."""
    flags = {}
    if not freeze:
        flags = {id(x): x.trainable for x in graph.layers_of(model)}
        for old, copy, _ in pairs:
            inner = zip(graph.layers_of(old), graph.layers_of(copy), strict=True)
            flags |= {id(new): layer.trainable for layer, new in inner}
    # Those that were there before too.
    posteriors = {id(x) for x in graph.layers_of(model) if isinstance(x, GainPosterior)}
    holders = {
        id(x)
        for x in graph.layers_of(model)
        if posteriors & {id(inner) for inner in graph.layers_of(x)}
    }
    if getattr(model, "compiled", False):
        # Made anew, for what is trained now.
        optimizer = model.optimizer
        model.optimizer = type(optimizer).from_config(optimizer.get_config())
    # What is set for a layer holds for all inside it: from the outside inwards.
    for layer in graph.layers_of(model):
        layer.trainable = id(layer) in holders or flags.get(id(layer), False)
