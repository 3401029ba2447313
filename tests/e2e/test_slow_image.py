"""What happens around a stripe that is being fetched, shown with an image whose reads the test holds.

Proves INV-3 (a fetch never overwrites a write) and INV-4 (a request that waits holds up no other).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.gated_image import DEVICE, GatedImage
from tests.support.images import METADATA_BYTES, MIB, make_sparse
from tests.support.nbd_client import Command, Flag, NbdClient, RefusedError
from tests.support.seeds import rng
from tests.support.waiting import until

pytestmark = [pytest.mark.timeout(60), pytest.mark.needs_fuse]

STRIPE = 64 << 10
IMAGE_BYTES = 2 * MIB + 512
DISK_BYTES = 3 * MIB
PATTERN = b"\xee" * 4096


class SlowVolume:
    """An overlay `ubi0` of an image whose reads can be held."""

    def __init__(self, daemon: Daemon, image: GatedImage, base: Path) -> None:
        self.daemon = daemon
        self.image = image
        self.base = base

    def client(self, **options: bool) -> NbdClient:
        """Connect."""
        return self.daemon.client("ubi0", **options)

    def settled(self) -> bytes:
        """Return the whole content, as read once every stripe has been copied, and again from a reopened volume."""
        with self.client() as client:
            content = client.read_all()
        self.daemon.call("bdev_ubi_delete", name="ubi0")
        self.daemon.create_ubi("ubi0", "base0", self.image.path)
        with self.client() as client:
            assert client.read_all() == content
        return content


@pytest.fixture
def image(folder: Path) -> Iterator[GatedImage]:
    """Return a mounted image; it goes after the volume that stands on it."""
    if os.geteuid() or not os.access(DEVICE, os.W_OK):
        pytest.skip("needs root and /dev/fuse")
    (folder / "mount").mkdir()
    with GatedImage(folder / "mount", rng("slow image").randbytes(IMAGE_BYTES)) as image:
        yield image


@pytest.fixture(params=["none", "writeback"])
def cache(request: pytest.FixtureRequest) -> str:
    """Return the base's cache mode."""
    return str(request.param)


@pytest.fixture
def slow(image: GatedImage, daemon: Daemon, folder: Path, cache: str) -> Iterator[SlowVolume]:
    """Return a volume whose image's reads can be held."""
    base = make_sparse(folder / "base.raw", METADATA_BYTES + DISK_BYTES)
    daemon.create_aio("base0", base, cache=cache)
    daemon.create_ubi("ubi0", "base0", image.path)
    image.reads.clear()
    yield SlowVolume(daemon, image, base)
    image.release_all()


def _is_offered(slow: SlowVolume) -> bool:
    try:
        slow.client().close()
    except (ConnectionError, FileNotFoundError, RefusedError):
        return False
    return True


