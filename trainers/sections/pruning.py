"""Structured Bayesian pruning: what it keeps, while training and after."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bayesnorm import plots
from bayesnorm.layers import StructuredBayesianPruning, posterior_layers
from bayesnorm.pruning import cost, prune
from trainers.evaluation.records import Record
from trainers.report.section import Section
from trainers.report.tables import number, table

# Prefix of the figures of an epoch: how many channels a layer keeps.
_KEPT = "kept_"
# Examples of a call whose time is measured.
_BATCHES = (1, 100)


@dataclasses.dataclass(frozen=True)
class _Published:
    """Results on MNIST from a network whose pruned layers are of these widths.

    Attributes:
        widths: Tuple of the widths before.
        macs: Function of the widths to multiplications for an example.
        rows: List of `(method, error in per cent, widths)`.
    """

    widths: tuple
    macs: Callable
    rows: tuple


_PUBLISHED = {
    "lenet5": _Published(
        (20, 50, 800, 500),
        # Maps of 24 and 8 pixels, kernels of 5, 10 classes.
        lambda a, b, c, d: 24**2 * 25 * a + 8**2 * 25 * a * b + c * d + 10 * d,
        (
            ("SBP (Neklyudov et al., 2017)", 0.86, (3, 18, 284, 283)),
            ("SSL (Wen et al., 2016)", 1.00, (3, 12, 800, 500)),
            ("GD (Srinivas & Babu, 2016)", 1.1, (7, 13, 208, 16)),
            ("BC-GNJ (Louizos et al., 2017)", 1.0, (8, 13, 88, 13)),
            ("BC-GHS (Louizos et al., 2017)", 1.0, (5, 10, 76, 16)),
            ("L0, separate (Louizos et al., 2018)", 1.0, (9, 18, 65, 25)),
        ),
    ),
    "mlp": _Published(
        (784, 500, 300),
        lambda a, b, c: a * b + b * c + 10 * c,
        (
            ("SBP (Neklyudov et al., 2017)", 1.55, (245, 160, 55)),
            ("SSL, as there", 1.49, (434, 174, 78)),
            ("Sparse VD, as there", 1.57, (537, 217, 130)),
        ),
    ),
}


def published(network):
    """Returns what was published: list of `(method, error in %, factor, widths)`.

    Args:
        network: Name of the network, as of `bayesnorm.models`.
    """
    found = _PUBLISHED.get(network)
    if found is None:
        return []
    whole = found.macs(*found.widths)
    return [
        (method, error, whole / found.macs(*widths), _widths(widths))
        for method, error, widths in found.rows
    ]


# --- while training ------------------------------------------------------------------


def layers(model):
    """Returns the pruning layers of a network, in order."""
    found = posterior_layers(model)
    return [layer for layer in found if isinstance(layer, StructuredBayesianPruning)]


def _name(layer):
    return layer.name.removesuffix("_pruning")


def figures(model):
    """Returns the figures of an epoch: `kept_LAYER`, a number of channels.

    NaN where the posterior left the finite range, as the loop wants it.
    """
    found = {}
    for layer in layers(model):
        snr, _ = layer.posterior_summary()["snr"]
        kept = float((snr >= layer.threshold).sum())
        found[_KEPT + _name(layer)] = math.nan if np.isnan(snr).any() else kept
    return found


def kept_of(row):
    """Returns the channels that each layer keeps, by name, of the row of an epoch."""
    return {
        key.removeprefix(_KEPT): int(value)
        for key, value in row.items()
        if key.startswith(_KEPT)
    }


def detail(row):
    """Returns what the line of an epoch says of the channels: "kept 3-18-284-283"."""
    kept = kept_of(row)
    return f"kept {_widths(kept.values())}  " if kept else ""


def _widths(numbers):
    return "-".join(map(str, numbers))


# --- after it ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Removed:
    """The network without what was pruned.

    Attributes:
        model: The smaller network, of plain layers.
        report: The `bayesnorm.pruning.PruningReport`.
        sizes: Name of a pruned layer -> the number of its channels at the start.
        parameters: Numbers of parameters, of the trained network that pruning started
            from and of the smaller one.
        macs: Likewise, multiplications for an example.
        latency: Number of examples -> seconds of a call of both.
    """

    model: Any
    report: Any
    sizes: dict
    parameters: tuple
    macs: tuple
    latency: dict


def remove(model, whole, trained, threshold, workdir):
    """Removes what was pruned, measures how much faster it is, and saves what is left.

    Args:
        model: The network with pruning layers.
        whole: That of before anything was removed, maybe the same one.
        trained: The network without, as pruning found it.
        threshold: Signal-to-noise ratio below which a channel goes.
        workdir: The `Workdir`; gets `pruned.keras`.

    Returns:
        A `Removed`.
    """
    pruned, found = prune(model, threshold)
    pruned.save(workdir / "pruned.keras")
    networks = {"before": trained, "after": pruned}
    latency = {
        batch: tuple(cost.latencies(networks, batch).values()) for batch in _BATCHES
    }
    parameters = tuple(network.count_params() for network in networks.values())
    before = found if whole is model else prune(whole, threshold)[1]
    macs = before.macs[0], found.macs[1]
    sizes = {_name(layer): layer.keep.size for layer in layers(whole)}
    return Removed(pruned, found, sizes, parameters, macs, latency)


def sections(network, removed):
    """Returns the functions of the sections on pruning.

    Args:
        network: Name of the network, as of `bayesnorm.models`.
        removed: The `Removed`.
    """
    return (
        lambda evaluation: kept_channels(evaluation, network, removed),
        lambda evaluation: kept_over_epochs(evaluation, removed),
        signal_to_noise,
        lambda evaluation: removal(evaluation, removed),
    )


def kept_channels(evaluation, network, removed):
    """Returns what each layer keeps, beside what was published of such a network."""
    kept = {
        _name(x): (int(x.keep.sum()), removed.sizes[_name(x)])
        for x in layers(evaluation.model)
    }
    some, of = zip(*kept.values(), strict=True)
    before, after = removed.macs
    rows = []
    ways = {"pruned": "this run", "finetuned": "this run, trained on after pruning"}
    for way, title in ways.items():
        if way in evaluation.predictions["test"]:
            error = number(evaluation.records.value("test", "error", way), ".2f")
            rows.append([title, _widths(some), error, f"{before / after:.1f}"])
    known = _PUBLISHED.get(network)
    beside = ""
    if known is not None and known.widths == of:
        rows += [
            [method, widths, f"{error:.2f}", f"{factor:.1f}"]
            for method, error, factor, widths in published(network)
        ]
        beside = (
            " Below it what was published, all on MNIST, with the MACs of these widths."
        )
    head = ["", f"kept of {_widths(of)}", "error, %", "times fewer MACs"]
    text = (
        f"Channels, units and inputs whose signal-to-noise ratio is "
        f"{layers(evaluation.model)[0].threshold:g} or more; what it is of that the "
        "linear layers still compute, and what they take, `pruned.keras` has without "
        f"pruning layers.{beside}\n\n{table(head, rows)}"
    )
    records = [
        Record("pruning", "channels_kept", some, "1", axis="layer", at=name)
        for name, (some, _) in kept.items()
    ]
    heading = "What is kept"
    return Section("kept", heading, text, plots.kept_channels(kept), records)


def kept_over_epochs(evaluation, removed):
    """Returns the shares of channels kept, epoch by epoch."""
    sizes = removed.sizes
    rows = [kept_of(row) for row in evaluation.history]
    shares = {
        name: np.array([100.0 * row[name] / size for row in rows])
        for name, size in sizes.items()
    }
    first = next(
        (row["epoch"] for row in evaluation.history if kept_of(row) != sizes), None
    )
    started = (
        "None was pruned." if first is None else f"The first fell in epoch {first}."
    )
    return Section(
        "kept_over_epochs",
        "Pruning over the epochs",
        f"{started} A channel may come back while training goes on, until it is "
        "removed.",
        plots.run_curves({"Channels kept": shares}, "channels kept, %", log=False),
    )


def signal_to_noise(evaluation):
    """Returns the distribution of the signal-to-noise ratios, by layer."""
    found = layers(evaluation.model)
    ratios = {_name(layer): layer.snr() for layer in found}
    threshold = found[0].threshold
    every = np.concatenate(list(ratios.values()))
    near = ((every > threshold / 2) & (every < 2 * threshold)).mean()
    return Section(
        "signal_to_noise",
        "Signal-to-noise ratios",
        f"`E[theta] / sd[theta]` of every channel. Within a factor of 2 of the "
        f"threshold {threshold:g} lie {100 * near:.1f} % of all: so many would fall "
        "otherwise with another.",
        plots.signal_to_noise(ratios, threshold),
    )


def removal(evaluation, removed):
    """Returns what the removal of the pruned channels saves, and that it is exact."""
    predictions = evaluation.predictions["test"]
    probs = [predictions[key][0].probs for key in ("one_pass", "pruned")]
    difference = float(np.abs(probs[0] - probs[1]).max())
    records, rows = [], []
    counts = {
        "parameters": ("parameters", removed.parameters),
        "macs": ("MACs an example", removed.macs),
    }
    for figure, (title, (before, after)) in counts.items():
        rows.append([title, f"{before:,}", f"{after:,}", f"{before / after:.1f}"])
        records += [
            Record("pruning", f"{figure}_before", before, "1"),
            Record("pruning", f"{figure}_after", after, "1"),
            Record("pruning", f"{figure}_factor", before / after, "1"),
        ]
    for batch, (before, after) in removed.latency.items():
        title = f"time of a call of {batch}, ms"
        cells = [f"{1e3 * before:.3f}", f"{1e3 * after:.3f}", f"{before / after:.1f}"]
        rows.append([title, *cells])
        records += [
            Record("seconds", f"call_of_{batch}_before", before, "s"),
            Record("seconds", f"call_of_{batch}_after", after, "s"),
        ]
    records.append(Record("pruning", "largest_difference", difference, "1"))
    text = (
        "MACs are the multiplications of dense and convolutional layers; times are of "
        "the compiled network on this machine, the best of several turns; before means "
        "the network that pruning started from. On the test part no probability of "
        f"`pruned.keras` differs by more than {difference:.1e} from those of one pass "
        f"of the network with pruning layers.\n\n"
        f"{table(['', 'before', 'after', 'times fewer'], rows)}"
    )
    stayed = "\n".join(f"- {note}" for note in removed.report.notes())
    heading = "What removing it saves"
    return Section("removal", heading, f"{text}\n\n{stayed}", records=records)
