"""What was removed of a network, in words and as a page."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import keras

from bayesnorm.plots import kept_channels
from bayesnorm.pruning import cost
from bayesnorm.types import StrPath

_BATCHES = (1, 100)


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What stayed of a layer.

    Attributes:
        name: Its name.
        type: Name of its class.
        kept: Number of the channels that it still makes.
        of: Number that it made.
        inputs: `(before, after)`, the channels that it takes.
        parameters: `(before, after)`, their number.
        macs: `(before, after)`, multiplications for an example; None where the number
            of positions is not known.
        layers: `(before, after)`, the layers themselves, `(layer, shape of its input)`.
    """

    name: str
    type: str
    kept: int
    of: int
    inputs: tuple
    parameters: tuple
    macs: tuple
    layers: tuple = dataclasses.field(repr=False)


class PruningReport:
    """What `bayesnorm.prune` removed.

    Attributes:
        layers: List of `LayerReport`, in the order of the graph.
        refused: List of `(layer, channels, reason)`: channels that are constant, or
            masked, and had to stay, and what needs them.
        kept_alone: Names of layers of which one channel was kept because there has to
            be one.
        error: Largest difference between the outputs before and after, relative to the
            largest output.
        parameters: `(before, after)`, of the whole network.
        macs: `(before, after)`, multiplications for an example, of its dense and
            convolutional layers; None where a number of positions is not known.
    """

    def __init__(
        self,
        layers: list[LayerReport],
        refused: list[tuple[str, int, str]],
        kept_alone: list[str],
        error: float,
        models: dict[str, keras.Model],
    ) -> None:
        self.layers = layers
        self.refused = refused
        self.kept_alone = kept_alone
        self.error = error
        self._models = models
        self.parameters = tuple(m.count_params() for m in models.values())
        counts = list(zip(*(x.macs for x in layers), strict=True)) or [(0,), (0,)]
        self.macs = tuple(None if None in c else sum(c) for c in counts)

    @property
    def kept(self) -> dict[str, tuple[int, int]]:
        """Dict from the name of a layer to `(kept, of)`, its channels."""
        return {x.name: (x.kept, x.of) for x in self.layers}

    def latency(
        self, batch_sizes: Sequence[int] = _BATCHES
    ) -> dict[int, tuple[float, float]]:
        """Measures the time of the networks before and after, compiled, in turns.

        Args:
            batch_sizes: Tuple of numbers of examples.

        Returns:
            Dict from batch size to `(before, after)`, seconds, of the best of 5 turns.
        """
        found = {}
        for batch in batch_sizes:
            seconds = cost.latencies(self._models, batch)
            found[batch] = tuple(seconds.values())
        return found

    def layer_latency(
        self, batch_sizes: Sequence[int] = _BATCHES
    ) -> dict[int, dict[str, tuple[float, float]]]:
        """Measures the time of each layer before and after, by itself, compiled.

        Args:
            batch_sizes: Tuple of numbers of examples.

        Returns:
            Dict from batch size to a dict from the name of a layer to
            `(before, after)`, seconds, of the best of 5 turns. A layer that takes
            integers is left out.
        """
        pairs = {
            (x.name, i): x.layers[i]
            for x in self.layers
            for i in range(2)
            if x.macs[0] != 0
        }
        found = {}
        for batch in batch_sizes:
            seconds = cost.layer_latencies(pairs, batch)
            names = dict.fromkeys(name for name, _ in pairs)
            found[batch] = {
                name: (seconds[name, 0], seconds[name, 1]) for name in names
            }
        return found

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Returns the table of the layers: head and rows, lists of text."""
        head = ["layer", "type", "inputs", "channels", "parameters", "MACs"]
        rows = [
            [
                x.name,
                x.type,
                _pair(x.inputs),
                f"{x.kept} of {x.of}",
                _pair(x.parameters),
                _pair(x.macs),
            ]
            for x in self.layers
        ]
        whole = ["whole", "", "", "", _pair(self.parameters), _pair(self.macs)]
        return head, [*rows, whole]

    def __str__(self):
        head, rows = self.rows()
        table = [head, *rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(n) for cell, n in zip(row, widths, strict=True)
            ).rstrip()
            for row in table
        ]
        return "\n".join([*lines, "", *self._saved(), *self.notes()])

    def _saved(self):
        if None in self.macs or not self.macs[1]:
            return []
        return [f"{self.macs[0] / self.macs[1]:.1f} times fewer MACs."]

    def notes(self) -> list[str]:
        """Returns sentences on what the table does not say."""
        found = [f"Outputs differ by {self.error:.1e}, relative to the largest."]
        found += [
            f"{count} channels of {name} stay: {reason}."
            for name, count, reason in self.refused
        ]
        if self.kept_alone:
            names = ", ".join(self.kept_alone)
            found.append(f"One channel was kept, there has to be one: {names}.")
        return found

    def write(self, folder: StrPath, latency: bool = True) -> None:
        """Writes `report.md`, with a picture of the channels that stayed.

        Args:
            folder: Folder, made if it is not there.
            latency: Whether to measure the time of both networks.
        """
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        head, rows = self.rows()
        lines = ["# What was removed", "", _row(head), _row(["---"] * len(head))]
        lines += [
            *map(_row, rows),
            "",
            *(f"- {note}" for note in [*self._saved(), *self.notes()]),
            "",
        ]
        if latency:
            lines += [*self._latency_table(), ""]
        figure = kept_channels(self.kept)
        figure.savefig(folder / "kept_channels.png")
        lines += ["![Channels that stayed](kept_channels.png)", ""]
        (folder / "report.md").write_text("\n".join(lines))

    def _latency_table(self):
        whole, layers = self.latency(), self.layer_latency()
        head = ["ms"]
        for batch in whole:
            head += [f"batch {batch}, before", "after", "times faster"]
        rows = {"whole": [whole[batch] for batch in whole]}
        for name in layers[_BATCHES[0]]:
            rows[name] = [layers[batch][name] for batch in layers]
        lines = [_row(head), _row(["---", *["---:"] * (len(head) - 1)])]
        for name, pairs in rows.items():
            cells = [name]
            for before, after in pairs:
                cells += [f"{1e3 * before:.3f}", f"{1e3 * after:.3f}"]
                cells.append(f"{before / after:.2f}")
            lines.append(_row(cells))
        return lines


def _row(cells):
    return "| " + " | ".join(cells) + " |"


def _pair(values):
    before, after = ("?" if v is None else f"{v:,}" for v in values)
    return before if before == after else f"{before} -> {after}"
