"""The joint law of the batch statistics of all layers, found batch by batch."""

import contextlib
import math

import numpy as np
from keras import ops

from bayesnorm import backend
from bayesnorm.maths import correlation


class PassUpdate:
    """What a batch does to the correlations of the statistics of a model.

    The factor of `maths.correlation` lies in the layers, each of which has its columns.
    A layer that is called several times in a pass has one law for its calls: the k-th
    call of one goes with the k-th call of another, and with the only one of a third.
    A layer that is called in the body of a loop, such as a recurrent cell's, has no
    part in it: out of there come no rows.
    """

    def __init__(self):
        self._graph = backend.current_graph()
        self._rows = {}  # Layer -> a row `[2, channels]` for each of its calls.
        self._in_loops = set()

    def add(self, layer, keep, row):
        """Takes what `StochasticBatchNormalization.observe` returned of a call."""
        if backend.current_graph() is not self._graph:
            self._in_loops.add(layer)
            return
        factor = layer.law_factor
        factor.assign(factor * keep)
        self._rows[layer] = [keep * x for x in self._rows.get(layer, ())] + [row]

    def finish(self):
        """Gives the layers the factor with the rows of the pass."""
        layers = [layer for layer in self._rows if layer not in self._in_loops]
        if not layers:
            return
        rank = layers[0].law_rank
        calls = max(len(self._rows[layer]) for layer in layers)
        parts = [
            ops.concatenate(
                [
                    ops.reshape(layer.law_factor, (rank, -1)),
                    ops.reshape(_repeated(self._rows[layer], calls), (calls, -1)),
                ]
            )
            for layer in layers
        ]
        factor = correlation.compressed(ops.concatenate(parts, axis=1), rank)
        start = 0
        for layer in layers:
            shape = layer.law_factor.shape
            size = math.prod(shape[1:])
            part = factor[:, start : start + size]
            layer.law_factor.assign(ops.reshape(part, shape))
            start += size


def _repeated(rows, calls):
    """As many rows as there are calls, whose squares have the same sum."""
    uses = [len(range(k, calls, len(rows))) for k in range(len(rows))]
    scaled = [row / math.sqrt(n) for row, n in zip(rows, uses, strict=True)]
    return ops.stack([scaled[i % len(rows)] for i in range(calls)])


@contextlib.contextmanager
def law_restored_on_error(layers):
    """Gives layers their joint laws back, of whatever rank, if the body raises."""
    before = [
        None if x.law_factor is None else np.array(ops.convert_to_numpy(x.law_factor))
        for x in layers
    ]
    try:
        yield
    except BaseException:
        for layer, factor in zip(layers, before, strict=True):
            layer.set_law_rank(0 if factor is None else len(factor))
            if factor is not None:
                layer.law_factor.assign(factor)
        raise
