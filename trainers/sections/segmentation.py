"""What the report of a segmentation adds: baselines, and where the uncertainty is."""

import numpy as np
from scipy import ndimage

from bayesnorm import metrics
from trainers.evaluation.records import Record
from trainers.report.section import Section
from trainers.report.tables import number, table

# Pixels this near to the other class are the border of a cell.
_BORDER = 2


def baselines(evaluation):
    """Returns how the cells are found against a threshold, and against no network."""
    splits, records = evaluation.splits, evaluation.records
    ious = {
        "all_cell": _iou(np.ones_like(splits.test.labels), splits.test.labels),
        "threshold": _threshold(splits),
    }
    ours = ", ".join(
        f"{method.title} {number(records.value('test', 'iou', key), '.1f')} %"
        for key, method in evaluation.methods.items()
    )
    text = (
        "Intersection over union of the cells in the test part: "
        f"{ours}. The threshold of the grey that does best in the training part, with "
        f"the better side of it called cell, reaches {100 * ious['threshold']:.1f} %; "
        f"calling everything cell {100 * ious['all_cell']:.1f} %."
    )
    measured = [Record("baseline", "iou", 100 * v, "%", k) for k, v in ious.items()]
    return Section("baselines", "Against a threshold", text, records=measured)


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


def places(evaluation):
    """Returns where the predictive entropy is, and how well it finds errors."""
    labels = evaluation.splits.test.labels
    near = border(labels)
    records, rows = [], []
    for key, method in evaluation.methods.items():
        prediction = evaluation.predictions["test"][key][0]
        wrong = prediction.classes != labels
        masks = {
            "border": near,
            "cell": ~near & (labels > 0),
            "background": ~near & (labels == 0),
            "right": ~wrong,
            "wrong": wrong,
        }
        means = {
            f"entropy_{name}": prediction.entropy[mask].mean() if mask.any() else None
            for name, mask in masks.items()
        }
        auroc = None
        if wrong.any() and not wrong.all():
            auroc = 100 * metrics.auroc(prediction.entropy, wrong)
        records += [Record("uncertainty", k, v, "nats", key) for k, v in means.items()]
        records.append(Record("uncertainty", "error_auroc", auroc, "%", key))
        cells = [number(value, ".3f") for value in means.values()]
        rows.append([method.title, *cells, number(auroc, ".1f")])
    head = ["", "near borders", "in cells", "in the background"]
    head += ["where right", "where wrong", "AUROC for errors, %"]
    text = (
        f"Mean predictive entropy in nats; borders are pixels within {_BORDER} of the "
        "other class. The AUROC tells how well the entropy finds the wrong pixels.\n\n"
    )
    text += table(head, rows)
    return Section("uncertainty", "Where the uncertainty is", text, records=records)
