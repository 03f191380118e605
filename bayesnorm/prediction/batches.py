"""Batches of few sizes for `predict`, and outputs that can be put together."""

from bayesnorm.streams.arrays import pad, rows_of, shapes_of


class Padding:
    """Pads batches to few numbers of rows, since each is compiled.

    The first batch of a shape is often a full one, or the only one: the sizes are the
    powers of 2, and the full size.

    Args:
        most: Integer, the rows of a full batch.
    """

    def __init__(self, most):
        self._most = most
        self._sizes = {}

    def __call__(self, batch):
        """Returns the batch with its last example repeated."""
        rows = rows_of(batch)
        sizes = self._sizes.setdefault(shapes_of(batch), [])
        fitting = [size for size in sizes if size >= rows]
        if not fitting:
            fitting = [min(self._most, 1 << (rows - 1).bit_length())]
            sizes += fitting
        return pad(batch, min(fitting))


def check_one_shape(first, values, start):
    """Checks that outputs can be put together, whatever the shapes of the examples.

    Args:
        first: Array `[n, ...]`, the outputs for the first examples.
        values: The outputs for others.
        start: Integer, the number of the first of these.

    Raises:
        ValueError: If they have other axes than the first.
    """
    if values.shape[1:] != first.shape[1:]:
        raise ValueError(
            "The outputs have one shape for each shape of the examples, and cannot be "
            f"put together: {first.shape[1:]} for example 0, {values.shape[1:]} for "
            f"example {start}. Predict the examples of each shape on their own."
        )
