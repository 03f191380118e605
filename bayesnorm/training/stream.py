"""Sources larger than any memory: labelled batches that are read as they are needed."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesnorm.arguments import positive_integer
from bayesnorm.datasets.splits import Split, check_split
from bayesnorm.streams.arrays import rows_of
from bayesnorm.streams.batches import recut
from bayesnorm.streams.epochs import Epochs
from bayesnorm.training.sources import Source, capacity_for, stacked

if TYPE_CHECKING:
    from bayesnorm.training.loop import Config
    from bayesnorm.training.sources import Block


class Stream(Source):
    """A part that is read epoch after epoch, larger than any memory.

    Batches are cut anew to those of the configuration. Each one read is checked: shape
    and type of the first, labels in range, finite pixels.

    A run gone on with ends as an unbroken one if the stream gives the same for the same
    epoch in every process; see `bayesnorm.streams.epochs.Epochs` for what does. A run
    gone on with on another one says so in a warning.

    Args:
        x: What gives `(images, labels)`, as for `Epochs`. Data without an end are gone
            on through from epoch to epoch; a run gone on with reads past those behind.
        num_classes: Integer; labels are from 0 to below it.
        num_examples: Examples of an epoch; more that `x` has are left out. Needed for
            training (the KL weighs one over it) and for data without an end, but where
            `x` shows it: what takes an index and gives single examples.
        scale: Factor from stored pixels to the network's inputs; by default 1 / 255 of
            uint8, 1 of float32.
        seed: Seed of the order, as for `Epochs`.
        endless: Whether `x` has no end, where it does not show it: a generator function
            or a Grain data set that is repeated.

    Raises:
        ValueError: If it is empty, does not show what is needed, or its first element
            is not images and labels as of `datasets.validate`.
        TypeError: As of `Epochs`.
    """

    def __init__(
        self,
        x: Any,
        num_classes: int,
        num_examples: int | None = None,
        scale: float | None = None,
        seed: int = 0,
        endless: bool = False,
    ) -> None:
        self._epochs, self._num_classes = Epochs(x, seed), num_classes
        self._endless = endless or self._epochs.is_endless
        # Of a stream without an end: what is read from, and the epoch that comes next.
        self._open, self._next, self._begun = None, None, False
        with contextlib.closing(self._epochs.read()) as batches:
            first = next(batches, None)
        if first is None or not rows_of(first):
            raise ValueError(
                f"The {type(x).__name__} is empty: one example or more are needed."
            )
        self._first = None
        self._first = split = self._checked(first)
        if num_examples is not None:
            num_examples = positive_integer("num_examples", num_examples)
        elif self._epochs.length and len(split) == 1:
            num_examples = self._epochs.length
        elif self._endless:
            raise ValueError(
                f"The {type(x).__name__} has no end: give num_examples=, the examples "
                "of an epoch."
            )
        if scale is None:
            scale = 1 / 255 if split.images.dtype == np.uint8 else 1.0
        super().__init__(num_examples, split.images, split.labels, scale)

    def _checked(self, batch):
        """Returns the batch as a `Split`."""
        images, labels = batch
        if images.dtype == np.float64:
            images = images.astype("float32")
        if labels.dtype.kind in "iu":
            labels = labels.astype("int64")
        split = Split(images, labels)
        check_split("a batch of the stream", split, self._num_classes)
        if self._first is not None:
            for name in ("images", "labels"):
                one, other = getattr(self._first, name), getattr(split, name)
                if (one.shape[1:], one.dtype) != (other.shape[1:], other.dtype):
                    raise ValueError(
                        f"The first batch of the stream has {name} [n, *"
                        f"{one.shape[1:]}] of {one.dtype}, a later one [n, *"
                        f"{other.shape[1:]}] of {other.dtype}. Make them alike."
                    )
        return split

    def _read(self, epoch, size):
        """Yields batches `(images, labels)` of `size`; the last may be smaller."""
        checked = map(self._checked, self._epochs.read(epoch))
        return recut(((s.images, s.labels.astype("int32")) for s in checked), size)

    def check(self, config: Config) -> None:
        """As `Source.check`."""
        if self.num_examples is None:
            raise ValueError(
                "Training needs num_examples=, the examples of an epoch of the stream."
            )
        if config.normalization_batch:
            raise ValueError(
                "`normalization_batch` takes examples of the steps that follow, which "
                "a stream does not have yet: train on data in memory (`OnHost` for "
                "more than the device holds), or with a larger batch_size. Received: "
                f"normalization_batch={config.normalization_batch}"
            )
        super().check(config)

    def training(self, config: Config, epoch: int) -> Iterator[Block]:
        """As `Source.training`.

        Raises:
            ValueError: If the stream ends before the epoch does.
        """
        if epoch and not self._begun and not self._epochs.is_exact:
            warnings.warn(
                f"The run goes on after epoch {epoch} on a stream that, if it "
                "shuffles, may give other batches than in an unbroken run. A function "
                "`epoch -> data set` that seeds it by the epoch makes them equal.",
                stacklevel=4,
            )
        self._begun = True
        steps = self.num_examples // config.batch_size
        batches = self._of_epoch(epoch, config.batch_size, steps)
        return stacked(batches, capacity_for(config, config.batch_size, steps))

    def _of_epoch(self, epoch, size, steps):
        if not self._endless:
            self._open = self._read(epoch, size)
        elif self._next != epoch:
            self._open = self._read(0, size)
            next(itertools.islice(self._open, epoch * steps, epoch * steps), None)
        self._next = None
        taken = rest = 0
        for images, labels in itertools.islice(self._open, steps):
            if len(images) < size:
                rest = len(images)
                break
            taken += 1
            yield images, labels, np.ones(size, "float32")
        if taken < steps:
            raise ValueError(
                f"The stream ended in epoch {epoch + 1} after {taken * size + rest} "
                f"examples, too few for {steps} steps of {size}: give num_examples="
                f"{taken * size + rest}, not {self.num_examples}, or repeat the data."
            )
        self._next = epoch + 1

    def evaluation(self, config: Config) -> Iterator[Block]:
        """As `Source.evaluation`."""
        size, count = config.eval_batch_size, self.num_examples
        steps = None if count is None else -(-count // size)
        return stacked(
            self._of_evaluation(size, count, steps), capacity_for(config, size, steps)
        )

    def _of_evaluation(self, size, count, steps):
        taken = 0
        for images, labels in itertools.islice(self._read(None, size), steps):
            rows = len(images) if count is None else min(len(images), count - taken)
            taken += rows
            weights = (np.arange(size) < rows).astype("float32")
            yield images, labels, weights
