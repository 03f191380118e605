"""Bayesian normalization layers for Keras 3: training, uncertainty, export."""

from bayesnorm import (
    conformal,
    datasets,
    layers,
    metrics,
    models,
    moments,
    plots,
    priors,
    pruning,
    samplers,
)
from bayesnorm._version import __version__
from bayesnorm.conformal import ConformalIntervals, ConformalSets
from bayesnorm.layers import (
    AnalyticNormalization,
    GainPosterior,
    KLWeight,
    MonteCarloAlphaDropout,
    MonteCarloDropout,
    MonteCarloGaussianDropout,
    MonteCarloGaussianNoise,
    NoisyScaleNorm,
    ScaleNorm,
    StochasticBatchNormalization,
    StochasticLayer,
    StochasticScaleNorm,
    StructuredBayesianPruning,
    VariationalLayer,
    WeightNormalization,
    kl_divergence,
    noise_mode,
    set_kl_weight,
)
from bayesnorm.measurement.batch_noise import batch_noise
from bayesnorm.measurement.calibrate import calibrate
from bayesnorm.measurement.channel_statistics import channel_statistics
from bayesnorm.prediction.draws import draw_noise
from bayesnorm.prediction.fit_stddev import fit_stddev
from bayesnorm.prediction.perturbation import gaussian_noise, gradient_sign
from bayesnorm.prediction.predict import predict
from bayesnorm.prediction.prediction import Prediction
from bayesnorm.prediction.samples_needed import SamplesNeeded, samples_needed
from bayesnorm.prediction.sampling import sampling_model
from bayesnorm.prediction.weight_sets import WeightSets
from bayesnorm.pruning import prune
from bayesnorm.serving.export import export
from bayesnorm.serving.interchange import export_litert, export_onnx
from bayesnorm.surgery.initialization import data_dependent_init
from bayesnorm.surgery.projection import project
from bayesnorm.surgery.to_posterior import to_posterior
from bayesnorm.surgery.to_stochastic import to_stochastic
from bayesnorm.surgery.weights import copy_weights, start_pruning

__all__ = [
    "AnalyticNormalization",
    "ConformalIntervals",
    "ConformalSets",
    "GainPosterior",
    "KLWeight",
    "MonteCarloAlphaDropout",
    "MonteCarloDropout",
    "MonteCarloGaussianDropout",
    "MonteCarloGaussianNoise",
    "NoisyScaleNorm",
    "Prediction",
    "SamplesNeeded",
    "ScaleNorm",
    "StochasticBatchNormalization",
    "StochasticLayer",
    "StochasticScaleNorm",
    "StructuredBayesianPruning",
    "VariationalLayer",
    "WeightNormalization",
    "WeightSets",
    "__version__",
    "batch_noise",
    "calibrate",
    "channel_statistics",
    "conformal",
    "copy_weights",
    "data_dependent_init",
    "datasets",
    "draw_noise",
    "export",
    "export_litert",
    "export_onnx",
    "fit_stddev",
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
    "priors",
    "project",
    "prune",
    "pruning",
    "samplers",
    "samples_needed",
    "sampling_model",
    "set_kl_weight",
    "start_pruning",
    "to_posterior",
    "to_stochastic",
]
