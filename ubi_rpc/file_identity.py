"""Which file a path names, whatever the path: looked at without opening it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

FileId = tuple[str, int, int]
"""("file", st_dev, st_ino), or ("device", st_rdev, 0) for any node of a block device."""


def stat_path(path: str) -> os.stat_result | OSError:
    """Return what stat says of `path`, or its error. Blocks as long as the file system does."""
    try:
        return Path(path).stat()
    except OSError as error:
        return error


def file_id(found: os.stat_result) -> FileId:
    """Return the identity of a file or block device."""
    if stat.S_ISBLK(found.st_mode):
        return ("device", found.st_rdev, 0)
    return ("file", found.st_dev, found.st_ino)
