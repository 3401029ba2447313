"""The format on disk once more, written from docs/on-disk-format.md alone and from nothing of the engine.

For the byte-exact vectors of `native/engine/tests/vectors`: what both write alike, another program can write as well.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from uuid import UUID

SECTOR = 512
HEADERS_AT = 14
MAX_STRIPES = 2_097_152
SLOT_BYTES = 4096
STATES = ("formatting", "clean", "open", "adopting", "sync_failed")

_WORD = (1 << 64) - 1
_PRIMES = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)


def _rotate(value: int, count: int) -> int:
    return (value << count | value >> (64 - count)) & _WORD


def _round(lane: int, word: int) -> int:
    return _rotate((lane + word * _PRIMES[1]) & _WORD, 31) * _PRIMES[0] & _WORD


def xxh64(data: bytes, seed: int = 0) -> int:
    """Return XXH64. Source: the xxHash specification, "XXH64 algorithm description"."""
    one, two, three, four, five = _PRIMES
    position = 0
    if len(data) >= 32:
        lanes = [(seed + one + two) & _WORD, (seed + two) & _WORD, seed, (seed - one) & _WORD]
        while position + 32 <= len(data):
            words = struct.unpack_from("<4Q", data, position)
            lanes = [_round(lane, word) for lane, word in zip(lanes, words, strict=True)]
            position += 32
        value = sum(_rotate(lane, count) for lane, count in zip(lanes, (1, 7, 12, 18), strict=True)) & _WORD
        for lane in lanes:
            value = ((value ^ _round(0, lane)) * one + four) & _WORD
    else:
        value = (seed + five) & _WORD
    value = (value + len(data)) & _WORD
    while position + 8 <= len(data):
        (word,) = struct.unpack_from("<Q", data, position)
        value = (_rotate(value ^ _round(0, word), 27) * one + four) & _WORD
        position += 8
    if position + 4 <= len(data):
        (half,) = struct.unpack_from("<I", data, position)
        value = (_rotate(value ^ half * one & _WORD, 23) * two + three) & _WORD
        position += 4
    for byte in data[position:]:
        value = _rotate(value ^ byte * five & _WORD, 11) * one & _WORD
    value = (value ^ value >> 33) * two & _WORD
    value = (value ^ value >> 29) * three & _WORD
    return value ^ value >> 32


def crc32c(data: bytes) -> int:
    """Return CRC-32C (Castagnoli). Source: RFC 3720, B.4."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def used_sectors(stripes: int) -> int:
    """Return how many sectors hold a header of the image; the first one always counts."""
    return max(1, -(-(HEADERS_AT + 2 * stripes) // SECTOR)) if stripes else 1


def check_positions(sector: int) -> list[int]:
    """Return where the eight check bytes of a sector are in it."""
    first = HEADERS_AT + 1 if sector == 0 else 1
    return [first + 2 * index for index in range(8)]


def check(uuid: UUID, number: int, sector: bytes) -> int:
    """Return the check that a sector should have."""
    content = bytearray(sector)
    for position in check_positions(number):
        content[position] = 0
    return xxh64(uuid.bytes + number.to_bytes(8, "little") + bytes(content)) or 1


def seal(uuid: UUID, area: bytearray, stripes: int) -> None:
    """Give every used sector of an area its check."""
    for number in range(used_sectors(stripes)):
        start = number * SECTOR
        value = check(uuid, number, bytes(area[start : start + SECTOR])).to_bytes(8, "little")
        for position, byte in zip(check_positions(number), value, strict=True):
            area[start + position] = byte


def digests(area: bytes, stripes: int) -> tuple[int, int]:
    """Return the digests of the byte 0s and of the byte 1s of the headers in the used sectors."""
    end = min(used_sectors(stripes) * SECTOR, HEADERS_AT + 2 * MAX_STRIPES)
    headers = area[HEADERS_AT:end]
    return xxh64(bytes(headers[0::2])), xxh64(bytes(headers[1::2]))


@dataclass(frozen=True)
class Superblock:
    """One superblock, with the fields of the document's table in its order."""

    state: str
    sequence: int
    epoch: int
    uuid: UUID
    boot_id: UUID
    features: tuple[int, int, int]
    stripe_size_kb: int
    adopts_changed: bool
    image_end: int
    image_bytes: int
    image_kind: bytes
    set_headers: int
    digests: tuple[int, int]
    map_path: bytes
    image_tag: bytes

    def encode(self) -> bytes:
        """Return the 4096 bytes of a slot."""
        head = struct.pack(
            "<8sIIQQ16s16sQQQIIQQ16sQQQII1024s256s",
            b"ubi_rpc\0",
            1,
            STATES.index(self.state),
            self.sequence,
            self.epoch,
            self.uuid.bytes,
            self.boot_id.bytes,
            *self.features,
            self.stripe_size_kb,
            self.adopts_changed,
            self.image_end,
            self.image_bytes,
            self.image_kind,
            self.set_headers,
            *self.digests,
            len(self.map_path),
            len(self.image_tag),
            self.map_path,
            self.image_tag,
        )
        body = head.ljust(SLOT_BYTES - 4, b"\0")
        return body + crc32c(body).to_bytes(4, "little")


def area(stripe_size_kb: int, minor: int, stripes: int, present: set[int], uuid: UUID | None) -> bytes:
    """Return the used pages of a metadata area; without a uuid as bdev_ubi writes them."""
    pages = bytearray(-(-(HEADERS_AT + 2 * stripes) // 4096) * 4096)
    pages[:HEADERS_AT] = struct.pack("<9sHHB", b"BDEV_UBI\0", 0, minor, stripe_size_kb & 0xFF)
    for stripe in present:
        pages[HEADERS_AT + 2 * stripe] = 1
    if uuid is not None:
        seal(uuid, pages, stripes)
    return bytes(pages)
