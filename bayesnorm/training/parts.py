"""The sources of a data set's parts."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from bayesnorm.datasets.splits import StreamedSplit, validate
from bayesnorm.training.sources import OnDevice, OnHost
from bayesnorm.training.stream import Stream

if TYPE_CHECKING:
    from bayesnorm.datasets import Splits
    from bayesnorm.training.sources import Source


def of_splits(
    splits: Splits,
    kind: type[OnDevice] = OnDevice,
    augment: bool = False,
    seed: int = 0,
) -> dict[str, Source]:
    """Returns the sources of training and of validation, a dict by part.

    Args:
        splits: A `datasets.Splits`, checked here. If its training part is a
            `StreamedSplit`, validation lies on the host.
        kind: `OnDevice` or `OnHost`.
        augment: Whether a `StreamedSplit` is augmented.
        seed: Integer from 0, of the order and the augmentation of a `StreamedSplit`.

    Raises:
        ValueError: As of `datasets.validate`.
    """
    validate(splits)
    train = splits.train
    if not isinstance(train, StreamedSplit):
        return {
            part: kind(getattr(splits, part), splits.scale)
            for part in ("train", "validation")
        }
    read = functools.partial(train.read, seed, augment=augment, num_examples=len(train))
    return {
        "train": Stream(read, splits.num_classes, len(train), splits.scale),
        "validation": OnHost(splits.validation, splits.scale),
    }
