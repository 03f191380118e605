"""The noise switch, independent of `training`, and where draws come from.

A stochastic layer asks `standard_normal` for its draws. By default it gets
them when training and none (it then uses its mean) otherwise. `noise_mode`
changes that for the calls made inside it.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import keras

from bayesnorm import backend
from bayesnorm.graph import layers_of
from bayesnorm.seeds import SeededLayer
from bayesnorm.types import MaybeNone, NoiseMode, Tensor

_MODES = ("auto", "mean", "sample")
_mode: contextvars.ContextVar[NoiseMode] = contextvars.ContextVar(
    "bayesnorm_noise_mode", default="auto"
)


def current_noise_mode() -> NoiseMode:
    """Returns the mode that calls made now run in."""
    return _mode.get()


@contextlib.contextmanager
def noise_mode(mode: NoiseMode) -> Iterator[None]:
    """Sets what stochastic layers do in the calls made inside the context.

    The mode is read when a layer is called: eagerly at each call, in a compiled
    function when it is traced. `model.predict`, compiled before, therefore does
    not see it: use `bayesnorm.predict`, or `bayesnorm.sampling_model`.

    Example:
    ```python
    with bayesnorm.noise_mode("sample"):
        logits = model(images, training=False)  # batch statistics untouched
    ```

    Args:
        mode: `"auto"`, noise when `training`, the mean otherwise (what holds
            outside of any context); `"mean"`, no noise; `"sample"`, noise, an
            own draw for each example (a `StochasticBatchNormalization` with
            `noise="batch"`, its default: one for the call; a joint law of statistics
            holds within each layer); or a function
            `(layer, name, shape, batch_size) -> [batch_size, *shape]` that supplies
            the standard normal draws of `layer`, float32.

    Raises:
        ValueError: If `mode` is something else.
    """
    if mode not in _MODES and not callable(mode):
        raise ValueError(
            f"`mode` must be one of {_MODES} or a function that supplies the "
            f"draws. Received: mode={mode!r}"
        )
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


class StochasticLayer(SeededLayer):
    """Base of the layers that draw noise.

    A layer of your own says in `noise_shapes` what a network draws, and asks for it
    in `call` by `standard_normal`. It then takes part in the noise switch
    (`noise_mode`) and in `bayesnorm.predict`:

    ```python
    import bayesnorm
    import keras
    from keras import ops


    @keras.saving.register_keras_serializable("my_package")
    class NoisyShift(bayesnorm.StochasticLayer):
        # y = x + V, V ~ Normal(0, stddev^2), one draw for an example and channel

        def __init__(self, stddev=0.1, **kwargs):
            super().__init__(**kwargs)
            self.stddev = stddev

        def build(self, input_shape):
            self.channels = input_shape[-1]

        @property
        def noise_shapes(self):
            return {"shift": (self.channels,)}

        def call(self, inputs, training=None):  # inputs [batch, channels]
            z = self.standard_normal("shift", ops.shape(inputs)[0], training)
            if z is None:
                return inputs
            return inputs + ops.cast(self.stddev * z, inputs.dtype)

        def get_config(self):
            return {**super().get_config(), "stddev": self.stddev}


    @bayesnorm.moments.register(NoisyShift)  # for predict(method="moments")
    def shift_moments(layer, moments):
        if moments.stationary:  # of a data set: those of the mean network
            return moments
        variance = layer.stddev**2 * ops.ones((layer.channels,))
        return moments.with_common_noise(variance, axis=-1)
    ```

    With parameters that are learned, `VariationalLayer` is the base.

    Args:
        seed: Integer; None for a random one. The state that follows from it is
            saved and loaded with the weights.
    """

    @property
    def noise_shapes(self) -> dict[str, Any]:
        """The draws of one network: name -> shape, without a batch axis."""
        raise NotImplementedError

    @property
    def shared_noise(self) -> tuple[str, ...]:
        """The names of draws that all layers of a network have in common.

        In `bayesnorm.predict` and in an export, layers that draw the same name and
        shape are given the same draw. By itself each draws its own.
        """
        return ()

    def check_noise(self) -> None:
        """Raises a ValueError if the layer is not ready to draw."""

    def standard_normal(
        self, name: str, batch_size: Tensor, training: bool | None
    ) -> Tensor | MaybeNone:
        """Returns draws `[batch_size, *noise_shapes[name]]`, None for the mean.

        Args:
            name: Key of `noise_shapes`.
            batch_size: Number of examples of the inputs: each has its own draw.
            training: The argument of the layer's `call`.
        """
        mode = _mode.get()
        shape = self.noise_shapes[name]
        if callable(mode):
            return mode(self, name, shape, batch_size)
        if mode == "sample" or (mode == "auto" and training):
            return backend.stateless_normal(
                (batch_size, *shape), self.seed_generator.next()
            )
        return None


def stochastic_layers(model: keras.layers.Layer) -> list[StochasticLayer]:
    """Returns the layers of `model` that draw noise, nested ones too, in order."""
    return [x for x in layers_of(model) if isinstance(x, StochasticLayer)]