# Requests to stripe 1 that change less than all of it, and what the stripe's changed part is afterwards.
CHANGES = {
    "write": (Command.WRITE, PATTERN, 0),
    "fua write": (Command.WRITE, PATTERN, Flag.FUA),
    "write zeroes": (Command.WRITE_ZEROES, bytes(4096), 0),
    "write zeroes without a hole": (Command.WRITE_ZEROES, bytes(4096), Flag.NO_HOLE),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_write_during_the_fetch_of_its_stripe_is_not_overwritten(slow: SlowVolume, change: str) -> None:
    command, left, flags = CHANGES[change]
    at = STRIPE + 8192
    gate = slow.image.hold(STRIPE, STRIPE)
    with slow.client() as reader, slow.client() as writer:
        reading = reader.send(Command.READ, STRIPE, STRIPE)
        gate.wait_reached()
        assert slow.daemon.status("ubi0")["stripes_filling"] == 1
        data = left if command == Command.WRITE else b""
        writing = writer.send(command, at, len(left), data, flags)
        assert not reader.is_answer_there()
        assert not writer.is_answer_there()
        slow.image.release(gate)
        read, wrote = reader.receive(), writer.receive()
        assert (read.cookie, read.errno) == (reading, 0)
        assert (wrote.cookie, wrote.errno) == (writing, 0)
        # The read ran beside the write: each of its bytes is from before or from after it.
        before = slow.image.data[STRIPE : 2 * STRIPE]
        after = bytearray(before)
        after[8192 : 8192 + 4096] = left
        assert all(byte in pair for byte, pair in zip(read.data, zip(before, after, strict=True), strict=True))
        assert writer.read(STRIPE, STRIPE) == after
        writer.flush()
    expected = bytearray(slow.image.data + bytes(DISK_BYTES - IMAGE_BYTES))
    expected[at : at + 4096] = left
    assert slow.settled() == expected


def test_writes_of_whole_stripes_and_parts_race_with_a_fetch(slow: SlowVolume) -> None:
    gate = slow.image.hold(STRIPE, STRIPE)
    expected = bytearray(slow.image.data + bytes(DISK_BYTES - IMAGE_BYTES))
    with slow.client() as reader, slow.client() as whole, slow.client() as part:
        reader.send(Command.READ, STRIPE + 512, 512)
        gate.wait_reached()
        wide = rng("wide").randbytes(3 * STRIPE)
        whole.send(Command.WRITE, 0, data=wide)  # stripes 0 to 2, the held one in the middle
        slow.image.release(gate)
        assert (whole.receive().errno, reader.receive().errno) == (0, 0)
        expected[: 3 * STRIPE] = wide
        part.write(STRIPE - 512, PATTERN)
        expected[STRIPE - 512 : STRIPE - 512 + 4096] = PATTERN
        assert part.read(0, 4 * STRIPE) == expected[: 4 * STRIPE]
    assert slow.settled() == expected


def test_every_write_that_queues_up_behind_one_fetch_is_kept(slow: SlowVolume) -> None:
    gate = slow.image.hold(0, STRIPE)
    expected = bytearray(slow.image.data[:STRIPE])
    clients = [slow.client() for _ in range(8)]
    for block in range(128):
        data = bytes([block + 1]) * 512
        clients[block % 8].send(Command.WRITE, block * 512, data=data)
        expected[block * 512 : block * 512 + 512] = data
        if block == 0:
            gate.wait_reached()
    slow.image.release(gate)
    for block in range(128):
        assert clients[block % 8].receive().errno == 0
    assert clients[0].read(0, STRIPE) == expected
    assert sum(1 for offset, length in slow.image.reads if offset < STRIPE and offset + length > 0) == 1
    for client in clients:
        client.close()


@pytest.mark.parametrize("structured", [True, False])
def test_requests_that_wait_for_a_stripe_hold_up_no_other(slow: SlowVolume, structured: bool) -> None:
    gate = slow.image.hold(0, STRIPE)
    with slow.client(structured=structured) as one, slow.client(structured=structured) as two, slow.client() as three:
        first = one.send(Command.READ, 0, 4096)
        second = two.send(Command.WRITE, 8192, data=PATTERN)
        gate.wait_reached()
        # On connections of their own, and on those that wait: another stripe's reads and writes, a flush, the tail.
        for client in (three, one, two):
            for command, offset, data in (
                (Command.READ, 4 * STRIPE, b""),
                (Command.WRITE, 6 * STRIPE, PATTERN),
                (Command.FLUSH, 0, b""),
                (Command.READ, DISK_BYTES - 4096, b""),
                (Command.WRITE, DISK_BYTES - 4096, PATTERN),
            ):
                cookie = client.send(command, offset, 4096 if command == Command.READ else 0, data)
                reply = client.receive()
                assert (reply.cookie, reply.errno) == (cookie, 0)
        assert not one.is_answer_there()
        assert not two.is_answer_there()
        slow.image.release(gate)
        assert one.receive().cookie == first
        assert two.receive().cookie == second
        assert three.read(0, 4096) == slow.image.data[:4096]
        assert three.read(8192, 4096) == PATTERN


def test_other_stripes_are_fetched_while_many_wait(slow: SlowVolume) -> None:
    gate = slow.image.hold(0, STRIPE)
    with slow.client() as client:
        waiting = {client.send(Command.READ, 512 * i, 512) for i in range(100)}
        gate.wait_reached()
        for stripe in range(1, 32):
            cookie = client.send(Command.READ, stripe * STRIPE, STRIPE)
            reply = client.receive()
            assert reply.cookie == cookie
            assert reply.data == slow.image.data[stripe * STRIPE : (stripe + 1) * STRIPE]
        slow.image.release(gate)
        assert {client.receive().cookie for _ in range(100)} == waiting


def test_a_failed_fetch_fails_its_requests_and_the_next_one_tries_again(slow: SlowVolume) -> None:
    gate = slow.image.hold(STRIPE, STRIPE)
    with slow.client() as reader, slow.client() as writer:
        reader.send(Command.READ, STRIPE, 4096)
        gate.wait_reached()
        writer.send(Command.WRITE, STRIPE + 4096, data=PATTERN)
        slow.image.release(gate, errno.EIO)
        assert reader.receive().errno == errno.EIO
        # The write came while the fetch was running: it shares its end, or starts the next one.
        assert writer.receive().errno in (0, errno.EIO)
        status = slow.daemon.status("ubi0")
        assert status["fetch_errors"] >= 1
        assert status["last_error"]
        assert reader.read(STRIPE, 4096) == slow.image.data[STRIPE : STRIPE + 4096]
        writer.write(STRIPE + 4096, PATTERN)
        assert reader.read(STRIPE + 4096, 4096) == PATTERN


def test_a_client_that_dies_while_its_fetch_runs_leaves_the_stripe_usable(slow: SlowVolume) -> None:
    gate = slow.image.hold(0, STRIPE)
    client = slow.client()
    client.send(Command.WRITE, 0, data=PATTERN)
    client.send(Command.READ, 0, STRIPE)
    gate.wait_reached()
    client.close()
    slow.image.release(gate)
    with slow.client() as other:
        assert other.read(0, STRIPE)[4096:] == slow.image.data[4096:STRIPE]
        other.write(512, PATTERN)
        assert other.read(512, 4096) == PATTERN


def test_deleting_the_export_waits_for_the_fetch_and_answers_its_client(slow: SlowVolume) -> None:
    gate = slow.image.hold(0, STRIPE)
    with slow.client() as client:
        client.send(Command.WRITE, 4096, data=PATTERN)
        gate.wait_reached()
        deleting = slow.daemon.rpc.send("nbd_delete_export", export_name="ubi0")
        until(lambda: not _is_offered(slow), "no new client is let in")
        slow.image.release(gate)
        assert client.receive().errno == 0
        assert client.is_closed()
    answer = slow.daemon.rpc.receive()
    assert (answer["id"], answer["result"]) == (deleting, True)
    slow.daemon.export("ubi0")
    with slow.client() as client:
        assert client.read(4096, 4096) == PATTERN


def test_deleting_the_volume_ends_when_the_image_fails(slow: SlowVolume) -> None:
    gate = slow.image.hold(0, STRIPE)
    with slow.client() as client:
        client.send(Command.WRITE, 4096, data=PATTERN)
        gate.wait_reached()
        deleting = slow.daemon.rpc.send("bdev_ubi_delete", name="ubi0")
        slow.image.release(gate, errno.EIO)
        assert client.receive().errno == errno.EIO
        answer = slow.daemon.rpc.receive()
        assert (answer["id"], answer["result"]) == (deleting, True)


def test_copy_on_read_off_reads_the_image_beside_a_held_fetch(slow: SlowVolume) -> None:
    slow.daemon.call("bdev_ubi_delete", name="ubi0")
    slow.daemon.create_ubi("ubi0", "base0", slow.image.path, copy_on_read=False)
    gate = slow.image.hold(0, 4096)
    with slow.client() as reader, slow.client() as other:
        waiting = reader.send(Command.READ, 0, 4096)
        gate.wait_reached()
        assert other.read(8192, 4096) == slow.image.data[8192 : 8192 + 4096]
        assert slow.daemon.status("ubi0")["stripes_filling"] == 0
        slow.image.release(gate)
        assert reader.receive().cookie == waiting
    assert slow.daemon.status("ubi0")["stripes_present"] == 0


def test_a_slow_image_holds_up_no_other_volume(slow: SlowVolume, folder: Path) -> None:
    slow.daemon.create_aio("plain", make_sparse(folder / "plain.raw", MIB), cache="writeback")
    slow.daemon.export("plain")
    gate = slow.image.hold(0, IMAGE_BYTES)
    with slow.client() as one, slow.client() as two:
        waiting = [(one, one.send(Command.READ, stripe * STRIPE, 512)) for stripe in range(16)]
        waiting += [(two, two.send(Command.WRITE, stripe * STRIPE, data=PATTERN)) for stripe in range(16, 32)]
        gate.wait_reached()
        until(lambda: slow.daemon.status("ubi0")["stripes_filling"] == 32, "every stripe is being fetched")
        for _ in range(4):  # clients are spread over the reactors
            with slow.daemon.client("plain") as other:
                other.write(4096, PATTERN, Flag.FUA)
                other.flush()
                assert other.read(4096, 4096) == PATTERN
        slow.image.release(gate)
        for client, _ in waiting:
            assert client.receive().errno == 0
