"""Table 1 of Heek & Kalchbrenner (2019), at a size of the budget: ATMC and SGD.

What `trainers.atmc` makes of the chains, each a piece.
"""

import csv
import functools

import numpy as np

from benchmarks.accelerator import device, speed
from benchmarks.accelerator.clock import OutOfTimeError, TimedCheckpoints
from benchmarks.accelerator.context import Piece
from benchmarks.accelerator.ledger import DONE
from trainers import atmc, session
from trainers.comparison.plan import slug

# Title -> flags, those that the table needs most first.
_RUNS = {
    "ATMC": {"sampler": "atmc"},
    "SGD": {"sampler": "sgd"},
    "SGD + BN": {"sampler": "sgd", "norm": "batch"},
    "SGNHT": {"sampler": "sgnht"},
}
# Of an epoch, before there was one.
_GUESSED_EPOCH_S = {True: 3.0, False: 600.0}
_REPORT_S = 60.0


class Sampling:
    """The table's runs on the images of the plan.

    Args:
        context: The `Context`.
        name: Name of the experiment.
    """

    def __init__(self, context, name):
        self._context = context
        self.name, self.folder = name, context.out / name

    def _flags(self, values, seed):
        context, own = self._context, {"seed": str(seed)} | values
        given = context.values(atmc.PROGRAM)
        # Half of the epochs to forget the start, ten samples of the rest.
        epochs = int(given["epochs"])
        own |= {
            "burn_in_epochs": str(max(1, epochs // 2)),
            "cycle_epochs": str(max(1, epochs // 20)),
        }
        return atmc.PROGRAM.flags(given | own)

    def pieces(self):
        """Returns the pieces: a chain, and its report, for each run and seed."""
        found = []
        for seed in self._context.seeds:
            for title, values in _RUNS.items():
                found += self._of_run(title, self._flags(values, seed))
        return found

    def _of_run(self, title, flags):
        name = f"{self.name}/{slug(title)}-{flags.seed}"
        history = self._history(name)
        each = np.median(history[1:] or history or [self._epoch_seconds()])
        begin = speed.compile_seconds(self._context)
        left = begin + (flags.epochs - len(history)) * float(each)
        said = f"{title}, ResNet++-{flags.depth}, {flags.epochs} epochs, seed "
        train = functools.partial(self._train, flags, name)
        report = functools.partial(self._report, flags, name)
        return [
            Piece(f"{name}/chain", said + str(flags.seed), left, begin + each, train),
            Piece(f"{name}/report", f"{title}: report", _REPORT_S, _REPORT_S, report),
        ]

    def _history(self, name):
        """Returns the seconds of the epochs that a chain has behind it."""
        path = self._context.out / name / "chain-0" / "history.csv"
        if not path.is_file():
            return []
        with open(path, newline="") as file:
            return [float(row["seconds"]) for row in csv.DictReader(file)]

    def _epoch_seconds(self):
        known = [
            result["epoch_s"]
            for result in self._context.ledger.results(f"{self.name}/").values()
            if "epoch_s" in result
        ]
        return float(np.median(known or [_GUESSED_EPOCH_S[device.is_accelerator()]]))

    def _train(self, flags, name):
        context = self._context
        chain = atmc.run_chain(
            flags,
            context.data.splits(flags),
            self._workdir(flags, name).path,
            0,
            lambda folder, every: TimedCheckpoints(
                folder, context.clock, context.checkpoint_s
            ),
        )
        seconds = [row["seconds"] for row in chain.history]
        return {"epoch_s": float(np.median(seconds[1:] or seconds))}

    def _workdir(self, flags, name):
        flags.workdir = str(self._context.out / name)
        return session.open_workdir(flags, "atmc")

    def _report(self, flags, name):
        if self._context.ledger.state(f"{name}/chain") != DONE:
            raise OutOfTimeError("its chain has not ended")
        self._workdir(flags, name)
        records = atmc.main(flags)
        return {
            record.key: record.value
            for record in records.select(part="test")
            if record.figure in ("nll", "error", "ece_equal_width")
        }

    def write_report(self):
        """Does nothing: the pieces write theirs."""
