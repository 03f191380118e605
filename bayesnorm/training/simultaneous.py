"""Networks trained at the same time."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from bayesnorm import backend
from bayesnorm.training.loop import TOTALS, run_steps
from bayesnorm.training.sources import OnDevice
from bayesnorm.types import Row

if TYPE_CHECKING:
    from bayesnorm.training.loop import Loop


class Loops:
    """Loops of networks that differ in their seeds, trained at the same time.

    With JAX one program trains them all, vectorized over the networks: where one of
    them leaves an accelerator idle, several take little longer. What each computes is
    what it computes alone, to rounding. With TensorFlow they take turns.

    Figures are lists, an entry for each loop. A network that leaves the finite range
    does not stop the others: its figures are NaN from there on.

    Args:
        loops: List of `Loop`s, of one architecture, data set and configuration but for
            seeds and learning rates.

    Raises:
        ValueError: If their data do not lie on the device.
    """

    def __init__(self, loops: Sequence[Loop]) -> None:
        self.loops = list(loops)
        self.config, self.steps = self.loops[0].config, self.loops[0].steps
        for source in self.loops[0].data.values():
            if type(source) is not OnDevice:
                raise ValueError(
                    "Networks trained at once share data that lie on the device, each "
                    "with an order of its own. Received a source of type "
                    f"{type(source).__name__}: train one after the other, or give "
                    "`bayesnorm.training.OnDevice`."
                )
        variables = [loop.variables for loop in self.loops]
        self._train = backend.compiled_loops(
            [loop.train_step for loop in self.loops], variables
        )
        self._evaluate = {
            augmented: backend.compiled_loops(
                [functools.partial(loop.eval_step, augmented) for loop in self.loops],
                variables,
            )
            for augmented in (False, True)
        }

    def train_epoch(
        self, epoch: int, callbacks: keras.callbacks.CallbackList | None = None
    ) -> Row:
        """Trains all for an epoch; returns dict of lists, as `Loop.train_epoch`."""
        rates, rows = zip(
            *(loop.begin_epoch(epoch) for loop in self.loops), strict=True
        )
        source: Any = self.loops[0].data["train"]
        orders = [source.training_order(loop.config, epoch) for loop in self.loops]
        totals = run_steps(
            lambda *args: self._train(*args[:3], args[3:5], args[5:]),
            source.training(self.config, epoch),
            lambda block, done: (np.stack(orders), np.stack(rates)),
            np.zeros((len(TOTALS), len(self.loops)), "float32"),
            self.config.steps_per_call,
            callbacks,
        )
        rows = [
            loop.end_epoch(row, own)
            for loop, row, own in zip(self.loops, rows, totals.T, strict=True)
        ]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def evaluate(self, part: str = "validation", augmented: bool = False) -> Row:
        """Evaluates all; returns dict of lists, as `Loop.evaluate`."""
        source = self.loops[0].data[part]
        call = self._evaluate[bool(augmented)]
        totals = run_steps(
            lambda *args: call(*args[:3], args[3:], []),
            source.evaluation(self.config),
            lambda block, done: (block.order, block.weights),
            np.zeros((2, len(self.loops)), "float32"),
            self.config.steps_per_call,
        )
        nll, correct = totals.astype("float64") / source.num_examples
        return {"nll": nll.tolist(), "accuracy": correct.tolist()}

    def state(self) -> list[np.ndarray]:
        """Returns the values of all variables of all loops, as a list of arrays."""
        return [value for loop in self.loops for value in loop.state()]

    def set_state(self, values: list[np.ndarray]) -> None:
        """Sets all variables of all loops, as `Loop.set_state`."""
        count = len(values) // len(self.loops)
        for k, loop in enumerate(self.loops):
            loop.set_state(values[k * count : (k + 1) * count])

    def is_finite(self, row: Row) -> bool:
        """Whether any of the networks is in the finite range."""
        return any(
            loop.is_finite(member_row(row, k)) for k, loop in enumerate(self.loops)
        )


def member_row(row: Row, number: int) -> Row:
    """Returns the row of one network out of that of `Loops`."""
    return {k: v[number] if isinstance(v, list) else v for k, v in row.items()}
