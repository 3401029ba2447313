"""Hostile frontends and guests: every case ends in an error and a living daemon that serves everybody else.

Everybody else: the rings of machines that were there before, on the same controller and on another, the other ring of
the machine itself where that has not lost its session, and the next machine.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support import vhost_client as vhost
from tests.support.daemon import Daemon
from tests.support.images import MIB
from tests.support.seeds import rng
from tests.support.vhost_client import (
    DATA,
    GUEST_BASE,
    INDIRECT_FLAG,
    MEMORY_BYTES,
    NEXT,
    QUEUE_BYTES,
    USER_BASE,
    WRITE,
    Queue,
    RefusedError,
    VhostClient,
)
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(60)

U32, U64 = 2**32 - 1, 2**64 - 1


@pytest.fixture
def disk(daemon: Daemon, folder: Path) -> Path:
    """Return the socket of a controller over 8 MiB of memory."""
    daemon.call("bdev_malloc_create", name="m0", num_blocks=8 * MIB // 512, block_size=512)
    daemon.call("vhost_create_blk_controller", ctrlr="vh0", dev_name="m0")
    return daemon.folder / "vh0"


@pytest.fixture
def living(daemon: Daemon, disk: Path) -> Iterator[Path]:
    """Return the socket; afterwards the bystanders and a new machine must be served."""
    daemon.call("vhost_create_blk_controller", ctrlr="vh1", dev_name="m0")
    before, queue = VhostClient.ready(disk)
    elsewhere, other = VhostClient.ready(daemon.folder / "vh1")
    with before, elsewhere:
        queues = [queue, before.start_queue(1), other]
        yield disk
        for one in queues:
            assert one.run(vhost.IN, 0, read_bytes=512) == vhost.OK
        after, fresh = VhostClient.ready(disk)
        with after:
            assert fresh.run(vhost.OUT, 1, b"a" * 512) == vhost.OK
    assert daemon.process.poll() is None
    assert daemon.call("vhost_get_controllers", name="vh1")[0]["backend_specific"]["block"]["bdev"] == "m0"


PAIR = struct.Struct("<II").pack


def region(guest: int = GUEST_BASE, size: int = 4096, user: int = USER_BASE, offset: int = 0) -> bytes:
    """Return a memory region's description."""
    return struct.pack("<QQQQ", guest, size, user, offset)


def table(*regions: bytes, count: int | None = None) -> bytes:
    """Return SET_MEM_TABLE's payload."""
    return struct.pack("<II", len(regions) if count is None else count, 0) + b"".join(regions)


def inflight(size: int, offset: int, queues: int, queue_size: int) -> bytes:
    """Return SET_INFLIGHT_FD's payload."""
    return struct.pack("<QQHH", size, offset, queues, queue_size) + bytes(4)


