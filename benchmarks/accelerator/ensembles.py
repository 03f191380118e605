"""Table 1 of Atanov et al. (2018): ensembles, with SBN and MCBN.

What `trainers.sbn` makes of the networks, which are trained at once.
"""

import functools

from bayesnorm.training.checkpoints import Checkpoints
from benchmarks.accelerator import speed, training
from benchmarks.accelerator.context import Piece, networks, sbn_loop
from trainers import sbn, session

_KINDS = {"vgg11": "VGG-11", "resnet18": "ResNet-18", "lenet5": "LeNet-5"}
# Calibration and the predictions of all methods compile a program for each network.
_REPORT_S = 20.0


class Ensembles:
    """The table's networks of one architecture.

    Args:
        context: The `Context`.
        network: A value of `--network`.
        held_out: Value of `--held_out`, or None for the default of the data.
        name: Name of the experiment.
    """

    def __init__(self, context, network, held_out, name):
        self._context = context
        self.name = name
        self.folder = context.out / name
        self._kind = _KINDS[network]
        held_out = {"held_out": held_out} if held_out else {}
        own = {"network": network, "workdir": str(self.folder)}
        values = context.values(sbn.PROGRAM, **held_out) | own
        self._flags = sbn.PROGRAM.flags(values)

    def pieces(self):
        """Returns the pieces: a family of networks at a time, and the report."""
        context = self._context
        flags = self._flags
        families, members = list(sbn.families(flags)), flags.members
        examples = len(context.data.splits(flags).train)
        size = min(context.at_once or members, members)
        size = context.ledger.chosen(self._choice(), size)
        begin, found = speed.compile_seconds(context), []
        for family in families:
            for start in range(0, members, size):
                numbers = list(range(members))[start : start + size]
                each = speed.epoch_seconds(
                    context, self._kind, flags.batch_size, len(numbers), examples
                )
                group = self._group(family, numbers)
                left = flags.epochs - training.epochs_done(self._checkpoints(group))
                found.append(
                    Piece(
                        f"{self.name}/{group}",
                        f"{self._kind}, {flags.epochs} epochs, {family}, members "
                        + ", ".join(map(str, numbers)),
                        begin + left * each,
                        begin + each,
                        functools.partial(self._train, family, numbers, size),
                    )
                )
        seconds = _REPORT_S * members * len(families)
        found.append(
            Piece(
                f"{self.name}/report",
                f"{self._kind}: SBN, MCBN, ensembles",
                seconds,
                seconds,
                self._report,
            )
        )
        return found

    def _choice(self):
        return f"{self.name}/at_once"

    def _group(self, family, numbers):
        return f"{family}-{'-'.join(map(str, numbers))}"

    def _checkpoints(self, group):
        return self.folder / "at_once" / group

    def _train(self, family, numbers, size):
        context = self._context
        context.ledger.choose(self._choice(), size)
        flags, splits = self._flags, context.data.splits(self._flags)
        # The folders are those of `trainers.sbn`, which then finds them trained.
        path = session.open_workdir(flags, "sbn").path
        folders = [sbn.member_workdir(flags, path, family, n) for n in numbers]

        def make(number, data):
            loop = sbn_loop(flags, splits, family, number, data)
            rates = folders[numbers.index(number)] / "learning_rate.json"
            session.set_learning_rate(flags, loop, rates, context.progress)
            return loop

        loops = networks(make, numbers)
        histories = training.train(
            context,
            loops,
            self._checkpoints(self._group(family, numbers)),
            [folder / "history.csv" for folder in folders],
        )
        for loop, folder, history in zip(loops, folders, histories, strict=True):
            Checkpoints(folder / "checkpoints").save(loop.state(), history)
        return speed.summary(context, self._kind, loops, histories)

    def _report(self):
        records = sbn.main(self._flags)
        return {
            record.key: record.value
            for record in records.select(part="test")
            if record.figure in ("nll", "error")
        }

    def write_report(self):
        """Does nothing: the last piece writes it."""
