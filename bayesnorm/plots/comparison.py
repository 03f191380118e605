"""Figures that compare methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bayesnorm.arguments import finite_values
from bayesnorm.plots.style import COLORS, axes_or_new, check_not_empty, slant_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def bar_comparison(
    values: Mapping[str, Sequence[float]],
    label: str,
    title: str = "",
    ax: Axes | None = None,
) -> Figure:
    """Methods side by side: the mean over runs, its spread, and each run as a point.

    Args:
        values: By method, in order, one number a run.
        label: What the numbers are, with their unit, such as "test NLL (nats)".
        title: Title of the figure.
        ax: Axes to draw into.

    Returns:
        The figure; error bars span one standard deviation of the runs (`n - 1`) each
        way, and are absent with a single run.
    """
    check_not_empty("values", values)
    runs = {k: finite_values(f"values[{k!r}]", v).ravel() for k, v in values.items()}
    figure, ax = axes_or_new(ax, (max(4.5, 1.5 + 0.95 * len(runs)), 4))
    for i, run in enumerate(runs.values()):
        mean = run.mean()
        ax.bar(i, mean, 0.62, color=COLORS[i % len(COLORS)], alpha=0.8)
        top = max(mean, run.max())
        if len(run) > 1:
            stddev = run.std(ddof=1)
            ax.errorbar(i, mean, stddev, color="black", lw=1.4, capsize=4)
            scatter = np.linspace(-0.16, 0.16, len(run))
            ax.plot(i + scatter, run, "o", color="white", mec="black", ms=4, mew=0.8)
            top = max(top, mean + stddev)
        ax.annotate(
            f"{mean:.3g}",
            (i, max(top, 0)),
            (0, 3),
            textcoords="offset points",
            ha="center",
        )
    ax.set_xticks(np.arange(len(runs)), list(runs))
    slant_names(ax, list(runs))
    ax.axhline(0, color="black", lw=0.8)
    ax.margins(y=0.12)
    ax.grid(axis="x", visible=False)
    counts = {len(run) for run in runs.values()}
    if counts != {1}:
        many = "/".join(str(c) for c in sorted(counts))
        label += f"\nmean and one std. dev. of {many} runs"
    ax.set(ylabel=label, title=title)
    return figure
