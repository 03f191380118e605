"""What the report of a segmentation adds: baselines, and where the uncertainty is."""

import numpy as np
from scipy import ndimage

from bayesnorm import metrics
from trainers.report import Section

# Pixels this near to the other class are the border of a cell.
_BORDER = 2


def sections(splits, methods, figures, predictions):
    """Returns the sections, and adds what they found to `figures`.

    Args:
        splits: The `Splits`, two classes.
        methods: The methods of the report, by key.
        figures: Dict of figures, changed: `baseline/iou_NAME` in per cent, and for
            each method `uncertainty/entropy_PLACE_METHOD` in nats and
            `uncertainty/error_auroc_METHOD` in per cent.
        predictions: Part -> method -> predictions of each run.
    """
    return {
        "baselines": _baselines(splits, methods, figures),
        "uncertainty": _places(splits, methods, figures, predictions["test"]),
    }


def _baselines(splits, methods, figures):
    ious = {
        "all_cell": _iou(np.ones_like(splits.test.labels), splits.test.labels),
        "threshold": _threshold(splits),
    }
    for name, value in ious.items():
        figures[f"baseline/iou_{name}"] = 100 * value
    ours = ", ".join(
        f"{method.title} {figures[f'test/iou_{key}']:.1f} %"
        for key, method in methods.items()
    )
    text = (
        "Intersection over union of the cells in the test part: "
        f"{ours}. The threshold of the grey that does best in the training part, with "
        f"the better side of it called cell, reaches {100 * ious['threshold']:.1f} %; "
        f"calling everything cell {100 * ious['all_cell']:.1f} %."
    )
    return Section("Against a threshold", None, text)


def _iou(predicted, truth):
    predicted, truth = predicted > 0, truth > 0
    return (predicted & truth).sum() / max(1, (predicted | truth).sum())


def _threshold(splits):
    """Test IoU of the threshold of 255 that is best in training."""
    images = splits.inputs(splits.train.images)[..., 0]
    levels = np.quantile(images, np.linspace(0, 1, 256))
    cells, counts = (
        np.searchsorted(np.sort(values), levels)
        for values in (images[splits.train.labels > 0], images.ravel())
    )
    all_cells, everything = (splits.train.labels > 0).sum(), images.size
    # Of what lies below each level, and of what lies at it or above.
    sides = [(cells, counts), (all_cells - cells, everything - counts)]
    ious = np.array([both / (all_cells + size - both) for both, size in sides])
    above, best = np.unravel_index(ious.argmax(), ious.shape)
    inputs = splits.inputs(splits.test.images)[..., 0]
    chosen = inputs >= levels[best] if above else inputs < levels[best]
    return _iou(chosen, splits.test.labels)


def border(labels, width=_BORDER):
    """Mask of the pixels within `width` pixels of the other class.

    Args:
        labels: `[n, height, width]`, 0 for background.
        width: Distance along the axes (city blocks).
    """
    cells = labels > 0
    cross = ndimage.generate_binary_structure(2, 1)[None]
    grown = ndimage.binary_dilation(cells, cross, iterations=width)
    shrunk = ndimage.binary_erosion(cells, cross, iterations=width, border_value=1)
    return grown & ~shrunk


def _places(splits, methods, figures, predictions):
    labels = splits.test.labels
    near = border(labels)
    lines = [
        "| | near borders | in cells | in the background | where right | where wrong | "
        "AUROC for errors, % |",
        "| --- |" + " ---: |" * 6,
    ]
    for key, method in methods.items():
        prediction = predictions[key][0]
        wrong = prediction.classes != labels
        places = {
            "border": near,
            "cell": ~near & (labels > 0),
            "background": ~near & (labels == 0),
            "right": ~wrong,
            "wrong": wrong,
        }
        cells = []
        for name, place in places.items():
            value = float(prediction.entropy[place].mean()) if place.any() else None
            figures[f"uncertainty/entropy_{name}_{key}"] = value
            cells.append("-" if value is None else f"{value:.3f}")
        auroc = None
        if wrong.any() and not wrong.all():
            auroc = 100 * metrics.auroc(prediction.entropy, wrong)
        figures[f"uncertainty/error_auroc_{key}"] = auroc
        cells.append("-" if auroc is None else f"{auroc:.1f}")
        lines.append(f"| {method.title} | {' | '.join(cells)} |")
    text = (
        f"Mean predictive entropy in nats; borders are pixels within {_BORDER} of the "
        "other class. The AUROC tells how well the entropy finds the wrong pixels.\n\n"
    )
    return Section("Where the uncertainty is", None, text + "\n".join(lines))
