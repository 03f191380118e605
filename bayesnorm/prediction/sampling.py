"""A model that draws noise whenever it is called."""

from __future__ import annotations

from typing import Any, Literal, Self

import keras

from bayesnorm.arguments import check_model
from bayesnorm.layers.noise import current_noise_mode, noise_mode
from bayesnorm.types import Shape

_MODES = ("sample", "mean", "auto")


@keras.saving.register_keras_serializable("bayesnorm")
class SamplingModel(keras.Model):
    """See `sampling_model`."""

    def __init__(
        self,
        model: keras.Model,
        mode: Literal["sample", "mean", "auto"] = "sample",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_model(model)
        if mode not in _MODES:
            raise ValueError(f"`mode` must be one of {_MODES}. Received: {mode!r}")
        self.model = model
        self.mode = mode
        if model.built and isinstance(getattr(model, "input_shape", None), tuple):
            # By Keras' own `build`, which notes the shape: `export` asks for it.
            self.build(model.input_shape)
        self.built = model.built

    def build(self, input_shape: Shape) -> None:
        """Builds the model."""
        if not self.model.built:
            self.model.build(input_shape)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the model's outputs, computed in the noise mode."""
        # A mode set from outside (by `predict`, say) holds in here as well.
        outer = current_noise_mode()
        with noise_mode(self.mode if outer == "auto" else outer):
            return self.model(inputs, training=training)

    def compute_output_shape(self, input_shape: Shape) -> Any:
        """Returns the model's."""
        return self.model.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "model": keras.saving.serialize_keras_object(self.model),
            "mode": self.mode,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Makes the model from its configuration."""
        model = keras.saving.deserialize_keras_object(config["model"])
        return cls(**{**config, "model": model})


def sampling_model(
    model: keras.Model, mode: Literal["sample", "mean", "auto"] = "sample"
) -> keras.Model:
    """Makes a model whose every call runs in a noise mode.

    It shares the layers and weights of `model`. In contrast to `noise_mode`
    around a call, the mode holds in compiled functions: `compile`, `predict`,
    `evaluate`, an exported model. With `"sample"` each example of each call has
    its own draws (of a `StochasticBatchNormalization` only with `noise="example"`),
    from the layers' own generators (so joint laws of batch statistics hold within each
    layer, and across layers in `bayesnorm.predict` alone); nothing else changes
    (`training` stays False in evaluation, so batch statistics stay untouched).

    Args:
        model: A Keras model.
        mode: `"sample"`, noise at each call; `"mean"`, no noise, not even in
            training; `"auto"`, noise in training.

    Returns:
        A `keras.Model` that saves, loads and clones.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If `mode` is something else.
    """
    return SamplingModel(model, mode)
