"""Where the examples of a loop come from: the device, the host, a stream.

A source gives an epoch, or an evaluation, as *blocks*: tensors on the device, and the
places in them of the examples of each step, so that one compiled call takes many steps
whatever the data came in. Of a source that is not all on the device a block has the
steps of one call, and while they are taken the next one is made and put there: memory
is that of a few blocks, however long the epoch.
"""

import contextlib
import itertools
import math
import warnings
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from bayesnorm.arguments import positive_integer
from bayesnorm.datasets.splits import Split, check_split, validate
from bayesnorm.streams.ahead import ahead
from bayesnorm.streams.arrays import rows_of
from bayesnorm.streams.batches import recut
from bayesnorm.streams.epochs import Epochs, permutation


class Block(NamedTuple):
    """Some steps: the first `steps` of those that the tensors have place for.

    Attributes:
        steps: Number of steps.
        images: Stored images `[n, height, width, channels]`.
        labels: Labels `[n]` or `[n, height, width]`, int32.
        order: Examples of each step, `[steps or more, examples]`.
        weights: Their weights in an evaluation, likewise: 0 for what fills it up.
    """

    steps: int
    images: Any
    labels: Any
    order: np.ndarray
    weights: np.ndarray


def training_order(num_examples, batch_size, seed, epoch):
    """Returns the examples of an epoch's steps, `[N // batch_size, batch_size]`.

    Args:
        num_examples: Integer N.
        batch_size: Integer, at most N.
        seed: Integer from 0.
        epoch: Integer from 0.
    """
    steps = num_examples // batch_size
    order = permutation(num_examples, seed, epoch)[: steps * batch_size]
    return order.reshape(steps, batch_size).astype("int32")


def with_normalization_batch(order, size):
    """Appends to each step the examples that follow it in the epoch, up to `size`.

    Args:
        order: Integers `[steps, batch_size]`, as of `training_order`.
        size: Integer, at most the number of entries of `order`.

    Returns:
        Integers `[steps, size]`: no example twice in a step.
    """
    steps, batch_size = order.shape
    places = batch_size * np.arange(steps)[:, None] + np.arange(size)
    return order.reshape(-1)[places % order.size]


class Source:
    """A part of a set, as a `trainers.loop.Loop` takes it.

    Attributes:
        num_examples: Examples of an epoch; None if an evaluation has yet to count them.
        image_shape: `(height, width, channels)`.
        scale: Factor from stored pixels to the network's inputs.
        dense: Whether there is a label for each pixel.
        num_labels: Labels of an epoch, by which the KL is divided.
    """

    def __init__(self, num_examples, images, labels, scale):
        self.num_examples = num_examples
        self.image_shape, self.scale = images.shape[1:], scale
        self.dense = labels.ndim > 1
        self.num_labels = (num_examples or 0) * math.prod(labels.shape[1:])

    def check(self, config):
        """Raises a ValueError if it cannot be trained on as a `Config` says."""
        if config.batch_size > self.num_examples:
            raise ValueError(
                f"`batch_size` must be at most {self.num_examples}, the number of "
                f"training examples. Received: batch_size={config.batch_size}"
            )
        used = self.num_examples // config.batch_size * config.batch_size
        if (config.normalization_batch or 0) > used:
            raise ValueError(
                f"`normalization_batch` must be at most {used}, the training examples "
                f"of an epoch. Received: normalization_batch="
                f"{config.normalization_batch}"
            )

    def check_alike(self, other):
        """Raises a ValueError if a network cannot take the images of another source."""
        mine, others = (
            (source.image_shape, source.scale, source.dense) for source in (self, other)
        )
        if mine != others:
            raise ValueError(
                "Training and validation must have images of one shape and scale, and "
                "labels of one kind. Received (image shape, scale, a label for each "
                f"pixel): {mine} and {others}"
            )

    def training(self, config, epoch):
        """Yields the `Block`s of an epoch, `num_examples // batch_size` steps in all.

        Args:
            config: A `Config`.
            epoch: Integer from 0.
        """
        raise NotImplementedError

    def evaluation(self, config):
        """Yields the `Block`s that have every example once.

        Args:
            config: A `Config`.
        """
        raise NotImplementedError


