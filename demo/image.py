"""A disk image with an ext4 file system and files whose every byte is known."""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from pathlib import Path

from demo.steps import DemoError, run

MIB = 1 << 20
BLOCK_BYTES = 4096
IMAGE_BYTES = 512 * MIB
FILES = {"srv/data.bin": 24 * MIB, "srv/scratch.bin": 6 * MIB, "srv/other.bin": 96 * MIB, "etc/motd": BLOCK_BYTES}


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of a file's blocks, in bytes from the start of the image."""

    offset: int
    length: int


def digest(data: bytes) -> str:
    """Return the SHA-256 of `data`, as sha256sum prints it."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content(name: str) -> bytes:
    """Return the bytes of a file of the image: random, the same in every run, no block of them zero."""
    return random.Random(name).randbytes(FILES[name])


def make_image(path: Path) -> None:
    """Write a sparse image of IMAGE_BYTES at `path` with FILES in an ext4 file system.

    Raises:
        DemoError: mke2fs is missing or fails, a full disk included.
    """
    tree = path.with_suffix(".files")
    for name in FILES:
        file = tree / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content(name))
    blocks = IMAGE_BYTES // BLOCK_BYTES
    run(
        ["mke2fs", "-q", "-t", "ext4", "-b", str(BLOCK_BYTES), "-d", tree.name, path.name, str(blocks)],
        cwd=str(path.parent),
    )


def extents(image: Path, name: str) -> list[Extent]:
    """Return where a file's bytes lie in the image, in the file's order.

    Raises:
        DemoError: debugfs does not know the file, or does not list all of its blocks.
    """
    table = run(["debugfs", "-R", f"dump_extents -l /{name}", str(image)], show=False)
    row = re.compile(r"^\s*\d+/\s*\d+\s+\d+/\s*\d+\s+(\d+)\s*-\s*\d+\s+(\d+)\s*-\s*\d+\s+(\d+)", re.MULTILINE)
    found = [(int(first), int(start), int(count)) for first, start, count in row.findall(table)]
    if sum(count for _, _, count in found) * BLOCK_BYTES != FILES[name]:
        raise DemoError(f"debugfs does not list all blocks of /{name}:\n{table}")
    return [Extent(start * BLOCK_BYTES, count * BLOCK_BYTES) for _, start, count in sorted(found)]


def allocated_bytes(path: Path) -> int:
    """Return how much of its disk a sparse file takes."""
    return path.stat().st_blocks * 512
