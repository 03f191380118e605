"""Figures of how many samples a prediction needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bayesnorm.plots.style import BLUE, GREY, VERMILION, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def samples_needed(
    needed: Any, unit: str | None = None, figure: Figure | None = None
) -> Figure:
    """What averages over more samples would buy.

    Args:
        needed: What `bayesnorm.samples_needed` returned.
        unit: That of the deviation; None for nats, and none of a regression.
        figure: Figure to draw into.

    Returns:
        The figure: the share of examples of another class than that of infinitely many
        samples (not for a regression) and the error of the entropy or mean, against the
        number of samples. Lines mark the pilot samples and, if there is such a number,
        those that are enough.
    """
    classes = needed.other_class is not None
    figure = figure or new_figure((8.4 if classes else 4.4, 3.8))
    axes = figure.subplots(1, 1 + classes, squeeze=False)[0]
    if classes:
        share = 100 * np.asarray(needed.other_class)
        _draw(axes[0], needed, share, "examples of another class, %")
        if needed.tolerance == "class":
            rate = 100 * needed.error_rate
            axes[0].axhline(rate, color=GREY, dashes=(1, 2), lw=1.2)
    what = "entropy" if classes else "mean"
    unit = "nats" if unit is None and classes else unit
    label = f"error of the {what}, rms" + (f", {unit}" if unit else "")
    _draw(axes[-1], needed, needed.deviation, label)
    axes[0].legend(frameon=False, fontsize=9)
    return figure


def _draw(ax: Axes, needed: Any, values: np.ndarray, label: str) -> None:
    style_axes(ax)
    ax.plot(needed.counts, values, color=BLUE, lw=1.8)
    pilot = f"{needed.pilot} pilot samples"
    ax.axvline(needed.pilot, color=GREY, dashes=(4, 3), lw=1.2, label=pilot)
    if needed.samples is not None and needed.samples <= needed.counts[-1]:
        enough = f"{needed.samples} are enough"
        ax.axvline(needed.samples, color=VERMILION, lw=1.5, label=enough)
    ax.set(xlabel="samples", ylabel=label, xscale="log")
    ax.set_ylim(bottom=0)
