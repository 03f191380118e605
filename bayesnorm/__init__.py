"""Bayesian normalization layers for Keras 3: training, uncertainty, export."""

from bayesnorm import datasets, layers, metrics, models, moments, plots
from bayesnorm._version import __version__
from bayesnorm.layers import (
    AnalyticNormalization,
    KLWeight,
    MonteCarloDropout,
    NoisyScaleNorm,
    ScaleNorm,
    StochasticBatchNormalization,
    StochasticLayer,
    StochasticScaleNorm,
    VariationalLayer,
    WeightNormalization,
    kl_divergence,
    noise_mode,
    set_kl_weight,
)
from bayesnorm.tools.batch_noise import batch_noise
from bayesnorm.tools.calibrate import calibrate
from bayesnorm.tools.convert import to_stochastic
from bayesnorm.tools.export import export
from bayesnorm.tools.initialization import data_dependent_init
from bayesnorm.tools.perturbation import gaussian_noise, gradient_sign
from bayesnorm.tools.predict import predict
from bayesnorm.tools.prediction import Prediction
from bayesnorm.tools.projection import project
from bayesnorm.tools.sampling import sampling_model
from bayesnorm.tools.statistics import channel_statistics

__all__ = [
    "AnalyticNormalization",
    "KLWeight",
    "MonteCarloDropout",
    "NoisyScaleNorm",
    "Prediction",
    "ScaleNorm",
    "StochasticBatchNormalization",
    "StochasticLayer",
    "StochasticScaleNorm",
    "VariationalLayer",
    "WeightNormalization",
    "__version__",
    "batch_noise",
    "calibrate",
    "channel_statistics",
    "data_dependent_init",
    "datasets",
    "export",
    "gaussian_noise",
    "gradient_sign",
    "kl_divergence",
    "layers",
    "metrics",
    "models",
    "moments",
    "noise_mode",
    "plots",
    "predict",
    "project",
    "sampling_model",
    "set_kl_weight",
    "to_stochastic",
]