class OnDevice(Source):
    """A part that lies on the device, one block.

    Args:
        split: A `datasets.Split`.
        scale: Factor from stored pixels to the network's inputs.
    """

    def __init__(self, split, scale):
        super().__init__(len(split), split.images, split.labels, scale)
        self.tensors = self._placed(split.images, split.labels.astype("int32"))

    @staticmethod
    def _placed(*arrays):
        return tuple(map(ops.convert_to_tensor, arrays))

    def training_order(self, config, epoch):
        """Returns the examples of an epoch's steps, `[steps, examples]`."""
        order = training_order(self.num_examples, config.batch_size, config.seed, epoch)
        if config.normalization_batch:
            order = with_normalization_batch(order, config.normalization_batch)
        return order

    def training(self, config, epoch):
        """As `Source.training`."""
        order = self.training_order(config, epoch)
        return self._blocks(config, order, np.ones(order.shape, "float32"))

    def evaluation(self, config):
        """As `Source.evaluation`."""
        count, size = self.num_examples, config.eval_batch_size
        places = np.arange(-(-count // size) * size).reshape(-1, size)
        inside = places < count
        order = np.where(inside, places, 0).astype("int32")
        return self._blocks(config, order, inside.astype("float32"))

    def _blocks(self, config, order, weights):
        yield Block(len(order), *self.tensors, order, weights)


class OnHost(OnDevice):
    """A part in the host's memory, or mapped into it from a file, streamed.

    Figures are those of the part on the device, to the last digit.

    Args:
        split: A `datasets.Split`.
        scale: Factor from stored pixels to the network's inputs.
    """

    @staticmethod
    def _placed(images, labels):
        return images, labels

    def _blocks(self, config, order, weights):
        images, labels = self.tensors
        batches = (
            (images[step], labels[step], weight)
            for step, weight in zip(order, weights, strict=True)
        )
        return _stacked(batches, _capacity(config, order.shape[1], len(order)))


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
        self, x, num_classes, num_examples=None, scale=None, seed=0, endless=False
    ):
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

    def check(self, config):
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

    def training(self, config, epoch):
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
        return _stacked(batches, _capacity(config, config.batch_size, steps))

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

    def evaluation(self, config):
        """As `Source.evaluation`."""
        size, count = config.eval_batch_size, self.num_examples
        steps = None if count is None else -(-count // size)
        return _stacked(
            self._of_evaluation(size, count, steps), _capacity(config, size, steps)
        )

    def _of_evaluation(self, size, count, steps):
        taken = 0
        for images, labels in itertools.islice(self._read(None, size), steps):
            rows = len(images) if count is None else min(len(images), count - taken)
            taken += rows
            weights = (np.arange(size) < rows).astype("float32")
            yield images, labels, weights


def _capacity(config, size, steps=None):
    """Returns the steps of `size` examples that a block has place for."""
    most = max(1, config.steps_per_call * config.batch_size // size)
    return most if steps is None else min(most, steps)


def _stacked(batches, capacity):
    """Returns an iterator of blocks of `capacity` steps, put on the device one ahead.

    Args:
        batches: Iterator of `(images, labels, weights)`. A short one at the end is
            filled up, its weights are not.
        capacity: Integer.
    """

    def blocks():
        # Blocks have one shape, also the last: nothing is compiled again.
        while group := list(itertools.islice(batches, capacity)):
            size = len(group[0][2])
            order = np.arange(capacity * size, dtype="int32").reshape(capacity, size)
            images, labels, weights = (
                _laid(arrays, capacity * size) for arrays in zip(*group, strict=True)
            )
            yield Block(
                len(group),
                ops.convert_to_tensor(images),
                ops.convert_to_tensor(labels),
                order,
                weights.reshape(capacity, size),
            )

    return ahead(blocks())


def _laid(arrays, rows):
    """Returns arrays one behind the other, zeros behind them, `rows` in all."""
    whole = np.zeros((rows, *arrays[0].shape[1:]), arrays[0].dtype)
    np.concatenate(arrays, out=whole[: sum(map(len, arrays))])
    return whole


def of_splits(splits, kind=OnDevice):
    """Returns the sources of training and of validation, a dict by part.

    Args:
        splits: A `datasets.Splits`, checked here.
        kind: `OnDevice` or `OnHost`.

    Raises:
        ValueError: As of `datasets.validate`.
    """
    validate(splits)
    return {
        part: kind(getattr(splits, part), splits.scale)
        for part in ("train", "validation")
    }
