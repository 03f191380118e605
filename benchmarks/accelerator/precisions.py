"""What TensorFloat-32 and bfloat16 do to the speed and to the loss."""

import functools

from bayesnorm.training.simultaneous import Loops
from benchmarks.accelerator import device, speed, training
from benchmarks.accelerator.context import Piece, all_cnn_loop, networks
from trainers import all_cnn, session

_KIND = "All-CNN, AN + stochastic"
_EPOCHS, _SEEDS = 5, 3
_RATE = "0.01"


def pieces(context):
    """Returns a piece for each precision: the same training, a few epochs of it."""
    values = _values(context)
    flags = all_cnn.PROGRAM.flags(values)
    examples = len(context.data.splits(flags).train)
    each = speed.epoch_seconds(context, _KIND, flags.batch_size, _SEEDS, examples)
    seconds = speed.compile_seconds(context) + _EPOCHS * each
    return [
        Piece(
            f"precision/{name}",
            f"{_KIND} in {name}, {_EPOCHS} epochs, {_SEEDS} seeds at once",
            seconds,
            seconds,
            functools.partial(_train, context, values, name),
        )
        for name in device.PRECISIONS
    ]


def _values(context):
    # The schedule of the long table, of which these are the first epochs.
    own = {"epochs": str(_EPOCHS), "decay_epochs": "1200", "learning_rate": _RATE}
    return context.values(all_cnn.PROGRAM) | speed.KINDS[_KIND][1] | own


def _train(context, values, name):
    def make(seed, data):
        flags = all_cnn.PROGRAM.flags(values | {"seed": str(seed)})
        loop = all_cnn_loop(flags, context.data.splits(flags), data)
        session.set_learning_rate(flags, loop, None, context.progress)
        return loop

    with device.precision(name):
        loops = Loops(networks(make, range(_SEEDS)))
        turns, losses = [], []
        for epoch in range(_EPOCHS):
            with training.Stopwatch() as watch:
                row = loops.train_epoch(epoch)
            turns.append(watch.seconds)
            losses.append(row["nll"])
        validation = loops.evaluate("validation")
    return {
        "seconds_per_epoch": min(turns[1:]),
        "train_nll": losses,
        "validation_nll": validation["nll"],
    }
