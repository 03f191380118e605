"""Examples that take part in a prediction for as long as it needs them.

All batches go through the first networks. The examples that these leave open wait
until they are a full batch, whatever batches they come from, and go through the next
ones: the networks work on full batches, of few sizes, to the end.
"""

import collections
import math

import keras
import numpy as np
from scipy import special

from bayesnorm.prediction.batches import (
    Padding,
    check_finite_outputs,
    check_one_shape,
)
from bayesnorm.prediction.settling import BLOCK, looks, rule_for, split_rate
from bayesnorm.streams.arrays import cut, join, rows_of, shapes_of


class ByNeed:
    """Predicts examples by as many networks as they need.

    Args:
        ensemble: The `Ensemble`.
        batch_size: Examples at a time.
        tolerances: As `Ensemble.by_output` returned them, one for each output.
        error_rate: As of `predict`.
    """

    def __init__(self, ensemble, batch_size, tolerances, error_rate):
        self._ensemble, self._size = ensemble, batch_size
        self._error_rate = error_rate
        samples = ensemble.samples
        self._rules = [
            rule_for(output, tolerance, error_rate, samples, temperature)
            for output, tolerance, temperature in zip(
                ensemble.outputs.each, tolerances, ensemble.temperatures, strict=True
            )
        ]
        self._looks = looks(samples, max(rule.least for rule in self._rules))
        self._padded = Padding(batch_size, waste=4)
        self._waiting = collections.defaultdict(list)  # By look and shapes.
        self._started, self._first, self._done = 0, None, []

    def add(self, inputs):
        """Takes a batch, not padded."""
        rows = rows_of(inputs)
        number = np.arange(self._started, self._started + rows)
        self._started += rows
        self._run(0, {"inputs": inputs, "number": number, "outputs": None})

    def finish(self):
        """Ends what waits; returns for each output a list of parts, and their order.

        Returns:
            `(parts, order)`: a list of lists of `Prediction`s, one for each output, and
            the indices that put their examples into the order of the data.
        """
        while self._waiting:
            key = min(self._waiting, key=lambda key: key[0])
            self._run(key[0], join(self._waiting.pop(key)))
        numbers = np.concatenate([number for number, _ in self._done])
        return [parts for _, parts in self._done], np.argsort(numbers)

    def _run(self, look, examples):
        """Has examples go through the networks between the last look and this one."""
        first = self._looks[look - 1] if look else 0
        last = self._looks[look]
        rows = rows_of(examples["inputs"])
        batch = self._padded(examples["inputs"])
        for start in range(first, last, BLOCK):
            number = min(BLOCK, last - start)
            values = self._ensemble.networks(batch, rows, start, number)
            if examples["outputs"] is None:
                examples["outputs"] = self._start(values, examples["number"])
            for args in zip(
                self._rules,
                self._ensemble.outputs.each,
                examples["outputs"],
                values,
                strict=True,
            ):
                self._take(*args, start, examples["number"])
        self._leave(look, examples)

    def _start(self, values, numbers):
        if self._first is None:
            self._first = [x[0, 0] for x in values]
        for first, x in zip(self._first, values, strict=True):
            check_one_shape(first, x[0, 0], int(numbers[0]))
        return [
            {
                "rule": rule.start(x.shape[2:]),
                # The examples first, in all of them: `[examples, members, ...]`.
                "mean": np.zeros((x.shape[2], x.shape[0], *x.shape[3:])),
                "spread": np.zeros((x.shape[2], x.shape[0], *_positions(x, output))),
            }
            for rule, output, x in zip(
                self._rules, self._ensemble.outputs.each, values, strict=True
            )
        ]

    def _take(self, rule, output, state, values, before, numbers):
        """Takes the values `[members, networks, examples, ...]` of an output."""
        check_finite_outputs(values.sum((0, 1)), output, numbers)
        rate, _ = split_rate(self._error_rate, math.prod(_positions(values, output)))
        rule.update(state["rule"], values.mean(0), before, rate)
        merge(state, np.moveaxis(values, 2, 0).astype("float64"), before, output)

    def _leave(self, look, examples):
        last = self._looks[look]
        rows = rows_of(examples["inputs"])
        leaves = np.ones(rows, bool)
        if look < len(self._looks) - 1:
            for rule, state in zip(self._rules, examples["outputs"], strict=True):
                unsettled = rule.unsettled(state["rule"]).reshape(rows, -1)
                _, share = split_rate(self._error_rate, unsettled.shape[1])
                leaves &= unsettled.mean(1) <= share
        if leaves.any():
            settled = keras.tree.map_structure(lambda x: x[leaves], examples["outputs"])
            parts = self._ensemble.averaged(
                [(state["mean"], state["spread"]) for state in settled], last
            )
            self._done.append((examples["number"][leaves], parts))
        if not leaves.all():
            stay = keras.tree.map_structure(lambda x: x[~leaves], examples)
            self._wait(look + 1, stay)

    def _wait(self, look, examples):
        inputs = examples["inputs"]
        full = min(self._size, self._ensemble.most_examples(inputs))
        key = look, shapes_of(inputs)
        waiting = self._waiting[key]
        waiting.append(examples)
        if sum(rows_of(x["inputs"]) for x in waiting) < full:
            return
        found = join(self._waiting.pop(key))
        rest = rows_of(found["inputs"]) - full
        if rest:
            self._waiting[key].append(cut(found, full, full + rest))
        self._run(look, cut(found, 0, full))


def _positions(values, output):
    """The shape of an example's positions, each with an answer of its own."""
    shape = values.shape[3:]
    return shape if output.task == "regression" else shape[:-1]


def merge(state, values, before, output):
    """Takes networks into running means, as `average_networks` does, in float64.

    Args:
        state: Dict of arrays `mean` and `spread`, `[examples, members, ...]`.
        values: `[examples, members, networks, ...]`.
        before: Number of networks so far.
        output: The `Output` that they are.
    """
    share = values.shape[2] / (before + values.shape[2])
    center = values.mean(2)
    delta = center - state["mean"]
    if output.task == "regression":
        spread = values.var(2)
        gap = share * (1 - share) * np.square(delta)
    else:
        spread, gap = special.entr(values).sum(-1).mean(2), 0.0
    state["mean"] += share * delta
    state["spread"] += share * (spread - state["spread"]) + gap
