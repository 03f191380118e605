"""Labelled batches, epoch after epoch, whatever they come in."""

import sys

import keras
import numpy as np

from bayesnorm.streams.arrays import as_arrays
from bayesnorm.streams.elements import is_endless, items


def permutation(count, seed, epoch):
    """Returns a random order of `count` things, a function of seed and epoch.

    Args:
        count: Integer.
        seed: Integer from 0.
        epoch: Integer from 0.
    """
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


class Epochs:
    """Reads `(images, labels)` epoch after epoch.

    Args:
        x: What gives them, single examples (an image has three axes) or batches:

            - what has a length and takes an index: a `keras.utils.PyDataset`, a Grain
              `MapDataset`, a list. Its elements come in an order that is a function of
              seed and epoch; `on_epoch_end` of a `PyDataset`, with which some shuffle,
              is not called, as a run gone on with would have missed calls of it;
            - a function `epoch -> iterable`, the epoch an integer from 0;
            - a Grain `IterDataset` or `DataLoader`, which give the same each time;
            - a `tf.data.Dataset` or another iterable. One that shuffles anew each time
              gives what depends on how often it was gone through.
        seed: Integer from 0: of the order of what takes an index.

    Attributes:
        is_endless: Whether the data are known to go on for ever.
        is_exact: Whether an epoch's data are known to depend on `x`, seed and epoch
            alone: so it is with all but the last of the list.
        length: Number of elements of what takes an index, else None.

    Raises:
        TypeError: If `x` is none of these, or can be read only once.
        ValueError: If a Grain `MapDataset` is repeated without an end.
    """

    def __init__(self, x, seed=0):
        self._x, self._seed = x, seed
        is_text = isinstance(x, str | bytes)
        indexed = hasattr(x, "__getitem__") and hasattr(x, "__len__") and not is_text
        self.is_endless = is_endless(x)
        self.length = len(x) if indexed and not self.is_endless else None
        if self.length == sys.maxsize:
            raise ValueError(
                "The MapDataset repeats itself without an end. Leave out repeat(): the "
                "epochs are counted here, each in an order of its own."
            )
        readable = indexed or callable(x) or (hasattr(x, "__iter__") and not is_text)
        if not readable or hasattr(x, "__next__"):
            raise TypeError(
                "Expected a tf.data.Dataset, a Grain data set, a keras.utils.PyDataset "
                "or another iterable that can be read again, or a function `epoch -> "
                f"iterable`. Received: {type(x).__name__}"
                + (", which is read once" if hasattr(x, "__next__") else "")
            )
        is_grain = type(x).__module__.partition(".")[0] == "grain"
        self.is_exact = indexed or callable(x) or is_grain

    def read(self, epoch=None):
        """Yields the batches of an epoch.

        Args:
            epoch: Integer from 0; None for the data's own order, that of an evaluation.

        Yields:
            `(images, labels)`, arrays `[rows, ...]`, of any number of rows.

        Raises:
            ValueError: If an element is no such pair.
        """
        x = self._x
        if self.length is not None:
            order = range(self.length)
            if epoch is not None:
                order = permutation(self.length, self._seed, epoch)
            found = (x[int(i)] for i in order)
        elif isinstance(x, keras.utils.PyDataset):
            found = items(x)
        else:
            found = x(epoch or 0) if callable(x) else x
        for element in found:
            if not isinstance(element, tuple | list) or len(element) != 2:
                raise ValueError(
                    "Expected elements (images, labels). Received: "
                    f"{_described(element)}. Map the data to such pairs first; weights "
                    "of examples are not taken."
                )
            images, labels = element
            if np.ndim(images) == 3:
                images, labels = np.asarray(images)[None], np.asarray(labels)[None]
            yield as_arrays((images, labels))


def _described(element):
    if isinstance(element, tuple | list):
        return f"{type(element).__name__} of {len(element)} entries"
    if isinstance(element, dict):
        return f"a dict of {sorted(map(str, element))}"
    return type(element).__name__
