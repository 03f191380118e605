"""The time that is left, and checkpoints that are written before it is over."""

import time

from bayesnorm.training.checkpoints import Checkpoints

# An epoch may take longer than the last one did.
_MARGIN = 1.25


class OutOfTimeError(Exception):
    """What is left of the budget is too short to go on; what was done is kept."""


class Clock:
    """Counts down a budget.

    Args:
        budget_s: Seconds.
        start: `time.monotonic()` at its beginning; None for now.
    """

    def __init__(self, budget_s, start=None):
        start = time.monotonic() if start is None else start
        self._end = start + budget_s

    def left(self):
        """Returns the seconds that are left."""
        return self._end - time.monotonic()

    def require(self, seconds):
        """Raises OutOfTimeError if less than so many seconds are left."""
        if self.left() < seconds:
            raise OutOfTimeError(
                f"{self.left():.0f} s are left, {seconds:.0f} s are needed"
            )


class TimedCheckpoints(Checkpoints):
    """Checkpoints some seconds apart, and one before the time is over.

    Args:
        directory: As for `Checkpoints`.
        clock: A `Clock`.
        seconds: Seconds from one to the next.
    """

    def __init__(self, directory, clock, seconds):
        super().__init__(directory)
        self._clock, self._seconds = clock, seconds
        self._saved = self._ended = time.monotonic()
        self.is_over = False

    def is_due(self, epoch):
        """As `Checkpoints.is_due`; sets `is_over` if another epoch will not fit."""
        now = time.monotonic()
        self.is_over = self._clock.left() < _MARGIN * (now - self._ended)
        self._ended = now
        return self.is_over or now - self._saved >= self._seconds

    def save(self, values, history):
        """As `Checkpoints.save`; raises OutOfTimeError if the time is over then."""
        super().save(values, history)
        self._saved = time.monotonic()
        if self.is_over:
            raise OutOfTimeError(f"after epoch {len(history)}")
