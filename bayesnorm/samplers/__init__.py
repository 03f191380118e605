"""Samplers of the posterior, as optimizers of Keras, and what goes with them."""

from bayesnorm.samplers.atmc import ATMC
from bayesnorm.samplers.convergence import effective_sample_size, r_hat
from bayesnorm.samplers.cyclical_cosine import CyclicalCosine
from bayesnorm.samplers.diagnostics import SamplerDiagnostics
from bayesnorm.samplers.posterior_samples import PosteriorSamples
from bayesnorm.samplers.sghmc import SGHMC
from bayesnorm.samplers.sgld import SGLD
from bayesnorm.samplers.sgnht import SGNHT

__all__ = [
    "ATMC",
    "SGHMC",
    "SGLD",
    "SGNHT",
    "CyclicalCosine",
    "PosteriorSamples",
    "SamplerDiagnostics",
    "effective_sample_size",
    "r_hat",
]
