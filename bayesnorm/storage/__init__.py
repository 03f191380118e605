"""What lies on disk: files that are whole or not there, arrays without pickle."""

from bayesnorm.storage.archive import ArchiveError, read_archive, write_archive
from bayesnorm.storage.files import (
    drafted,
    numbered_files,
    remove_drafts,
    write_atomically,
)

__all__ = [
    "ArchiveError",
    "drafted",
    "numbered_files",
    "read_archive",
    "remove_drafts",
    "write_archive",
    "write_atomically",
]
