"""Figures of layers: learned noise, statistics of channels and of batches."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesnorm.arguments import finite_values
from bayesnorm.plots.style import (
    BLUE,
    COLORS,
    DASHES,
    GREY,
    MARKERS,
    SKY,
    VERMILION,
    add_legend,
    axes_or_new,
    check_not_empty,
    legend_beside,
    legend_width,
    line_style,
    marker_style,
    new_figure,
    plot_width,
    slant_names,
    style_axes,
)
from bayesnorm.types import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def scale_uncertainty(
    ratios: Mapping[str, ArrayLike], seed: int = 0, ax: Axes | None = None
) -> Figure:
    """Learned relative noise `sigma_S / |s|` of the scales, by layer.

    A box spans the quartiles and its whiskers 5 and 95 %; every channel is a point.

    Args:
        ratios: By layer, in order, `[channels]` numbers from 0 up.
        seed: Seed of the points' sideways scatter.
        ax: Axes to draw into.

    Returns:
        The figure.
    """
    check_not_empty("ratios", ratios)
    values = {k: finite_values(f"ratios[{k!r}]", v).ravel() for k, v in ratios.items()}
    figure, ax = axes_or_new(ax, (max(5, 1.6 + 0.75 * len(values)), 4))
    generator = np.random.default_rng(seed)
    for i, ratio in enumerate(values.values()):
        scatter = generator.uniform(-0.22, 0.22, len(ratio)) * (len(ratio) > 1)
        ax.plot(i + scatter, ratio, "o", color=SKY, ms=3, alpha=0.55, mew=0, zorder=1)
    ax.boxplot(
        list(values.values()),
        positions=np.arange(len(values)),
        widths=0.55,
        whis=(5, 95),
        showfliers=False,
        boxprops={"color": BLUE, "lw": 1.3},
        whiskerprops={"color": BLUE, "lw": 1.3},
        capprops={"color": BLUE, "lw": 1.3},
        medianprops={"color": VERMILION, "lw": 2},
    )
    ax.set_xticks(np.arange(len(values)), list(values))
    slant_names(ax, list(values))
    low = min(v.min() for v in values.values())
    if 0 < 10 * low < max(v.max() for v in values.values()):
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    ax.set(ylabel=r"relative noise $\sigma_S/|s|$", title="Learned noise of the scales")
    return figure


def kept_channels(kept: Mapping[str, tuple], ax: Axes | None = None) -> Figure:
    """How many channels each layer still has.

    Args:
        kept: By layer, in order, `(kept, of)`, numbers of channels.
        ax: Axes to draw into.

    Returns:
        The figure.
    """
    check_not_empty("kept", kept)
    names = list(kept)
    figure, ax = axes_or_new(ax, (6.5, 1.3 + 0.3 * len(names)))
    places = range(len(names))
    counts = np.array([kept[name] for name in names], "float64").reshape(-1, 2)
    shares = 100 * counts[:, 0] / counts[:, 1]
    ax.barh(places, np.full(len(names), 100.0), color=GREY, alpha=0.18, height=0.7)
    ax.barh(places, shares, color=BLUE, height=0.7)
    for place, (some, of), share in zip(places, counts, shares, strict=True):
        inside = share > 80
        ax.text(
            share - 1.5 if inside else share + 1.5,
            place,
            f"{some:.0f} of {of:.0f}",
            va="center",
            ha="right" if inside else "left",
            color="white" if inside else "black",
            fontsize=8,
        )
    ax.set_yticks(places, names)
    ax.invert_yaxis()
    ax.set(xlim=(0, 100), xlabel="channels kept, %", title="Channels that stayed")
    return figure


def signal_to_noise(
    ratios: Mapping[str, ArrayLike], threshold: float, figure: Figure | None = None
) -> Figure:
    """Histograms of the signal-to-noise ratios of channels, layer by layer.

    Args:
        ratios: By layer, in order, `[channels]` numbers above 0. What lies outside of
            `threshold` times 1/100 to 10^4 is counted in the first and the last bin.
        threshold: Number above 0, the ratio below which a channel is pruned.
        figure: Figure to draw into.

    Returns:
        The figure, up to four panels in a row: bins of equal width of the logarithm,
        those below the threshold and those above it in two colours.

    Raises:
        ValueError: If there is nothing to draw, or a number is not positive and finite.
    """
    check_not_empty("ratios", ratios)
    edges = threshold * np.logspace(-2, 4, 37)
    columns = min(4, len(ratios))
    rows = -(-len(ratios) // columns)
    figure = figure or new_figure((3.1 * columns, 2.5 * rows + 0.3))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for ax in grid.flat[len(ratios) :]:
        ax.axis("off")
    for ax, (name, values) in zip(grid.flat, ratios.items(), strict=False):
        values = finite_values(f"ratios[{name!r}]", values).ravel()
        if values.min() <= 0:
            raise ValueError(
                f"`ratios[{name!r}]` needs numbers above 0 for a logarithmic axis, the "
                f"lowest is {values.min():.6g}."
            )
        style_axes(ax)
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        below = edges[1:] < threshold * 1.001
        colors = np.where(below, VERMILION, BLUE)
        ax.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colors)
        ax.axvline(threshold, color=GREY, lw=1.2, ls=DASHES[1])
        kept = int((values >= threshold).sum())
        ax.set_title(f"{name}: {kept} of {values.size} kept", fontsize=9)
        ax.set(xscale="log", ylabel="channels")
    for ax in grid[-1]:
        ax.set_xlabel("signal-to-noise ratio")
    return figure


def channel_statistics(
    statistics: Mapping[str, Mapping[str, tuple]], figure: Figure | None = None
) -> Figure:
    """Mean and standard deviation of normalized channels, against 0 and 1.

    Args:
        statistics: By method (such as "analytic", "weight"), by layer in order,
            `(mean, stddev)`, each `[channels]`, of the normalized outputs over data.
        figure: Figure to draw into.

    Returns:
        The figure: at the left the means, at the right the standard deviations; a dot
        is the median of a layer's channels and its line spans 5 to 95 %.
    """
    check_not_empty("statistics", statistics)
    layers = list(dict.fromkeys(name for by in statistics.values() for name in by))
    width = max(9, 3 + 0.9 * len(layers))
    figure = figure or new_figure((width, 3.8))
    titles = ("Channel mean", "Channel standard deviation")
    for part, (ax, title) in enumerate(zip(figure.subplots(1, 2), titles, strict=True)):
        style_axes(ax)
        ax.axhline(part, color=GREY, lw=1.2, zorder=0)
        for i, (method, by_layer) in enumerate(statistics.items()):
            shift = 0.22 * (i - (len(statistics) - 1) / 2)
            x = [layers.index(name) + shift for name in by_layer]
            values = [finite_values(name, by_layer[name][part]) for name in by_layer]
            low, middle, high = np.transpose(
                [np.quantile(v, (0.05, 0.5, 0.95)) for v in values]
            )
            ax.errorbar(
                x,
                middle,
                [middle - low, high - middle],
                fmt=MARKERS[i % len(MARKERS)],
                color=COLORS[i % len(COLORS)],
                ms=5,
                lw=1.8,
                capsize=2.5,
                label=method,
            )
        ax.set_xticks(np.arange(len(layers)), layers)
        slant_names(ax, layers, 2)
        ax.set(title=title, ylabel="mean" if part == 0 else "standard deviation")
        if part == 0:
            low, high = ax.get_ylim()
            ax.set_ylim(min(low, -0.1), max(high, 0.1))
        else:
            ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    return figure


def batch_statistics(
    panels: Mapping[str, tuple], figure: Figure | None = None
) -> Figure:
    """Density of statistics of real batches against the normal law that stands for it.

    Args:
        panels: By title, in order, `(values, mean, stddev)`: numbers of real batches,
            and mean and standard deviation of the law.
        figure: Figure to draw into.

    Returns:
        The figure, up to four panels in a row: a kernel density estimate of the values
        (Scott's rule), their places below it, and the normal density.
    """
    from scipy import stats

    check_not_empty("panels", panels)
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = figure or new_figure((3.1 * columns, 2.7 * rows + 0.3))
    grid = figure.subplots(rows, columns, squeeze=False)
    for ax in grid.flat[len(panels) :]:
        ax.axis("off")
    for ax, (title, (values, mean, stddev)) in zip(
        grid.flat, panels.items(), strict=False
    ):
        values = finite_values(title, values).ravel()
        style_axes(ax)
        low = min(values.min(), mean - 3.5 * stddev)
        high = max(values.max(), mean + 3.5 * stddev)
        x = np.linspace(low, high, 300)
        if np.ptp(values) > 0:
            density = stats.gaussian_kde(values)(x)
            ax.fill_between(x, density, color=SKY, alpha=0.5, lw=0, label="batches")
        ax.plot(values, np.zeros_like(values), "|", color=BLUE, ms=7, alpha=0.5)
        if stddev > 0:
            law = stats.norm(mean, stddev).pdf(x)
            ax.plot(x, law, color=VERMILION, lw=1.8, label="law")
        ax.set_title(title, fontsize=9)
        ax.set_yticks([])
        ax.set_ylim(bottom=0)
    grid.flat[0].legend(frameon=False, fontsize=8)
    return figure


def batch_noise(measurements: Sequence, figure: Figure | None = None) -> Figure:
    """Variance of the noise of batch normalization, by batch size and by positions.

    Args:
        measurements: Records such as `bayesnorm.batch_noise` returns, of several batch
            sizes: with `layer`, `batch_size`, `positions`, and the standard deviations
            `scale_stddev` of U and `shift_stddev` of V.
        figure: Figure to draw into.

    Returns:
        The figure, its axes logarithmic: at the left the variances of U (solid, filled)
        and V (dashed, hollow) of every layer against the batch size, with the slope of
        1 / batch size; at the right, for the batch size nearest to 32, against the
        positions that a layer averages over, with the theory for n = batch size *
        positions independent values, 1 / (2 n) for U and 1 / n for V.

    Raises:
        ValueError: If there is no record, or a number is not positive and finite.

    Reference:
        Shekhovtsov & Flach, 2018, "Stochastic Normalizations as Bayesian Learning",
        section 3.1, figure 4.
    """
    from matplotlib.lines import Line2D

    check_not_empty("measurements", measurements)
    layers = _by_layer(measurements)
    keys: dict[str, dict[str, Any]] = {
        "variance of U": {"ls": DASHES[0], "marker": "o", "mfc": GREY},
        "variance of V": {"ls": DASHES[1], "marker": "o", "mfc": "white"},
        "slope of 1 / batch size": {"lw": 5, "alpha": 0.3},
        "1 / (2 n), U": {"ls": DASHES[0], "lw": 1.2},
        "1 / n, V": {"ls": DASHES[1], "lw": 1.2},
    }
    width = 9 + legend_width([*layers, *keys])
    height = 4.2 + 0.065 * max(map(len, layers))
    figure = figure or new_figure((width, height))
    left, right = figure.subplots(1, 2)
    sizes = sorted({m.batch_size for m in measurements})
    chosen = min(sizes, key=lambda size: abs(np.log(size / 32)))
    at_chosen = []
    for i, records in enumerate(layers.values()):
        records = sorted(records, key=lambda m: m.batch_size)
        at_chosen += [(i, m) for m in records if m.batch_size == chosen]
        x = [m.batch_size for m in records]
        for part, dashes in enumerate(DASHES[:2]):
            y = [_variances(m)[part] for m in records]
            left.plot(x, y, ls=dashes, lw=1.4, **marker_style(i, hollow=part == 1))
    _batch_slope(left, measurements, sizes)
    _by_positions(right, at_chosen, chosen)
    places = [m.positions for _, m in at_chosen]
    for ax, values in ((left, sizes), (right, places)):
        style_axes(ax)
        ax.set(xscale="log", yscale="log", ylabel="variance, mean over channels")
        # Measured values, since 32 tells more than 10^1.5.
        shown = [group[0] for group in _groups(values)]
        _ticks(ax, shown, [f"{value:,}" for value in shown])
    left.set(xlabel="batch size (examples)", title="By batch size")
    right.set(
        xlabel="positions of an example",
        title=f"By positions, batch size {chosen}",
    )
    _layer_names(right, at_chosen)
    plain: dict[str, Any] = {"color": GREY, "lw": 1.4, "ms": 5}
    entries = [
        Line2D([], [], label=name, **(plain | style)) for name, style in keys.items()
    ]
    entries += [
        Line2D([], [], ls="", **marker_style(i), label=name)
        for i, name in enumerate(layers)
    ]
    legend_beside(right, entries)
    return figure


def _by_layer(measurements: Sequence) -> dict[str, Any]:
    """Records by layer; the calls of a shared layer are numbered."""
    layers, calls = {}, collections.Counter()
    for m in measurements:
        variances = _variances(m)
        numbers = np.array([m.batch_size, m.positions, *variances], np.float64)
        if not (np.isfinite(numbers).all() and numbers.min() > 0):
            raise ValueError(
                "`measurements` needs positive, finite numbers for logarithmic axes, "
                f"got {m}."
            )
        calls[m.layer, m.batch_size] += 1
        call = calls[m.layer, m.batch_size]
        name = m.layer if call == 1 else f"{m.layer} ({call})"
        layers.setdefault(name, []).append(m)
    return layers


def _variances(measurement: Any) -> tuple[float, float]:
    return measurement.scale_stddev**2, measurement.shift_stddev**2


def _batch_slope(ax: Axes, measurements: Sequence, sizes: Sequence[int]) -> None:
    """Draws c / batch size, c such that it passes amid the curves."""
    c = np.exp(
        np.mean([np.log(m.batch_size * np.array(_variances(m))) for m in measurements])
    )
    x = np.array([sizes[0] / 1.3, sizes[-1] * 1.3])
    ax.plot(x, c / x, color=GREY, lw=5, alpha=0.3, zorder=0)


def _by_positions(ax: Axes, measurements: Sequence, batch_size: int) -> Any:
    for i, m in measurements:
        for part, y in enumerate(_variances(m)):
            ax.plot(m.positions, y, ls="", **marker_style(i, hollow=part == 1))
    places = {m.positions for _, m in measurements}
    x = np.array([min(places) / 2, max(places) * 2])
    for factor, dashes in zip((2, 1), DASHES, strict=False):
        ax.plot(x, 1 / (factor * batch_size * x), color=GREY, lw=1.2, ls=dashes)


def _layer_names(ax: Axes, measurements: Sequence) -> None:
    """Names the layers above their positions, where no point is hidden."""
    groups = _groups(m.positions for _, m in measurements)
    labels = []
    for group in groups:
        names = [m.layer for _, m in measurements if m.positions in group]
        if len(names) > 4:
            names = [names[0], f"... ({len(names)} layers)", names[-1]]
        labels.append("\n".join(names))
    top = ax.secondary_xaxis("top")
    _ticks(top, [np.sqrt(group[0] * group[-1]) for group in groups], labels)
    top.tick_params(rotation=90, labelsize=7, length=0)
    top.spines["top"].set_visible(False)


def _groups(values: Any) -> Any:
    """Sorted numbers, those together whose labels would overlap on an axis of logs."""
    values = sorted(set(values))
    least = 0.12 * np.log(4 * values[-1] / values[0])
    groups = []
    for value in values:
        if groups and np.log(value / groups[-1][0]) < least:
            groups[-1].append(value)
        else:
            groups.append([value])
    return groups


def _ticks(ax: Any, places: Any, labels: Any) -> None:
    from matplotlib.ticker import NullLocator

    ax.set_xticks(places, labels)
    ax.xaxis.set_minor_locator(NullLocator())


def layer_noise(
    series: Mapping[str, Mapping[str, float]],
    label: str = "standard deviation of the noise",
    ax: Axes | None = None,
) -> Figure:
    """Noise over the layers, such as learned `sigma_S / s` and measured `sigma_U`.

    Args:
        series: By name, by layer in order, a number above 0. Series may leave layers
            out.
        label: What the numbers are, with their unit.
        ax: Axes to draw into.

    Returns:
        The figure, one line a name, on a logarithmic axis.

    Raises:
        ValueError: If there is nothing to draw, or a number is not positive and finite.
    """
    check_not_empty("series", series)
    layers = list(dict.fromkeys(layer for by in series.values() for layer in by))
    width = plot_width(max(5, 1.6 + 0.55 * len(layers)), list(series))
    figure, ax = axes_or_new(ax, (width, 4.2))
    for i, (name, by_layer) in enumerate(series.items()):
        y = finite_values(f"series[{name!r}]", list(by_layer.values()))
        if y.min() <= 0:
            raise ValueError(
                f"`series[{name!r}]` needs numbers above 0 for a logarithmic axis, the "
                f"lowest is {y.min():.6g}: leave out layers without noise."
            )
        x = np.array([layers.index(layer) for layer in by_layer])
        order = np.argsort(x)
        marker = MARKERS[i % len(MARKERS)]
        style = line_style(i)
        ax.plot(x[order], y[order], marker=marker, ms=4.5, lw=1.8, label=name, **style)
    ax.set_xticks(np.arange(len(layers)), layers)
    slant_names(ax, layers)
    ax.set(yscale="log", ylabel=label, title="Noise by layer")
    add_legend(ax)
    return figure
