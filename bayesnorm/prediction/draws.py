"""The draws of the networks that `predict` averages, as an array."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import keras
import numpy as np
from keras import ops

from bayesnorm import backend
from bayesnorm.arguments import positive_integer, seed_integer
from bayesnorm.graph import compiled_for
from bayesnorm.prediction.members import members_of
from bayesnorm.prediction.networks import Noise
from bayesnorm.prediction.weight_sets import built_model
from bayesnorm.types import Tensor

if TYPE_CHECKING:
    from bayesnorm.prediction.weight_sets import ModelOrSets


def draw_noise(
    model: ModelOrSets, samples: int = 30, seed: int | None = None
) -> np.ndarray:
    """Draws the noise of networks: the input `noise` of what `export_onnx` writes.

    With it the exported graph answers as `predict(model, x, samples, seed=seed)` does.

    Args:
        model: A built model, or an ensemble of one architecture.
        samples: Number of networks, of an ensemble for each member.
        seed: Integer from 0; None for new draws at each call. The draws of a seed
            depend on the backend.

    Returns:
        Standard normals, float32 `[samples, size]`, where `size` is the number of draws
        that a network consists of; 0 for a model that draws no noise. Of an ensemble
        `[members * samples, size]`, member by member.

    Raises:
        TypeError: If `model` is something else.
        ValueError: If it is not built, or an argument is not as above.
    """
    members = members_of(model)
    model = built_model(members[0].model)
    samples = positive_integer("samples", samples)
    seed = backend.seed_from_int(seed_integer(seed))
    if not Noise(model).size:
        return np.zeros((len(members) * samples, 0), "float32")
    draw = compiled_for(model).get(draws_of, samples)
    # Arrays: TensorFlow would compile anew for each Python number.
    draws = (draw(seed, np.array(i, "int32")) for i in range(len(members)))
    return np.concatenate([ops.convert_to_numpy(x) for x in draws])


def draws_of(model: Callable[[], keras.Model], networks: int) -> Callable[..., Tensor]:
    """Returns the function `(seed, member)` to the draws `[networks, size]`.

    Args:
        model: Weak reference to a built model.
        networks: Number of networks.
    """
    noise = Noise(model())

    def draws(seed, member):
        return noise.draw(backend.fold_in(seed, member), ops.arange(networks))

    return draws
