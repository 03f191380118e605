"""Checkpoints from which a killed run goes on, and the folder of a run."""

import csv
import dataclasses
import io
import pathlib
import re

import keras

from bayesnorm.storage import (
    ArchiveError,
    read_archive,
    remove_drafts,
    write_archive,
    write_atomically,
)


def write_history(path, history):
    """Writes the history of `trainers.loop.fit` as a CSV file."""
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

    def __init__(self, directory, every=1):
        if every < 1:
            raise ValueError(f"`every` must be 1 or more. Received: every={every!r}")
        self.directory = pathlib.Path(directory)
        self.every = every

    def is_due(self, epoch):
        """Whether a checkpoint is to be written after `epoch`, counted from 1."""
        return epoch % self.every == 0

    def _paths(self):
        """The checkpoints' paths, the latest first."""
        found = {
            int(match[1]): path
            for path in self.directory.glob("epoch-*.npz")
            if (match := re.fullmatch(r"epoch-(\d+)\.npz", path.name))
        }
        return [found[epoch] for epoch in sorted(found, reverse=True)]

    def save(self, values, history):
        """Writes a checkpoint, and removes all but two and what killed runs left."""
        header = {"backend": keras.backend.backend(), "history": history}
        arrays = {f"variable_{i:05d}": value for i, value in enumerate(values)}
        write_archive(self.directory / f"epoch-{len(history):06d}.npz", arrays, header)
        for old in self._paths()[2:]:
            old.unlink()
        remove_drafts(self.directory, "epoch-*.npz")

    def latest(self):
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


def read_flags(path):
    """Returns the flags of a `flags.txt` by name, as text; names begin with `--`."""
    lines = pathlib.Path(path).read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def differences(old, new):
    """Returns what of two dicts of flags differs, in lines; empty if nothing does."""
    return "\n  ".join(
        f"{name}: {old.get(name, '(not set)')} there, {new.get(name, '(not set)')} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    )


class Workdir:
    """The folder of a run: made, or opened again if it is of the same flags.

    Args:
        path: Path of the folder.
        binary: Name of the binary that runs there.
        flags: Dict of the flags' values as text: what figures depend on. They are
            kept in `flags.txt`, to be read with `--config`. A folder in which nothing
            was computed yet, nor in the folders in it, takes the new ones.
        notes: Dict of what else tells the run from others, as text; comments there.
        ignored: Names of flags that the binary has no use for, and that a record of
            an earlier version may have: neither kept nor compared.

    Raises:
        ValueError: If the folder is of a run with other flags, or not of a run.
    """

    def __init__(self, path, binary, flags, notes=None, ignored=()):
        self.path = pathlib.Path(path)
        file = self.path / "flags.txt"
        notes = {"binary": binary} | (notes or {})
        ignored = {f"--{name}" for name in ignored}
        entries = {f"--{name}": value for name, value in sorted(flags.items())}
        entries = {k: v for k, v in entries.items() if k not in ignored}
        entries = {f"# {name}": value for name, value in notes.items()} | entries
        if file.is_file() and self._begun():
            # Notes were flags in earlier versions.
            noted = {f"--{name}": f"# {name}" for name in notes}
            old = {noted.get(k, k): v for k, v in read_flags(file).items()}
            self._check({k: v for k, v in old.items() if k not in ignored}, entries)
            return
        if not file.is_file() and self._taken():
            raise ValueError(
                f"The working directory {str(self.path)!r} exists and holds something "
                "other than a run (there is no flags.txt): give an empty or new one "
                "with --workdir."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        lines = (f"{name}={value}\n" for name, value in entries.items())
        write_atomically(file, "".join(lines))

    def _taken(self):
        exists = self.path.exists()
        return exists and (not self.path.is_dir() or any(self.path.iterdir()))

    def _begun(self):
        """Whether there is anything that the flags of the run led to."""
        results = ("checkpoints", "learning_rate.json", "metrics.json")
        # A run of several networks has a folder in it for each.
        folders = [self.path, *(p for p in self.path.iterdir() if p.is_dir())]
        return any((folder / name).exists() for folder in folders for name in results)

    def _check(self, old, new):
        differing = differences(old, new)
        if differing:
            raise ValueError(
                f"The working directory {str(self.path)!r} is of a run with other "
                f"flags:\n  {differing}\nGive another --workdir, or the same flags "
                f"(--config={self.path / 'flags.txt'}) to go on there."
            )

    def __truediv__(self, name):
        """Returns the path of a file in the folder."""
        return self.path / name
