"""A file system that can be filled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.programs import run


@contextmanager
def tmpfs(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a tmpfs of a size on a new folder; needs root."""
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "ubi-test", folder)
    try:
        yield folder
    finally:
        run("umount", "-l", folder)
