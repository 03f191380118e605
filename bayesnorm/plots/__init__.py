"""Figures of training, calibration and uncertainty.

Every function takes arrays, draws into `ax` (or makes a figure of its own) and returns
the `matplotlib.figure.Figure`. The figures carry their own Agg canvas: there is no
global state, no display is needed, and `figure.savefig(path)` writes them.

Colours are the set of Okabe & Ito (2008), which readers with colour-blindness can tell
apart; lines also differ in their dashes and markers.
"""

from bayesnorm.plots.calibration import (
    calibration_curves,
    coverage_curves,
    entropy_cdf,
    entropy_histogram,
    error_coverage,
    perturbation_curves,
    reliability_diagram,
)
from bayesnorm.plots.comparison import bar_comparison
from bayesnorm.plots.images import example_grid, segmentation_grid
from bayesnorm.plots.layers import (
    batch_noise,
    batch_statistics,
    channel_statistics,
    kept_channels,
    layer_noise,
    scale_uncertainty,
    signal_to_noise,
)
from bayesnorm.plots.samples import samples_needed
from bayesnorm.plots.training import run_curves, training_curves

__all__ = [
    "bar_comparison",
    "batch_noise",
    "batch_statistics",
    "calibration_curves",
    "channel_statistics",
    "coverage_curves",
    "entropy_cdf",
    "entropy_histogram",
    "error_coverage",
    "example_grid",
    "kept_channels",
    "layer_noise",
    "perturbation_curves",
    "reliability_diagram",
    "run_curves",
    "samples_needed",
    "scale_uncertainty",
    "segmentation_grid",
    "signal_to_noise",
    "training_curves",
]
