"""How fast networks train, alone and several at once, and how long an epoch takes."""

import dataclasses
import functools

import numpy as np

from bayesnorm import datasets
from bayesnorm.training.simultaneous import Loops
from benchmarks.accelerator import device
from benchmarks.accelerator.context import (
    Piece,
    all_cnn_loop,
    networks,
    sbn_loop,
)
from benchmarks.accelerator.ledger import DONE
from benchmarks.accelerator.training import Stopwatch, seconds_per_epoch
from trainers import all_cnn, sbn
from trainers.comparison.plan import slug

_ALL_CNN, _SBN = all_cnn.PROGRAM, sbn.PROGRAM
# Kind of network -> program and flags, those that the tables need most first.
KINDS = {
    "All-CNN, BN": (_ALL_CNN, {"norm": "batch", "scale": "plain"}),
    "All-CNN, AN + stochastic": (_ALL_CNN, {"norm": "analytic", "scale": "stochastic"}),
    "All-CNN, AN": (_ALL_CNN, {"norm": "analytic", "scale": "plain"}),
    "All-CNN, WN": (_ALL_CNN, {"norm": "weight", "scale": "plain"}),
    "All-CNN, none": (
        _ALL_CNN,
        {"norm": "none", "scale": "plain", "projection": "false"},
    ),
    "ResNet-18": (_SBN, {"network": "resnet18"}),
    "VGG-11": (_SBN, {"network": "vgg11"}),
    "LeNet-5": (_SBN, {"network": "lenet5"}),
}
_MEASURED_KINDS = tuple(KINDS)[:6]
_BATCHES, _AT_ONCE = (32, 128), (1, 3, 6)
# What the table may take before the papers' tables; the rest of it comes after them.
_FIRST_S = 120.0
# On a CPU a step takes as long as a hundred of them elsewhere.
_STEPS, _CPU_STEPS = 250, 3
_TURNS = 3
# Before anything was measured: operations per second of training, seconds to compile.
_GUESSED_RATE = {True: 1e13, False: 3e10}
_GUESSED_COMPILE = {True: 25.0, False: 15.0}
_BACKWARD = 3  # a training step is about three forward passes
_VALIDATION = 1.05  # an epoch with its validation


def pieces(context):
    """Returns `(first, rest)`: pieces before the papers' tables, and after them."""
    found = [_ceiling_piece(context)]
    found += [
        _speed_piece(context, kind, batch, at_once)
        for batch in _BATCHES
        for kind in _MEASURED_KINDS
        for at_once in _AT_ONCE
    ]
    if context.ledger.total_seconds("speed/") < _FIRST_S:
        return found, []
    done = [piece for piece in found if context.ledger.state(piece.name) == DONE]
    return done, [piece for piece in found if piece not in done]


def _ceiling_piece(context):
    guess = 5.0
    return Piece(
        "speed/ceiling",
        f"what matrix products reach ({context.precision})",
        guess,
        guess,
        lambda: {"flops_per_second": device.ceiling()},
    )


def name_of(kind, batch, at_once):
    """Returns the name of the piece that measures a speed."""
    return f"speed/{slug(kind)}/batch_{batch}/at_once_{at_once}"


def _speed_piece(context, kind, batch, at_once):
    seconds = compile_seconds(context) + 5.0
    return Piece(
        name_of(kind, batch, at_once),
        f"speed of {kind}, batch {batch}, {at_once} at once",
        seconds,
        seconds,
        functools.partial(_measure, context, kind, batch, at_once),
    )


