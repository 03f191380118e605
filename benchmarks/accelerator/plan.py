"""The plan: which pieces there are, in which order, and how they run."""

import dataclasses
import pathlib
import time
import traceback

from bayesnorm.training.progress import Progress, duration
from benchmarks.accelerator import device, page, precisions, speed
from benchmarks.accelerator.clock import Clock, OutOfTimeError
from benchmarks.accelerator.context import Context, Data
from benchmarks.accelerator.ensembles import Ensembles
from benchmarks.accelerator.ledger import BEGUN, DONE, FAILED, Ledger
from benchmarks.accelerator.normalizations import Table
from benchmarks.accelerator.sampling import Sampling
from trainers import all_cnn, groups, program, sbn
from trainers import flags as trainer_flags
from trainers.flags import Flag

_OWN = (
    Flag("budget_s", "float", "Seconds after which nothing new begins.", 540.0),
    Flag(
        "data",
        "string",
        "NumPy archive or folder of images by class; else --dataset.",
        stated="DATA",
    ),
    Flag("out", "string", "Folder of the results.", "runs/accelerator", stated="DIR"),
    Flag("plan", "bool", "Only say what there is to do.", False),
    Flag("only", "list", "Only pieces whose name begins with one of these.", []),
    Flag(
        "precision",
        device.PRECISIONS,
        "Of matrix products and convolutions; on a CPU tf32 is float32.",
        device.PRECISIONS[0],
    ),
    groups.integer("at_once", "Networks to train at once; else as the speeds say."),
    Flag("checkpoint_s", "float", "Seconds between checkpoints.", 60.0),
)
_OWN = tuple(dataclasses.replace(flag, of_runs=False) for flag in _OWN)
# Set -> the classes that the paper keeps out of training, and its name for the rest.
_KNOWN = {"cifar10": ("5,6,7,8,9", "cifar5")}


class Plan:
    """All pieces, in the order of their value.

    Args:
        context: The `Context`.
    """

    def __init__(self, context):
        self._context = context
        of_networks = all_cnn.PROGRAM.flags(context.values(all_cnn.PROGRAM))
        splits = context.data.splits(of_networks)
        short = Table(context, 300)
        long = Table(context, 1200)
        self._tables = [short] if short.name == long.name else [short, long]
        held_out, name = _KNOWN.get(splits.name, (None, splits.name))
        self._ensembles = [
            Ensembles(context, network, held_out, f"sbn_{name}_{network}")
            for network in _networks(splits.image_shape)
        ]
        self._sampling = Sampling(context, f"atmc_{splits.name}")

    @property
    def experiments(self):
        """The experiments, which have folders and reports of their own."""
        first, *rest = self._tables
        return [first, *self._ensembles, self._sampling, *rest]

    def pieces(self):
        """Returns the pieces as they stand now, those done as well."""
        first, rest = speed.pieces(self._context)
        found = {piece.name: piece for piece in first}
        for experiment in self.experiments:
            # The learning rates are those of the first table that needs them.
            for piece in experiment.pieces():
                found.setdefault(piece.name, piece)
            if experiment is self._tables[0]:
                found |= {p.name: p for p in precisions.pieces(self._context)}
        found |= {piece.name: piece for piece in rest}
        return list(found.values())


def _networks(image_shape):
    """The networks of the ensembles: the paper's, where the images are large enough."""
    return ["vgg11", "resnet18"] if min(image_shape[:2]) >= 32 else ["lenet5"]


def defined():
    """Returns the flags of the plan, not yet parsed: its own and the networks'."""
    flags = trainer_flags.define(
        *all_cnn.PROGRAM.all_groups, *sbn.PROGRAM.all_groups, _OWN
    )
    flags.set_default("seeds", ["0", "1", "2"])
    return flags


def _context(flags, start):
    out = pathlib.Path(flags.out)
    given = trainer_flags.given_to_runs(flags)
    return Context(
        out=out,
        data=Data(flags.data),
        # With other values of the plan's own flags it goes on.
        ledger=Ledger(out / "pieces.json", given | {"precision": flags.precision}),
        clock=Clock(flags.budget_s, start),
        progress=Progress(),
        given=given,
        command=trainer_flags.command(flags),
        seeds=[int(seed) for seed in flags.seeds],
        precision=flags.precision,
        at_once=flags.at_once,
        checkpoint_s=flags.checkpoint_s,
    )


def _is_asked_for(piece, only):
    return not only or any(piece.name.startswith(prefix) for prefix in only)


def main(flags, start):
    """Runs the plan until the budget is spent, or says what there is to do.

    Args:
        flags: The flags of the plan.
        start: `time.monotonic()` from which the budget counts.
    """
    context = _context(flags, start)
    device.keep_programs(context.out / "programs")
    with device.precision(context.precision):
        plan = Plan(context)
        if flags.plan:
            asked = [
                piece for piece in plan.pieces() if _is_asked_for(piece, flags.only)
            ]
            print(page.table(context, asked))
        else:
            _run(plan, context, flags.only)


def _run(plan, context, only):
    failed, too_long = set(), set()
    while True:
        pieces = plan.pieces()
        page.write(context, pieces, plan.experiments)
        waiting = [
            piece
            for piece in pieces
            if _is_asked_for(piece, only)
            and context.ledger.state(piece.name) != DONE
            and piece.name not in failed | too_long
        ]
        piece = None
        for waits in waiting:
            if context.clock.left() >= waits.least:
                piece = waits
                break
            # A shorter one further on may fit.
            too_long.add(waits.name)
        if piece is None:
            break
        state = _run_piece(piece, context)
        if state == FAILED:
            failed.add(piece.name)
        elif state == BEGUN:
            too_long.add(piece.name)
        for experiment in plan.experiments:
            if piece.name.startswith(f"{experiment.name}/"):
                experiment.write_report()
    left = [p for p in plan.pieces() if context.ledger.state(p.name) != DONE]
    seconds = duration(sum(piece.seconds for piece in left))
    context.progress.note(
        f"wrote {context.out / 'report.md'}; {len(left)} pieces are left, some "
        f"{seconds}: the same command goes on"
        if left
        else f"wrote {context.out / 'report.md'}: all is done"
    )


def _run_piece(piece, context):
    """Runs a piece, and records what came of it; returns its state."""
    context.progress.note(
        f"begun: {piece.title} (some {duration(piece.seconds)}; "
        f"{duration(max(0, context.clock.left()))} of the budget left)"
    )
    context.ledger.record(piece.name, BEGUN)
    start = time.perf_counter()
    try:
        result, state = piece.run(), DONE
    except OutOfTimeError as reason:
        result, state = None, BEGUN
        context.progress.note(f"stopped: {piece.title}: {reason}")
    except Exception as error:
        # The other pieces may do: a minute of an accelerator is not to be lost.
        result, state = {"error": str(error).splitlines()[0][:300]}, FAILED
        with open(context.out / "errors.txt", "a", encoding="utf-8") as file:
            file.write(f"{piece.name}\n{traceback.format_exc()}\n")
        context.progress.note(f"FAILED: {piece.title}: {result['error']}")
    seconds = time.perf_counter() - start
    context.ledger.record(piece.name, state, seconds, result)
    if state == DONE:
        context.progress.note(f"done: {piece.title}, {duration(seconds)}")
    return state


def run(start):
    """Runs the program.

    Args:
        start: As for `main`.
    """
    program.start(lambda flags: main(flags, start), defined(), "benchmarks.accelerator")
