"""Where a training loop's examples come from: the device, the host, a stream.

A source gives an epoch, or an evaluation, as *blocks*: tensors on the device, and the
places in them of the examples of each step, so that one compiled call takes many steps
whatever the data came in. Of a source that is not all on the device a block has the
steps of one call, and while they are taken the next one is made and put there: memory
is that of a few blocks, however long the epoch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from keras import ops

from bayesnorm.streams.ahead import ahead
from bayesnorm.streams.epochs import permutation
from bayesnorm.types import MaybeNone

if TYPE_CHECKING:
    from bayesnorm.datasets import Split
    from bayesnorm.training.loop import Config


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


def training_order(
    num_examples: int, batch_size: int, seed: int, epoch: int
) -> np.ndarray:
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


def with_normalization_batch(order: np.ndarray, size: int) -> np.ndarray:
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
    """A part of a set, as a `loop.Loop` takes it.

    Attributes:
        num_examples: Examples of an epoch; None if an evaluation has yet to count them.
        image_shape: `(height, width, channels)`.
        scale: Factor from stored pixels to the network's inputs.
        dense: Whether there is a label for each pixel.
        num_labels: Labels of an epoch, by which the KL is divided.
    """

    def __init__(
        self, num_examples: int | None, images: Any, labels: Any, scale: float
    ) -> None:
        self.num_examples: int | MaybeNone = num_examples
        self.image_shape, self.scale = images.shape[1:], scale
        self.dense = labels.ndim > 1
        self.num_labels = (num_examples or 0) * math.prod(labels.shape[1:])

    def check(self, config: Config) -> None:
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

    def check_alike(self, other: Source) -> None:
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

    def training(self, config: Config, epoch: int) -> Iterator[Block]:
        """Yields the `Block`s of an epoch, `num_examples // batch_size` steps in all.

        Args:
            config: A `Config`.
            epoch: Integer from 0.
        """
        raise NotImplementedError

    def evaluation(self, config: Config) -> Iterator[Block]:
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

    def __init__(self, split: Split, scale: float) -> None:
        super().__init__(len(split), split.images, split.labels, scale)
        self.tensors = self._placed(split.images, split.labels.astype("int32"))

    @staticmethod
    def _placed(*arrays):
        return tuple(map(ops.convert_to_tensor, arrays))

    def training_order(self, config: Config, epoch: int) -> np.ndarray:
        """Returns the examples of an epoch's steps, `[steps, examples]`."""
        order = training_order(self.num_examples, config.batch_size, config.seed, epoch)
        if config.normalization_batch:
            order = with_normalization_batch(order, config.normalization_batch)
        return order

    def training(self, config: Config, epoch: int) -> Iterator[Block]:
        """As `Source.training`."""
        order = self.training_order(config, epoch)
        return self._blocks(config, order, np.ones(order.shape, "float32"))

    def evaluation(self, config: Config) -> Iterator[Block]:
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
        return stacked(batches, capacity_for(config, order.shape[1], len(order)))


def capacity_for(config: Config, size: int, steps: int | None = None) -> int:
    """Returns the steps of `size` examples that a block has place for."""
    most = max(1, config.steps_per_call * config.batch_size // size)
    return most if steps is None else min(most, steps)


def stacked(batches: Iterable[Any], capacity: int) -> Iterator[Block]:
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
