"""Table 1 of Atanov et al. (2018): ensembles, with SBN and MCBN.

What `trainers.sbn` makes of the networks, which are trained at once.
"""

import functools

from benchmarks.accelerator import speed, training
from benchmarks.accelerator.context import Piece, held, networks, sbn_loop
from trainers import sbn, session
from trainers.checkpoints import Checkpoints
from trainers.flags import FLAGS

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
        self._values = context.flags(sbn, **held_out) | own

    def pieces(self):
        """Returns the pieces: a family of networks at a time, and the report."""
        context = self._context
        with held(sbn, self._values):
            families, members = list(sbn.families()), FLAGS.members
            epochs, batch = FLAGS.epochs, FLAGS.batch_size
            examples = len(context.data.splits().train)
        size = min(context.at_once or members, members)
        size = context.ledger.chosen(self._choice(), size)
        begin, found = speed.compile_seconds(context), []
        for family in families:
            for start in range(0, members, size):
                numbers = list(range(members))[start : start + size]
                each = speed.epoch_seconds(
                    context, self._kind, batch, len(numbers), examples
                )
                group = self._group(family, numbers)
                left = epochs - training.epochs_done(self._checkpoints(group))
                found.append(
                    Piece(
                        f"{self.name}/{group}",
                        f"{self._kind}, {epochs} epochs, {family}, members "
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
        with held(sbn, self._values):
            splits = context.data.splits()
            # The folders are those of `trainers.sbn`, which then finds them trained.
            path = sbn.open_workdir().path
            folders = [sbn.member_workdir(path, family, n) for n in numbers]

            def make(number, data):
                loop = sbn_loop(splits, family, number, data)
                rates = folders[numbers.index(number)] / "learning_rate.json"
                session.set_learning_rate(loop, rates, context.progress)
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
        with held(sbn, self._values):
            records = sbn.main()
        return {
            record.key: record.value
            for record in records.select(part="test")
            if record.figure in ("nll", "error")
        }

    def write_report(self):
        """Does nothing: the last piece writes it."""
