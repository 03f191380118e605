"""Batches of few sizes for `predict`, and outputs that can be put together."""

import numpy as np

from bayesnorm.streams.arrays import pad, rows_of, shapes_of


class Padding:
    """Pads batches to few numbers of rows, since each is compiled.

    The first batch of a shape is often a full one, or the only one: the sizes are the
    powers of 2, and the full size.

    Args:
        most: Integer, the rows of a full batch.
        waste: Integer, how many times its rows a batch may have at most where a
            smaller size would have to be compiled; None for any number.
    """

    def __init__(self, most, waste=None):
        self._most, self._waste = most, waste
        self._sizes = {}

    def __call__(self, batch):
        """Returns the batch with its last example repeated."""
        rows = rows_of(batch)
        sizes = self._sizes.setdefault(shapes_of(batch), [])
        most = self._most if self._waste is None else rows * self._waste
        fitting = [size for size in sizes if rows <= size <= most]
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


def check_finite_outputs(values, output, numbers):
    """Checks that outputs are finite.

    Args:
        values: Array `[n, ...]`, probabilities or the outputs of a regression.
        output: The `Output` that it is.
        numbers: Integers `[n]`, the numbers of the examples in the data.

    Raises:
        ValueError: If they are not, with the number of the first such example.
    """
    if np.isfinite(values).all():
        return
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    raise ValueError(
        ("The outputs" if output.name is None else f"Output {output.name!r}")
        + f" for example {int(numbers[bad.argmax()])} are not finite"
        + (
            ". Expected finite outputs: the model's weights may have diverged."
            if output.task == "regression"
            else ", or not probabilities where from_logits=False. Pass "
            "from_logits=True if the model ends without a softmax or sigmoid; else "
            "its weights may have diverged."
        )
    )
