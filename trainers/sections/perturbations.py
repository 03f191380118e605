"""Accuracy under perturbed inputs: appendix A.4 of Shekhovtsov & Flach (2018)."""

import numpy as np

from bayesnorm import metrics, plots
from bayesnorm.prediction.perturbation import gaussian_noise, gradient_sign
from bayesnorm.prediction.predict import predict
from trainers.evaluation.records import Record, Records
from trainers.report.section import Section

# In units of the pixels, of which all sets here have [0, 1].
_BOUNDS = (0.0, 1.0)
_GAUSSIAN = (0.0, 0.05, 0.1, 0.15, 0.2)
_GRADIENT_SIGN = (0.0, 0.005, 0.01, 0.02, 0.04)
# Part of the records -> title, and what the size is.
KINDS = {
    "perturbation/gaussian": (
        "Gaussian noise",
        "standard deviation of the noise, pixels in [0, 1]",
    ),
    "perturbation/gradient_sign": (
        "Steps along the sign of the gradient",
        "size of the step, pixels in [0, 1]",
    ),
}
# As many as keep the standard error of an accuracy under 1.6 %.
_EXAMPLES = 1000
_SAMPLES = 10


def gaussian(evaluation):
    """Returns the accuracy under normal noise of the pixels."""
    images, _ = _first(evaluation)
    seed = evaluation.flags.seed
    perturbed = {s: gaussian_noise(images, s, seed, _BOUNDS) for s in _GAUSSIAN}
    return _section(evaluation, "perturbation/gaussian", perturbed)


def gradient(evaluation):
    """Returns the accuracy under steps against the network of mean weights."""
    images, labels = _first(evaluation)
    # The sign of the gradient is that of every size of step.
    ahead = gradient_sign(evaluation.model, images, labels, 1.0, from_logits=True)
    direction = ahead - images
    perturbed = {s: np.clip(images + s * direction, *_BOUNDS) for s in _GRADIENT_SIGN}
    return _section(evaluation, "perturbation/gradient_sign", perturbed)


def _first(evaluation):
    splits = evaluation.splits
    return splits.inputs(splits.test.images[:_EXAMPLES]), splits.test.labels[:_EXAMPLES]


def _section(evaluation, part, perturbed):
    """The section of inputs by the size of their perturbation."""
    (title, unit), (images, labels) = KINDS[part], _first(evaluation)
    found = {}
    for key, method in evaluation.methods.items():
        arguments, name = dict(method.arguments), method.title
        if "samples" in arguments:
            arguments["samples"] = min(_SAMPLES, arguments["samples"])
            name = f"average of {arguments['samples']} samples"
        # Methods that are the same with so few samples are one here.
        found[repr(arguments)] = key, name, arguments
    records = Records()
    for key, _, arguments in found.values():
        for size, inputs in perturbed.items():
            said = predict(evaluation.model, inputs, from_logits=True, **arguments)
            accuracy = 100 * metrics.accuracy(said.probs, labels)
            at = {"axis": "perturbation", "at": size}
            records.add([Record(part, "accuracy", accuracy, "%", key, **at)])
    curves = {
        name: tuple(zip(*records.along(method=key).items(), strict=True))
        for key, name, _ in found.values()
    }
    last = ", ".join(f"{name} {y[-1]:.1f} %" for name, (_, y) in curves.items())
    return Section(
        part.replace("/", "_"),
        title,
        f"Accuracy on the first {len(images)} test images. At the largest "
        f"perturbation: {last}.",
        plots.perturbation_curves(curves, unit),
        records,
    )
