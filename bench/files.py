"""Files in the page cache, always in the same state.

A buffered write leaves large folios, a 4 KiB random read small ones, and the same load is several times slower on the
one than on the other. So a file is dropped from the cache after it was written, and read back in 4 KiB pieces. Which
memory the pieces get matters as well, pages that follow each other are copied faster: files that are compared are read
back in turns.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PIECE_BYTES = 4096
CHUNK_BYTES = 1 << 20
TURN_BYTES = 2 << 20


def write_image(path: Path, size_bytes: int, seed: int = 1) -> None:
    """Write a file of random bytes, durably."""
    source = random.Random(seed)
    with path.open("wb") as file:
        for _ in range(size_bytes // CHUNK_BYTES):
            file.write(source.randbytes(CHUNK_BYTES))
        file.flush()
        os.fsync(file.fileno())


def cache_in_small_pages(*paths: Path) -> None:
    """Take files out of the page cache and read them in again, 4 KiB at a time, 2 MiB of each in turn."""
    for path in paths:
        with _opened(path) as descriptor:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    warm(*paths)


def warm(*paths: Path) -> None:
    """Read files in 4 KiB pieces; what is in the cache stays as it is there."""
    with ExitStack() as stack:
        descriptors = [stack.enter_context(_opened(path)) for path in paths]
        sizes = [os.fstat(descriptor).st_size for descriptor in descriptors]
        for descriptor in descriptors:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for start in range(0, max(sizes, default=0), TURN_BYTES):
            for descriptor, size in zip(descriptors, sizes, strict=True):
                _read(descriptor, start, min(start + TURN_BYTES, size))


def _read(descriptor: int, start: int, end: int) -> None:
    buffer = [bytearray(PIECE_BYTES)]
    for offset in range(start, end, PIECE_BYTES):
        os.preadv(descriptor, buffer, offset)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def settle(path: Path) -> None:
    """Write back what a run left dirty, so that the next one does not pay for it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
