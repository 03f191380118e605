"""What the networks share: a linear layer with its normalization and scale."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import keras

from bayesnorm.arguments import check_both_or_neither, check_choice, check_number
from bayesnorm.layers import (
    AnalyticNormalization,
    MonteCarloDropout,
    NoisyScaleNorm,
    ScaleNorm,
    StochasticBatchNormalization,
    StochasticScaleNorm,
    StructuredBayesianPruning,
    WeightNormalization,
    project_kernels,
)
from bayesnorm.priors import GroupLaplace, Normal, UnitLength
from bayesnorm.types import ArrayLike, Norm, Scale, Shape, Tensor

NORMS = (None, "batch", "stochastic_batch", "weight", "analytic")
SCALES = ("plain", "noisy", "stochastic", "pruning")
ACTIVATIONS = ("relu", "selu")

_WRAPPERS = {"weight": WeightNormalization, "analytic": AnalyticNormalization}


def image_inputs(
    input_shape: Shape, mean: ArrayLike | None = None, variance: ArrayLike | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the Input of images, and behind it the images standardized, if asked."""
    check_both_or_neither(input_mean=mean, input_variance=variance)
    inputs = x = keras.Input(input_shape, name="images")
    if mean is not None:
        x = keras.layers.Normalization(
            mean=mean, variance=variance, name="standardize"
        )(x)
    return inputs, x


def scaled_widths(widths: Sequence[int], factor: float) -> list[int]:
    """Returns the numbers of filters times a factor, 1 at least."""
    check_number("width", factor, positive=True)
    return [max(1, round(width * factor)) for width in widths]


def fan_in_uniform(seed: int | None = None) -> keras.initializers.Initializer:
    """Returns an initializer uniform in +-1 / sqrt(fan-in) (SN, section 4)."""
    return keras.initializers.VarianceScaling(
        1.0 / 3.0, mode="fan_in", distribution="uniform", seed=seed
    )


class Regularizers(typing.NamedTuple):
    """Regularizers of the weights of a network, each None for none.

    `kernel` is of the blocks' kernels, `scale` of the scales that have no posterior,
    `other` of biases and of the last layer.
    """

    kernel: keras.regularizers.Regularizer | None = None
    scale: keras.regularizers.Regularizer | None = None
    other: keras.regularizers.Regularizer | None = None


def weight_priors(norm: Norm, num_examples: int | None, stddev: float) -> Regularizers:
    """Returns the `Regularizers` that are the priors of a network's weights.

    - no normalization: `Normal` of deviation `stddev`, of all weights;
    - `"weight"` and `"analytic"`: of kernels `UnitLength`, for `||w||` is divided out,
      of scales `GroupLaplace` of scale 5, each by itself (those with a posterior have
      their own prior), of biases and the last layer `Normal`.

    Args:
        norm: None, `"weight"` or `"analytic"`. Of the others the output depends on the
            other examples of a batch.
        num_examples: Integer N, the number of training examples; None for no priors.
        stddev: Standard deviation of the normal prior.

    Raises:
        ValueError: If there is no posterior with this normalization, or a number is out
            of range.
    """
    if num_examples is None:
        return Regularizers()
    normal = Normal(num_examples, stddev)
    if norm is None:
        return Regularizers(kernel=normal, scale=normal, other=normal)
    if norm not in _WRAPPERS:
        raise ValueError(
            "The priors are of weights without a normalization (norm=None), or of "
            f"scales and directions, with norm in {tuple(_WRAPPERS)}. With another "
            "give no `num_examples`: an example's loss then depends on the others. "
            f"Received: norm={norm!r}, num_examples={num_examples!r}"
        )
    return Regularizers(
        kernel=UnitLength(num_examples),
        scale=GroupLaplace(num_examples),
        other=normal,
    )


