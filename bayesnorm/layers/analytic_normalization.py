"""Normalization of a linear layer by statistics computed from the network."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

from bayesnorm.arguments import check_both_or_neither, check_number
from bayesnorm.graph.internals import is_symbolic
from bayesnorm.layers.axes import add_along
from bayesnorm.layers.linear import NormalizedLinear
from bayesnorm.moments import (
    Moments,
    check_upstream,
    pooled_upstream_moments,
    register,
    rule_for,
)
from bayesnorm.types import ArrayLike, Tensor

_TINY = 1e-30


@keras.saving.register_keras_serializable("bayesnorm")
class AnalyticNormalization(NormalizedLinear):
    """Analytic normalization of a linear layer: `x_hat = (w.x - mean) / stddev`.

    The output is `activation(x_hat + bias)`, x_hat itself where neither is asked for.

    `mean` and `stddev` are those of `w.x` over the training set, per filter. They
    are computed, not measured: means and variances per channel are propagated
    from the data through the layers before this one (`bayesnorm.moments`),
    depend on all their weights, and gradients flow through them. They do not
    depend on the batch, nor does their cost.

    The layer reads the graph before it, back to the last normalization or to the
    model's Input. An Input counts as standardized (mean 0 and variance 1 per
    channel): put an adapted `keras.layers.Normalization` behind it. From inside a
    nested model, that model's own Input is where the view ends. A layer re-used
    at several places normalizes by the pooled moments of its inputs. Where there
    is no graph (a subclassed model, an eager call) give the moments of the
    layer's input.

    Args:
        layer: A linear Keras layer (Dense, Conv1D-3D, Conv1D-3DTranspose,
            DepthwiseConv, SeparableConv). Its activation is applied at the end.
        projection: Whether the kernel is projected on `||w|| = 1` per filter
            when it is built and after every step of the optimizer.
        input_mean: Number or vector over the channels, the mean of the layer's
            input over the data set; None to read it off the graph.
        input_variance: The same for the variance.
        epsilon: Number added to the variance of the input, so that the output
            stays independent of the scale of w.
        use_bias: Whether to add a bias behind the normalization, `[filters]`, with the
            layer's `bias_initializer`. None: with an activation what the layer says in
            its own `use_bias`; without one not, a scale and bias can follow.
        activation: Function or its name, applied at the end; None for the layer's.

    Input shape:
        The layer's.

    Output shape:
        The layer's.

    Raises:
        ValueError: If the layer is not linear, is quantized or was built with a bias,
            if there are two activations, or if the graph before it cannot be seen or
            holds a layer without a rule (`bayesnorm.moments.register`).

    Reference:
        Shekhovtsov & Flach, 2018, "Stochastic Normalizations as Bayesian
        Learning", section 1.3, eq. (2).
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        projection: bool = False,
        input_mean: ArrayLike | None = None,
        input_variance: ArrayLike | None = None,
        epsilon: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, projection=projection, **kwargs)
        check_both_or_neither(input_mean=input_mean, input_variance=input_variance)
        if input_mean is not None and not (
            np.isfinite(np.asarray(input_mean)).all()
            and np.isfinite(np.asarray(input_variance)).all()
            and np.min(np.asarray(input_variance)) >= 0
        ):
            raise ValueError(
                "`input_mean` and `input_variance` must be finite, the variance not "
                f"negative. Received: input_mean={input_mean!r}, "
                f"input_variance={input_variance!r}"
            )
        check_number("epsilon", epsilon)
        self.input_mean = _as_list(input_mean)
        self.input_variance = _as_list(input_variance)
        self.epsilon = epsilon
        # Not the layer's inbound nodes: a model cut out of another one adds nodes of
        # its own to these, behind an Input that stands for a hidden activation.
        self._sources = []

    def __call__(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Calls the layer; a symbolic call checks and notes the graph before it."""
        if self.input_mean is not None or not is_symbolic(inputs):
            return super().__call__(inputs, *args, **kwargs)
        try:
            check_upstream(inputs)
        except ValueError as error:
            error.add_note("A Sequential keeps what it could not add: pop() it first.")
            raise
        outputs = super().__call__(inputs, *args, **kwargs)
        self._sources.append(inputs)
        return outputs

    def statistics(self, input_shape: Any) -> tuple[Tensor, Tensor]:
        """Returns mean and stddev of `w.x` over the training set, `[filters]`.

        Args:
            input_shape: Shape of the layer's input, the batch first.
        """
        moments = self._input_moments(input_shape)
        moments = moments.replace(variance=moments.variance + self.epsilon)
        outputs = rule_for(self.layer)(self.layer, moments)
        # From 0, where a filter is 0: its output is then 0, not NaN.
        return outputs.mean, ops.sqrt(ops.maximum(outputs.variance, _TINY))

    def _input_moments(self, input_shape):
        if self.input_mean is not None:
            shape, axis = (None, *input_shape[1:]), self.channel_axis
            mean, variance = (
                self._per_channel(name, shape[axis])
                for name in ("input_mean", "input_variance")
            )
            return Moments(mean, variance, shape, axis=axis)
        if not self._sources:
            raise ValueError(
                f"AnalyticNormalization {self.name!r} cannot see the layers before "
                "it: it was called outside of a Functional or Sequential graph "
                "(in a subclassed model, or eagerly). Give it the mean and "
                "variance of its input, per channel, as input_mean= and "
                "input_variance=."
            )
        return pooled_upstream_moments(self._sources)

    def _per_channel(self, name, channels):
        value = np.asarray(getattr(self, name), "float32")
        if value.size not in (1, channels):
            raise ValueError(
                f"`{name}` of layer {self.name!r} must be a number or a vector over "
                f"the {channels} channels of its input. Received: {value.tolist()}"
            )
        return ops.convert_to_tensor(np.broadcast_to(value, (channels,)))

    def normalized(self, inputs: Tensor) -> Tensor:
        """Returns `(w.x - mean) / stddev`."""
        mean, stddev = self.statistics(inputs.shape)
        with self.kernel_over(stddev):
            outputs = self.layer(inputs)
        axis = self.channel_axis % len(outputs.shape)
        return add_along(outputs, -mean / stddev, axis)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "input_mean": self.input_mean,
            "input_variance": self.input_variance,
            "epsilon": self.epsilon,
        }


def _as_list(value):
    return None if value is None else np.asarray(value, "float64").tolist()


@register(AnalyticNormalization, needs_inputs=False)
def _moments(layer, moments):
    if moments.stationary:
        shape = layer.compute_output_shape(moments.shape)
        standardized = Moments.standardized(shape, axis=layer.channel_axis)
        return layer.output_moments(standardized)
    mean, stddev = layer.statistics(moments.shape)
    with layer.kernel_over(stddev):
        outputs = rule_for(layer.layer)(layer.layer, moments)
    shift = outputs.along(mean / stddev, layer.channel_axis)
    outputs = dataclasses.replace(outputs, mean=outputs.mean - shift)
    return layer.output_moments(outputs)
