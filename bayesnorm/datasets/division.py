"""How sets are divided into train, validation and test."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

# What files and keys call the parts.
NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}
# The test part does not follow `split_seed`: figures of all seeds share one test set.
TEST_SEED = 0
TEST_FRACTION = 0.2
# Of what the test part leaves: a tenth of the whole.
VALIDATION_FRACTION = 0.125


def permuted(count: int, share: int, split_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of train and validation, whatever their classes.

    Args:
        count: Number of examples.
        share: One in so many is for validation.
        split_seed: Seed.

    Returns:
        `(train, validation)`: the rest and the start of a permutation of `0..count-1`.
    """
    order = np.random.default_rng(split_seed).permutation(count)
    return order[count // share :], order[: count // share]


def stratified(
    labels: np.ndarray,
    split_seed: int,
    missing: Collection[str] = ("validation", "test"),
) -> dict[str, np.ndarray]:
    """Indices of parts that hold the same share of every class.

    A fifth is the test part, the same for every `split_seed`, and an eighth of the
    others the validation part: 70 %, 10 % and 20 % where both are drawn. Of a class
    each has one example at least.

    Args:
        labels: `[n]` integers.
        split_seed: Seed of the division into train and validation.
        missing: The parts to draw.

    Returns:
        Dict from `"train"` and the parts drawn to sorted indices.
    """
    rest = np.arange(len(labels))
    parts = {}
    for part, fraction, seed in (
        ("test", TEST_FRACTION, TEST_SEED),
        ("validation", VALIDATION_FRACTION, split_seed),
    ):
        if part in missing:
            drawn = _drawn(labels[rest], fraction, seed)
            parts[part], rest = rest[drawn], rest[~drawn]
    return {"train": rest, **parts}


def completed(
    where: str,
    labels: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    split_seed: int,
) -> dict[str, tuple[str, np.ndarray | slice]]:
    """Draws the parts that a set lacks from its training part.

    Args:
        where: Name of the set, for messages.
        labels: Dict from `"train"`, and from `"validation"` and `"test"` where they are
            there, to `[n]` integers.
        class_names: Names that they index.
        split_seed: Seed of the division into train and validation.

    Returns:
        Dict from each part to `(source, indices)`: the part there that its examples lie
        in, and which they are.

    Raises:
        ValueError: A class has too few examples.
    """
    missing = [part for part in NAMES if part not in labels]
    whole: dict[str, Any] = {part: (part, slice(None)) for part in labels}
    if not missing:
        return whole
    found, counts = np.unique(labels["train"], return_counts=True)
    few = [
        f"{class_names[label]!r} {count}"
        for label, count in zip(found, counts, strict=True)
        if count <= len(missing)
    ]
    if few:
        raise ValueError(
            f"{where}: {' and '.join(missing)} are drawn from the training images, "
            f"which takes {len(missing) + 1} of each class, but there are of "
            f"{', '.join(few)}. Add some, or take the class away."
        )
    drawn = stratified(labels["train"], split_seed, missing)
    return whole | {part: ("train", indices) for part, indices in drawn.items()}


def _drawn(labels, fraction, seed):
    """Mask `[n]` of a random part with `fraction` of every class, one at least."""
    generator = np.random.default_rng(seed)
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        mask[members[: max(1, round(fraction * len(members)))]] = True
    return mask
