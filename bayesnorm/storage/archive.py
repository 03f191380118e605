"""Arrays with a header in one file: NumPy archives, without pickle."""

import io
import json
import zipfile

import numpy as np

from bayesnorm.storage.files import write_atomically

_HEADER = "header"


class ArchiveError(ValueError):
    """A file that cannot be read as an archive, or that is damaged."""


def write_archive(path, arrays, header):
    """Writes arrays and a header, atomically.

    Each array has a checksum (the CRC-32 of a zip archive), which is compared when it
    is read. `numpy.load(path)` reads the file too.

    Args:
        path: Path of the file.
        arrays: Dict of arrays by name, of numbers or text; none is named `"header"`.
        header: What JSON takes: numbers (of Python), text, lists, dicts.

    Raises:
        ValueError: If an array is named `"header"`, or holds Python objects.
    """
    if _HEADER in arrays:
        raise ValueError(f"An array must not be named {_HEADER!r}: give another name.")
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    for name, value in arrays.items():
        if value.dtype.hasobject:
            raise ValueError(
                f"Array {name!r} holds Python objects (dtype {value.dtype}), which are "
                "stored by pickle alone. Expected numbers or text."
            )
    buffer = io.BytesIO()
    np.savez(buffer, **{_HEADER: np.array(json.dumps(header))}, **arrays)
    write_atomically(path, buffer.getvalue())


def read_archive(path):
    """Reads what `write_archive` wrote.

    Args:
        path: Path of the file.

    Returns:
        `(arrays, header)`.

    Raises:
        ArchiveError: If it is not such a file, is cut off or damaged, or would need
            pickle.
        FileNotFoundError: If there is none.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
            return arrays, json.loads(str(arrays.pop(_HEADER)))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ArchiveError(
            f"{path} cannot be read: {type(error).__name__}: {error}"
        ) from error
