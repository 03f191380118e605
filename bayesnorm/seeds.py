"""Layers that draw random numbers, and the states of their seeds."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from bayesnorm import backend
from bayesnorm.arguments import seed_integer
from bayesnorm.types import Tensor


@keras.saving.register_keras_serializable("bayesnorm")
class NoiseGenerator(keras.random.SeedGenerator):
    """A seed generator whose draws differ between the replicas of a strategy."""

    def next(self, ordered: bool = True) -> Tensor:
        """Returns the next seed `[2]`, this replica's own."""
        seed = super().next(ordered)
        replica = backend.replica_id()
        return seed if replica is None else backend.fold_in(seed, replica)


class SeededLayer(keras.layers.Layer):
    """A layer with a seed generator, whose state is saved with the weights.

    Args:
        seed: Integer; None for a random one. The state that follows from it is
            saved and loaded with the weights.
    """

    def __init__(self, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # What every backend's seeds hold: 32 bits.
        self.seed = None if seed is None else seed_integer(seed, bits=32)
        self.seed_generator = NoiseGenerator(self.seed)

    def save_own_variables(self, store: Any) -> None:
        """Saves the state of the noise with the weights, which Keras does not."""
        super().save_own_variables(store)
        store["seed_generator_state"] = ops.convert_to_numpy(
            self.seed_generator.state.value
        )

    def load_own_variables(self, store: Any) -> None:
        """Loads the weights and the state of the noise, where it was saved."""
        weights = {k: store[k] for k in store.keys()}  # noqa: SIM118 (an h5 group)
        state = weights.pop("seed_generator_state", None)
        super().load_own_variables(weights)
        if state is not None:
            self.seed_generator.state.assign(state)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "seed": self.seed}
