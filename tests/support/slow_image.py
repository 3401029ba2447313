"""An image whose reads take their time, each another one, so that later requests overtake earlier ones."""

from __future__ import annotations

import random
import threading
from array import array
from pathlib import Path
from typing import cast

from tests.support.gated_image import GatedImage

BLOCK = 4096
WORDS = BLOCK // 8
MASK = (1 << 64) - 1


def _mix(value: int) -> int:
    value ^= value >> 33
    value = value * 0xFF51AFD7ED558CCD & MASK
    value ^= value >> 33
    value = value * 0xC4CEB9FE1A85EC53 & MASK
    return value ^ value >> 33


def block_content(seed: int, block: int, generation: int) -> bytes:
    """Return what a block of 4 KiB holds; the same formula as in guest_load.rs."""
    value = _mix(seed ^ _mix(block ^ _mix(generation)))
    return array("Q", [value + index & MASK for index in range(WORDS)]).tobytes()


class Pattern:
    """The bytes of an image of generation 0, made when they are read."""

    def __init__(self, seed: int, size_bytes: int) -> None:
        self._seed, self._size = seed, size_bytes

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        first, last = start // BLOCK, -(-stop // BLOCK)
        data = b"".join(block_content(self._seed, block, 0) for block in range(first, last))
        return data[start - first * BLOCK : stop - first * BLOCK]


class SlowImage(GatedImage):
    """An image of `Pattern`s; each read is answered after up to `delay_s`.

    Args:
        folder: an empty folder to mount on.
        seed: of the content and of the delays.
        size_bytes: of the image.
        delay_s: the longest a read takes.
    """

    def __init__(self, folder: Path, seed: int, size_bytes: int, delay_s: float) -> None:
        self._random = random.Random(seed)
        self._delay_s = delay_s
        super().__init__(folder, cast("bytes", Pattern(seed, size_bytes)))

    def _read(self, unique: int, body: bytes) -> None:
        threading.Timer(self._random.random() * self._delay_s, super()._read, (unique, body)).start()
