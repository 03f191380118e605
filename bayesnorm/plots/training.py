"""Figures of training: losses over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesnorm.plots.style import (
    BLUE,
    DASHES,
    GREEN,
    GREY,
    VERMILION,
    axes_or_new,
    check_not_empty,
    draw_runs,
    legend_beside,
    legend_width,
    new_figure,
    style_axes,
)
from bayesnorm.types import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def training_curves(
    history: Mapping[str, Sequence[float]], ax: Axes | None = None
) -> Figure:
    """NLL over the epochs, with the KL divergence on an axis of its own.

    Args:
        history: Numbers of each epoch, NaN where there is none, by key: `train` (NLL of
            one pass with the noise of training, nats), `validation` (NLL of one pass
            with the means), `validation_averaged` (NLL of the averaged prediction),
            `kl` (nats), perhaps `epoch` (default 1, 2, ...). Absent keys are not drawn.
        ax: Axes to draw into.

    Returns:
        The figure.
    """
    curves = {
        "train": ("train, with the noise of training", BLUE, DASHES[0]),
        "validation": ("validation, one pass", VERMILION, DASHES[1]),
        "validation_averaged": ("validation, averaged", GREEN, DASHES[0]),
    }
    drawn = [key for key in curves if key in history]
    if not drawn:
        raise ValueError(
            f"`history` needs at least one of {tuple(curves)}, got {tuple(history)}."
        )
    epochs = np.asarray(history.get("epoch", np.arange(len(history[drawn[0]])) + 1))
    figure, ax = axes_or_new(ax)
    for key in drawn:
        label, color, dashes = curves[key]
        _line(ax, epochs, history[key], "history", key, color, dashes, label)
    ax.set(xlabel="epoch", ylabel="NLL (nats)", title="Training")
    ax.locator_params("x", integer=True, min_n_ticks=1)
    _log_if_wide(ax)
    handles = ax.get_lines()
    if "kl" in history:
        right = ax.twinx()
        right.spines["top"].set_visible(False)
        _line(right, epochs, history["kl"], "history", "kl", GREY, DASHES[2], "KL")
        right.set_ylabel("KL divergence (nats)", color=GREY)
        right.tick_params(axis="y", colors=GREY)
        handles = [*handles, *right.get_lines()]
        ax.set_zorder(right.get_zorder() + 1)
        ax.patch.set_visible(False)
    # Below the axes, where no curve of either axis passes.
    ax.legend(
        handles=handles,
        frameon=False,
        ncols=2,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
    )
    return figure


def run_curves(
    panels: Mapping[str, Mapping[str, ArrayLike]],
    label: str,
    figure: Figure | None = None,
    log: bool = True,
    share_y: bool = False,
    xlabel: str = "epoch",
) -> Figure:
    """Runs over the epochs, such as the NLL of training and of validation.

    Args:
        panels: By title, in order, by run: `[seeds, epochs]`, or `[epochs]` of one
            seed, of epochs 1, 2, ...; NaN where there is no number. Runs may differ in
            their number of seeds and epochs, and be absent from a panel.
        label: What the numbers are, with their unit, such as "NLL, nats".
        figure: Figure to draw into.
        log: Whether the axes are logarithmic if all numbers are positive and those of
            a panel span more than a decade.
        share_y: Whether all panels have one vertical scale.
        xlabel: What is counted from 1.

    Returns:
        The figure: one panel beside the other. A line is the mean over the seeds, its
        band spans the lowest to the highest seed. A run has one colour and dash in all
        panels.

    Raises:
        ValueError: If there is nothing to draw, or an array has another rank or an
            infinite number.
    """
    check_not_empty("panels", panels)
    arrays = {
        title: {name: _runs(title, name, values) for name, values in runs.items()}
        for title, runs in panels.items()
    }
    names = list(dict.fromkeys(name for runs in arrays.values() for name in runs))
    for title, runs in arrays.items():
        if not any(np.isfinite(values).any() for values in runs.values()):
            raise ValueError(
                f"`panels[{title!r}]` has no number to draw: leave the panel out."
            )
    width = 3.6 * len(arrays) + 0.6 + legend_width(names)
    figure = figure or new_figure((width, 3.8))
    handles = {}
    axes = figure.subplots(1, len(arrays), sharey=share_y, squeeze=False)[0]
    for ax, (title, runs) in zip(axes, arrays.items(), strict=True):
        style_axes(ax)
        for name, values in runs.items():
            epochs = np.arange(values.shape[1]) + 1
            marker = "o" if np.isfinite(values).any(0).sum() == 1 else None
            draw_runs(ax, epochs, values, names.index(name), name, marker=marker)
        handles |= {line.get_label(): line for line in ax.get_lines()}
        ax.set(xlabel=xlabel, title=title)
        ax.locator_params("x", integer=True, min_n_ticks=1)
    axes[0].set_ylabel(label)
    numbers = [
        np.concatenate([values.ravel() for values in runs.values()])
        for runs in arrays.values()
    ]
    every = np.concatenate(numbers)
    wide = any(_wide(values) for values in ([every] if share_y else numbers))
    if log and wide and np.nanmin(every) > 0:
        for ax in axes:
            ax.set_yscale("log")
    legend_beside(axes[-1], [handles[name] for name in names if name in handles])
    return figure


def _runs(title: str, name: str, values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim not in (1, 2) or values.size == 0 or np.isinf(values).any():
        raise ValueError(
            f"`panels[{title!r}][{name!r}]` needs [seeds, epochs] numbers, NaN for "
            f"missing ones, got shape {values.shape} with "
            f"{np.isinf(values).sum()} infinite."
        )
    return np.atleast_2d(values)


def _line(
    ax: Axes,
    x: Any,
    y: Any,
    argument: str,
    key: str,
    color: str,
    dashes: Any,
    label: str,
) -> None:
    y = np.asarray(y, np.float64)
    if y.shape != x.shape:
        raise ValueError(
            f"`{argument}[{key!r}]` needs one number an epoch, {x.shape}, got "
            f"{y.shape}."
        )
    # Figures that exist for some epochs only are joined over the gaps.
    known = np.isfinite(y)
    marker = "o" if known.sum() <= 30 else None
    ax.plot(
        x[known],
        y[known],
        color=color,
        ls=dashes,
        lw=1.8,
        marker=marker,
        ms=3.5,
        label=label,
    )


def _log_if_wide(ax: Axes) -> None:
    """Takes a logarithmic axis where the values span more than a decade."""
    if _wide(np.concatenate([line.get_ydata() for line in ax.get_lines()])):
        ax.set_yscale("log")


def _wide(values: np.ndarray) -> bool:
    return 0 < 10 * np.nanmin(values) < np.nanmax(values)
