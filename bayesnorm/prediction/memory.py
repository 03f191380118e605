"""How many rows of a pass through a network fit into memory."""

import keras

from bayesnorm import backend
from bayesnorm.streams.arrays import shapes_of

_BYTES = 2**30  # Above the model.
ROWS = 1024  # Of a pass, by default: large enough to keep the cores busy.


def rows_that_fit(model, compiled, make, arguments, batch, *others):
    """Returns the rows of a pass that fit into a gibibyte, a power of 2.

    Args:
        model: A built model.
        compiled: What is compiled for it.
        make: Function `(model, *arguments)`, `model` a function that returns it, of a
            step that takes a batch and `others`.
        arguments: What else the step depends on, hashable.
        batch: Nest of arrays, of which one example counts.
        *others: Further arrays of the step, of which one row counts.
    """

    def measure():
        likes = keras.tree.map_structure(lambda x: x[:1], (batch, *others))
        step = make(lambda: model, *arguments)
        return peak_bytes(*backend.operations(step, model.variables, *likes))

    shapes = shapes_of(batch), tuple(x.dtype.str for x in keras.tree.flatten(batch))
    found = compiled.remember((make, *arguments, shapes), measure)
    rows = int(_BYTES / (backend.MEMORY_OVERHEAD * max(found, 1)))
    return 1 << max(0, rows.bit_length() - 1)


def peak_bytes(inputs, operations):
    """Returns the most bytes that a function's tensors take at one time.

    Counted are the inputs, which stay, and what depends on them: not the weights, nor
    what is computed of these alone.

    Args:
        inputs: Bytes of each input, a dict by the tensor's key.
        operations: For each operation in turn `(reads, writes)`: the keys of the
            tensors that it reads, and the bytes of those that it writes, a dict by key.
    """
    last = {key: i for i, (reads, _) in enumerate(operations) for key in reads}
    known, live = set(inputs), {}
    held = peak = sum(inputs.values())
    for i, (reads, writes) in enumerate(operations):
        if known.isdisjoint(reads):
            continue
        known.update(writes)
        live.update(writes)
        peak = max(peak, held + sum(live.values()))
        live = {key: size for key, size in live.items() if last.get(key, i) > i}
    return peak
