"""What is known of the channels of each tensor of a graph.

A channel is known by a number. Layers that leave channels what they are hand the
numbers on, those that mix them make new ones; numbers that stand or fall together are
tied.
"""

import dataclasses
from collections.abc import Hashable

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


@dataclasses.dataclass(frozen=True, eq=False)
class Channels:
    """The channels of a tensor.

    Attributes:
        shape: Shape of the tensor, the batch first, None where a size is not known.
        axis: The channel axis, from 1 on.
        ids: Integers `[shape[axis]]`, the channels' numbers; two entries of one number
            are kept or removed together.
        constant: float64 `[shape[axis]]`, the value that a channel has in every
            example; NaN where it depends on the example.
        pattern: None where a constant is the same at every position. Otherwise what
            stands for a map of the positions, the same for every channel of the tensor,
            which the constant is a factor of.
        dtype: Name of the tensor's dtype.
    """

    shape: tuple
    axis: int
    ids: np.ndarray
    constant: np.ndarray
    pattern: Hashable = None
    dtype: str = "float32"

    @property
    def is_constant(self):
        """Where the channels do not depend on the example, booleans."""
        return np.isfinite(self.constant)

    def replace(self, **changes):
        """Returns channels with other attributes."""
        return dataclasses.replace(self, **changes)

    def with_constant(self, constant):
        """Returns channels of other values, the same at every position."""
        return self.replace(constant=constant, pattern=None)

    def only_zeros(self):
        """Returns channels of which no constant but 0 is known."""
        known = np.where(self.constant == 0, 0.0, np.nan)
        return self.replace(constant=known, pattern=None)

    def spread(self, values):
        """Returns values of the channels, `[n]`, laid out over an example's shape."""
        rank = len(self.shape)
        vector = [1] * (rank - 1)
        vector[self.axis - 1] = len(values)
        return np.broadcast_to(np.reshape(values, vector), self.shape[1:])


@dataclasses.dataclass(frozen=True, eq=False)
class Sink:
    """A call that takes channels and mixes them into others, linearly.

    Attributes:
        operation: The layer.
        channels: The `Channels` that it takes.
        unused: Booleans, where its weights for a channel are all 0.
        at_border: Whether what a constant channel adds depends on the position.
        carries: Whether one constant channel can then stand for others: all that they
            add are multiples of one map, with factors of weights that can be summed.
    """

    operation: object
    channels: Channels
    unused: np.ndarray
    at_border: bool
    carries: bool

    @property
    def needs_carrier(self):
        """Where a channel's constant cannot go into a bias, booleans."""
        return self.at_border & (self.channels.constant != 0) & ~self.unused

    @property
    def free(self):
        """Where the layer can do without a channel, perhaps with a carrier."""
        known = self.channels.is_constant
        if not self.carries:
            known = known & ~self.needs_carrier
        return known | self.unused


@dataclasses.dataclass(frozen=True, eq=False)
class Balance:
    """Blocks of channels of which equally many must stay.

    Attributes:
        ids: Integers `[blocks, channels of a block]`.
    """

    ids: np.ndarray


class Trace:
    """What was met on the way through a graph.

    Attributes:
        calls: By the identity of an operation: its calls, `(inputs, outputs)`, a list
            of `Channels` each.
        operations: The operations, in the order of their first calls.
        sinks: The `Sink`s.
        balances: The `Balance`s.
        pins: `(ids, operation, reason)` of channels that must stay.
        made: By the identity of a layer: the numbers of the channels that it makes.
        indices: By the identity of an operation that takes channels by their places:
            these.
    """

    def __init__(self):
        self.calls = {}
        self.operations = []
        self.sinks = []
        self.balances = []
        self.pins = []
        self.made = {}
        self.indices = {}
        self.size = 0
        self._ties = []

    def new(self, size):
        """Returns numbers of new channels."""
        ids = np.arange(self.size, self.size + size)
        self.size += size
        return ids

    def made_by(self, layer, size):
        """Returns the numbers of the channels that a layer makes, in all its calls."""
        if id(layer) not in self.made:
            self.made[id(layer)] = self.new(size)
        return self.made[id(layer)]

    def tie(self, *vectors):
        """Ties numbers in the same places of several vectors."""
        for other in vectors[1:]:
            self._ties.append(np.stack([vectors[0], other]))

    def pin(self, ids, operation, reason):
        """Notes that channels must stay, and why."""
        self.pins.append((np.unique(ids), operation, reason))

    def fresh(self, shape, axis=-1, dtype="float32"):
        """Returns `Channels` of new numbers, none of them constant.

        Where the channels' number is not known there is none.
        """
        axis %= max(1, len(shape))
        size = shape[axis] if 0 < axis < len(shape) else None
        ids = self.new(size or 0)
        return Channels(
            tuple(shape), axis, ids, np.full(size or 0, np.nan), None, dtype
        )

    def over(self, channels, axis, operation):
        """Returns channels along an axis; where theirs is another one, they stay."""
        axis %= len(channels.shape)
        if channels.axis == axis:
            return channels
        self.pin(
            channels.ids, operation, f"takes axis {axis} of them, not {channels.axis}"
        )
        other = self.fresh(channels.shape, axis, channels.dtype)
        self.pin(other.ids, operation, "is given them along another axis")
        return other

    def record(self, operation, inputs, outputs):
        """Notes a call. What several calls share of a layer is tied by its rule."""
        if id(operation) not in self.calls:
            self.calls[id(operation)] = []
            self.operations.append(operation)
        self.calls[id(operation)].append((inputs, outputs))

    def groups(self):
        """Returns a number for each channel: the same for those that are tied."""
        if not self.size:
            return np.zeros(0, int)
        ties = [np.zeros((2, 0), int), *(x.reshape(2, -1) for x in self._ties)]
        rows, columns = np.concatenate(ties, axis=1)
        links = coo_matrix(
            (np.ones(len(rows), bool), (rows, columns)), (self.size, self.size)
        )
        return connected_components(links, directed=False)[1]
