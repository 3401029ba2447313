"""The kept vectors are what the document says, as an implementation of its own computes it."""

from __future__ import annotations

import pytest

from tests.format.reference import crc32c, xxh64
from tests.format.vectors import FOLDER, Vector, vectors


@pytest.mark.parametrize("vector", vectors(), ids=lambda vector: vector.name)
def test_vector_computed_from_the_document_is_the_kept_one(vector: Vector) -> None:
    assert vector.text() == (FOLDER / f"{vector.name}.hex").read_text()


def test_checksums_of_known_strings_are_those_of_their_specifications() -> None:
    assert xxh64(b"") == 0xEF46DB3751D8E999
    assert xxh64(b"abc") == 0x44BC2CF5AD770999
    assert xxh64(bytes(range(100)), 0) != xxh64(bytes(range(1, 101)), 0)
    assert crc32c(b"123456789") == 0xE3069283
