"""A base whose disk is full: the request fails with ENOSPC, the image is still read, and space that returns is used."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.images import METADATA_BYTES, MIB, make_image, make_sparse
from tests.support.mounts import tmpfs
from tests.support.nbd_client import Command, NbdError
from tests.support.seeds import rng

pytestmark = [pytest.mark.timeout(60), pytest.mark.needs_root]

STRIPE = 64 << 10
IMAGE_BYTES = 8 * MIB
DISK_BYTES = 10 * MIB


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """Return a file system with room for less than half of the image."""
    if os.geteuid():
        pytest.skip("needs root, to mount a tmpfs")
    with tmpfs(folder / "small", 4 * MIB) as path:
        yield path


class FullDisk:
    """A volume on a disk with 4 MiB, 2 of them taken by a file that can be removed."""

    def __init__(self, daemon: Daemon, folder: Path, disk: Path, **params: bool) -> None:
        self.daemon = daemon
        self.image = folder / "image.raw"
        self.data = make_image(self.image, IMAGE_BYTES, rng("full disk"))
        self.ballast = disk / "ballast"
        self.ballast.write_bytes(bytes(2 * MIB))
        self.base = make_sparse(disk / "base.raw", METADATA_BYTES + DISK_BYTES)
        self.params = params
        self.make()

    def make(self) -> None:
        """Make or open the volume."""
        self.daemon.create_aio("base0", self.base, cache="writeback")
        self.daemon.create_ubi("ubi0", "base0", self.image, **self.params)


@pytest.fixture(params=[True, False], ids=["copy_on_read", "read_through"])
def full(daemon: Daemon, folder: Path, small_disk: Path, request: pytest.FixtureRequest) -> Iterator[FullDisk]:
    """Return a volume on a small disk; it goes before the disk does."""
    yield FullDisk(daemon, folder, small_disk, copy_on_read=request.param)
    daemon.delete_all()


def test_a_full_disk_fails_writes_alone_and_is_forgotten_when_it_is_not(full: FullDisk) -> None:
    expected = bytearray(full.data + bytes(DISK_BYTES - IMAGE_BYTES))
    with full.daemon.client("ubi0") as client, full.daemon.client("ubi0") as other:
        refused = []
        for stripe in range(IMAGE_BYTES // STRIPE):
            data = bytes([stripe + 1]) * 4096
            try:
                client.write(stripe * STRIPE, data)
            except NbdError as error:
                refused.append(error.errno)
            else:
                expected[stripe * STRIPE : stripe * STRIPE + 4096] = data
        assert set(refused) == {errno.ENOSPC}
        with pytest.raises(NbdError) as caught:
            other.write(IMAGE_BYTES - STRIPE, rng("whole").randbytes(STRIPE))
        assert caught.value.errno == errno.ENOSPC
        assert other.read_all() == expected  # also where a fetch finds no room for its copy
        assert client.read_all() == expected
        assert full.daemon.status("ubi0")["last_error"]
        full.ballast.unlink()
        for stripe in range(8):
            at = IMAGE_BYTES - (stripe + 1) * STRIPE
            client.write(at, b"\xfe" * 8192)
            expected[at : at + 8192] = b"\xfe" * 8192
        client.flush()
        assert other.read_all() == expected
    full.daemon.call("bdev_aio_delete", name="base0")
    full.make()
    with full.daemon.client("ubi0") as client:
        assert client.read_all() == expected


def test_large_writes_that_find_no_room_fail_alone_and_the_next_ones_are_not_mixed_with_them(
    daemon: Daemon, folder: Path, small_disk: Path
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2 * MIB + 100_000))  # so that room ends in the middle of a write
    daemon.create_aio("base0", make_sparse(small_disk / "base.raw", 8 * MIB), cache="writeback")
    daemon.export("base0")
    large, expected = 128 << 10, bytearray(8 * MIB)
    random = rng("no room for large writes")
    refused = []
    with daemon.client("base0") as client:
        for at in range(0, len(expected), large):
            data = random.randbytes(large)
            try:
                client.write(at, data)
            except NbdError as error:
                refused.append((at, error.errno))
                now = client.read(at, large)
                written = next((i for i in range(large) if now[i] != data[i]), large)
                assert now == data[:written] + bytes(large - written)  # as much as there was room for, and old bytes
                data = now
            expected[at : at + large] = data
        assert len(refused) > 32
        assert {error for _, error in refused} == {errno.ENOSPC}
        ballast.unlink()
        for at, _ in refused[:8]:
            expected[at : at + large] = random.randbytes(large)
            client.write(at, bytes(expected[at : at + large]))
        assert client.read_all() == expected


def test_a_volume_on_a_full_disk_can_be_closed(full: FullDisk) -> None:
    with full.daemon.client("ubi0") as client:
        for stripe in range(IMAGE_BYTES // STRIPE):
            client.send(Command.WRITE, stripe * STRIPE, data=b"\xaa" * STRIPE)
        assert errno.ENOSPC in {client.receive().errno for _ in range(IMAGE_BYTES // STRIPE)}
        assert full.daemon.call("bdev_ubi_delete", name="ubi0") is True
        assert client.is_closed()


def test_a_disk_without_room_for_the_metadata_refuses_the_volume(
    daemon: Daemon, folder: Path, small_disk: Path
) -> None:
    image = folder / "image.raw"
    make_image(image, MIB, rng("no room"))
    base = make_sparse(small_disk / "base.raw", METADATA_BYTES + MIB)
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk)
    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize))
    daemon.create_aio("base0", base, cache="writeback")
    with pytest.raises(Exception, match="-28 No space left on device"):
        daemon.create_ubi("ubi0", "base0", image)
    assert [bdev["name"] for bdev in daemon.bdevs()] == ["base0"]
    assert not daemon.bdevs()[0]["claimed"]
    ballast.unlink()
    daemon.create_ubi("ubi0", "base0", image)
    daemon.delete_all()
