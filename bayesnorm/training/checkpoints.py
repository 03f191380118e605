"""Checkpoints from which a killed run goes on."""

from __future__ import annotations

import csv
import dataclasses
import io
import pathlib

import keras
import numpy as np

from bayesnorm.storage import (
    ArchiveError,
    numbered_files,
    read_archive,
    remove_drafts,
    write_archive,
    write_atomically,
)
from bayesnorm.types import Row, StrPath


def write_history(path: StrPath, history: list[Row]) -> None:
    """Writes the history of `loop.fit` as a CSV file."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomically(path, text.getvalue())


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint: the values of all variables, and the history up to it."""

    values: list
    history: list


class Checkpoints:
    """Keeps the two latest states of a run as NumPy archives, without pickle.

    A checkpoint holds every variable of the run (weights, statistics, the
    optimizer's, the states of all seed generators) and the history, and is either
    complete or not there. The older one stays for the case that the newer cannot be
    read.

    Args:
        directory: Where they lie; made if missing.
        every: Number of epochs from one to the next.
    """

    def __init__(self, directory: StrPath, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"`every` must be 1 or more. Received: every={every!r}")
        self.directory = pathlib.Path(directory)
        self.every = every

    def is_due(self, epoch: int) -> bool:
        """Whether a checkpoint is to be written after `epoch`, counted from 1."""
        return epoch % self.every == 0

    def _paths(self):
        """The checkpoints' paths, the latest first."""
        return list(reversed(numbered_files(self.directory, "epoch").values()))

    def save(self, values: list[np.ndarray], history: list[Row]) -> None:
        """Writes a checkpoint, and removes all but two and what killed runs left."""
        header = {"backend": keras.backend.backend(), "history": history}
        arrays = {f"variable_{i:05d}": value for i, value in enumerate(values)}
        write_archive(self.directory / f"epoch-{len(history):06d}.npz", arrays, header)
        for old in self._paths()[2:]:
            old.unlink()
        remove_drafts(self.directory, "epoch-*.npz")

    def latest(self) -> Saved | None:
        """Returns the latest `Saved` that can be read, or None.

        Raises:
            ValueError: If it was written with another backend, or if there are
                checkpoints and none of them can be read.
        """
        errors = []
        for path in self._paths():
            try:
                arrays, header = read_archive(path)
            except ArchiveError as error:
                errors.append(str(error))
                continue
            if header["backend"] != keras.backend.backend():
                raise ValueError(
                    f"{path} was written with the backend {header['backend']!r}, and "
                    f"random states of {keras.backend.backend()!r} are others: set "
                    f"KERAS_BACKEND={header['backend']}, or take another directory."
                )
            values = [arrays[name] for name in sorted(arrays)]
            return Saved(values, header["history"])
        if errors:
            raise ValueError(
                f"None of the checkpoints in {self.directory} can be read "
                f"({'; '.join(errors)}). Remove them to start from the beginning."
            )
        return None
