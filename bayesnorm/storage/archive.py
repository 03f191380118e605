"""Arrays with a header in one file: NumPy archives, without pickle."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from bayesnorm.storage.files import write_atomically
from bayesnorm.types import StrPath

_HEADER = "header"
# Within it.
_CONTENT, _CHECKSUMS = "content", "checksums"


class ArchiveError(ValueError):
    """A file that cannot be read as an archive, or that is damaged."""


def write_archive(path: StrPath, arrays: Mapping[str, np.ndarray], header: Any) -> None:
    """Writes arrays and a header, atomically.

    The file has the names and checksums of its arrays, which are compared when it is
    read. `numpy.load(path)` reads it too.

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
    stored = {_CONTENT: header, _CHECKSUMS: _checksums(arrays)}
    buffer = io.BytesIO()
    content: dict[str, Any] = {_HEADER: np.array(json.dumps(stored)), **arrays}
    np.savez(buffer, **content)
    write_atomically(path, buffer.getvalue())


def read_archive(path: StrPath) -> tuple[dict[str, np.ndarray], Any]:
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
            stored = json.loads(str(arrays.pop(_HEADER)))
            header, expected = stored[_CONTENT], stored[_CHECKSUMS]
            found = _checksums(arrays)
    except FileNotFoundError:
        raise
    # Of a damaged file NumPy raises whatever its parsers come upon.
    except Exception as error:
        raise ArchiveError(
            f"{path} cannot be read: {type(error).__name__}: {error}"
        ) from error
    if found != expected:
        raise ArchiveError(
            f"{path} cannot be read: its arrays are not those that were written "
            f"({len(found)} of {len(expected)}, or their content differs)."
        )
    return arrays, header


def _checksums(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The CRC-32 of arrays with their types and shapes, by name."""
    return {
        name: zlib.crc32(array.tobytes(), zlib.crc32(_form(array).encode()))
        for name, array in arrays.items()
    }


def _form(array: np.ndarray) -> Any:
    # NumPy stores types that are none of its own, as bfloat16, as bytes of their size.
    own = np.dtype(array.dtype.str) == array.dtype
    return f"{array.dtype.str if own else f'|V{array.dtype.itemsize}'} {array.shape}"
