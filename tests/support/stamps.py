"""Blocks that tell who wrote them: every sector carries its place and the number of its write."""

from __future__ import annotations

import struct

SECTOR = 512
BLOCK = 4096
MAGIC = b"UBISTAMP"
_HEAD = struct.Struct("<8sQQ")

ZERO = 0
"""The generation of zeros, which carry no stamp."""


def stamp(block: int, generation: int) -> bytes:
    """Return the content of a block in a generation (1 and up); each of its sectors can be told from all others."""
    first = block * BLOCK // SECTOR
    sectors = []
    for sector in range(first, first + BLOCK // SECTOR):
        head = _HEAD.pack(MAGIC, sector, generation)
        sectors.append((head * (SECTOR // len(head) + 1))[:SECTOR])
    return b"".join(sectors)
