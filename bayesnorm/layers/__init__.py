"""Bayesian normalization layers."""

from bayesnorm.layers.analytic_normalization import AnalyticNormalization
from bayesnorm.layers.gain_posterior import GainPosterior
from bayesnorm.layers.kernels import project_kernels
from bayesnorm.layers.kl_weight import KLWeight, kl_divergence, set_kl_weight
from bayesnorm.layers.monte_carlo_alpha_dropout import MonteCarloAlphaDropout
from bayesnorm.layers.monte_carlo_dropout import MonteCarloDropout
from bayesnorm.layers.monte_carlo_gaussian_dropout import MonteCarloGaussianDropout
from bayesnorm.layers.monte_carlo_gaussian_noise import MonteCarloGaussianNoise
from bayesnorm.layers.noise import StochasticLayer, noise_mode
from bayesnorm.layers.noisy_scale_norm import NoisyScaleNorm
from bayesnorm.layers.posterior import VariationalLayer, posterior_layers
from bayesnorm.layers.scale_norm import ScaleNorm
from bayesnorm.layers.stochastic_batch_norm import StochasticBatchNormalization
from bayesnorm.layers.stochastic_scale_norm import StochasticScaleNorm
from bayesnorm.layers.structured_bayesian_pruning import StructuredBayesianPruning
from bayesnorm.layers.weight_normalization import WeightNormalization

__all__ = [
    "AnalyticNormalization",
    "GainPosterior",
    "KLWeight",
    "MonteCarloAlphaDropout",
    "MonteCarloDropout",
    "MonteCarloGaussianDropout",
    "MonteCarloGaussianNoise",
    "NoisyScaleNorm",
    "ScaleNorm",
    "StochasticBatchNormalization",
    "StochasticLayer",
    "StochasticScaleNorm",
    "StructuredBayesianPruning",
    "VariationalLayer",
    "WeightNormalization",
    "kl_divergence",
    "noise_mode",
    "posterior_layers",
    "project_kernels",
    "set_kl_weight",
]