def _measure(context, kind, batch, at_once):
    program, values = KINDS[kind]
    values = context.values(program) | values | {"batch_size": str(batch)}
    if program is _SBN:
        values |= {"members": str(max(2, at_once))}
    splits = context.data.splits(program.flags(values))
    images = splits.train.images
    steps = _STEPS if device.is_accelerator() else _CPU_STEPS
    steps = min(steps, len(images) // batch)
    if steps == 0:
        raise ValueError(f"there are {len(images)} images, fewer than a batch")
    part = datasets.Split(images[: steps * batch], splits.train.labels[: steps * batch])
    few = dataclasses.replace(splits, train=part)
    loops = Loops(networks(_maker(program, values, few), range(at_once)))
    with Stopwatch() as first:
        loops.train_epoch(0)
    turns = []
    for turn in range(_TURNS):
        with Stopwatch() as watch:
            loops.train_epoch(1 + turn)
        turns.append(watch.seconds)
    rate = steps / float(np.median(turns))
    result = {
        "kind": kind,
        "batch": batch,
        "at_once": at_once,
        "steps_per_second": rate,
        "network_steps_per_second": rate * at_once,
        "ms": 1e3 / rate,
        "compile_s": first.seconds - float(np.median(turns)),
    }
    return result | flop_share(context, kind, batch * at_once * rate)


def _maker(program, values, splits):
    """Returns the function that makes the loop of the network of a number."""

    def make(number, data):
        if program is _SBN:
            return sbn_loop(program.flags(values), splits, "plain", number, data)
        flags = program.flags(values | {"seed": str(number)})
        return all_cnn_loop(flags, splits, data)

    return make


def kind_of(row):
    """Returns the kind of network of a run of a table, given its flags."""
    names = {"none": "none", "batch": "BN", "weight": "WN", "analytic": "AN"}
    if row["scale"] != "plain":
        return "All-CNN, AN + stochastic"
    return f"All-CNN, {names[row['norm']]}"


@functools.cache
def _flops(data, words, kind):
    """Operations of a forward pass of an image."""
    program, values = KINDS[kind][0], dict(words)
    splits = data.splits(program.flags(values))
    loop = _maker(program, values, splits)(0, None)
    return device.forward_flops(loop.model, splits.image_shape)


def training_flops(context, kind):
    """Returns the floating-point operations of training on one image.

    Of the All-CNN those without a normalization: what one adds is not the work.
    """
    if kind.startswith("All-CNN"):
        kind = "All-CNN, none"
    program, values = KINDS[kind]
    words = tuple((context.values(program) | values).items())
    return _BACKWARD * _flops(context.data, words, kind)


def flop_share(context, kind, images_per_second):
    """Returns the share of the ceiling, in per cent, that a training reaches."""
    ceiling = context.ledger.result("speed/ceiling").get("flops_per_second")
    if ceiling is None:
        return {}
    rate = images_per_second * training_flops(context, kind)
    return {"flop_share": 100 * rate / ceiling}


def summary(context, kind, loops, histories):
    """Returns what a training at once took: a result of a piece, a dict for JSON."""
    each = seconds_per_epoch(histories)
    rate = loops[0].data["train"].num_examples * len(loops) / each
    return {
        "networks_at_once": len(loops),
        "seconds_per_epoch": each,
        **flop_share(context, kind, rate),
    }


def compile_seconds(context):
    """Returns what compiling a training takes: the median of the speeds, or a guess."""
    known = [
        found["compile_s"]
        for found in context.ledger.results("speed/").values()
        if "compile_s" in found
    ]
    return float(np.median(known or [_GUESSED_COMPILE[device.is_accelerator()]]))


def epoch_seconds(context, kind, batch, at_once, examples):
    """Returns what an epoch of networks trained at once should take, in seconds.

    By the nearest speed that was measured: of the kind, else of another with as many
    operations per second; else by a guess of these.
    """
    known = [f for f in context.ledger.results("speed/").values() if "kind" in f]
    of_kind = [found for found in known if found["kind"] == kind]

    def distance(found):
        return (
            abs(np.log(found["at_once"] / at_once)),
            abs(np.log(found["batch"] / batch)),
        )

    if of_kind:
        nearest = min(of_kind, key=distance)
        images = nearest["network_steps_per_second"] * nearest["batch"]
    else:
        rate = _GUESSED_RATE[device.is_accelerator()]
        if known:
            nearest = min(known, key=distance)
            images = nearest["network_steps_per_second"] * nearest["batch"]
            rate = images * training_flops(context, nearest["kind"])
        images = rate / training_flops(context, kind)
    return _VALIDATION * examples * at_once / images


def best_at_once(context, kind, batch, count):
    """Returns how many of `count` networks to train at once.

    As many as `--at_once` says, else as the speeds of the kind, or of the kind that
    was measured best, have the highest number of network steps per second with.
    """
    if context.at_once is not None:
        return min(context.at_once, count)
    rates = {}
    for found in context.ledger.results("speed/").values():
        if found.get("batch") == batch and found["at_once"] <= count:
            rates.setdefault(found["kind"], {})[found["at_once"]] = found
    if kind not in rates and rates:
        kind = max(rates, key=lambda other: len(rates[other]))
    if kind not in rates:
        return min(3, count) if device.is_accelerator() else 1
    of_kind = rates[kind]
    return max(of_kind, key=lambda k: of_kind[k]["network_steps_per_second"])
