"""The volumes of which byte-exact vectors are kept, and how these are written down.

`python -m tests.format.vectors` prints them; a change of the format changes them, on purpose and with its document.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

from tests.format.reference import Superblock, area, digests

FOLDER = Path(__file__).parents[2] / "native/engine/tests/vectors"
VOLUME = UUID("00112233-4455-6677-8899-aabbccddeeff")
BOOT = UUID("b2f1c9e4-7d3a-4f60-9a51-0c8e6f2d4b17")
NONE = UUID(int=0)
STRIPES = 300
"""Of 64 KiB: two used sectors; the image ends 700 bytes into the last stripe."""
PRESENT = {0, 1, 7, 8, 248, 249, 256, 299}
IMAGE_BYTES = (STRIPES - 1) * 65536 + 700


@dataclass(frozen=True)
class Vector:
    """One volume: its header pages and the superblock of its newer slot."""

    name: str
    pages: bytes
    slot: bytes

    def text(self) -> str:
        """Return the file: a line `offset hex` for each 32 bytes that are not all zero, offsets on the base."""
        return "".join(
            f"{start + at:08x} {content[at : at + 32].hex()}\n"
            for start, content in ((0, self.pages), (0x600000, self.slot))
            for at in range(0, len(content), 32)
            if any(content[at : at + 32])
        )


def vectors() -> list[Vector]:
    """Return one vector for each state and for a volume of bdev_ubi's."""
    closed = area(64, 1, STRIPES, PRESENT, VOLUME)
    opened = area(64, 2, STRIPES, PRESENT, VOLUME)
    fresh = area(64, 1, STRIPES, set(), VOLUME)
    plain = area(64, 1, STRIPES, PRESENT, None)
    clean = Superblock(
        state="clean",
        sequence=9,
        epoch=3,
        uuid=VOLUME,
        boot_id=NONE,
        features=(0, 0, 0),
        stripe_size_kb=64,
        adopts_changed=False,
        image_end=(STRIPES - 1) * 65536 + 1024,
        image_bytes=IMAGE_BYTES,
        image_kind=b"file",
        set_headers=len(PRESENT),
        digests=digests(closed, STRIPES),
        map_path=b"",
        image_tag=b"mtime:1763739000123456789",
    )
    path = f"/var/lib/ubi_rpc/{VOLUME}.4.map".encode()
    marked = replace(clean, state="open", sequence=10, epoch=4, boot_id=BOOT, map_path=path)
    made = replace(clean, state="formatting", sequence=1, epoch=0, set_headers=0, digests=digests(fresh, STRIPES))
    adopting = replace(clean, state="adopting", sequence=1, epoch=0, digests=digests(plain, STRIPES))
    return [
        Vector("clean", closed, clean.encode()),
        Vector("open", opened, marked.encode()),
        Vector("formatting", fresh, made.encode()),
        Vector("adopting", plain, adopting.encode()),
        Vector("sync_failed", opened, replace(marked, state="sync_failed", sequence=11).encode()),
    ]


if __name__ == "__main__":
    for vector in vectors():
        (FOLDER / f"{vector.name}.hex").write_text(vector.text())
        print(FOLDER / f"{vector.name}.hex")
