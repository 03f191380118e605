"""Table 1 of Shekhovtsov & Flach (2018), and its figures and findings.

A run of the table is what `trainers.all_cnn --runs=table1` makes of it, to rounding,
whichever seeds train at once.
"""

import functools
import json
import shutil

import keras
import numpy as np

from bayesnorm.storage import write_atomically
from benchmarks.accelerator import speed, training
from benchmarks.accelerator.context import Piece, all_cnn_loop, networks
from trainers import all_cnn, normalized, session
from trainers.comparison import execution, report
from trainers.comparison.execution import Outcome, ended_file, folder_of
from trainers.comparison.plan import read_plan, slug
from trainers.evaluation.records import Record, Records
from trainers.report import section
from trainers.sections import batch_noise

_RUNS = "table1"
# Of what the plan says of a training, as far as it is no mere number or text.
_UNITS = {"seconds_per_epoch": "s", "flop_share": "%"}
# By value: what the paper proposes and what it compares with, the noise that others
# take before they do, and last what no finding needs but that on projection.
_ORDER = (
    "BN + projection",
    "AN + projection + Bayes",
    "AN + projection",
    "WN + projection + Bayes",
    "WN + projection",
    "AN + projection + noise",
    "WN + projection + noise",
    "BN",
    "none",
    "AN",
    "WN",
)


