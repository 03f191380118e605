"""The noise of batch normalization: figure 4 of Shekhovtsov & Flach (2018)."""

import itertools

import numpy as np

from bayesnorm import plots
from bayesnorm.tools.batch_noise import batch_noise
from trainers import session
from trainers.flags import FLAGS
from trainers.report import Section

_BATCH_SIZES = (8, 16, 32, 64, 128)
_BATCHES = 200
# With a label for each pixel: images are large, and an image alone is many positions.
_DENSE_FACTORS, _DENSE_BATCHES = (1, 2, 4), 50
# What 200 batches of 128 need is more; twice as many examples change no digit shown.
_EXAMPLES = 10_000


def sections(splits, model, figures):
    """Returns the section, and adds what it found to `figures`.

    Args:
        splits: The `Splits`.
        model: A network with batch normalization.
        figures: Dict of figures, changed: `noise/scale_stddev/LAYER`,
            `noise/shift_stddev/LAYER` and `noise/chi_square_p/LAYER` at the number of
            examples that training normalizes by, or the nearest of which the training
            part holds four batches.
    """
    inputs = _training_inputs(splits)
    training = FLAGS.normalization_batch or FLAGS.batch_size
    sizes, batches = {*_BATCH_SIZES, training}, _BATCHES
    if splits.dense:
        sizes, batches = {training * k for k in _DENSE_FACTORS}, _DENSE_BATCHES
    sizes = sorted(x for x in sizes if x <= len(inputs) // 4) or [training]
    measured = {
        size: batch_noise(model, inputs, size, batches, FLAGS.seed) for size in sizes
    }
    size = min(sizes, key=lambda size: abs(size - training))
    lines, stddevs = [], {"scale_stddev": [], "shift_stddev": []}
    for noise in measured[size]:
        name = noise.layer.removesuffix("_norm")
        for key in (*stddevs, "chi_square_p"):
            figures[f"noise/{key}/{name}"] = getattr(noise, key)
        for key, values in stddevs.items():
            values.append(f"{getattr(noise, key):.4f}")
        n = noise.batch_size * noise.positions
        lines.append(
            f"| {name} | {n} | {noise.scale_stddev:.4f} | {(2 * n) ** -0.5:.4f} "
            f"| {noise.shift_stddev:.4f} | {n**-0.5:.4f} | {noise.chi_square_p:.3f} |"
        )
    retrain = " ".join(f"--{key}={','.join(v)}" for key, v in stddevs.items())
    slopes = [
        np.polyfit(np.log(sizes), np.log(v), 1)[0]
        for name in stddevs
        for v in zip(
            *([getattr(m, name) ** 2 for m in measured[s]] for s in sizes), strict=True
        )
    ]
    fitted = ""
    if len(sizes) > 1:
        fitted = (
            f" Over batch sizes {sizes[0]} to {sizes[-1]} the variances fall as the "
            f"power {np.median(slopes):.2f} of it (median over layers; "
            f"{min(slopes):.2f} to {max(slopes):.2f}); independent values give -1."
        )
    table = "\n".join(
        [
            "| layer | n | stddev of U | if independent | stddev of V | "
            "if independent | chi-square p |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
            *lines,
        ]
    )
    text = (
        "In training a batch normalization gives `(x_hat + V) U`, U = sigma / S and "
        f"V = (mu - M) / sigma with the statistics M, S of {batches} random batches "
        f"of {size} training images, n = images x positions.{fitted} A small p "
        "says that the values of a batch are not independent normal ones."
        f"\n\n{table}\n\nTo train another normalization with this noise: "
        f"`--scale=noisy {retrain}`."
    )
    everything = list(itertools.chain.from_iterable(measured.values()))
    return {
        "batch_noise": Section(
            "Noise of batch normalization", plots.batch_noise(everything), text
        )
    }


def _training_inputs(splits):
    """Training images as in training, an array."""
    size = FLAGS.batch_size
    batches = session.TrainingInputs(splits, size, FLAGS.seed)
    return np.concatenate(list(itertools.islice(batches, -(-_EXAMPLES // size))))
