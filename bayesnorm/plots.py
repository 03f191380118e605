"""Figures of training, calibration and uncertainty.

Every function takes arrays, draws into `ax` (or makes a figure of its own) and returns
the `matplotlib.figure.Figure`. The figures carry their own Agg canvas: there is no
global state, no display is needed, and `figure.savefig(path)` writes them.

Colours are the set of Okabe & Ito (2008), which readers with colour-blindness can tell
apart; lines also differ in their dashes and markers.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from bayesnorm import metrics

__all__ = [
    "bar_comparison",
    "batch_statistics",
    "channel_statistics",
    "entropy_cdf",
    "entropy_histogram",
    "error_coverage",
    "example_grid",
    "reliability_diagram",
    "scale_uncertainty",
    "training_curves",
]

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
DPI = 120


def training_curves(history: Mapping[str, Sequence[float]], ax=None):
    """NLL over the epochs, with the KL divergence on an axis of its own.

    Args:
        history: Numbers of each epoch, NaN where there is none, by key: `train` (NLL of
            one pass with noise, nats), `validation` (NLL of one pass with the means),
            `validation_averaged` (NLL of the averaged prediction), `kl` (nats),
            perhaps `epoch` (default 1, 2, ...). Absent keys are not drawn.
        ax: Axes to draw into.

    Returns:
        The figure.
    """
    curves = {
        "train": (
            "train, sampled noise" if "kl" in history else "train, one pass",
            BLUE,
            DASHES[0],
        ),
        "validation": ("validation, one pass", VERMILION, DASHES[1]),
        "validation_averaged": ("validation, averaged", GREEN, DASHES[0]),
    }
    drawn = [key for key in curves if key in history]
    if not drawn:
        raise ValueError(
            f"`history` needs at least one of {tuple(curves)}, got {tuple(history)}."
        )
    epochs = np.asarray(history.get("epoch", np.arange(len(history[drawn[0]])) + 1))
    figure, ax = _axes(ax)
    for key in drawn:
        label, color, dashes = curves[key]
        _line(ax, epochs, history[key], "history", key, color, dashes, label)
    ax.set(xlabel="epoch", ylabel="NLL (nats)", title="Training")
    ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
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


def reliability_diagram(probs, labels, bins=15, ax=None):
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
        figure = _figure((5, 6))
        ax, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    figure, ax = _axes(ax)
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
    _style(lower)
    return figure


def error_coverage(curves: Mapping[str, tuple], ax=None):
    """Error of the examples that are kept, when the most uncertain ones are rejected.

    Args:
        curves: By method `(uncertainty, errors)`, arrays `[n, ...]` of one shape:
            a score such as the predictive entropy, and 1 where the prediction is wrong.
        ax: Axes to draw into.

    Returns:
        The figure.
    """
    _not_empty("curves", curves)
    figure, ax = _axes(ax)
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


def entropy_cdf(entropies: Mapping[str, np.ndarray], num_classes=None, ax=None):
    """Share of examples whose predictive entropy is at most `h`.

    Good: in the domain to the upper left, out of it to the lower right.

    Args:
        entropies: By name (such as "in domain", "out of domain") `[n, ...]`, nats.
        num_classes: Number of classes, to mark the highest entropy `log K`.
        ax: Axes to draw into.

    Returns:
        The figure.
    """
    _not_empty("entropies", entropies)
    figure, ax = _axes(ax)
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
    entropies: Mapping[str, np.ndarray], num_classes=None, bins=40, ax=None
):
    """Densities of the predictive entropy.

    Args:
        entropies: By name `[n, ...]`, nats.
        num_classes: Number of classes, to mark the highest entropy `log K`.
        bins: Number of bins.
        ax: Axes to draw into.

    Returns:
        The figure.
    """
    _not_empty("entropies", entropies)
    figure, ax = _axes(ax)
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


def scale_uncertainty(ratios: Mapping[str, np.ndarray], seed=0, ax=None):
    """Learned relative noise `sigma_S / |s|` of the scales, by layer.

    A box spans the quartiles and its whiskers 5 and 95 %; every channel is a point.

    Args:
        ratios: By layer, in order, `[channels]` numbers from 0 up.
        seed: Seed of the points' sideways scatter.
        ax: Axes to draw into.

    Returns:
        The figure.
    """
    _not_empty("ratios", ratios)
    values = {
        k: metrics._finite(f"ratios[{k!r}]", v).ravel() for k, v in ratios.items()
    }
    figure, ax = _axes(ax, (max(5, 1.6 + 0.75 * len(values)), 4))
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
    _slant(ax, list(values))
    low = min(v.min() for v in values.values())
    if 0 < 10 * low < max(v.max() for v in values.values()):
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    ax.set(ylabel=r"relative noise $\sigma_S/|s|$", title="Learned noise of the scales")
    return figure


def channel_statistics(statistics: Mapping[str, Mapping[str, tuple]], figure=None):
    """Mean and standard deviation of normalized channels, against 0 and 1.

    Args:
        statistics: By method (such as "analytic", "weight"), by layer in order,
            `(mean, stddev)`, each `[channels]`, of the normalized outputs over data.
        figure: Figure to draw into.

    Returns:
        The figure: at the left the means, at the right the standard deviations; a dot
        is the median of a layer's channels and its line spans 5 to 95 %.
    """
    _not_empty("statistics", statistics)
    layers = list(dict.fromkeys(name for by in statistics.values() for name in by))
    width = max(9, 3 + 0.9 * len(layers))
    figure = figure or _figure((width, 3.8))
    titles = ("Channel mean", "Channel standard deviation")
    for part, (ax, title) in enumerate(zip(figure.subplots(1, 2), titles, strict=True)):
        _style(ax)
        ax.axhline(part, color=GREY, lw=1.2, zorder=0)
        for i, (method, by_layer) in enumerate(statistics.items()):
            shift = 0.22 * (i - (len(statistics) - 1) / 2)
            x = [layers.index(name) + shift for name in by_layer]
            values = [metrics._finite(name, by_layer[name][part]) for name in by_layer]
            low, middle, high = np.transpose(
                [np.quantile(v, (0.05, 0.5, 0.95)) for v in values]
            )
            ax.errorbar(
                x,
                middle,
                [middle - low, high - middle],
                fmt="osD^v"[i % 5],
                color=COLORS[i % len(COLORS)],
                ms=5,
                lw=1.8,
                capsize=2.5,
                label=method,
            )
        ax.set_xticks(np.arange(len(layers)), layers)
        _slant(ax, layers, 2)
        ax.set(title=title, ylabel="mean" if part == 0 else "standard deviation")
        if part == 0:
            low, high = ax.get_ylim()
            ax.set_ylim(min(low, -0.1), max(high, 0.1))
        else:
            ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    return figure


def batch_statistics(panels: Mapping[str, tuple], figure=None):
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

    _not_empty("panels", panels)
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = figure or _figure((3.1 * columns, 2.7 * rows + 0.3))
    grid = figure.subplots(rows, columns, squeeze=False)
    for ax in grid.flat[len(panels) :]:
        ax.axis("off")
    for ax, (title, (values, mean, stddev)) in zip(
        grid.flat, panels.items(), strict=False
    ):
        values = metrics._finite(title, values).ravel()
        _style(ax)
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


def bar_comparison(values: Mapping[str, Sequence[float]], label, title="", ax=None):
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
    _not_empty("values", values)
    runs = {k: metrics._finite(f"values[{k!r}]", v).ravel() for k, v in values.items()}
    figure, ax = _axes(ax, (max(4.5, 1.5 + 0.95 * len(runs)), 4))
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
    _slant(ax, list(runs))
    ax.axhline(0, color="black", lw=0.8)
    ax.margins(y=0.12)
    ax.grid(axis="x", visible=False)
    counts = {len(run) for run in runs.values()}
    if counts != {1}:
        many = "/".join(str(c) for c in sorted(counts))
        label += f"\nmean and one std. dev. of {many} runs"
    ax.set(ylabel=label, title=title)
    return figure


def example_grid(
    images, probs, labels, class_names: Sequence[str], rows=2, columns=4, top=5
):
    """The most and the least uncertain images with their predicted distributions.

    Args:
        images: `[n, height, width, 1 or 3]`, as stored or scaled.
        probs: `[n, K]` probabilities.
        labels: `[n]`; -1 where the class is none of the `K`.
        class_names: The `K` names.
        rows: Rows of images of each kind.
        columns: Images in a row.
        top: Classes shown of each distribution, the most probable ones.

    Returns:
        The figure: above the most uncertain images, below the least uncertain ones,
        by predictive entropy. The bar of the true class is green, others are blue.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    probs = np.asarray(probs, np.float64)
    entropy = metrics.predictive_entropy(probs)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"`images` must be [n, height, width, 1 or 3], got shape {images.shape}."
        )
    if not len(images) == len(labels) == len(probs) or probs.ndim != 2:
        raise ValueError(
            f"`images`, `probs` [n, K] and `labels` [n] need one n, got {images.shape},"
            f" {probs.shape}, {labels.shape}."
        )
    if len(class_names) != probs.shape[1]:
        raise ValueError(
            f"`class_names` needs {probs.shape[1]} names, got {len(class_names)}."
        )
    order = np.argsort(-entropy, kind="stable")
    count = min(rows * columns, len(order) // 2 or 1)
    panels = (
        ("Most uncertain", order[:count]),
        ("Least uncertain", order[::-1][:count]),
    )
    rows = -(-count // columns)
    figure = _figure((2.6 * columns + 0.4, 2 * (1.55 * rows + 0.35)))
    low, high = float(images.min()), float(images.max())
    for part, (title, chosen) in zip(figure.subfigures(2, 1), panels, strict=True):
        title += " (H: entropy, nats; bars: probabilities, true class green)"
        part.suptitle(title, fontsize=11, x=0.01, ha="left")
        grid = part.subplots(
            rows, 2 * columns, squeeze=False, width_ratios=[1, 0.75] * columns
        )
        for ax in grid.flat[2 * len(chosen) :]:
            ax.axis("off")
        for i, (picture, bars) in zip(chosen, grid.reshape(-1, 2), strict=False):
            image = (images[i].astype(np.float64) - low) / max(high - low, 1e-12)
            picture.imshow(
                image.squeeze(-1) if image.shape[-1] == 1 else image,
                cmap="gray",
                vmin=0,
                vmax=1,
            )
            name = class_names[labels[i]] if labels[i] >= 0 else "unknown"
            picture.set_title(f"{name}, H = {entropy[i]:.2f}", fontsize=8, pad=3)
            picture.set(xticks=[], yticks=[])
            _distribution(bars, probs[i], labels[i], class_names, top)
    return figure


def _distribution(ax, probs, label, class_names, top):
    shown = np.argsort(-probs, kind="stable")[:top]
    colors = [GREEN if k == label else BLUE for k in shown]
    ax.barh(np.arange(len(shown)), probs[shown], 0.75, color=colors)
    for row, k in enumerate(shown):
        ax.text(
            0.04,
            row,
            class_names[k],
            fontsize=7,
            va="center",
            ha="left",
            zorder=3,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 0.5},
        )
    ax.set(xlim=(0, 1), ylim=(top - 0.4, -0.6), yticks=[], xticks=[0, 1])
    ax.tick_params(labelsize=7, length=2, pad=1)
    _despine(ax)


def _figure(size):
    # Only a figure is worth Matplotlib's import, not the package.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _axes(ax, size=(6, 4)):
    if ax is None:
        ax = _figure(size).subplots()
    _style(ax)
    return ax.figure, ax


def _style(ax):
    ax.grid(color="#DDDDDD", lw=0.7)
    ax.set_axisbelow(True)
    _despine(ax)


def _despine(ax):
    ax.spines[["top", "right"]].set_visible(False)


def _slant(ax, names, columns=1):
    """Slants names at the foot of axes where they would run into each other."""
    longest = max(len(line) for name in names for line in str(name).split("\n"))
    if longest * len(names) * columns > 9 * ax.get_figure().get_figwidth():
        ax.tick_params(axis="x", rotation=30)
        for label in ax.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


def _line(ax, x, y, argument, key, color, dashes, label):
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


def _log_if_wide(ax):
    """Takes a logarithmic axis where the values span more than a decade."""
    values = np.concatenate([line.get_ydata() for line in ax.get_lines()])
    if 0 < 10 * values.min() < values.max():
        ax.set_yscale("log")


def _steps(ax, x, y, i, label):
    ax.step(
        x,
        y,
        where="post",
        color=COLORS[i % len(COLORS)],
        ls=DASHES[i % len(DASHES)],
        lw=1.8,
        label=label,
    )


def _entropy_limit(entropies, num_classes):
    highest = max(metrics._finite(k, v).max() for k, v in entropies.items())
    return 1.02 * max(highest, np.log(num_classes) if num_classes else 1e-3)


def _mark_uniform(ax, num_classes):
    if num_classes:
        ax.axvline(
            np.log(num_classes),
            color=GREY,
            lw=1,
            dashes=(1, 2),
            label=f"log {num_classes}",
        )


def _not_empty(name, values):
    if not values:
        raise ValueError(f"`{name}` is empty: give at least one entry by name.")
