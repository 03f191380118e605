"""Whether a rewritten network still computes what it did."""

from __future__ import annotations

import keras

from bayesnorm.graph import first_difference


def check_same(model: keras.Model, new: keras.Model, otherwise: str) -> None:
    """Checks that a copy of a model computes the same, on a random batch.

    Args:
        model: The model.
        new: Its copy, of as many calls in the same order.
        otherwise: What there is to do but to mend the layer that differs, the end of a
            sentence.

    Raises:
        ValueError: Names the layer from which on they differ.
    """
    different = first_difference(model, new)
    if different is not None:
        raise ValueError(
            f"The copy of model {model.name!r} computes something else, from layer "
            f"{different.name!r} ({type(different).__name__}) on: what that layer does "
            "is not in its get_config, its weights or its functions. Mend its "
            f"get_config and from_config, or {otherwise}."
        )
