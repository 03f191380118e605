"""The noise of batch normalization: figure 4 of Shekhovtsov & Flach (2018)."""

import itertools

import numpy as np

from bayesnorm import plots
from bayesnorm.measurement.batch_noise import batch_noise
from trainers import groups, session
from trainers.report import Section

_BATCH_SIZES = (8, 16, 32, 64, 128)
_BATCHES = 200
_NOISE = tuple(flag.name for flag in groups.NOISE)
# With a label for each pixel: images are large, and an image alone is many positions.
_DENSE_FACTORS, _DENSE_BATCHES = (1, 2, 4), 50
# What 200 batches of 128 need is more; twice as many examples change no digit shown.
_EXAMPLES = 10_000
# Of a smaller set several epochs, each augmented anew: batches of few images that are
# always the same ones would have less noise than those of training.
_LEAST_EXAMPLES = 256


def sections(flags, splits, model, figures):
    """Returns the section, and adds what it found to `figures`.

    Args:
        flags: The flags of the run.
        splits: The `Splits`.
        model: A network with batch normalization.
        figures: Dict of figures, changed: `noise/scale_stddev/LAYER`,
            `noise/shift_stddev/LAYER` and `noise/chi_square_p/LAYER` at the number of
            examples that training normalizes by, or the nearest of which the training
            part holds four batches.
    """
    training = flags.normalization_batch or flags.batch_size
    measured, batches = _measure(flags, splits, model, training)
    size = min(measured, key=lambda size: abs(size - training))
    for noise in measured[size]:
        for key in (*_NOISE, "chi_square_p"):
            figures[f"noise/{key}/{_name(noise)}"] = getattr(noise, key)
    everything = list(itertools.chain.from_iterable(measured.values()))
    text = (
        "In training a batch normalization gives `(x_hat + V) U`, U = sigma / S and "
        f"V = (mu - M) / sigma with the statistics M, S of {batches} random batches "
        f"of {size} training images, n = images x positions.{_decay(measured)} A small "
        "p says that the values of a batch are not independent normal ones."
        f"\n\n{_table(measured[size])}\n\nTo train another normalization with this "
        f"noise: `--scale=noisy {_words(measured[size])}`."
    )
    return {
        "batch_noise": Section(
            "Noise of batch normalization", plots.batch_noise(everything), text
        )
    }


def _measure(flags, splits, model, training):
    """Returns batch size -> noise of each layer, and the batches of each size."""
    inputs = _training_inputs(flags, splits)
    sizes, batches = {*_BATCH_SIZES, training}, _BATCHES
    if splits.dense:
        sizes, batches = {training * k for k in _DENSE_FACTORS}, _DENSE_BATCHES
    sizes = sorted(x for x in sizes if x <= len(inputs) // 4) or [flags.batch_size]
    measured = {
        size: batch_noise(model, inputs, size, batches, flags.seed) for size in sizes
    }
    return measured, batches


def _name(noise):
    return noise.layer.removesuffix("_norm")


def _decay(measured):
    """A sentence on how the variances fall with the batch size, of several sizes."""
    sizes = list(measured)
    if len(sizes) == 1:
        return ""
    slopes = [
        np.polyfit(np.log(sizes), np.log(v), 1)[0]
        for name in _NOISE
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
    lines = [
        "| layer | n | stddev of U | if independent | stddev of V | if independent "
        "| chi-square p |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for noise in noises:
        n = noise.batch_size * noise.positions
        lines.append(
            f"| {_name(noise)} | {n} "
            f"| {noise.scale_stddev:.4f} | {(2 * n) ** -0.5:.4f} "
            f"| {noise.shift_stddev:.4f} | {n**-0.5:.4f} | {noise.chi_square_p:.3f} |"
        )
    return "\n".join(lines)


def _words(noises):
    """The flags that give the measured deviations to another normalization."""
    values = {key: [f"{getattr(n, key):.4f}" for n in noises] for key in _NOISE}
    return " ".join(f"--{key}={','.join(v)}" for key, v in values.items())


def _training_inputs(flags, splits):
    """Training images as in training, an array."""
    size, count = flags.batch_size, len(splits.train)
    epochs = -(-max(_LEAST_EXAMPLES, 4 * size) // (count - count % size))
    batches = session.TrainingInputs(flags, splits, size, flags.seed, epochs=epochs)
    return np.concatenate(list(itertools.islice(batches, -(-_EXAMPLES // size))))