M = "memory"
MESSAGES: dict[str, tuple[int, bytes, int | str]] = {
    "unknown request": (99, b"", 0),
    "request 0": (0, b"", 0),
    "huge request": (U32, b"", 0),
    "features without payload": (vhost.SET_FEATURES, b"", 0),
    "features too long": (vhost.SET_FEATURES, bytes(16), 0),
    "features too short": (vhost.SET_FEATURES, bytes(7), 0),
    "features with a descriptor": (vhost.SET_FEATURES, bytes(8), 1),
    "protocol features unknown": (vhost.SET_PROTOCOL_FEATURES, struct.pack("<Q", U64), 0),
    "owner with payload": (vhost.SET_OWNER, bytes(8), 0),
    "table empty payload": (vhost.SET_MEM_TABLE, b"", 0),
    "table count without regions": (vhost.SET_MEM_TABLE, table(count=1), 0),
    "table count 0xffffffff": (vhost.SET_MEM_TABLE, table(count=U32), 0),
    "table of nine": (vhost.SET_MEM_TABLE, table(*[region()] * 9), 9),
    "table with too few descriptors": (vhost.SET_MEM_TABLE, table(region(), region(1 << 40)), 1),
    "table with too many descriptors": (vhost.SET_MEM_TABLE, table(region()), 2),
    "region longer than its file": (vhost.SET_MEM_TABLE, table(region(size=MEMORY_BYTES + 1)), M),
    "region past its file": (vhost.SET_MEM_TABLE, table(region(offset=MEMORY_BYTES)), M),
    "region offset wraps": (vhost.SET_MEM_TABLE, table(region(offset=U64 - 100)), M),
    "region of no bytes": (vhost.SET_MEM_TABLE, table(region(size=0)), M),
    "region of all bytes": (vhost.SET_MEM_TABLE, table(region(size=U64)), M),
    "region wraps in the guest": (vhost.SET_MEM_TABLE, table(region(guest=U64 - 10)), M),
    "region wraps in the frontend": (vhost.SET_MEM_TABLE, table(region(user=U64 - 10)), M),
    "region without memory": (vhost.SET_MEM_TABLE, table(region()), 1),
    "slot overlaps": (vhost.ADD_MEM_REG, bytes(8) + region(), M),
    "slot without a descriptor": (vhost.ADD_MEM_REG, bytes(8) + region(1 << 40), 0),
    "slot past its file": (vhost.ADD_MEM_REG, bytes(8) + region(1 << 40, MEMORY_BYTES, 1 << 50, 4096), M),
    "slot of an odd size": (vhost.ADD_MEM_REG, bytes(36), M),
    "slot removed that is not there": (vhost.REM_MEM_REG, bytes(8) + region(1 << 40), 0),
    "num of queue 128": (vhost.SET_VRING_NUM, PAIR(128, 64), 0),
    "num of queue 0xffffffff": (vhost.SET_VRING_NUM, PAIR(U32, 64), 0),
    "num 0": (vhost.SET_VRING_NUM, PAIR(0, 0), 0),
    "num 3": (vhost.SET_VRING_NUM, PAIR(0, 3), 0),
    "num 65536": (vhost.SET_VRING_NUM, PAIR(0, 65536), 0),
    "num 2^31": (vhost.SET_VRING_NUM, PAIR(0, 1 << 31), 0),
    "num 0xffffffff": (vhost.SET_VRING_NUM, PAIR(0, U32), 0),
    "base of queue 128": (vhost.SET_VRING_BASE, PAIR(128, 0), 0),
    "base 65536": (vhost.SET_VRING_BASE, PAIR(0, 65536), 0),
    "addresses of queue 128": (vhost.SET_VRING_ADDR, struct.pack("<IIQQQQ", 128, 0, 0, 0, 0, 0), 0),
    "addresses too short": (vhost.SET_VRING_ADDR, bytes(39), 0),
    "descriptors outside": (vhost.SET_VRING_ADDR, struct.pack("<IIQQQQ", 0, 0, 16, USER_BASE, USER_BASE, 0), 0),
    "used outside": (vhost.SET_VRING_ADDR, struct.pack("<IIQQQQ", 0, 0, USER_BASE, U64, USER_BASE, 0), 0),
    "available outside": (vhost.SET_VRING_ADDR, struct.pack("<IIQQQQ", 0, 0, USER_BASE, USER_BASE, 0, 0), 0),
    "used at the very end": (
        vhost.SET_VRING_ADDR,
        struct.pack("<IIQQQQ", 0, 0, USER_BASE, USER_BASE + MEMORY_BYTES - 4, USER_BASE, 0),
        0,
    ),
    "descriptors not aligned": (
        vhost.SET_VRING_ADDR,
        struct.pack("<IIQQQQ", 0, 0, USER_BASE + 8, USER_BASE, USER_BASE, 0),
        0,
    ),
    "place of queue 128": (vhost.GET_VRING_BASE, PAIR(128, 0), 0),
    "place of queue 0xffffffff": (vhost.GET_VRING_BASE, PAIR(U32, 0), 0),
    "kick without a descriptor": (vhost.SET_VRING_KICK, struct.pack("<Q", 0), 0),
    "kick by polling": (vhost.SET_VRING_KICK, struct.pack("<Q", 0x100), 0),
    "kick that is no eventfd": (vhost.SET_VRING_KICK, struct.pack("<Q", 0), M),
    "kick with unknown flags": (vhost.SET_VRING_KICK, struct.pack("<Q", 0x200), 1),
    "kick of queue 200": (vhost.SET_VRING_KICK, struct.pack("<Q", 200), 1),
    "kick with two descriptors": (vhost.SET_VRING_KICK, struct.pack("<Q", 0), 2),
    "call that is no eventfd": (vhost.SET_VRING_CALL, struct.pack("<Q", 0), M),
    "call with a descriptor and none": (vhost.SET_VRING_CALL, struct.pack("<Q", 0x100), 1),
    "error that is no eventfd": (vhost.SET_VRING_ERR, struct.pack("<Q", 0), M),
    "enable queue 128": (vhost.SET_VRING_ENABLE, PAIR(128, 1), 0),
    "enable by 2": (vhost.SET_VRING_ENABLE, PAIR(0, 2), 0),
    "backend requests without a descriptor": (vhost.SET_BACKEND_REQ_FD, b"", 0),
    "config written with a wrong length": (vhost.SET_CONFIG, struct.pack("<III", 32, 8, 0) + b"\1", 0),
    "config written outside": (vhost.SET_CONFIG, struct.pack("<III", U32, 1, 0) + b"\1", 0),
    "capacity written": (vhost.SET_CONFIG, struct.pack("<III", 0, 8, 0) + bytes(8), 0),
    "log outside its file": (vhost.SET_LOG_BASE, struct.pack("<QQ", MEMORY_BYTES, 4096), M),
    "log of all bytes": (vhost.SET_LOG_BASE, struct.pack("<QQ", U64, U64), M),
    "log without a descriptor": (vhost.SET_LOG_BASE, struct.pack("<QQ", 4096, 0), 0),
    "in-flight state for no queue": (vhost.SET_INFLIGHT_FD, inflight(1 << 20, 0, 0, 64), M),
    "in-flight state for 129 queues": (vhost.SET_INFLIGHT_FD, inflight(1 << 20, 0, 129, 64), M),
    "in-flight state for 65535 queues": (vhost.SET_INFLIGHT_FD, inflight(U64, 0, 65535, 65535), M),
    "in-flight state of no entries": (vhost.SET_INFLIGHT_FD, inflight(1 << 20, 0, 1, 0), M),
    "in-flight state too small": (vhost.SET_INFLIGHT_FD, inflight(64, 0, 1, 64), M),
    "in-flight state past its file": (vhost.SET_INFLIGHT_FD, inflight(1 << 20, MEMORY_BYTES - 64, 1, 64), M),
    "in-flight state at a wild offset": (vhost.SET_INFLIGHT_FD, inflight(1 << 20, U64 - 7, 1, 64), M),
    "in-flight state without a file": (vhost.SET_INFLIGHT_FD, inflight(1 << 20, 0, 1, 64), 0),
    "in-flight state too small for the ring": (vhost.SET_INFLIGHT_FD, inflight(1 << 20, 0, 1, 8), M),
    "a region of a file that is only read": (vhost.SET_MEM_TABLE, table(region()), "read-only"),
    "a region of a folder": (vhost.SET_MEM_TABLE, table(region()), "folder"),
    "a region of a pipe": (vhost.SET_MEM_TABLE, table(region()), "pipe"),
    "a region of a socket": (vhost.SET_MEM_TABLE, table(region()), "socket"),
    "a region of a device": (vhost.SET_MEM_TABLE, table(region()), "zero"),
    "regions that overlap": (vhost.SET_MEM_TABLE, table(region(), region(GUEST_BASE + 4095)), "two"),
    "regions that overlap in the frontend": (vhost.SET_MEM_TABLE, table(region(), region(1 << 40)), "two"),
    "kick that is a pipe": (vhost.SET_VRING_KICK, struct.pack("<Q", 0), "pipe"),
    "kick that is a socket": (vhost.SET_VRING_KICK, struct.pack("<Q", 0), "socket"),
    "kick that is a folder": (vhost.SET_VRING_KICK, struct.pack("<Q", 0), "folder"),
    "kick that is a device": (vhost.SET_VRING_KICK, struct.pack("<Q", 0), "zero"),
    "call that is a socket": (vhost.SET_VRING_CALL, struct.pack("<Q", 0), "socket"),
    "call that is a device": (vhost.SET_VRING_CALL, struct.pack("<Q", 0), "zero"),
    "error that is a pipe": (vhost.SET_VRING_ERR, struct.pack("<Q", 0), "pipe"),
    "log of a socket": (vhost.SET_LOG_BASE, struct.pack("<QQ", 4096, 0), "socket"),
    "log of no bytes": (vhost.SET_LOG_BASE, struct.pack("<QQ", 0, 0), M),
    "in-flight state in a pipe": (vhost.SET_INFLIGHT_FD, inflight(1 << 20, 0, 1, 64), "pipe"),
    "in-flight state that is not aligned": (vhost.SET_INFLIGHT_FD, inflight(1 << 20, 4, 1, 64), M),
    "reset with payload": (vhost.RESET_DEVICE, bytes(8), 0),
    "status beyond a byte": (vhost.SET_STATUS, struct.pack("<Q", 256), 0),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_wrong_message_is_refused(living: Path, name: str) -> None:
    request, payload, fds = MESSAGES[name]
    client, _ = VhostClient.ready(living)
    with client, ExitStack() as opened:
        assert client.refused(request, payload, _descriptors(client, fds, opened))


def _descriptors(client: VhostClient, what: int | str, opened: ExitStack) -> list[int]:
    """Return what a message brings: so many eventfds, or what is named."""
    if isinstance(what, int):
        made = [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(what)]
    elif what in {M, "two"}:
        return [client.memory] * (1 if what == M else 2)
    elif what == "read-only":
        made = [os.open(f"/proc/self/fd/{client.memory}", os.O_RDONLY | os.O_CLOEXEC)]
    elif what == "pipe":
        made = list(os.pipe())
    elif what == "socket":
        made = [one.detach() for one in socket.socketpair()]
    else:
        made = [os.open({"folder": "/", "zero": "/dev/zero"}[what], os.O_RDONLY | os.O_CLOEXEC)]
    for fd in made:
        opened.callback(os.close, fd)
    return made if isinstance(what, int) else made[:1]


@pytest.mark.parametrize(
    ("queues", "queue_size", "fds"), [(0, 64, 0), (1, 0, 0), (129, 64, 0), (65535, 65535, 0), (1, 32769, 0), (1, 64, 1)]
)
def test_in_flight_state_that_cannot_be_made_is_answered_by_none(
    living: Path, queues: int, queue_size: int, fds: int
) -> None:
    """A size of 0 and no descriptor. Source: libvhost-user, vu_get_inflight_fd; QEMU goes on without."""
    client, queue = VhostClient.ready(living)
    with client:
        client.send(vhost.GET_INFLIGHT_FD, inflight(0, 0, queues, queue_size), [client.memory] * fds)
        answered, payload, received = client.receive()
        assert (answered, payload, received) == (vhost.GET_INFLIGHT_FD, bytes(24), [])
        assert queue.run(vhost.IN, 0, read_bytes=512) == vhost.OK


HEADERS = {
    "version 0": struct.pack("<III", 1, 0, 0),
    "version 2": struct.pack("<III", 1, 2, 0),
    "a reply": struct.pack("<III", 1, 5, 0),
    "unknown flags": struct.pack("<III", 1, 0x101, 0),
    "a payload of 4097 bytes": struct.pack("<III", 1, 1, 4097),
    "a payload of 4 GiB": struct.pack("<III", 1, 1, U32),
    "half a header": b"\1\0\0",
    "half a payload": struct.pack("<III", vhost.SET_FEATURES, 1, 8) + b"abc",
    "noise": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("name", HEADERS)
def test_what_is_no_message_ends_the_connection(living: Path, name: str) -> None:
    with VhostClient(living) as client:
        client.send_raw(HEADERS[name])
        client.socket.shutdown(1)
        with suppress(ConnectionResetError):
            assert client.socket.recv(1) == b""


@pytest.mark.parametrize("count", [1, 33, 200])
def test_descriptors_that_nobody_asked_for_are_closed(daemon: Daemon, living: Path, count: int) -> None:
    with VhostClient(living) as client:
        before = len(daemon.descriptors())
        with suppress(RefusedError, OSError):
            for _ in range(5):
                client.send(vhost.SET_OWNER, b"", [client.memory] * count)
        with suppress(RefusedError, OSError):
            client.ask_u64(vhost.GET_FEATURES)
        assert len(daemon.descriptors()) <= before + 1


Break = Callable[[VhostClient, Queue], None]


def _chain(*descriptors: tuple[int, int, int, int]) -> Break:
    """Make descriptors 0.. available as a chain: (address, length, flags, next)."""

    def act(_: VhostClient, queue: Queue) -> None:
        for index, (address, length, flags, following) in enumerate(descriptors):
            queue.describe(index, address, length, flags, following)
        queue.offer(0)

    return act


def _indirect(
    length: int, *entries: tuple[int, int, int, int], address: int = DATA, flags: int = INDIRECT_FLAG
) -> Break:
    """Make an indirect table available."""

    def act(_: VhostClient, queue: Queue) -> None:
        for index, (at, size, bits, following) in enumerate(entries):
            queue.describe(index, at, size, bits, following, table=DATA)
        queue.describe(0, GUEST_BASE + address, length, flags)
        queue.offer(0)

    return act


def _available(ahead: int) -> Break:
    def act(client: VhostClient, queue: Queue) -> None:
        client.write(queue.available + 2, struct.pack("<H", ahead))
        os.eventfd_write(queue.kick, 1)

    return act


def _head(head: int) -> Break:
    return lambda _, queue: queue.offer(head)


def _twice(_: VhostClient, queue: Queue) -> None:
    """Make one head available 64 times at once."""
    queue.describe(0, GUEST_BASE + DATA, 16, 0)
    queue.offer(*[0] * 64)


HEADER, DATA_AT, STATUS_AT = GUEST_BASE + DATA, GUEST_BASE + DATA + 0x1000, GUEST_BASE + DATA + 16
END = GUEST_BASE + MEMORY_BYTES
RINGS: dict[str, Break] = {
    "loop of one": _chain((HEADER, 16, NEXT, 0)),
    "loop of two": _chain((HEADER, 16, NEXT, 1), (DATA_AT, 16, NEXT, 0)),
    "loop of writable ones": _chain((HEADER, 16, NEXT, 1), (DATA_AT, 16, NEXT | WRITE, 1)),
    "next outside the ring": _chain((HEADER, 16, NEXT, 64)),
    "next far outside": _chain((HEADER, 16, NEXT, 65535)),
    "header at 0": _chain((0, 16, NEXT, 1), (STATUS_AT, 1, WRITE, 0)),
    "header before the memory": _chain((GUEST_BASE - 8, 16, NEXT, 1), (STATUS_AT, 1, WRITE, 0)),
    "header over the end": _chain((END - 8, 16, NEXT, 1), (STATUS_AT, 1, WRITE, 0)),
    "header at the top of 64 bits": _chain((U64 - 7, 16, NEXT, 1), (STATUS_AT, 1, WRITE, 0)),
    "status outside": _chain((HEADER, 16, NEXT, 1), (END, 1, WRITE, 0)),
    "status at the top of 64 bits": _chain((HEADER, 16, NEXT, 1), (U64, 1, WRITE, 0)),
    "data of 4 GiB": _chain((HEADER, 16, NEXT, 1), (DATA_AT, U32, NEXT | WRITE, 2), (STATUS_AT, 1, WRITE, 0)),
    "an empty descriptor": _chain((HEADER, 16, NEXT, 1), (DATA_AT, 0, NEXT | WRITE, 2), (STATUS_AT, 1, WRITE, 0)),
    "an empty header": _chain((HEADER, 0, NEXT, 1), (STATUS_AT, 1, WRITE, 0)),
    "nothing to write": _chain((HEADER, 16, 0, 0)),
    "data and nothing to write": _chain((HEADER, 16, NEXT, 1), (DATA_AT, 512, 0, 0)),
    "readable behind writable": _chain((HEADER, 16, NEXT, 1), (STATUS_AT, 1, WRITE | NEXT, 2), (DATA_AT, 512, 0, 0)),
    "indirect inside indirect": _indirect(16, (GUEST_BASE + DATA, 16, INDIRECT_FLAG, 0)),
    "indirect loop": _indirect(32, (HEADER, 16, NEXT, 1), (DATA_AT, 16, NEXT, 0)),
    "indirect next outside": _indirect(32, (HEADER, 16, NEXT, 2)),
    "indirect without bytes": _indirect(0),
    "indirect of 15 bytes": _indirect(15),
    "indirect of 17 bytes": _indirect(17),
    "indirect of 4 GiB": _indirect(U32 - 15),
    "indirect of 1025 entries": _indirect(1025 * 16),
    "indirect outside": _indirect(16, address=MEMORY_BYTES),
    "indirect over the end": _indirect(32, address=MEMORY_BYTES - 16),
    "indirect and next": _indirect(16, (HEADER, 16, 0, 0), flags=INDIRECT_FLAG | NEXT),
    "indirect and writable": _indirect(16, (HEADER, 16, 0, 0), flags=INDIRECT_FLAG | WRITE),
    "indirect with data outside": _indirect(32, (HEADER, 16, NEXT, 1), (END, 1, WRITE, 0)),
    "available one too far": _available(65),
    "available far too far": _available(1000),
    "available half way round": _available(0x8000),
    "available backwards": _available(0xFFFF),
    "head outside the ring": _head(64),
    "head far outside": _head(65535),
    "one head many times": _twice,
}


@pytest.mark.parametrize("name", RINGS)
def test_a_broken_ring_stops_alone_and_can_be_set_up_again(living: Path, name: str) -> None:
    with VhostClient(living) as client:
        client.negotiate()
        client.share_memory()
        queue, other = client.start_queue(0), client.start_queue(1)
        RINGS[name](client, queue)
        assert queue.failed()
        assert other.run(vhost.IN, 0, read_bytes=512) == vhost.OK
        client.stop_queue(queue)
        for ring in (queue.available, queue.used):
            client.write(ring, bytes(4))
        queue.next_available = queue.seen = 0
        client.restart_queue(queue, 0)
        assert queue.run(vhost.IN, 0, read_bytes=512) == vhost.OK


def test_what_is_ahead_of_a_broken_request_is_answered(living: Path) -> None:
    client, queue = VhostClient.ready(living)
    with client:
        first = queue.request(vhost.IN, 0, read_bytes=512, kick=False)
        queue.offer(64)
        (done,) = queue.wait(1)
        assert (done.head, queue.status()) == (first, vhost.OK)
        assert queue.failed()


ANSWERED: dict[str, tuple[int, list[tuple[int, int, int]]]] = {
    "a header that is to be written": (vhost.IN, [(HEADER, 16, WRITE), (DATA_AT, 512, WRITE), (STATUS_AT, 1, WRITE)]),
    "a header of 15 bytes": (vhost.IN, [(HEADER, 15, 0), (STATUS_AT, 1, WRITE)]),
    "a header of one byte": (vhost.IN, [(HEADER, 1, 0), (STATUS_AT, 1, WRITE)]),
    "a read into what is only read": (vhost.IN, [(HEADER, 16, 0), (DATA_AT, 512, 0), (STATUS_AT, 1, WRITE)]),
    "a write from what is only written": (vhost.OUT, [(HEADER, 16, 0), (DATA_AT, 512, WRITE), (STATUS_AT, 1, WRITE)]),
    "a read of nothing": (vhost.IN, [(HEADER, 16, 0), (STATUS_AT, 1, WRITE)]),
    "a write of nothing": (vhost.OUT, [(HEADER, 16, 0), (STATUS_AT, 1, WRITE)]),
    "a read of 511 bytes": (vhost.IN, [(HEADER, 16, 0), (DATA_AT, 511, WRITE), (STATUS_AT, 1, WRITE)]),
    "a write of 513 bytes": (vhost.OUT, [(HEADER, 16, 0), (DATA_AT, 513, 0), (STATUS_AT, 1, WRITE)]),
    "ranges that are to be written": (
        vhost.T_DISCARD,
        [(HEADER, 16, 0), (DATA_AT, 16, WRITE), (STATUS_AT, 1, WRITE)],
    ),
    "no ranges": (vhost.T_WRITE_ZEROES, [(HEADER, 16, 0), (STATUS_AT, 1, WRITE)]),
    "half a range": (vhost.T_WRITE_ZEROES, [(HEADER, 16, 0), (DATA_AT, 8, 0), (STATUS_AT, 1, WRITE)]),
    "a name that does not fit": (vhost.GET_ID, [(HEADER, 16, 0), (DATA_AT, 19, WRITE), (STATUS_AT, 1, WRITE)]),
    "a name that is only read": (vhost.GET_ID, [(HEADER, 16, 0), (DATA_AT, 20, 0), (STATUS_AT, 1, WRITE)]),
    "a read of more than all memory": (
        vhost.IN,
        [(HEADER, 16, 0), *[(GUEST_BASE + (1 << 20), 7 << 20, WRITE)] * 20, (STATUS_AT, 1, WRITE)],
    ),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_a_request_in_the_wrong_direction_or_size_is_answered_with_an_error(living: Path, name: str) -> None:
    """The chain keeps to the rules of rings, so its status byte, the last that may be written, says what is wrong."""
    kind, pieces = ANSWERED[name]
    client, queue = VhostClient.ready(living)
    with client:
        client.write(DATA, struct.pack("<IIQ", kind, 0, 0) + b"\xff")
        for index, (address, length, flags) in enumerate(pieces):
            last = index == len(pieces) - 1
            queue.describe(index, address, length, flags | (0 if last else NEXT), 0 if last else index + 1)
        queue.offer(0)
        (done,) = queue.wait(1)
        assert (done.head, client.read(DATA + 16, 1)) == (0, bytes([vhost.IOERR]))
        assert queue.run(vhost.IN, 0, read_bytes=512) == vhost.OK


OVERLAPS: dict[str, Callable[[Queue], int]] = {
    "its descriptors": lambda queue: queue.descriptors,
    "its available ring": lambda queue: queue.available,
    "its used ring": lambda queue: queue.used,
    "another ring": lambda queue: queue.used + QUEUE_BYTES,
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_a_guest_that_reads_over_its_own_rings_harms_itself(living: Path, name: str) -> None:
    with VhostClient(living) as client:
        client.negotiate()
        client.share_memory()
        queue, _ = client.start_queue(0), client.start_queue(1)
        place = OVERLAPS[name](queue)
        for _ in range(3):
            queue.describe(0, HEADER, 16, NEXT, 1)
            queue.describe(1, GUEST_BASE + place, 4096, WRITE | NEXT, 2)
            queue.describe(2, STATUS_AT, 1, WRITE)
            client.write(DATA, struct.pack("<IIQ", vhost.IN, 0, 0))
            queue.offer(0)
            select.select([queue.call, queue.err], [], [], 0.1)
        client.stop_queue(queue)


def test_two_rings_in_the_same_place_harm_their_guest_alone(living: Path) -> None:
    with VhostClient(living) as client:
        client.negotiate()
        client.share_memory()
        queue, twin = client.start_queue(0), Queue(client, 1, 64)
        client.queues.append(twin)
        twin.descriptors, twin.available, twin.used = queue.descriptors, queue.available, queue.used
        client.restart_queue(twin, 0)
        for slot in range(8):
            queue.request(vhost.IN, 0, read_bytes=512, slot=slot)
            os.eventfd_write(twin.kick, 1)
        select.select([queue.err, twin.err], [], [], 0.3)
        client.stop_queue(queue)
        client.stop_queue(twin)


def test_a_call_descriptor_that_blocks_and_is_full_holds_nobody_up(living: Path) -> None:
    client, queue = VhostClient.ready(living)
    with client:
        assert os.eventfd_read(queue.call) > 0, "the device has called when it got the descriptor"
        os.eventfd_write(queue.call, U64 - 1)
        vhost.clear_nonblocking([queue.call, queue.kick, queue.err])
        queue.request(vhost.IN, 0, read_bytes=512)
        until(lambda: queue.used_idx == 1, "the request completes")
        assert client.stop_queue(queue) == 1


STATES = {
    "links outside": (16, struct.pack("<QHHHH", 0, 1, 64, 64, 65535)),
    "a version of the future": (16, struct.pack("<QHHHH", 0, 2, 64, 0, 0)),
    "more entries than there is room": (16, struct.pack("<QHHHH", 0, 1, 65, 0, 0)),
    "everything in flight": (0, b"\xff" * (16 + 64 * 16)),
    "all heads with broken chains": (0, struct.pack("<QHHHH", 0, 1, 64, 0, 0) + struct.pack("<B5xHQ", 1, 0, 1) * 64),
}


@pytest.mark.parametrize("name", STATES)
def test_in_flight_state_that_no_backend_leaves_stops_its_ring_alone(living: Path, name: str) -> None:
    _, state = STATES[name]
    with VhostClient(living) as client:
        client.negotiate()
        client.share_memory()
        file, description = client.get_inflight(2, 64)
        os.pwrite(file, state, 0)
        client.set(vhost.SET_INFLIGHT_FD, description, [file])
        queue = client.start_queue(0)
        assert queue.failed()
        assert client.start_queue(1).run(vhost.IN, 0, read_bytes=512) == vhost.OK
        os.close(file)


@pytest.mark.parametrize("turn", range(10))
def test_noise_in_rings_and_messages_is_survived(living: Path, turn: int) -> None:
    """Random descriptors, then random messages in any order; whatever happens, the daemon lives."""
    random = rng("vhost", turn)
    client, queue = VhostClient.ready(living)
    with client:
        client.write(queue.descriptors, random.randbytes(64 * 16))
        for index in range(64):
            address = GUEST_BASE + random.randrange(MEMORY_BYTES)
            flags = random.choice([0, NEXT, WRITE, NEXT | WRITE, INDIRECT_FLAG, 7])
            queue.describe(index, address, random.choice([1, 16, 512, 4096]), flags, random.randrange(66))
        queue.offer(*range(32))
        with suppress(RefusedError, OSError):
            for _ in range(60):
                request = random.choice([*range(1, 19), 21, 25, 32, 34, 37, 38, 39])
                size = random.choice([0, 8, 8, 16, 24, 32, 40, 40])
                fds = [client.memory] * random.choice([0, 0, 1])
                flags = random.choice([1, 9])
                client.send(request, random.randbytes(2) + bytes(max(0, size - 2)) if size else b"", fds, flags)
        select.select([client.socket], [], [], 0.2)
