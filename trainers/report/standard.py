"""The sections that the report of every run has."""

import numpy as np

from bayesnorm import metrics, plots
from bayesnorm.layers import posterior_layers
from trainers.report.calibrated import calibrated
from trainers.report.section import Section
from trainers.report.tables import number, table


def count_of(epochs):
    """Returns a number of epochs in words."""
    return "1 epoch" if epochs == 1 else f"{epochs} epochs"


def _shown(evaluation):
    """The prediction of the method that plots show, and the method's title."""
    prediction = evaluation.predictions["test"][evaluation.shown][0]
    return prediction, evaluation.methods[evaluation.shown].title


def training(evaluation):
    """Returns the curves of the training."""
    history, records = evaluation.history, evaluation.records
    columns = {
        "epoch": [row["epoch"] for row in history],
        "train": [row["nll"] for row in history],
        "validation": [row["val_nll"] for row in history],
    }
    if posterior_layers(evaluation.model):
        columns["kl"] = [row["kl"] for row in history]
    first, last = history[0], history[-1]
    return Section(
        "training",
        "Training",
        f"In {count_of(last['epoch'])} the training NLL went from "
        f"{first['nll']:.4f} to {last['nll']:.4f} nats, that of validation from "
        f"{first['val_nll']:.4f} to {last['val_nll']:.4f}; it was lowest, "
        f"{number(records.value('validation', 'best_nll'), '.4f')}, after epoch "
        f"{records.value('validation', 'best_epoch')}.",
        plots.training_curves(columns),
    )


def reliability(evaluation):
    """Returns how often the network is right, by its confidence."""
    (prediction, name), labels = _shown(evaluation), evaluation.splits.test.labels
    bins = metrics.reliability_bins(prediction.probs, labels)
    return Section(
        "reliability",
        "Reliability",
        f"The prediction ({name}) is right as often as it says to within "
        f"{100 * bins.calibration_error:.2f} % on average; {bins.count[-1]} of "
        f"{bins.count.sum()} test predictions lie in the bin of highest confidence.",
        plots.reliability_diagram(prediction.probs, labels),
    )


def error_coverage(evaluation):
    """Returns the error of what is left if the most uncertain is rejected."""
    labels = evaluation.splits.test.labels
    unit = "pixel" if evaluation.splits.dense else "example"
    curves = {
        evaluation.methods[key].title: (runs[0].entropy, runs[0].classes != labels)
        for key, runs in evaluation.predictions["test"].items()
    }
    _, name = _shown(evaluation)
    coverage, risk = metrics.error_coverage(*curves[name])
    kept = int(np.searchsorted(coverage, 0.9))
    return Section(
        "error_coverage",
        f"Rejecting uncertain {unit}s",
        f"Of all test {unit}s {100 * risk[-1]:.2f} % are wrong ({name}); "
        f"without the tenth of highest entropy, {100 * risk[kept]:.2f} %.",
        plots.error_coverage(curves),
    )


def entropy(evaluation):
    """Returns the entropy in and out of the domain."""
    splits, shown = evaluation.splits, evaluation.shown
    entropies = {"test": _shown(evaluation)[0].entropy}
    seen = f"Mean entropy {entropies['test'].mean():.3f} nats on the test part"
    if "ood" in evaluation.predictions:
        outside = evaluation.predictions["ood"][shown][0].entropy
        entropies["out of distribution"] = outside
        found = metrics.ood_summary(entropies["test"], outside)
        seen += (
            f", {outside.mean():.3f} out of distribution "
            f"({', '.join(splits.ood_class_names)}): an AUROC of {found['auroc']:.1f} %"
        )
    return Section(
        "entropy_cdf",
        "Entropy in and out of the domain",
        f"{seen}.",
        plots.entropy_cdf(entropies, splits.num_classes),
    )


def learned_noise(evaluation):
    """Returns the noise that posteriors of scales have learned."""
    found = evaluation.posterior.get("relative_stddev")
    if not found:
        return None
    ratios = {layer: values for layer, (values, _) in found.items()}
    medians = evaluation.records.along(figure="relative_stddev")
    high, low = max(medians, key=medians.get), min(medians, key=medians.get)
    return Section(
        "scale_uncertainty",
        "Learned noise",
        "The median over the channels of stddev / |scale| is highest in "
        f"{high} ({medians[high]:.2f}) and lowest in {low} ({medians[low]:.2f}).",
        plots.scale_uncertainty(ratios),
    )


def posteriors(evaluation):
    """Returns what else layers say of their posteriors."""
    records = [
        record
        for record in evaluation.records.select(part="posterior")
        if record.figure != "relative_stddev"
    ]
    if not records:
        return None
    rows = [[r.at, r.figure, number(r.value, ".4g"), r.unit] for r in records]
    text = table(["layer", "figure", "median", "unit"], rows, left=(0, 1, 3))
    return Section("posteriors", "Posteriors", text)


def examples(evaluation):
    """Returns test images with what the network says of them."""
    splits, (prediction, name) = evaluation.splits, _shown(evaluation)
    images, labels, probs = splits.test.images, splits.test.labels, prediction.probs
    if not splits.dense:
        return Section(
            "examples",
            "Examples",
            "Test images by entropy, with what the network says of them.",
            plots.example_grid(images, probs, labels, splits.class_names),
        )
    arguments = evaluation.methods[evaluation.shown].arguments
    # Of a single network it is rounding.
    sampled = arguments.get("method") != "mean"
    information = prediction.mutual_information if sampled else None
    return Section(
        "uncertainty_maps",
        "Uncertainty maps",
        f"The first test images ({name}).",
        plots.segmentation_grid(
            images, labels, probs, prediction.entropy, information, splits.class_names
        ),
    )


SECTIONS = (
    training,
    reliability,
    calibrated,
    error_coverage,
    entropy,
    learned_noise,
    posteriors,
    examples,
)
