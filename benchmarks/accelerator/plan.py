"""The plan: which pieces there are, in which order, and how they run."""

import pathlib
import time
import traceback

from absl import flags

from benchmarks.accelerator import device, page, precisions, speed
from benchmarks.accelerator.clock import Clock, OutOfTimeError
from benchmarks.accelerator.context import Context, Data, held
from benchmarks.accelerator.ensembles import Ensembles
from benchmarks.accelerator.ledger import BEGUN, DONE, FAILED, Ledger
from benchmarks.accelerator.normalizations import Table
from trainers import all_cnn, command
from trainers import flags as trainer_flags
from trainers.flags import FLAGS
from trainers.progress import Progress, duration

_OWN = {
    flag.name: flag
    for flag in (
        flags.DEFINE_float(
            "budget_s", 540.0, "Seconds after which nothing new is begun.", 0.0
        ),
        flags.DEFINE_string(
            "data", None, "NumPy archive or folder of images by class; else --dataset."
        ),
        flags.DEFINE_string("out", "runs/accelerator", "Folder of the results."),
        flags.DEFINE_bool("plan", False, "Only say what there is to do."),
        flags.DEFINE_list(
            "only", [], "Only pieces whose name begins with one of these."
        ),
        flags.DEFINE_enum(
            "precision",
            device.PRECISIONS[0],
            device.PRECISIONS,
            "Of matrix products and convolutions; on a CPU tf32 is float32.",
        ),
        flags.DEFINE_integer(
            "at_once", None, "Networks to train at once; else as the speeds say.", 1
        ),
        flags.DEFINE_float("checkpoint_s", 60.0, "Seconds between checkpoints.", 0.0),
    )
}
# Set -> the classes that the paper keeps out of training, and its name for the rest.
_KNOWN = {"cifar10": ("5,6,7,8,9", "cifar5")}
# Flags of which a plan begun goes on with other values.
_CHANGEABLE = {*_OWN, "seeds"} - {"precision"}


class Plan:
    """All pieces, in the order of their value.

    Args:
        context: The `Context`.
    """

    def __init__(self, context):
        self._context = context
        with held(all_cnn.BINARY, context.flags(all_cnn.BINARY)):
            splits = context.data.splits()
        short = Table(context, 300, _OWN)
        long = Table(context, 1200, _OWN)
        self._tables = [short] if short.name == long.name else [short, long]
        held_out, name = _KNOWN.get(splits.name, (None, splits.name))
        self._ensembles = [
            Ensembles(context, network, held_out, f"sbn_{name}_{network}")
            for network in _networks(splits.image_shape)
        ]

    @property
    def experiments(self):
        """The experiments, which have folders and reports of their own."""
        return [self._tables[0], *self._ensembles, *self._tables[1:]]

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


def _context(start):
    own = {name: FLAGS[name].value for name in _OWN}
    out = pathlib.Path(own["out"])
    given = {k: command.text(f.value) for k, f in command.given().items()}
    kept = {k: v for k, v in given.items() if k not in _CHANGEABLE}
    return Context(
        out=out,
        data=Data(own["data"]),
        ledger=Ledger(out / "pieces.json", kept | {"precision": own["precision"]}),
        clock=Clock(own["budget_s"], start),
        progress=Progress(),
        given=frozenset(given),
        seeds=[int(seed) for seed in FLAGS.seeds],
        precision=own["precision"],
        at_once=own["at_once"],
        checkpoint_s=own["checkpoint_s"],
    )


def _is_asked_for(piece):
    only = FLAGS.only
    return not only or any(piece.name.startswith(prefix) for prefix in only)


def main(start):
    """Runs the plan until the budget is spent, or says what there is to do.

    Args:
        start: `time.monotonic()` from which the budget counts.
    """
    context = _context(start)
    device.keep_programs(context.out / "programs")
    with device.precision(context.precision):
        plan = Plan(context)
        if FLAGS.plan:
            asked = [piece for piece in plan.pieces() if _is_asked_for(piece)]
            print(page.table(context, asked))
        else:
            _run(plan, context)


def _run(plan, context):
    failed, too_long = set(), set()
    while True:
        pieces = plan.pieces()
        page.write(context, pieces, plan.experiments)
        waiting = [
            piece
            for piece in pieces
            if _is_asked_for(piece)
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
    FLAGS.set_default("seeds", ["0", "1", "2"])
    trainer_flags.run(lambda: main(start), "benchmarks.accelerator")
