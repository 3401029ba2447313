"""Bases made from the format's document alone, in every state that an open meets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.format import vectors
from tests.format.reference import Superblock, area, digests

DATA_AT = 8 << 20
SLOTS_AT = (0x600000, 0x700000)
STRIPE_BYTES = 65536
STRIPES = 249 + 6 * 256 + 50
"""Eight used sectors."""
PRESENT = set(range(0, STRIPES, 3))
IMAGE_BYTES = STRIPES * STRIPE_BYTES

STATES = ("clean", "open", "adopting", "sync_failed")


def superblock(state: str, pages: bytes, **changes: object) -> Superblock:
    """Return the newer superblock of a volume in a state, over a sparse image."""
    opened = state in {"open", "sync_failed"}
    found = Superblock(
        state=state,
        sequence=9,
        epoch=4,
        uuid=vectors.VOLUME,
        boot_id=vectors.BOOT if opened else vectors.NONE,
        features=(0, 0, 0),
        stripe_size_kb=64,
        adopts_changed=False,
        image_end=IMAGE_BYTES,
        image_bytes=IMAGE_BYTES,
        image_kind=b"file",
        set_headers=len(PRESENT),
        digests=digests(pages, STRIPES),
        map_path=b"/var/lib/ubi_rpc/x.4.map" if opened else b"",
        image_tag=b"mtime:1763739000123456789",
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def make(path: Path, state: str, **changes: object) -> Path:
    """Make the base of a volume in a state; "plain" is one of bdev_ubi's."""
    with path.open("wb") as base:
        base.truncate(DATA_AT + IMAGE_BYTES)
    minor = 2 if state in {"open", "sync_failed", "adopting"} else 1
    uuid = None if state in {"plain", "adopting"} else vectors.VOLUME
    put(path, 0, area(64, minor, STRIPES, PRESENT, uuid))
    if state != "plain":
        newer = superblock(state, area(64, 1, STRIPES, PRESENT, uuid), **changes)
        put(path, SLOTS_AT[0], newer.encode())
        put(path, SLOTS_AT[1], replace(newer, sequence=newer.sequence - 1).encode())
    return path


def put(path: Path, at: int, content: bytes) -> None:
    """Write bytes into a base."""
    with path.open("r+b") as base:
        base.seek(at)
        base.write(content)


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Change one bit of a base."""
    with path.open("rb") as base:
        base.seek(at)
        found = base.read(1)[0]
    put(path, at, bytes([found ^ 1 << bit]))
