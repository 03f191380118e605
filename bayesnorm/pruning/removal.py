"""Which channels can go, and what stays of the others."""

import dataclasses

import numpy as np

from bayesnorm.graph.internals import numpy_ops

# Rows of a kernel are left out in front of it, where its input keeps them for others,
# from these shares of them on: of a vector, and of maps, of which a copy costs more.
_GATHER_VECTOR, _GATHER_MAP = 0.1, 0.25


class Gather:
    """Takes some of the channels of a tensor, as an operation of the graph.

    Args:
        indices: Their places.
        axis: The channel axis.
        names: Function that returns the name of the operation, another for each call.
    """

    def __init__(self, indices, axis, names):
        self.indices, self.axis = [int(i) for i in indices], axis
        self._names = names

    def __call__(self, x, *args, **kwargs):
        """Returns the channels of `x`."""
        # `ops.take` counts in this process alone: a model that was loaded may have one
        # of the name.
        operation = numpy_ops.Take(axis=self.axis)
        operation.name = self._names()
        return operation(x, self.indices)


class Removal:
    """What of a graph goes.

    Channels go where all that takes them can do without. From "all of them" on, those
    that something needs are restored, with what is tied to them, until nothing misses
    one.

    Args:
        trace: The `Trace` of the graph.
        round_to: Integer: layers keep a multiple of so many channels, or all.

    Attributes:
        alive: Booleans, by the number of a channel.
        restored: List of `(ids, operation, reason)`, in the order of their return.
        vanishing: List of the operations of which one channel was kept for no reason
            but that there has to be one.
    """

    def __init__(self, trace, round_to=None):
        self._trace = trace
        self._groups = trace.groups()
        self._sinks = _by_operation(trace.sinks)
        self._gone = np.ones(self._groups.max() + 1 if trace.size else 0, bool)
        self.restored, self.vanishing = [], []
        self._names = {operation.name for operation in trace.operations}
        for ids, operation, reason in trace.pins:
            self._restore(ids, operation, reason)
        for sink in self._sinks.values():
            said = "needs their values"
            if not sink.carries and np.any(sink.needs_carrier):
                said += ", which are not the same at its border"
            self._restore(sink.channels.ids[~sink.free], sink.operation, said)
        self._settle(round_to)
        self._rows = {key: self._rows_of(sink) for key, sink in self._sinks.items()}

    @property
    def alive(self):
        """Booleans, by the number of a channel."""
        return ~self._gone[self._groups] if len(self._groups) else np.zeros(0, bool)

    # --- the decision ----------------------------------------------------------------

    def _restore(self, ids, operation, reason):
        groups = np.unique(self._groups[ids])
        back = groups[self._gone[groups]]
        if len(back):
            self._gone[back] = False
            ids = np.flatnonzero(np.isin(self._groups, back))
            self.restored.append((ids, operation, reason))
        return bool(len(back))

    def _settle(self, round_to):
        changed = True
        while changed:
            changed = self._keep_carriers() | self._keep_one()
            changed |= self._keep_balance() | self._keep_multiples(round_to)

    def _keep_carriers(self):
        changed = False
        for sink in self._sinks.values():
            needs = sink.needs_carrier & ~self.kept(sink.channels.ids)
            if np.any(needs) and self.carrier(sink) is None:
                values = np.where(needs, np.abs(sink.channels.constant), -1.0)
                chosen = sink.channels.ids[[values.argmax()]]
                said = "stands for all constants at its border"
                changed |= self._restore(chosen, sink.operation, said)
        return changed

    def _keep_one(self):
        changed = False
        for operation in self._trace.operations:
            for inputs, outputs in self._trace.calls[id(operation)]:
                for channels in (*inputs, *outputs):
                    if len(channels.ids) and not self.kept(channels.ids).any():
                        said = "would have no channel left"
                        changed |= self._restore(channels.ids[:1], operation, said)
                        self.vanishing.append(operation)
        return changed

    def _keep_balance(self):
        changed = False
        for balance in self._trace.balances:
            gone = ~self.kept(balance.ids)
            most = gone.sum(1).min()
            for block, out in zip(balance.ids, gone, strict=True):
                surplus = block[out][most:]
                if len(surplus):
                    said = "groups of equal size"
                    changed |= self._restore(surplus, None, said)
        return changed

    def _keep_multiples(self, round_to):
        changed = False
        for ids in self._trace.made.values() if round_to else ():
            kept = self.kept(ids)
            if kept.sum() % round_to and not kept.all():
                said = f"a multiple of {round_to}"
                changed |= self._restore(ids[~kept][:1], None, said)
        return changed

    # --- what is asked of it ---------------------------------------------------------

    def kept(self, ids):
        """Returns booleans, which of some numbers stay."""
        return ~self._gone[self._groups[ids]]

    def shape(self, channels):
        """Returns the shape of a tensor without what goes."""
        return self._shape(channels, int(self.kept(channels.ids).sum()))

    def _shape(self, channels, size):
        if not len(channels.ids):
            return channels.shape
        return tuple(
            size if i == channels.axis else n for i, n in enumerate(channels.shape)
        )

    def touches(self, operation):
        """Whether anything about an operation changes."""
        calls = self._trace.calls.get(id(operation), [])
        tensors = [x for inputs, outputs in calls for x in (*inputs, *outputs)]
        sink = self._sinks.get(id(operation))
        return any(not self.kept(x.ids).all() for x in tensors) or (
            sink is not None and len(self.rows(sink)) < len(sink.channels.ids)
        )

    def channels(self, operation):
        """Returns the `Channels` of the first input and output of an operation."""
        inputs, outputs = self._trace.calls[id(operation)][0]
        return inputs[0], outputs[0]

    def sink(self, operation):
        """Returns the `Sink` that an operation is, of all its calls."""
        return self._sinks[id(operation)]

    def taken(self, operation):
        """Returns the `Gather` in the place of an operation that takes channels."""
        inputs, outputs = self.channels(operation)
        places = np.cumsum(self.kept(inputs.ids)) - 1
        left = self._trace.indices[id(operation)][self.kept(outputs.ids)]
        axis = inputs.axis - len(inputs.shape)
        own = iter([operation.name])
        return Gather(
            places[left],
            axis,
            lambda: next(own, None) or self._free_name(operation.name),
        )

    def constant(self, sink):
        """Returns the constants of the channels that a sink takes, 0 for none."""
        return np.nan_to_num(sink.channels.constant)

    def carrier(self, sink):
        """Returns the index of a constant channel that stays, None if there is none."""
        channels = sink.channels
        values = np.abs(np.where(self.kept(channels.ids), channels.constant, np.nan))
        values = np.nan_to_num(values)
        return int(values.argmax()) if np.any(values) else None

    def rows(self, sink):
        """Returns the indices of the channels that a sink still takes."""
        return self._rows[id(sink.operation)]

    def _rows_of(self, sink):
        channels = sink.channels
        kept = self.kept(channels.ids)
        needless = kept & sink.free & ~sink.needs_carrier
        if needless.sum() == kept.sum():
            needless[np.flatnonzero(kept)[0]] = False
        vector = len(channels.shape) == 2
        share = _GATHER_VECTOR if vector else _GATHER_MAP
        grouped = getattr(sink.operation, "groups", 1) > 1
        if grouped or needless.sum() < share * kept.sum():
            needless[:] = False
        if np.any(sink.needs_carrier & ~kept):
            # Its own weights may be 0, those that it takes over are not.
            needless[self.carrier(sink)] = False
        return np.flatnonzero(kept & ~needless)

    def gathers(self, sink):
        """Returns a list of the `Gather` in front of a sink, if there is one."""
        kept = np.flatnonzero(self.kept(sink.channels.ids))
        rows = self.rows(sink)
        if len(rows) == len(kept):
            return []
        # From the end: a dense layer may be called on tensors of several ranks.
        axis = sink.channels.axis - len(sink.channels.shape)
        name = f"{sink.operation.name}_take"
        return [
            Gather(np.searchsorted(kept, rows), axis, lambda: self._free_name(name))
        ]

    def _free_name(self, name):
        """Returns a name that no operation has: this one, or with a number behind."""
        found = next(
            x
            for x in (name, *(f"{name}_{i}" for i in range(1, len(self._names) + 2)))
            if x not in self._names
        )
        self._names.add(found)
        return found

    def input_shape(self, sink):
        """Returns the shape of what a sink takes, behind its `Gather`."""
        return self._shape(sink.channels, len(self.rows(sink)))


def _by_operation(sinks):
    """Returns a `Sink` for each operation, of all its calls, by its identity."""
    found = {}
    for sink in sinks:
        known = found.get(id(sink.operation))
        if known is not None:
            constant = known.channels.constant
            same = constant == sink.channels.constant
            channels = known.channels.replace(constant=np.where(same, constant, np.nan))
            at_border = known.at_border or sink.at_border
            sink = dataclasses.replace(known, channels=channels, at_border=at_border)
        found[id(sink.operation)] = sink
    return found
