"""Bayesian normalization layers for Keras 3: training, uncertainty, export."""

from bayesnorm import layers, models, moments
from bayesnorm._version import __version__
from bayesnorm.layers import (
    AnalyticNormalization,
    KLWeight,
    ScaleNorm,
    StochasticScaleNorm,
    WeightNormalization,
    kl_divergence,
    noise_mode,
    set_kl_weight,
)
from bayesnorm.tools.projection import project
from bayesnorm.tools.statistics import channel_statistics

__all__ = [
    "AnalyticNormalization",
    "KLWeight",
    "ScaleNorm",
    "StochasticScaleNorm",
    "WeightNormalization",
    "__version__",
    "channel_statistics",
    "kl_divergence",
    "layers",
    "models",
    "moments",
    "noise_mode",
    "project",
    "set_kl_weight",
]
