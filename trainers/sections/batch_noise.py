"""The noise of batch normalization: figure 4 of Shekhovtsov & Flach (2018)."""

import itertools

import numpy as np

from bayesnorm import plots
from bayesnorm.measurement.batch_noise import batch_noise
from trainers import session
from trainers.evaluation.records import Record
from trainers.groups import NOISE_FLAGS
from trainers.report.section import Section
from trainers.report.tables import table

_BATCH_SIZES = (8, 16, 32, 64, 128)
_BATCHES = 200
# With a label for each pixel: images are large, and an image alone is many positions.
_DENSE_FACTORS, _DENSE_BATCHES = (1, 2, 4), 50
# What 200 batches of 128 need is more; twice as many examples change no digit shown.
_EXAMPLES = 10_000
# Of a smaller set several epochs, each augmented anew: batches of few images that are
# always the same ones would have less noise than those of training.
_LEAST_EXAMPLES = 256


def section(evaluation):
    """Returns the noise that a batch normalization has in training, None without one.

    The records are of the number of examples that training normalizes by, or of the
    nearest of which the training part holds four batches.
    """
    flags, splits = evaluation.flags, evaluation.splits
    if flags.norm != "batch":
        return None
    training = flags.normalization_batch or flags.batch_size
    inputs = _training_inputs(flags, splits)
    sizes, batches = {*_BATCH_SIZES, training}, _BATCHES
    if splits.dense:
        sizes, batches = {training * k for k in _DENSE_FACTORS}, _DENSE_BATCHES
    sizes = sorted(x for x in sizes if x <= len(inputs) // 4) or [flags.batch_size]
    measured = {
        size: batch_noise(evaluation.model, inputs, size, batches, flags.seed)
        for size in sizes
    }
    size = min(measured, key=lambda size: abs(size - training))
    text = (
        "In training a batch normalization gives `(x_hat + V) U`, U = sigma / S and "
        f"V = (mu - M) / sigma with the statistics M, S of {batches} random batches "
        f"of {size} training images, n = images x positions.{_decay(measured)} A small "
        "p says that the values of a batch are not independent normal ones."
        f"\n\n{_table(measured[size])}\n\nTo train another normalization with this "
        f"noise: `--scale=noisy {_words(measured[size])}`."
    )
    return Section(
        "batch_noise",
        "Noise of batch normalization",
        text,
        plots.batch_noise([*itertools.chain.from_iterable(measured.values())]),
        [
            Record("noise", key, getattr(n, key), "1", axis="layer", at=_name(n))
            for n in measured[size]
            for key in (*NOISE_FLAGS, "chi_square_p")
        ],
    )


def _name(noise):
    return noise.layer.removesuffix("_norm")


def _decay(measured):
    """A sentence on how the variances fall with the batch size, of several sizes."""
    sizes = list(measured)
    if len(sizes) == 1:
        return ""
    slopes = [
        np.polyfit(np.log(sizes), np.log(v), 1)[0]
        for name in NOISE_FLAGS
        for v in zip(
            *([getattr(m, name) ** 2 for m in measured[s]] for s in sizes), strict=True
        )
    ]
    return (
        f" Over batch sizes {sizes[0]} to {sizes[-1]} the variances fall as the "
        f"power {np.median(slopes):.2f} of it (median over layers; "
        f"{min(slopes):.2f} to {max(slopes):.2f}); independent values give -1."
    )


def _table(noises):
    head = ["layer", "n", "stddev of U", "if independent", "stddev of V"]
    rows = []
    for noise in noises:
        n = noise.batch_size * noise.positions
        u, v = noise.scale_stddev, noise.shift_stddev
        cells = [f"{x:.4f}" for x in (u, (2 * n) ** -0.5, v, n**-0.5)]
        rows.append([_name(noise), f"{n}", *cells, f"{noise.chi_square_p:.3f}"])
    return table([*head, "if independent", "chi-square p"], rows)


def _words(noises):
    """The flags that give the measured deviations to another normalization."""
    values = {key: [f"{getattr(n, key):.4f}" for n in noises] for key in NOISE_FLAGS}
    return " ".join(f"--{key}={','.join(v)}" for key, v in values.items())


def _training_inputs(flags, splits):
    """Training images as in training, an array."""
    size, count = flags.batch_size, len(splits.train)
    epochs = -(-max(_LEAST_EXAMPLES, 4 * size) // (count - count % size))
    batches = session.TrainingInputs(flags, splits, size, flags.seed, epochs=epochs)
    return np.concatenate(list(itertools.islice(batches, -(-_EXAMPLES // size))))
