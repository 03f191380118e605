"""Figures that show images beside what is predicted for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesnorm import metrics
from bayesnorm.arguments import finite_values, positive_integer, probabilities
from bayesnorm.plots.style import BLUE, GREEN, GREY, VERMILION, despine, new_figure
from bayesnorm.types import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Of the Okabe & Ito set too; its vermilion is left for wrong pixels.
CLASS_COLORS = (
    "#000000",
    "#56B4E9",
    "#F0E442",
    "#009E73",
    "#CC79A7",
    "#0072B2",
    "#FFFFFF",
)


def example_grid(
    images: ArrayLike,
    probs: ArrayLike,
    labels: ArrayLike,
    class_names: Sequence[str],
    rows: int = 2,
    columns: int = 4,
    top: int = 5,
) -> Figure:
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
    figure = new_figure((2.6 * columns + 0.4, 2 * (1.55 * rows + 0.35)))
    low, high = float(images.min()), float(images.max())
    parts: Any = figure.subfigures(2, 1)
    for part, (title, chosen) in zip(parts, panels, strict=True):
        title += " (H: entropy, nats; bars: probabilities, true class green)"
        part.suptitle(title, fontsize=11, x=0.01, ha="left")
        grid = part.subplots(
            rows, 2 * columns, squeeze=False, width_ratios=[1, 0.75] * columns
        )
        for ax in grid.flat[2 * len(chosen) :]:
            ax.axis("off")
        for i, (picture, bars) in zip(chosen, grid.reshape(-1, 2), strict=False):
            image = _scaled(images[i], low, high)
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


def segmentation_grid(
    images: ArrayLike,
    truth: ArrayLike,
    probs: ArrayLike,
    entropy: ArrayLike,
    mutual_information: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    rows: int | None = None,
) -> Figure:
    """Images with their true and predicted segmentation and its uncertainty.

    Args:
        images: `[n, height, width]`, or `[n, height, width, 1 or 3]`, as stored or
            scaled.
        truth: `[n, height, width]` integers; -1 where the class is unknown.
        probs: `[n, height, width, K]` probabilities.
        entropy: `[n, height, width]` predictive entropy, nats.
        mutual_information: `[n, height, width]`, nats; None for no such column.
        class_names: The `K` names; default "class 0", ...
        rows: Number of images shown, the first ones; default 6, or all of fewer.

    Returns:
        The figure, a row for each image: the image, the truth, the most probable class
        with wrong pixels in a colour of their own, the entropy on a scale from 0 to
        log K, and the mutual information from 0 to its maximum. Up to 7 classes have
        colours that anyone can tell apart, more lie on a scale from dark to bright.

    Raises:
        ValueError: If shapes do not match, a class is out of range, or an entropy
            exceeds log K.
    """
    from matplotlib.patches import Patch

    probs = probabilities("probs", probs, 2)
    _check_maps(images, truth, probs, entropy, mutual_information, class_names)
    num_classes = probs.shape[-1]
    count = min(len(probs), 6 if rows is None else positive_integer("rows", rows))
    images, truth = np.asarray(images)[:count], np.asarray(truth)[:count]
    if images.shape == (*truth.shape, 1):
        images = images.squeeze(-1)
    predicted = probs[:count].argmax(-1)
    wrong = (predicted != truth) & (truth >= 0)
    palette = _class_colors(num_classes)
    columns = {
        "image": (
            _scaled(images, images.min(), images.max()),
            {"cmap": "gray", "vmin": 0, "vmax": 1},
        ),
        "truth": (palette[truth], {}),
        "prediction": (palette[np.where(wrong, num_classes, predicted)], {}),
        "entropy": (
            np.asarray(entropy)[:count],
            {"cmap": "viridis", "vmin": 0, "vmax": np.log(num_classes)},
        ),
    }
    if mutual_information is not None:
        shown = np.asarray(mutual_information)[:count]
        style = {"cmap": "magma", "vmin": 0, "vmax": max(shown.max(), 1e-9)}
        columns["mutual information"] = (shown, style)
    names = class_names or [f"class {k}" for k in range(num_classes)]
    entries = {**dict(zip(names, palette, strict=False)), "wrong": palette[num_classes]}
    if (truth < 0).any():
        entries["unknown"] = palette[-1]
    width = 1.95 * len(columns)
    legend_columns = max(1, int(width / (0.7 + 0.075 * max(map(len, entries)))))
    legend_columns = min(legend_columns, len(entries))
    legend_rows = -(-len(entries) // legend_columns)
    height = 1.9 * truth.shape[1] / truth.shape[2]
    figure = new_figure((width, (height + 0.06) * count + 0.95 + 0.19 * legend_rows))
    # Colour bars have a row of their own, so that all pictures are of one size.
    ratios = [height] * count + [0.12]
    grid = figure.subplots(count + 1, len(columns), squeeze=False, height_ratios=ratios)
    for column, (title, (pictures, style)) in enumerate(columns.items()):
        grid[0, column].set_title(title, fontsize=10)
        for ax, picture in zip(grid[:-1, column], pictures, strict=True):
            drawn = ax.imshow(picture, interpolation="nearest", **style)
            ax.set(xticks=[], yticks=[])
        foot = grid[-1, column]
        if title in ("entropy", "mutual information"):
            bar = figure.colorbar(drawn, cax=foot, orientation="horizontal")
            bar.set_label("nats", fontsize=9)
            foot.tick_params(labelsize=8)
        else:
            foot.axis("off")
    figure.legend(
        handles=[
            Patch(facecolor=color, edgecolor=GREY, lw=0.5, label=name)
            for name, color in entries.items()
        ],
        loc="outside lower center",
        frameon=False,
        fontsize=9,
        ncols=legend_columns,
    )
    return figure


def _check_maps(
    images: Any,
    truth: Any,
    probs: Any,
    entropy: Any,
    mutual_information: Any,
    class_names: Any,
) -> Any:
    shape, num_classes = probs.shape[:-1], probs.shape[-1]
    if probs.ndim != 4:
        raise ValueError(
            f"`probs` must be [n, height, width, K], got shape {probs.shape}."
        )
    if np.shape(images) not in (shape, (*shape, 1), (*shape, 3)):
        raise ValueError(
            f"`images` must be {shape}, perhaps with 1 or 3 channels, as `probs` "
            f"{probs.shape} says, got shape {np.shape(images)}."
        )
    maps = {"truth": truth, "entropy": entropy}
    if mutual_information is not None:
        maps["mutual_information"] = mutual_information
    for name, values in maps.items():
        if finite_values(name, values).shape != shape:
            raise ValueError(
                f"`{name}` must be {shape}, as `probs` {probs.shape} says, got shape "
                f"{np.shape(values)}."
            )
    truth = np.asarray(truth)
    if (
        truth.dtype.kind not in "iu"
        or not -1 <= truth.min() <= truth.max() < num_classes
    ):
        raise ValueError(
            f"`truth` must be integers from 0 to {num_classes - 1}, or -1 for unknown, "
            f"got {truth.dtype} from {truth.min()} to {truth.max()}."
        )
    if np.max(entropy) > np.log(num_classes) + 1e-3:
        raise ValueError(
            f"`entropy` must be at most log {num_classes} = {np.log(num_classes):.4f} "
            f"nats, got {np.max(entropy):.4f}. Divide bits by log2(e)."
        )
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(
            f"`class_names` needs {num_classes} names, got {len(class_names)}."
        )


def _class_colors(num_classes: int) -> Any:
    """`[K + 2, 3]`: the classes, wrong pixels, and, last, those of unknown class."""
    import matplotlib as mpl

    colors = CLASS_COLORS[:num_classes]
    if num_classes > len(CLASS_COLORS):
        colors = mpl.colormaps["viridis"](np.linspace(0, 1, num_classes))
    return mpl.colors.to_rgba_array([*colors, VERMILION, "#B8B8B8"])[:, :3]


def _scaled(images: np.ndarray, low: float, high: float) -> np.ndarray:
    return (np.asarray(images, np.float64) - low) / max(high - low, 1e-12)


def _distribution(
    ax: Axes, probs: np.ndarray, label: int, class_names: Sequence[str], top: int
) -> None:
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
    despine(ax)
