"""Files and folders that nobody sees half written."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import time
import uuid
from collections.abc import Iterator

from bayesnorm.types import StrPath

_STALE_S = 600.0


@contextlib.contextmanager
def drafted(path: StrPath) -> Iterator[pathlib.Path]:
    """Gives the path of a draft, which takes the place of `path` once the block ends.

    If the block fails the draft is removed, and what was there before stays.

    Args:
        path: Path of a file, or of a folder that is empty or not there. Folders above
            it are made.

    Yields:
        A path beside it, of a hidden name, at which the block makes the file or folder.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        draft.unlink(missing_ok=True)


def remove_drafts(folder: StrPath, pattern: str) -> None:
    """Removes the drafts that killed writes left behind.

    One on which somebody wrote in the last ten minutes may be of a process that lives.

    Args:
        folder: Path of the folder.
        pattern: Pattern of the names of the files that were to be.
    """
    for draft in pathlib.Path(folder).glob(f".{pattern}.{'[0-9a-f]' * 32}"):
        # Another process may be quicker.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - draft.stat().st_mtime > _STALE_S:
                draft.unlink()


def numbered_files(folder: StrPath, prefix: str) -> dict[int, pathlib.Path]:
    """Returns the files `PREFIX-NUMBER.npz` of a folder by their number, in order."""
    pattern = re.compile(rf"{re.escape(prefix)}-(\d+)\.npz")
    found = {
        int(match[1]): path
        for path in pathlib.Path(folder).glob(f"{prefix}-*.npz")
        if (match := pattern.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def write_atomically(path: StrPath, data: bytes | str) -> None:
    """Writes a file that is never seen half written, even if the machine stops.

    Args:
        path: Path of the file.
        data: Its content, bytes or text.

    Raises:
        OSError: Of the kind that the system raised (no space, no permission), with the
            path and what to do.
    """
    try:
        with drafted(path) as draft, open(draft, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}: {path} could not be written, and what was there before "
            "stays. Make room there, or name a folder that can be written to",
        ) from error
