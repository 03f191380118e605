"""Figures of predictions: calibration, entropy, robustness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bayesnorm import metrics
from bayesnorm.arguments import finite_values
from bayesnorm.plots.style import (
    COLORS,
    DASHES,
    GREY,
    MARKERS,
    SKY,
    VERMILION,
    add_legend,
    axes_or_new,
    check_not_empty,
    draw_runs,
    new_figure,
    plot_width,
    style_axes,
)
from bayesnorm.types import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def reliability_diagram(
    probs: ArrayLike, labels: ArrayLike, bins: int = 15, ax: Axes | None = None
) -> Figure:
    """Accuracy against confidence, with the gaps and how many examples there are.

    Args:
        probs: `[n, ..., K]` probabilities.
        labels: `[n, ...]`.
        bins: Number of bins of equal width.
        ax: Axes to draw into. The counts, which have axes of their own, are then left
            out.

    Returns:
        The figure.
    """
    found = metrics.reliability_bins(probs, labels, bins)
    lower = None
    if ax is None:
        figure = new_figure((5, 6))
        ax, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    figure, ax = axes_or_new(ax)
    centre, width = (found.edges[1:] + found.edges[:-1]) / 2, 1 / bins
    full = found.count > 0
    x, right, confidence = centre[full], found.accuracy[full], found.confidence[full]
    ax.bar(x, right, width, color=SKY, edgecolor="white", label="accuracy")
    ax.bar(
        x,
        confidence - right,
        width,
        bottom=right,
        facecolor="none",
        edgecolor=VERMILION,
        hatch="///",
        label="gap to the mean confidence",
    )
    ax.plot([0, 1], [0, 1], color=GREY, dashes=(4, 3), lw=1.2, label="calibrated")
    equal_mass = 100 * metrics.ece_equal_mass(probs, labels)
    ax.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    ax.set_title(
        f"Calibration error {100 * found.calibration_error:.2f} % ({bins} equal "
        f"widths)\n{equal_mass:.2f} % (8 equal masses)",
        fontsize=11,
    )
    ax.legend(framealpha=0.85, edgecolor="none", loc="upper left")
    if lower is None:
        ax.set_xlabel("confidence")
        return figure
    lower.bar(centre, found.count, width, color=GREY, edgecolor="white")
    lower.set(xlabel="confidence", ylabel="examples", yscale="log")
    lower.set_ylim(bottom=0.5)
    style_axes(lower)
    return figure


def calibration_curves(curves: Mapping[str, tuple], ax: Axes | None = None) -> Figure:
    """Accuracy less confidence, bin by bin: 0 is calibrated, below it overconfident.

    Args:
        curves: By method `(confidence, accuracy)`, `[bins]` each, in [0, 1], such as of
            `metrics.equal_mass_bins`.
        ax: Axes to draw into.

    Returns:
        The figure.

    Raises:
        ValueError: If there is nothing to draw, or shapes do not match.
    """
    check_not_empty("curves", curves)
    figure, ax = axes_or_new(ax, (plot_width(6, list(curves)), 4))
    ax.axhline(0, color=GREY, dashes=(4, 3), lw=1.2)
    for i, (name, (confidence, accuracy)) in enumerate(curves.items()):
        confidence = finite_values(f"curves[{name!r}]", confidence)
        accuracy = finite_values(f"curves[{name!r}]", accuracy)
        if confidence.ndim != 1 or confidence.shape != accuracy.shape:
            raise _bad_curve(name, confidence, accuracy)
        gap = 100 * (accuracy - confidence)
        marker = MARKERS[i % len(MARKERS)]
        draw_runs(ax, 100 * confidence, gap[None], i, name, marker=marker, ms=4.5)
    ax.set(
        xlabel="mean confidence of a bin (%)",
        ylabel="accuracy less confidence (points)",
        title="Calibration",
    )
    add_legend(ax)
    return figure


def error_coverage(curves: Mapping[str, tuple], ax: Axes | None = None) -> Figure:
    """Error of the examples that are kept, when the most uncertain ones are rejected.

    Args:
        curves: By method `(uncertainty, errors)`, arrays `[n, ...]` of one shape:
            a score such as the predictive entropy, and 1 where the prediction is wrong.
        ax: Axes to draw into.

    Returns:
        The figure.
    """
    check_not_empty("curves", curves)
    figure, ax = axes_or_new(ax)
    first = 100.0
    for i, (name, (uncertainty, errors)) in enumerate(curves.items()):
        coverage, risk = metrics.error_coverage(uncertainty, errors)
        _steps(
            ax,
            100 * coverage,
            100 * risk,
            i,
            f"{name} (area {100 * risk.mean():.3f} %)",
        )
        first = min(first, 100 * coverage[np.argmax(risk > 0)])
    ax.set(
        xlabel="coverage (% of examples kept)",
        ylabel="error of those kept (%)",
        title="Rejecting uncertain examples",
        # From a little before the first error.
        xlim=(max(0, first - 0.1 * (100 - first)), 100),
    )
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    return figure


def entropy_cdf(
    entropies: Mapping[str, ArrayLike],
    num_classes: int | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Share of examples whose predictive entropy is at most `h`.

    Good: in the domain to the upper left, out of it to the lower right.

    Args:
        entropies: By name (such as "in domain", "out of domain") `[n, ...]`, nats.
        num_classes: Number of classes, to mark the highest entropy `log K`.
        ax: Axes to draw into.

    Returns:
        The figure.
    """
    check_not_empty("entropies", entropies)
    figure, ax = axes_or_new(ax)
    highest = _entropy_limit(entropies, num_classes)
    for i, (name, entropy) in enumerate(entropies.items()):
        h, cdf = metrics.entropy_cdf(entropy)
        _steps(
            ax,
            np.concatenate([[0], h, [highest]]),
            np.concatenate([[0], cdf, [1]]),
            i,
            f"{name} (n = {np.size(entropy):,})",
        )
    ax.set(
        xlabel="predictive entropy (nats)",
        ylabel="share of examples up to it",
        title="Entropy, cumulated",
        xlim=(0, highest),
        ylim=(0, 1.02),
    )
    _mark_uniform(ax, num_classes)
    ax.legend(frameon=False, loc="best")
    return figure


