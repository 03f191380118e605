"""The progress bar of tools that work through data."""

import sys
import time

import keras

_PATIENCE = 2.0  # Seconds before a bar shows.


class Progress:
    """A progress bar, shown only once the work takes long.

    Args:
        total: Number of batches, None if it is not known.
        verbose: Whether to show it; `"auto"`: on a terminal.
    """

    def __init__(self, total, verbose="auto"):
        shown = sys.stdout.isatty() if verbose == "auto" else bool(verbose)
        self._bar = keras.utils.Progbar(total, unit_name="batch") if shown else None
        self._start, self._shown = time.monotonic(), 0

    def update(self, batches):
        """Shows how many batches are done."""
        if self._bar and time.monotonic() - self._start > _PATIENCE:
            self._shown = batches
            self._bar.update(batches, finalize=False)

    def finish(self):
        """Ends the bar."""
        if self._shown:
            self._bar.update(self._shown, finalize=True)
