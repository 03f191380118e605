"""Trains networks at once, for as long as there is time."""

import re
import time

import numpy as np

from bayesnorm.training.checkpoints import write_history
from bayesnorm.training.loop import fit
from bayesnorm.training.simultaneous import Loops, member_row
from benchmarks.accelerator.clock import OutOfTimeError, TimedCheckpoints


def train(context, loops, folder, histories):
    """Trains networks at once, or goes on.

    Args:
        context: The `Context`.
        loops: List of `Loop`s.
        folder: Folder of the checkpoints.
        histories: Path of each network's `history.csv`, written whenever it stops.

    Returns:
        List of the networks' histories; `seconds` of an epoch are each network's share.

    Raises:
        OutOfTimeError: If there is no time for another epoch; there is a checkpoint.
    """
    checkpoints = TimedCheckpoints(folder, context.clock, context.checkpoint_s)
    try:
        history = fit(Loops(loops), checkpoints, [context.progress])
    except OutOfTimeError:
        _write(histories, _apart(checkpoints.latest().history, len(loops)))
        raise
    members = _apart(history, len(loops))
    _write(histories, members)
    return members


def _apart(history, count):
    return [
        [member_row(row, k) | {"seconds": row["seconds"] / count} for row in history]
        for k in range(count)
    ]


def _write(paths, histories):
    for path, history in zip(paths, histories, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_history(path, history)


def epochs_done(folder):
    """Returns the epochs that the checkpoints in a folder have behind them."""
    found = [re.fullmatch(r"epoch-(\d+)\.npz", path.name) for path in folder.glob("*")]
    return max((int(match[1]) for match in found if match), default=0)


def seconds_per_epoch(histories):
    """Returns the seconds of an epoch of networks trained at once, a median.

    Without the first epoch, which compiles, where there are others.
    """
    seconds = np.sum([[row["seconds"] for row in rows] for rows in histories], axis=0)
    return float(np.median(seconds[1:] if len(seconds) > 1 else seconds))


class Stopwatch:
    """Measures a piece of work, as a context; `seconds` has what it took."""

    def __enter__(self):
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exception):
        self.seconds = time.perf_counter() - self._start