class Table:
    """The table at a number of epochs.

    Args:
        context: The `Context`.
        epochs: Number of epochs; `--epochs` of the command line wins over it.
    """

    def __init__(self, context, epochs):
        self._context = context
        program = all_cnn.PROGRAM
        seeds = {"seeds": ",".join(map(str, context.seeds))}
        self._flags = program.flags(context.given_to(program) | seeds)
        self._epochs = int(context.given.get("epochs", epochs))
        self._plan = read_plan(_RUNS, self._flags)
        self.name = f"{_RUNS}_{self._epochs}"
        self.folder = context.out / self.name

    def pieces(self):
        """Returns the pieces: the first seeds of all runs, then the next ones."""
        rounds, seeds = {}, self._context.seeds
        for title in sorted(self._plan.runs, key=_ORDER.index):
            size = self._at_once(title)
            for start in range(0, len(seeds), size):
                pieces = rounds.setdefault(start, [])
                if start == 0 and self._is_searched(title):
                    pieces.append(self._search_piece(title))
                pieces.append(self._training_piece(title, seeds[start : start + size]))
        return [piece for start in sorted(rounds) for piece in rounds[start]]

    def _values(self, title, seed):
        """The flags of a run with a seed, but for what other pieces find."""
        values = self._context.values(all_cnn.PROGRAM, epochs=str(self._epochs))
        return values | self._plan.runs[title].flags | {"seed": str(seed)}

    def _found(self, title):
        """The flags that other pieces found: noise and learning rate."""
        found = {}
        noisy = self._plan.runs[title].noise_of
        if noisy is not None:
            outcome = self._outcome(noisy, self._context.seeds[0])
            found = execution.measured_noise(outcome)
            if isinstance(found, str):
                raise ValueError(f"the noise of {noisy!r} was not measured: {found}")
        if self._is_searched(title):
            rate = self._context.ledger.result(_search_name(title))
            if rate:
                found |= {"learning_rate": repr(rate["learning_rate"])}
        return found

    def _is_searched(self, title):
        return self._plan.runs[title].flags.get("learning_rate", "auto") == "auto"

    def _kind(self, title):
        return speed.kind_of(self._plan.runs[title].flags)

    def _epoch_seconds(self, title, at_once):
        """What an epoch takes: as it did, else as the speeds say."""
        context = self._context
        flags = all_cnn.PROGRAM.flags(self._values(title, 0))
        examples, batch = len(context.data.splits(flags).train), flags.batch_size
        for found in context.ledger.results(f"{self.name}/{slug(title)}/").values():
            if found["networks_at_once"] == at_once:
                return found["seconds_per_epoch"]
        return speed.epoch_seconds(context, self._kind(title), batch, at_once, examples)

    def _at_once(self, title):
        """Seeds to train at once, which stays what it was when the run began."""
        context = self._context
        batch = all_cnn.PROGRAM.flags(self._values(title, 0)).batch_size
        best = speed.best_at_once(context, self._kind(title), batch, len(context.seeds))
        return context.ledger.chosen(self._choice(title), best)

    def _choice(self, title):
        return f"{self.name}/{slug(title)}/at_once"

    def _search_piece(self, title):
        context = self._context
        count = self._flags.search_evaluations - len(_tried(context, title))
        each = self._flags.search_epochs * self._epoch_seconds(title, 1)
        begin = speed.compile_seconds(context)
        return Piece(
            _search_name(title),
            f"learning rate of {title}",
            begin + max(0, count) * each,
            begin + each,
            functools.partial(self._search, title, each),
        )

    def _search(self, title, seconds):
        context = self._context
        values = self._values(title, context.seeds[0]) | self._found(title)
        flags = all_cnn.PROGRAM.flags(values)
        loop = all_cnn_loop(flags, context.data.splits(flags))
        cache = _rates(context, title)
        cache.parent.mkdir(parents=True, exist_ok=True)
        session.set_learning_rate(
            flags,
            loop,
            cache,
            context.progress,
            lambda: context.clock.require(seconds),
        )
        return {
            "learning_rate": loop.config.learning_rate,
            "evaluations": len(_tried(context, title)),
        }

    def _training_piece(self, title, seeds):
        context = self._context
        each = self._epoch_seconds(title, len(seeds))
        left = self._epochs - training.epochs_done(self._checkpoints(title, seeds))
        begin = speed.compile_seconds(context)
        evaluation = context.evaluation_s * len(seeds)
        numbers = ", ".join(map(str, seeds))
        return Piece(
            f"{self.name}/{slug(title)}/{_numbers(seeds)}",
            f"{title}, {self._epochs} epochs, seeds {numbers}",
            begin + left * each + evaluation,
            begin + each if left else context.evaluation_s,
            functools.partial(self._train, title, seeds),
        )

    def _checkpoints(self, title, seeds):
        return self.folder / "checkpoints" / f"{slug(title)}-{_numbers(seeds)}"

    def _train(self, title, seeds):
        context = self._context
        context.ledger.choose(self._choice(title), self._at_once(title))
        found = self._found(title)
        values = {seed: self._values(title, seed) | found for seed in seeds}
        paths = [folder_of(self.folder, title, seed) for seed in seeds]

        flags = {seed: all_cnn.PROGRAM.flags(values[seed]) for seed in seeds}

        def make(seed, data):
            loop = all_cnn_loop(flags[seed], context.data.splits(flags[seed]), data)
            session.set_learning_rate(flags[seed], loop, None, context.progress)
            return loop

        loops = networks(make, seeds)
        checkpoints = self._checkpoints(title, seeds)
        histories = training.train(
            context, loops, checkpoints, [path / "history.csv" for path in paths]
        )
        failures = {}
        result = speed.summary(context, self._kind(title), loops, histories)
        for loop, seed, path, history in zip(
            loops, seeds, paths, histories, strict=True
        ):
            if not loop.is_finite(history[-1]):
                failures[str(seed)] = _divergence(history)
            elif not ended_file(path).is_file():
                context.clock.require(context.evaluation_s)
                with training.Stopwatch() as watch:
                    self._evaluate(flags[seed], loop.model, history, path, result)
                context.evaluation_s = watch.seconds
                write_atomically(
                    ended_file(path), json.dumps(values[seed], indent=1) + "\n"
                )
        # The weights are kept with the figures.
        shutil.rmtree(checkpoints, ignore_errors=True)
        return result | {"failures": failures}

    def _evaluate(self, flags, model, history, path, training_figures):
        context = self._context
        evaluation = normalized.evaluated(
            flags, model, context.data.splits(flags), history, context.progress.note
        )
        section.save_plots(path, section.collect(evaluation, [batch_noise.section]))
        plan = training_figures | {"precision": context.precision}
        evaluation.records.add(
            Record("plan", name, value, _UNITS.get(name, "1"))
            for name, value in plan.items()
        )
        evaluation.records.write(path / "metrics.json")
        ended_file(path).parent.mkdir(parents=True, exist_ok=True)
        # Half precision: to look at, a tenth of a per cent is plenty.
        weights = {
            f"weight_{i:04d}": np.asarray(keras.ops.convert_to_numpy(w), "float16")
            for i, w in enumerate(model.weights)
        }
        np.savez_compressed(path / "weights.npz", **weights)

    def write_report(self):
        """Writes the table of the runs that there are, with figures and findings."""
        outcomes = {
            title: [self._outcome(title, seed) for seed in self._context.seeds]
            for title in self._plan.runs
        }
        if any(not o.failure for of_seeds in outcomes.values() for o in of_seeds):
            report.write(
                self.folder,
                self._plan,
                outcomes,
                all_cnn.NETWORK.columns,
                self._flags.seeds,
                self._context.command,
                execution.is_shared(self._flags, self._plan),
            )

    def _outcome(self, title, seed):
        path = folder_of(self.folder, title, seed)
        if ended_file(path).is_file():
            return execution.read_outcome(path)
        results = self._context.ledger.results(f"{self.name}/{slug(title)}/")
        for result in results.values():
            if str(seed) in result["failures"]:
                return Outcome(Records(), {}, result["failures"][str(seed)])
        return Outcome(Records(), {}, "it has not run yet")


def _numbers(seeds):
    return "-".join(map(str, seeds))


def _search_name(title):
    return f"learning_rate/{slug(title)}"


def _rates(context, title):
    """The file of the learning rates tried, for the table at any number of epochs."""
    return context.out / "learning_rate" / f"{slug(title)}.json"


def _tried(context, title):
    path = _rates(context, title)
    return json.loads(path.read_text("utf-8")) if path.is_file() else []


def _divergence(history):
    last = next(
        (row["epoch"] for row in history if not np.isfinite(row["nll"])), len(history)
    )
    return f"training diverged in epoch {last}"
