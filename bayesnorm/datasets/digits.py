"""The digits set of scikit-learn, which comes with the install."""

import numpy as np

from bayesnorm.datasets import splits

CLASS_NAMES = tuple("0123456789")
# The test part does not follow `split_seed`: figures of all seeds share one test set.
TEST_SEED = 0
TEST_FRACTION = 0.2
VALIDATION_FRACTION = 0.1


def load(split_seed=0, held_out=(8, 9)):
    """Digits: 1,797 grey images of handwritten digits, 8x8x1, stored 0..16 (white 16).

    A pixel counts the inked ones of 4x4 binary pixels, 0..16 stored as uint8; the
    network sees `images / 16`, in [0, 1]. Of every trained class 70 % of the images go
    to train, 10 % to validation and 20 % to test. The test part is always the same;
    `split_seed` draws the other two. All images of the held-out classes are the
    out-of-distribution part.

    Args:
        split_seed: Seed of the division into train and validation.
        held_out: Classes held out.

    Returns:
        A `Splits`.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = raw.images.astype(np.uint8)[..., None]
    out = splits.resolve_classes("digits", held_out, CLASS_NAMES)
    kept, ood = splits.hold_out(
        images, raw.target.astype(np.int64), out, len(CLASS_NAMES)
    )
    is_test = stratified(kept.labels, TEST_FRACTION, TEST_SEED)
    rest = np.flatnonzero(~is_test)
    is_validation = stratified(
        kept.labels[rest], VALIDATION_FRACTION / (1 - TEST_FRACTION), split_seed
    )
    indices = (rest[~is_validation], rest[is_validation], np.flatnonzero(is_test))
    return splits.from_arrays(
        *((kept.images[i], kept.labels[i]) for i in indices),
        (ood.images, ood.labels) if out else None,
        name="digits",
        class_names=[n for i, n in enumerate(CLASS_NAMES) if i not in out],
        ood_class_names=[CLASS_NAMES[i] for i in out],
        scale=1 / 16,
    )


def stratified(labels, fraction, seed):
    """Mask `[n]` of a random part with `round(fraction * count)` of every class."""
    generator = np.random.default_rng(seed)
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        mask[members[: round(fraction * len(members))]] = True
    return mask
