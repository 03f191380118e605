"""The folder of a run, which knows the flags that it is of."""

import pathlib

from bayesnorm.storage import write_atomically


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


def workdir_path(flags, name):
    """Returns the folder of a run of the binary `name`, a text."""
    return flags.workdir or f"runs/{name}-{flags.dataset}"


class Workdir:
    """The folder of a run: made, or opened again if it is of the same flags.

    Args:
        path: Path of the folder.
        binary: Name of the binary that runs there.
        flags: Dict of the flags' values as text: what figures depend on. They are
            kept in `flags.txt`, to be read with `--config`. A folder in which nothing
            was computed yet, nor in the folders in it, takes the new ones.
        notes: Dict of what else tells the run from others, as text; comments there.

    Raises:
        ValueError: If the folder is of a run with other flags, or not of a run.
    """

    def __init__(self, path, binary, flags, notes=None):
        if "\0" in str(path):
            raise ValueError(f"--workdir must be a path. Received: {str(path)!r}")
        self.path = pathlib.Path(path)
        file = self.path / "flags.txt"
        notes = {"binary": binary} | (notes or {})
        entries = {f"--{name}": value for name, value in sorted(flags.items())}
        entries = {f"# {name}": value for name, value in notes.items()} | entries
        if file.is_file() and self._begun():
            self._check(read_flags(file), entries)
            return
        if not file.is_file() and self._taken():
            raise ValueError(
                f"The working directory {str(self.path)!r} exists and holds something "
                "other than a run (there is no flags.txt): give an empty or new one "
                "with --workdir."
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"{error}: give another --workdir") from error
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
