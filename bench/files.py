"""Files in the page cache, always in the same state.

A buffered write leaves large folios, a 4 KiB random read small ones, and the same load is several times slower on the
one than on the other. So a file is dropped from the cache after it was written, and read back in 4 KiB pieces.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

PIECE_BYTES = 4096
CHUNK_BYTES = 1 << 20


def write_image(path: Path, size_bytes: int, seed: int = 1) -> None:
    """Write a file of random bytes, durably."""
    source = random.Random(seed)
    with path.open("wb") as file:
        for _ in range(size_bytes // CHUNK_BYTES):
            file.write(source.randbytes(CHUNK_BYTES))
        file.flush()
        os.fsync(file.fileno())


def cache_in_small_pages(path: Path) -> None:
    """Take a file out of the page cache and read it in again, 4 KiB at a time."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    warm(path)


def warm(path: Path) -> None:
    """Read a file in 4 KiB pieces; what is in the cache stays as it is there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        buffer = [bytearray(PIECE_BYTES)]
        for offset in range(0, os.fstat(descriptor).st_size, PIECE_BYTES):
            os.preadv(descriptor, buffer, offset)
    finally:
        os.close(descriptor)


def settle(path: Path) -> None:
    """Write back what a run left dirty, so that the next one does not pay for it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
