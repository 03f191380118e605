"""Normalization of a linear layer by the norm of its filters."""

from __future__ import annotations

import keras

from bayesnorm.layers.kernels import filter_norms
from bayesnorm.layers.linear import NormalizedLinear
from bayesnorm.moments import register, rule_for
from bayesnorm.types import Tensor


@keras.saving.register_keras_serializable("bayesnorm")
class WeightNormalization(NormalizedLinear):
    """Weight normalization of a linear layer: `x_hat = w.x / ||w||`.

    The output is `activation(x_hat + bias)`, x_hat itself where neither is asked for.

    `||w||` is taken per output filter over every other axis of the kernel, so
    that the output does not depend on the scale of w and the gradient is
    orthogonal to it. A scale and bias follow as a layer of their own:

    ```python
    model.add(bayesnorm.WeightNormalization(keras.layers.Conv2D(64, 3)))
    model.add(bayesnorm.StochasticScaleNorm())
    model.add(keras.layers.LeakyReLU(0.01))
    ```

    Args:
        layer: A linear Keras layer (Dense, Conv1D-3D, Conv1D-3DTranspose,
            DepthwiseConv, SeparableConv). Its activation is applied at the end.
        projection: Whether the kernel is projected on `||w|| = 1` per filter
            when it is built and after every step of the optimizer.
        use_bias: Whether to add a bias behind the normalization, `[filters]`, with the
            layer's `bias_initializer`. None: with an activation what the layer says in
            its own `use_bias`; without one not, a scale and bias can follow.
        activation: Function or its name, applied at the end; None for the layer's.

    Input shape:
        The layer's.

    Output shape:
        The layer's.

    Raises:
        ValueError: If the layer is of another type, is quantized or was built with a
            bias, or if there are two activations.

    Reference:
        Salimans & Kingma, 2016, "Weight Normalization", eqs. (2)-(3);
        Shekhovtsov & Flach, 2018, "Stochastic Normalizations as Bayesian
        Learning", section 2.
    """

    def normalized(self, inputs: Tensor) -> Tensor:
        """Returns `w.x / ||w||`."""
        with self.kernel_over(filter_norms(self.layer)):
            return self.layer(inputs)


@register(WeightNormalization)
def _moments(layer, moments):
    with layer.kernel_over(filter_norms(layer.layer)):
        moments = rule_for(layer.layer)(layer.layer, moments)
    return layer.output_moments(moments)
