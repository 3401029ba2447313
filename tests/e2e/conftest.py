"""Fixtures for tests with real clients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.fixtures import daemon, folder, fresh_daemon, io_engine, shared_daemon, unstarted_daemon
from tests.support.images import METADATA_BYTES, MIB, make_image, make_sparse
from tests.support.seeds import SEED, rng

__all__ = ["daemon", "folder", "fresh_daemon", "io_engine", "shared_daemon", "unstarted_daemon"]

IMAGE_BYTES = 6 * MIB + 512 * 3
"""Neither a whole number of stripes nor of 4 KiB blocks."""
DISK_BYTES = 9 * MIB


@pytest.fixture(autouse=True)
def _seed_of_a_failure() -> None:
    print(f"UBI_TEST_SEED={SEED}")


@dataclass(slots=True)
class Volume:
    """An overlay `ubi0` on `base0`, exported.

    Args:
        daemon: whose it is.
        image: what it was made from.
        base: the file below it.
        content: what it reads as: the image, then zeros.
        uri: where NBD clients find it.
    """

    daemon: Daemon
    image: Path
    base: Path
    content: bytes
    uri: str


def make_volume(daemon: Daemon, folder: Path, seed: object, **params: Any) -> Volume:
    """Make an image with holes and a volume from it."""
    image = folder / "image.raw"
    data = make_image(image, IMAGE_BYTES, rng("image", seed), holes=True)
    base = make_sparse(folder / "base.raw", METADATA_BYTES + DISK_BYTES)
    daemon.create_aio("base0", base)
    uri = daemon.create_ubi("ubi0", "base0", image, **params)
    return Volume(daemon, image, base, data + bytes(DISK_BYTES - len(data)), uri)


@pytest.fixture
def volume(daemon: Daemon, folder: Path, request: pytest.FixtureRequest) -> Volume:
    """Return a new volume of 64 KiB stripes on the shared daemon."""
    return make_volume(daemon, folder, request.node.name)
