"""The digits set of scikit-learn, which comes with the install."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bayesnorm.datasets import division, splits
from bayesnorm.datasets.splits import Splits

CLASS_NAMES = tuple("0123456789")


def load(split_seed: int = 0, held_out: Sequence[int | str] = (8, 9)) -> Splits:
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
    parts = division.stratified(kept.labels, split_seed)
    train, validation, test = (
        (kept.images[parts[part]], kept.labels[parts[part]])
        for part in ("train", "validation", "test")
    )
    return splits.from_arrays(
        train,
        validation,
        test,
        (ood.images, ood.labels) if out else None,
        name="digits",
        class_names=[n for i, n in enumerate(CLASS_NAMES) if i not in out],
        ood_class_names=[CLASS_NAMES[i] for i in out],
        scale=1 / 16,
    )
