"""Files and folders that nobody sees half written."""

import contextlib
import os
import pathlib
import shutil
import uuid


@contextlib.contextmanager
def drafted(path):
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


def write_atomically(path, data):
    """Writes a file that is never seen half written, even if the machine stops.

    Args:
        path: Path of the file.
        data: Its content, bytes or text.
    """
    with drafted(path) as draft, open(draft, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