class NormalizedBlocks:
    """Makes `linear layer -> normalization -> scale and bias` blocks.

    Args:
        norm: None (a bias only), `"batch"`, `"stochastic_batch"`, `"weight"` or
            `"analytic"`.
        scale: `"plain"`, `"noisy"`, `"stochastic"`, or `"pruning"`: a
            `StructuredBayesianPruning` before the bias (after it, where a `ScaleNorm`
            has the bias).
        projection: Whether kernels are projected on `||w|| = 1`; without a
            normalization there is nothing to project.
        seed: Integer or None. Networks of one seed start from the same weights,
            whatever their noise.
        scale_arguments: Arguments of `StochasticScaleNorm`,
            `StructuredBayesianPruning` or `NoisyScaleNorm`; the deviations of the
            latter may be lists, an entry for each block.
        activation: `"relu"` or `"selu"`.
        kernel_initializer: Function of a seed that returns the initializer of kernels.
        regularizers: `Regularizers`; None for none.

    Raises:
        ValueError: If `norm`, `scale` or `activation` is not as above, or arguments are
            missing.
    """

    def __init__(
        self,
        norm: Norm,
        scale: Scale,
        projection: bool = False,
        seed: int | None = None,
        scale_arguments: Mapping[str, Any] | None = None,
        activation: Literal["relu", "selu"] = "relu",
        kernel_initializer: Callable[
            ..., keras.initializers.Initializer
        ] = fan_in_uniform,
        regularizers: Regularizers | None = None,
    ) -> None:
        check_choice("norm", norm, NORMS)
        check_choice("scale", scale, SCALES)
        check_choice("activation", activation, ACTIVATIONS)
        if scale_arguments and scale == "plain":
            raise ValueError(
                f"{sorted(scale_arguments)} are arguments of the stochastic, noisy or "
                "pruning scale. Received: scale='plain'; take one of those or leave "
                "them."
            )
        missing = {"scale_stddev", "shift_stddev"} - set(scale_arguments or ())
        if scale == "noisy" and missing:
            raise ValueError(
                f"scale='noisy' needs {sorted(missing)}: a number, or a list with one "
                "for each block (`bayesnorm.batch_noise` measures them)."
            )
        self.norm = norm
        self.scale = scale
        self.projection = projection
        self.scale_arguments = scale_arguments or {}
        self._activation = activation
        self._kernel_initializer = kernel_initializer
        self._regularizers = regularizers or Regularizers()
        self._weight_seeds: Iterator[int | None] = itertools.repeat(None)
        self._noise_seeds: Iterator[int | None] = itertools.repeat(None)
        if seed is not None:
            self._weight_seeds = itertools.count(seed + 1)
            # Of 32 bits, as noise takes them, and far from those of the weights.
            self._noise_seeds = (n ^ 2**31 for n in itertools.count(seed + 1))
        self._blocks = 0

    def _batch_norm(self, **kwargs: Any) -> keras.layers.Layer:
        if self.norm == "batch":
            return keras.layers.BatchNormalization(**kwargs)
        return StochasticBatchNormalization(seed=next(self._noise_seeds), **kwargs)

    def _stochastic_scale(self, name: str, initializer: Any) -> keras.layers.Layer:
        arguments = {
            "seed": next(self._noise_seeds),
            "name": name,
            "scale_initializer": initializer,
            "bias_regularizer": self._regularizers.other,
            **self.scale_arguments,
        }
        if self.scale == "stochastic":
            return StochasticScaleNorm(**arguments)
        arguments.setdefault("scale_regularizer", self._regularizers.scale)
        block, self._blocks = self._blocks, self._blocks + 1
        for key in ("scale_stddev", "shift_stddev"):
            if isinstance(arguments[key], list | tuple):
                if block >= len(arguments[key]):
                    raise ValueError(
                        f"`{key}` needs an entry for each block. Received: "
                        f"{len(arguments[key])} entries, and block {block} (counted "
                        f"from 0) is {name!r}"
                    )
                arguments[key] = arguments[key][block]
        return NoisyScaleNorm(**arguments)

    def prune(self, x: Tensor, name: str, use_bias: bool = False) -> Tensor:
        """Applies a `StructuredBayesianPruning`, where the scale is `"pruning"`.

        A block has one of its own. This one is for what no linear layer makes, such as
        the inputs, or a map's positions and channels where they are flattened.
        """
        if self.scale != "pruning":
            return x
        return StructuredBayesianPruning(
            use_bias=use_bias,
            seed=next(self._noise_seeds),
            name=f"{name}_pruning",
            **self.scale_arguments,
        )(x)

    def activation(self, x: Tensor, dropout: float, name: str) -> Tensor:
        """Applies the activation and, at a rate above 0, Monte Carlo dropout."""
        if self._activation == "relu":
            x = keras.layers.ReLU(name=f"{name}_relu")(x)
        else:
            x = keras.layers.Activation("selu", name=f"{name}_selu")(x)
        if not dropout:
            return x
        seed = next(self._noise_seeds)
        return MonteCarloDropout(dropout, seed=seed, name=f"{name}_drop")(x)

    def classifier(self, x: Tensor, num_classes: int) -> Tensor:
        """Applies the last layer, which is dense and has no normalization."""
        return keras.layers.Dense(
            num_classes,
            kernel_initializer=self._kernel_initializer(next(self._weight_seeds)),
            kernel_regularizer=self._regularizers.other,
            bias_regularizer=self._regularizers.other,
            name="logits",
        )(x)

    def model(self, inputs: Tensor, outputs: Tensor, name: str) -> keras.Model:
        """Returns the finished network, all of whose deviations were used.

        Args:
            inputs: Symbolic input.
            outputs: Symbolic output.
            name: Name of the network.

        Raises:
            ValueError: If a list of deviations has more entries than there are blocks.
        """
        for key, values in self.scale_arguments.items():
            if isinstance(values, list | tuple) and len(values) > self._blocks:
                raise ValueError(
                    f"`{key}` needs an entry for each block. Received: {len(values)} "
                    f"entries for the {self._blocks} blocks of {name!r}: are they of "
                    "another network?"
                )
        return keras.Model(inputs, outputs, name=name)

    def __call__(
        self,
        x: Tensor,
        layer_type: type,
        *args: Any,
        name: str,
        prunable: bool = True,
        scale_initializer: Any = "ones",
        **kwargs: Any,
    ) -> Tensor:
        """Applies a block.

        Args:
            x: Symbolic input.
            layer_type: `keras.layers.Dense`, `Conv2D` or another linear layer.
            *args: Arguments of the layer.
            name: Name of the linear layer; the others' begin with it.
            prunable: Whether the outputs may be pruned: not those whose number is
                fixed by others, as of a residual sum, or of the classes.
            scale_initializer: Initializer of the scale, whichever layer has it.
            **kwargs: Arguments of the layer.

        Returns:
            The symbolic output, before any activation.
        """
        stochastic = self.scale in ("noisy", "stochastic")
        pruning = self.scale == "pruning" and prunable
        layer = layer_type(
            *args,
            use_bias=self.norm is None and not stochastic and not pruning,
            kernel_initializer=self._kernel_initializer(next(self._weight_seeds)),
            kernel_regularizer=self._regularizers.kernel,
            bias_regularizer=self._regularizers.other,
            name=name,
            **kwargs,
        )
        if self.norm in _WRAPPERS:
            wrapper = _WRAPPERS[self.norm]
            x = wrapper(layer, projection=self.projection, name=f"{name}_norm")(x)
        else:
            x = layer(x)
        if self.norm in ("batch", "stochastic_batch"):
            if self.projection:
                project_kernels(layer)
            x = self._batch_norm(
                center=not stochastic and not pruning,
                scale=not stochastic,
                gamma_initializer=scale_initializer,
                name=f"{name}_norm",
            )(x)
        if stochastic:
            return self._stochastic_scale(f"{name}_scale", scale_initializer)(x)
        scaled = self.norm in _WRAPPERS
        if scaled:
            x = ScaleNorm(
                scale_initializer=scale_initializer,
                bias_regularizer=self._regularizers.other,
                scale_regularizer=self._regularizers.scale,
                name=f"{name}_scale",
            )(x)
        # Behind a batch normalization, not before: one that normalizes by its batch
        # takes theta's mean out again, and its averages would have theta's variance,
        # which evaluation has not.
        return self.prune(x, name, use_bias=not scaled) if pruning else x


def blocks_with_priors(
    norm: Norm,
    scale: Scale,
    projection: bool,
    seed: int | None,
    scale_arguments: Mapping[str, Any],
    num_examples: int | None,
    prior_stddev: float,
    **arguments: Any,
) -> NormalizedBlocks:
    """Returns `NormalizedBlocks` whose weights have the priors of `weight_priors`.

    Args:
        norm: As of `NormalizedBlocks`.
        scale: As of `NormalizedBlocks`.
        projection: As of `NormalizedBlocks`.
        seed: As of `NormalizedBlocks`.
        scale_arguments: Dict of arguments of the scale, which gets N where a posterior
            weighs its KL by 1 / N.
        num_examples: As of `weight_priors`.
        prior_stddev: As of its `stddev`.
        **arguments: Others of `NormalizedBlocks`.
    """
    if num_examples is not None and scale in ("stochastic", "pruning"):
        scale_arguments = {"num_examples": num_examples, **scale_arguments}
    return NormalizedBlocks(
        norm,
        scale,
        projection,
        seed,
        scale_arguments,
        regularizers=weight_priors(norm, num_examples, prior_stddev),
        **arguments,
    )
