"""What a run says: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TextIO

import keras
import numpy as np

from bayesnorm.types import Row

_BAR = 24


class Progress(keras.callbacks.Callback):
    """Writes the progress of `loop.fit`, one of its callbacks.

    Args:
        stream: A text stream; None for the standard output.
        detail: Function of the row of an epoch to a text that its line has besides, or
            None.
    """

    def __init__(
        self, stream: TextIO | None = None, detail: Callable[[Row], str] | None = None
    ) -> None:
        super().__init__()
        self._stream = sys.stdout if stream is None else stream
        self._detail = detail or (lambda row: "")
        self._terminal = self._stream.isatty()
        self._seconds = []
        self._epoch = 0

    def _write(self, text, end="\n"):
        clear = "\r\x1b[K" if self._terminal else ""
        self._stream.write(clear + text + end)
        self._stream.flush()

    def note(self, text: str) -> None:
        """Writes a line."""
        self._write(text)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Says where a run goes on."""
        if done := len(self.params["history"]):
            self.note(f"resuming after epoch {done} of {self.params['epochs']}")

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes the number of the epoch, for the bar."""
        self._epoch = epoch + 1

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Draws the bar of an epoch on a terminal."""
        if not self._terminal:
            return
        epochs, steps = self.params["epochs"], self.params["steps"]
        filled = _BAR * (batch + 1) // steps
        bar = "#" * filled + "." * (_BAR - filled)
        self._write(f"epoch {self._epoch}/{epochs} [{bar}] {batch + 1}/{steps}", end="")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the line of an epoch."""
        self.epoch(self.params["history"][-1], self.params["epochs"])

    def epoch(self, row: Row, epochs: int) -> None:
        """Writes the line of an epoch: an entry of the history.

        Of several networks, where the figures are lists, it has the means.
        """
        row = row | {name: np.mean(value) for name, value in row.items()}
        self._seconds.append(row["seconds"])
        # The first epoch compiles: it says little of the others.
        recent = self._seconds[1:][-10:] or self._seconds
        left = sum(recent) / len(recent) * (epochs - row["epoch"])
        self._write(
            f"epoch {row['epoch']:{len(str(epochs))}.0f}/{epochs}  "
            f"nll {row['nll']:.4f}  kl {row['kl']:.1f}  "
            f"accuracy {100 * row['accuracy']:5.1f} %  "
            f"val nll {row['val_nll']:.4f}  {100 * row['val_accuracy']:5.1f} %  "
            f"{self._detail(row)}"
            f"{row['seconds']:.1f} s  ETA {duration(left)}"
        )


def duration(seconds: float) -> str:
    """Returns a duration as `m:ss` or `h:mm:ss`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{seconds:02d}"
    return f"{minutes}:{seconds:02d}"
