"""Colours, lines, axes and legends that all figures share."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
)
GREY = "#6B6B6B"
COLORS = (BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE)
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 2, 1, 2)))
MARKERS = "osD^v"
DPI = 120
# More entries than this hide curves, wherever a legend lies within the axes.
_LEGEND_WITHIN = 6


def line_style(i: int) -> dict[str, Any]:
    """Colour and dashes of the i-th line, alike for no two of the first 24."""
    return {
        "color": COLORS[i % len(COLORS)],
        "ls": DASHES[(i + i // 12) % len(DASHES)],
    }


def marker_style(i: int, hollow: bool = False) -> dict[str, Any]:
    """Colour and marker of the i-th series, alike for no two of the first 30."""
    color = COLORS[i % len(COLORS)]
    return {
        "color": color,
        "marker": MARKERS[i % len(MARKERS)],
        "mfc": "white" if hollow else color,
        "ms": 5,
    }


def draw_runs(
    ax: Axes, x: np.ndarray, runs: np.ndarray, i: int, label: str, **kwargs: Any
) -> None:
    """Draws the mean of `[seeds, k]` over the seeds, in a band from least to greatest.

    Numbers may be NaN, for missing: a mean is over the seeds that have a number, and
    the line joins the points on both sides of a gap. Without any, nothing is drawn.
    """
    known = np.isfinite(runs).any(0)
    if not known.any():
        return
    x, runs = x[known], runs[:, known]
    style = line_style(i)
    ax.plot(x, np.nanmean(runs, 0), lw=1.8, label=label, **style, **kwargs)
    if len(runs) > 1:
        low, high = np.nanmin(runs, 0), np.nanmax(runs, 0)
        ax.fill_between(x, low, high, color=style["color"], alpha=0.18, lw=0)


def legend_beside(ax: Axes, handles: Sequence[Any]) -> None:
    """Puts a legend to the right of axes, where no curve passes."""
    ax.legend(
        handles=handles,
        frameon=False,
        fontsize=9,
        handlelength=3,
        ncols=math.ceil(len(handles) / 18),
        loc="upper left",
        bbox_to_anchor=(1.01, 1.02),
        borderaxespad=0,
    )


def legend_width(names: Sequence[str]) -> float:
    """Inches that `legend_beside` needs for names."""
    columns = math.ceil(len(names) / 18)
    return columns * (0.8 + 0.075 * max(len(str(name)) for name in names))


def add_legend(ax: Axes) -> None:
    """Puts a short legend into the axes, and a long one beside them."""
    handles = ax.get_legend_handles_labels()[0]
    if len(handles) > _LEGEND_WITHIN:
        legend_beside(ax, handles)
    else:
        ax.legend(frameon=False, handlelength=3)


def plot_width(width: float, names: Sequence[str]) -> float:
    """Width of a figure of axes `width` inches wide with `add_legend`."""
    return width + (legend_width(names) if len(names) > _LEGEND_WITHIN else 0)


def new_figure(size: tuple[float, float]) -> Figure:
    """A figure of `(width, height)` inches with a canvas of its own."""
    # Only a figure is worth Matplotlib's import, not the package.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def axes_or_new(
    ax: Axes | None, size: tuple[float, float] = (6, 4)
) -> tuple[Any, Axes]:
    """The figure and axes to draw into, new ones for None."""
    if ax is None:
        ax = new_figure(size).subplots()
    style_axes(ax)
    return ax.figure, ax


def style_axes(ax: Axes) -> None:
    """Gives axes the grid and the two spines of all figures."""
    ax.grid(color="#DDDDDD", lw=0.7)
    ax.set_axisbelow(True)
    despine(ax)


def despine(ax: Axes) -> None:
    """Removes the spines at the top and the right."""
    ax.spines[["top", "right"]].set_visible(False)


def slant_names(ax: Axes, names: Sequence[str], columns: int = 1) -> None:
    """Slants names at the foot of axes where they would run into each other."""
    figure: Any = ax.figure
    longest = max(len(line) for name in names for line in str(name).split("\n"))
    if longest * len(names) * columns > 9 * figure.get_figwidth():
        ax.tick_params(axis="x", rotation=30)
        for label in ax.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


def check_not_empty(name: str, values: Sized) -> None:
    """Raises a ValueError if nothing is to be drawn."""
    if not values:
        raise ValueError(f"`{name}` is empty: give at least one entry by name.")