def entropy_histogram(
    entropies: Mapping[str, ArrayLike],
    num_classes: int | None = None,
    bins: int = 40,
    ax: Axes | None = None,
) -> Figure:
    """Densities of the predictive entropy.

    Args:
        entropies: By name `[n, ...]`, nats.
        num_classes: Number of classes, to mark the highest entropy `log K`.
        bins: Number of bins.
        ax: Axes to draw into.

    Returns:
        The figure.
    """
    check_not_empty("entropies", entropies)
    figure, ax = axes_or_new(ax)
    highest = _entropy_limit(entropies, num_classes)
    edges = np.linspace(0, highest, bins + 1)
    for i, (name, entropy) in enumerate(entropies.items()):
        share = np.histogram(entropy, edges)[0] / np.size(entropy)
        color = COLORS[i % len(COLORS)]
        ax.stairs(100 * share, edges, fill=True, color=color, alpha=0.25)
        ax.stairs(
            100 * share,
            edges,
            color=color,
            lw=1.8,
            ls=DASHES[i % len(DASHES)],
            label=f"{name} (n = {np.size(entropy):,})",
        )
    ax.set(
        xlabel="predictive entropy (nats)",
        ylabel="examples (%)",
        title="Entropy",
        xlim=(0, highest),
    )
    _mark_uniform(ax, num_classes)
    ax.legend(frameon=False)
    return figure


def perturbation_curves(
    curves: Mapping[str, tuple], xlabel: str, ax: Axes | None = None
) -> Figure:
    """Accuracy against the size of a perturbation of the inputs.

    Args:
        curves: By method `(levels, accuracy)`: `[k]` sizes of the perturbation and,
            for each, the accuracy in per cent, `[k]` or `[seeds, k]`.
        xlabel: What the levels are, with their unit.
        ax: Axes to draw into.

    Returns:
        The figure: a line is the mean over the seeds, its band spans the lowest to the
        highest seed.

    Raises:
        ValueError: If there is nothing to draw, shapes do not match, or an accuracy is
            not from 0 to 100.
    """
    return _curves_over_seeds(
        curves, xlabel, "accuracy (%)", "Accuracy on perturbed inputs", ax
    )


def coverage_curves(curves: Mapping[str, tuple], ax: Axes | None = None) -> Figure:
    """Error among the examples kept, against their share, of several runs.

    Args:
        curves: By method `(shares, error)`: `[k]` shares of the examples kept and, for
            each, the error among them, both in per cent, `[k]` or `[seeds, k]`.
        ax: Axes to draw into.

    Returns:
        The figure: a line is the mean over the seeds, its band spans the lowest to the
        highest seed. `error_coverage` draws the whole curve of single examples.

    Raises:
        ValueError: If there is nothing to draw, shapes do not match, or an error is
            not from 0 to 100.
    """
    return _curves_over_seeds(
        curves,
        "examples kept (%)",
        "error among them (%)",
        "Rejection by predictive entropy",
        ax,
    )


def _curves_over_seeds(
    curves: Mapping[str, tuple], xlabel: str, ylabel: str, title: str, ax: Axes | None
) -> Figure:
    check_not_empty("curves", curves)
    figure, ax = axes_or_new(ax, (plot_width(6, list(curves)), 4))
    for i, (name, (levels, values)) in enumerate(curves.items()):
        levels = finite_values(f"curves[{name!r}]", levels)
        values = finite_values(f"curves[{name!r}]", values)
        if levels.ndim != 1 or values.ndim not in (1, 2):
            raise _bad_curve(name, levels, values)
        if values.shape[-1] != len(levels):
            raise _bad_curve(name, levels, values)
        if values.min() < 0 or values.max() > 100:
            raise ValueError(
                f"`curves[{name!r}]` needs values in per cent, got "
                f"{values.min():.6g} to {values.max():.6g}."
            )
        order = np.argsort(levels, kind="stable")
        runs = np.atleast_2d(values)[:, order]
        marker = MARKERS[i % len(MARKERS)]
        draw_runs(ax, levels[order], runs, i, name, marker=marker, ms=4.5)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    add_legend(ax)
    return figure


def _bad_curve(name: str, levels: np.ndarray, values: np.ndarray) -> ValueError:
    return ValueError(
        f"`curves[{name!r}]` needs levels [k] and values [k] or [seeds, k], got "
        f"shapes {levels.shape} and {values.shape}."
    )


def _steps(ax: Axes, x: np.ndarray, y: np.ndarray, i: int, label: str) -> None:
    ax.step(
        x,
        y,
        where="post",
        color=COLORS[i % len(COLORS)],
        ls=DASHES[i % len(DASHES)],
        lw=1.8,
        label=label,
    )


def _entropy_limit(
    entropies: Mapping[str, ArrayLike], num_classes: int | None
) -> float:
    highest = max(finite_values(k, v).max() for k, v in entropies.items())
    return 1.02 * max(highest, np.log(num_classes) if num_classes else 1e-3)


def _mark_uniform(ax: Axes, num_classes: int | None) -> None:
    if num_classes:
        ax.axvline(
            np.log(num_classes),
            color=GREY,
            lw=1,
            dashes=(1, 2),
            label=f"log {num_classes}",
        )
