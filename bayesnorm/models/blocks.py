"""What the networks share: a linear layer with its normalization and scale."""

import keras

from bayesnorm.arguments import check_choice
from bayesnorm.layers import (
    AnalyticNormalization,
    ScaleNorm,
    StochasticScaleNorm,
    WeightNormalization,
    project_kernels,
)

NORMS = (None, "batch", "weight", "analytic")
SCALES = ("plain", "stochastic")

_WRAPPERS = {"weight": WeightNormalization, "analytic": AnalyticNormalization}


def fan_in_uniform(seed=None):
    """Returns an initializer uniform in +-1 / sqrt(fan-in) (SN, section 4)."""
    return keras.initializers.VarianceScaling(
        1.0 / 3.0, mode="fan_in", distribution="uniform", seed=seed
    )


class NormalizedBlocks:
    """Makes `linear layer -> normalization -> scale and bias` blocks.

    Args:
        norm: None (a bias only), `"batch"`, `"weight"` or `"analytic"`.
        scale: `"plain"` or `"stochastic"`.
        projection: Whether kernels are projected on `||w|| = 1`; without a
            normalization there is nothing to project.
        seed: Integer or None; each block takes the next one.
        scale_arguments: Arguments of `StochasticScaleNorm`.

    Raises:
        ValueError: If `norm` or `scale` is not as above.
    """

    def __init__(self, norm, scale, projection=False, seed=None, scale_arguments=None):
        check_choice("norm", norm, NORMS)
        check_choice("scale", scale, SCALES)
        if scale_arguments and scale != "stochastic":
            raise ValueError(
                f"{sorted(scale_arguments)} are arguments of the stochastic scale. "
                f"Received: scale={scale!r}; take scale='stochastic' or leave them."
            )
        self.norm = norm
        self.scale = scale
        self.projection = projection
        self.seed = seed
        self.scale_arguments = scale_arguments or {}

    def _next_seed(self):
        if self.seed is None:
            return None
        self.seed += 1
        return self.seed

    def __call__(self, x, layer_type, *args, name, **kwargs):
        """Applies a block.

        Args:
            x: Symbolic input.
            layer_type: `keras.layers.Dense`, `Conv2D` or another linear layer.
            *args: Arguments of the layer.
            name: Name of the linear layer; the others' begin with it.
            **kwargs: Arguments of the layer.

        Returns:
            The symbolic output, before any activation.
        """
        stochastic = self.scale == "stochastic"
        layer = layer_type(
            *args,
            use_bias=self.norm is None and not stochastic,
            kernel_initializer=fan_in_uniform(self._next_seed()),
            name=name,
            **kwargs,
        )
        if self.norm in _WRAPPERS:
            wrapper = _WRAPPERS[self.norm]
            x = wrapper(layer, projection=self.projection, name=f"{name}_norm")(x)
        else:
            x = layer(x)
        if self.norm == "batch":
            if self.projection:
                project_kernels(layer)
            x = keras.layers.BatchNormalization(
                center=not stochastic, scale=not stochastic, name=f"{name}_norm"
            )(x)
        if stochastic:
            scale = StochasticScaleNorm(
                seed=self._next_seed(), name=f"{name}_scale", **self.scale_arguments
            )
            return scale(x)
        if self.norm in _WRAPPERS:
            return ScaleNorm(name=f"{name}_scale")(x)
        return x
