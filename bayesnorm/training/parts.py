"""The sources of a data set's parts."""

import functools

from bayesnorm.datasets.splits import StreamedSplit, validate
from bayesnorm.training.sources import OnDevice, OnHost
from bayesnorm.training.stream import Stream


def of_splits(splits, kind=OnDevice, augment=False, seed=0):
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
