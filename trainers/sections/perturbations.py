"""Accuracy under perturbed inputs: appendix A.4 of Shekhovtsov & Flach (2018)."""

import numpy as np

from bayesnorm import metrics, plots
from bayesnorm.prediction.perturbation import gaussian_noise, gradient_sign
from bayesnorm.prediction.predict import predict
from trainers.report import Section

# In units of the pixels, of which all sets here have [0, 1].
_BOUNDS = (0.0, 1.0)
_GAUSSIAN = (0.0, 0.05, 0.1, 0.15, 0.2)
_GRADIENT_SIGN = (0.0, 0.005, 0.01, 0.02, 0.04)
# Kind, a part of the names in `metrics.json` -> title, and what its size is.
KINDS = {
    "gaussian": ("Gaussian noise", "standard deviation of the noise, pixels in [0, 1]"),
    "gradient_sign": (
        "Steps along the sign of the gradient",
        "size of the step, pixels in [0, 1]",
    ),
}
# As many as keep the standard error of an accuracy under 1.6 %.
_EXAMPLES = 1000
_SAMPLES = 10


def sections(flags, splits, model, methods, figures):
    """Returns the sections, and adds what they found to `figures`.

    Args:
        flags: The flags of the run.
        splits: The `Splits`.
        model: The network; attacked is the one of mean weights.
        methods: The methods of the report, by key; those of sampled networks take 10
            samples here.
        figures: Dict of figures, changed: `perturbation/KIND/SIZE/accuracy_METHOD`, in
            per cent.
    """
    images = splits.inputs(splits.test.images[:_EXAMPLES])
    labels = splits.test.labels[:_EXAMPLES]
    # The sign of the gradient is that of every size of step.
    direction = gradient_sign(model, images, labels, 1.0, from_logits=True) - images
    perturbed_by = {
        "gaussian": {
            s: gaussian_noise(images, s, flags.seed, _BOUNDS) for s in _GAUSSIAN
        },
        "gradient_sign": {
            s: np.clip(images + s * direction, *_BOUNDS) for s in _GRADIENT_SIGN
        },
    }
    shown = {k: methods[k] for k in ("one_pass", "averaged", "moments") if k in methods}
    found = {}
    for kind, (title, unit) in KINDS.items():
        perturbed, curves = perturbed_by[kind], {}
        for key, method in shown.items():
            arguments, name = dict(method.arguments), method.title
            if "samples" in arguments:
                arguments["samples"] = min(_SAMPLES, arguments["samples"])
                name = f"average of {arguments['samples']} samples"
            accuracies = []
            for size, inputs in perturbed.items():
                probs = predict(model, inputs, from_logits=True, **arguments).probs
                accuracy = 100 * metrics.accuracy(probs, labels)
                figures[f"perturbation/{kind}/{size:g}/accuracy_{key}"] = accuracy
                accuracies.append(accuracy)
            curves[name] = (list(perturbed), accuracies)
        said = ", ".join(f"{name} {a[-1]:.1f} %" for name, (_, a) in curves.items())
        found[f"perturbation_{kind}"] = Section(
            title,
            plots.perturbation_curves(curves, unit),
            f"Accuracy on the first {len(images)} test images. At the largest "
            f"perturbation: {said}.",
        )
    return found
