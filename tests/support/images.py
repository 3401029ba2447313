"""Images and bases: files with bytes that tell where they came from."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

MIB = 1 << 20
METADATA_BYTES = 8 * MIB
"""Where a base's data begins. Source: bdev_ubi's on-disk format."""


def make_image(path: Path, size_bytes: int, rng: random.Random, holes: bool = False) -> bytes:
    """Write a file of random bytes and return them; with `holes`, about a third of its 64 KiB pieces are holes."""
    data = bytearray(rng.randbytes(size_bytes))
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for start in range(0, size_bytes, 64 << 10):
            piece = slice(start, min(start + (64 << 10), size_bytes))
            if holes and rng.randrange(3) == 0:
                data[piece] = bytes(piece.stop - piece.start)
                continue
            file.seek(start)
            file.write(data[piece])
    return bytes(data)


def make_sparse(path: Path, size_bytes: int) -> Path:
    """Make a file that is one hole."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return path


def digest(path: Path) -> str:
    """Return a digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
