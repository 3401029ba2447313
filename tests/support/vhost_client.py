"""A vhost-user-blk frontend and driver, small and able to break every rule: the daemon's peer in tests.

Source: QEMU docs/interop/vhost-user.rst; virtio 1.2, 2.7 (split virtqueues) and 5.2 (block device).
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import mmap
import os
import select
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE, SET_LOG_BASE, SET_LOG_FD = 1, 2, 3, 4, 5, 6, 7
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
SET_BACKEND_REQ_FD, GET_CONFIG, SET_CONFIG = 21, 24, 25
GET_INFLIGHT_FD, SET_INFLIGHT_FD, RESET_DEVICE = 31, 32, 34
GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG, SET_STATUS, GET_STATUS = 36, 37, 38, 39, 40

VERSION_1, EVENT_IDX, INDIRECT, PROTOCOL_FEATURES = 1 << 32, 1 << 29, 1 << 28, 1 << 30
LOG_ALL, RO, FLUSH, CONFIG_WCE, DISCARD, WRITE_ZEROES = 1 << 26, 1 << 5, 1 << 9, 1 << 11, 1 << 13, 1 << 14
ACCESS_PLATFORM, PACKED, IN_ORDER, RING_RESET = 1 << 33, 1 << 34, 1 << 35, 1 << 40
P_MQ, P_LOG, P_REPLY_ACK, P_BACKEND_REQ, P_CONFIG = 1 << 0, 1 << 1, 1 << 3, 1 << 5, 1 << 9
P_INFLIGHT, P_RESET, P_SLOTS, P_STATUS = 1 << 12, 1 << 13, 1 << 15, 1 << 16

IN, OUT, T_FLUSH, GET_ID, T_DISCARD, T_WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
NEXT, WRITE, INDIRECT_FLAG = 1, 2, 4

VERSION, REPLY, NEED_REPLY = 1, 4, 8
GUEST_BASE = 0x100000
"""Guest address of the first byte of memory."""
USER_BASE = 1 << 40
"""The same byte's address in this frontend, which need not be where it is mapped."""
MEMORY_BYTES = 8 << 20
QUEUE_BYTES = 0x10000
DATA = 0x200000
"""Offset of the memory that requests use for data."""
TIMEOUT_S = 20.0


class RefusedError(Exception):
    """The backend has acknowledged a message with a failure, or ended the connection."""


@dataclass(slots=True)
class Completion:
    """One used entry: the chain's head and how many bytes the device says that it wrote."""

    head: int
    written: int


class Queue:
    """The driver's side of a split ring in the client's memory."""

    def __init__(self, client: VhostClient, index: int, num: int) -> None:
        self.client, self.index, self.num = client, index, num
        self.base = 0x10000 + index * QUEUE_BYTES
        self.descriptors, self.available, self.used = self.base, self.base + 0x4000, self.base + 0x8000
        self.kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.err = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.next_available = 0
        self.seen = 0

    def close(self) -> None:
        for fd in (self.kick, self.call, self.err):
            os.close(fd)

    def describe(
        self, index: int, address: int, length: int, flags: int, following: int = 0, *, table: int = 0
    ) -> None:
        """Write a descriptor; `table`: the offset of an indirect one instead of the ring's."""
        place = (table or self.descriptors) + index * 16
        self.client.write(place, struct.pack("<QIHH", address, length, flags, following))

    def offer(self, *heads: int, kick: bool = True) -> None:
        """Make heads available."""
        for head in heads:
            slot = self.available + 4 + self.next_available % self.num * 2
            self.client.write(slot, struct.pack("<H", head & 0xFFFF))
            self.next_available = (self.next_available + 1) & 0xFFFF
        self.client.write(self.available + 2, struct.pack("<H", self.next_available))
        if kick:
            os.eventfd_write(self.kick, 1)

    @property
    def used_idx(self) -> int:
        return int(struct.unpack("<H", self.client.read(self.used + 2, 2))[0])

    def expect_call_at(self, used_idx: int) -> None:
        """Ask for a notification when the used index passes this."""
        self.client.write(self.available + 4 + self.num * 2, struct.pack("<H", used_idx & 0xFFFF))

    def take(self) -> list[Completion]:
        """Return what was completed since the last call, and ask for a notification of what comes after.

        What is completed just before that is not notified of: one has to look once more (virtio 1.3, 2.7.10).
        """
        found: list[Completion] = []
        while True:
            while self.seen != self.used_idx:
                slot = self.used + 4 + self.seen % self.num * 8
                found.append(Completion(*struct.unpack("<II", self.client.read(slot, 8))))
                self.seen = (self.seen + 1) & 0xFFFF
            self.expect_call_at(self.seen)
            if self.seen == self.used_idx:
                return found

    def wait(self, count: int, timeout_s: float = TIMEOUT_S) -> list[Completion]:
        """Return `count` completions or more.

        Raises:
            AssertionError: they did not come.
        """
        found = self.take()
        while len(found) < count:
            ready, _, _ = select.select([self.call], [], [], timeout_s)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.call)
            more = self.take()
            assert ready or more, f"{len(found)} of {count} requests completed in {timeout_s} s"
            found += more
        return found

    def failed(self, timeout_s: float = TIMEOUT_S) -> bool:
        """Return whether the device has signalled the error descriptor."""
        ready, _, _ = select.select([self.err], [], [], timeout_s)
        return bool(ready)

    def request(
        self,
        kind: int,
        sector: int = 0,
        data: bytes = b"",
        read_bytes: int = 0,
        *,
        slot: int = 0,
        kick: bool = True,
        indirect: bool = False,
    ) -> int:
        """Make a well-formed request available; return its head. `slot`: which part of the data memory it uses."""
        place = DATA + slot * 0x40000
        self.client.write(place, struct.pack("<IIQ", kind, 0, sector))
        self.client.write(place + 16, b"\xff")
        pieces = [(GUEST_BASE + place, 16, 0)]
        if data:
            self.client.write(place + 0x1000, data)
            pieces.append((GUEST_BASE + place + 0x1000, len(data), 0))
        if read_bytes:
            pieces.append((GUEST_BASE + place + 0x1000, read_bytes, WRITE))
        pieces.append((GUEST_BASE + place + 16, 1, WRITE))
        head = slot * 4
        table = place + 0x100 if indirect else 0
        for number, (address, length, flags) in enumerate(pieces):
            last = number == len(pieces) - 1
            index = number if indirect else head + number
            self.describe(index, address, length, flags | (0 if last else NEXT), 0 if last else index + 1, table=table)
        if indirect:
            self.describe(head, GUEST_BASE + table, len(pieces) * 16, INDIRECT_FLAG)
        self.offer(head, kick=kick)
        return head

    def status(self, slot: int = 0) -> int:
        """Return the status byte of a request."""
        return self.client.read(DATA + slot * 0x40000 + 16, 1)[0]

    def data(self, length: int, slot: int = 0) -> bytes:
        """Return what a request has read."""
        return self.client.read(DATA + slot * 0x40000 + 0x1000, length)

    def run(self, kind: int, sector: int = 0, data: bytes = b"", read_bytes: int = 0, **options: bool) -> int:
        """Carry out one request; return its status."""
        head = self.request(kind, sector, data, read_bytes, **options)
        (done,) = self.wait(1)
        assert done.head == head
        return self.status()


class VhostClient:
    """A connection to a controller, with memory of its own.

    Args:
        path: the controller's socket.
        memory: an earlier client's, to go on with as a machine does after the daemon died.
    """

    def __init__(self, path: Path, memory: int | None = None) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(str(path))
        if memory is None:
            memory = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(memory, MEMORY_BYTES)
        self.memory = memory
        self._map = mmap.mmap(memory, MEMORY_BYTES)
        self.queues: list[Queue] = []
        self.acknowledged = False

    def __enter__(self) -> VhostClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Vanish. Idempotent."""
        self.socket.close()
        for queue in self.queues:
            queue.close()
        self.queues.clear()
        if self.memory >= 0:
            os.close(self.memory)
        self.memory = -1

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the memory."""
        return self._map[offset : offset + length]

    def write(self, offset: int, data: bytes) -> None:
        """Change bytes of the memory."""
        self._map[offset : offset + len(data)] = data

    # Messages.

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes as they are."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([data], rights)

    def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = VERSION) -> None:
        """Send a message."""
        self.send_raw(struct.pack("<III", request, flags, len(payload)) + payload, fds)

    def receive(self) -> tuple[int, bytes, list[int]]:
        """Return a reply's request, payload and descriptors.

        Raises:
            RefusedError: the connection ended.
        """
        head, fds = b"", []
        while len(head) < 12:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(12 - len(head), 256)
            except ConnectionResetError:
                data, ancillary = b"", []
            if not data:
                raise RefusedError("the connection ended")
            head += data
            for _, _, rights in ancillary:
                numbers = array.array("i")
                numbers.frombytes(rights[: len(rights) - len(rights) % numbers.itemsize])
                fds += list(numbers)
        request, flags, size = struct.unpack("<III", head)
        assert flags == VERSION | REPLY, hex(flags)
        payload = b""
        while len(payload) < size:
            payload += self.socket.recv(size - len(payload))
        return request, payload, fds

    def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """Send a message that is answered; return the answer's payload."""
        self.send(request, payload, fds)
        answered, answer, _ = self.receive()
        assert answered == request
        return answer

    def ask_u64(self, request: int, payload: bytes = b"") -> int:
        """Send a message that is answered by a number."""
        return int(struct.unpack("<Q", self.ask(request, payload))[0])

    def set(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a message and have it acknowledged.

        Raises:
            RefusedError: it is refused.
        """
        self.send(request, payload, fds, VERSION | NEED_REPLY)
        answered, answer, _ = self.receive()
        assert answered == request
        if struct.unpack("<Q", answer)[0] != 0:
            raise RefusedError(f"message {request} is refused")

    def refused(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bool:
        """Return whether a message is refused, by an acknowledgement or by the end of the connection."""
        try:
            self.set(request, payload, fds)
        except (RefusedError, BrokenPipeError, ConnectionResetError):
            return True
        return False

    def config(self, offset: int, size: int) -> bytes:
        """Read the config space; b"" when that is refused."""
        answer = self.ask(GET_CONFIG, struct.pack("<III", offset, size, 0) + bytes(size))
        assert not answer or struct.unpack_from("<II", answer) == (offset, size)
        return answer[12:]

    # Set-up.

    def negotiate(self, features: int | None = None, protocol: int | None = None) -> int:
        """Agree on features, on all but the log when left out; return those that the backend offers."""
        offered = self.ask_u64(GET_FEATURES)
        self.send(SET_OWNER)
        all_protocol = self.ask_u64(GET_PROTOCOL_FEATURES)
        self.send(SET_PROTOCOL_FEATURES, struct.pack("<Q", all_protocol if protocol is None else protocol))
        self.send(SET_FEATURES, struct.pack("<Q", offered & ~LOG_ALL if features is None else features))
        return offered

    def share_memory(self, regions: int = 1) -> None:
        """Share the memory, as so many regions."""
        size = MEMORY_BYTES // regions
        payload = struct.pack("<II", regions, 0)
        for number in range(regions):
            offset = number * size
            payload += struct.pack("<QQQQ", GUEST_BASE + offset, size, USER_BASE + offset, offset)
        self.set(SET_MEM_TABLE, payload, [self.memory] * regions)

    def addresses(self, queue: Queue, flags: int = 0, log: int = 0) -> bytes:
        """Return SET_VRING_ADDR's payload."""
        places = (queue.descriptors, queue.used, queue.available)
        return struct.pack("<IIQQQQ", queue.index, flags, *(USER_BASE + place for place in places), log)

    def start_queue(self, index: int = 0, num: int = 64, base: int = 0, enable: bool = True) -> Queue:
        """Set up a ring and start it."""
        queue = Queue(self, index, num)
        self.queues.append(queue)
        queue.next_available = queue.seen = base
        for ring in (queue.available, queue.used):
            self.write(ring + 2, struct.pack("<H", base))
        queue.expect_call_at(base)
        self.write(queue.used + 4 + num * 8, struct.pack("<H", base))
        self.restart_queue(queue, base, enable=enable)
        return queue

    def restart_queue(self, queue: Queue, base: int, enable: bool = True) -> None:
        """Start a ring that is in memory already."""
        index = queue.index
        self.set(SET_VRING_NUM, struct.pack("<II", index, queue.num))
        self.set(SET_VRING_BASE, struct.pack("<II", index, base))
        self.set(SET_VRING_ADDR, self.addresses(queue))
        self.set(SET_VRING_ERR, struct.pack("<Q", index), [queue.err])
        self.set(SET_VRING_CALL, struct.pack("<Q", index), [queue.call])
        self.set(SET_VRING_KICK, struct.pack("<Q", index), [queue.kick])
        if enable:
            self.set(SET_VRING_ENABLE, struct.pack("<II", index, 1))

    def stop_queue(self, queue: Queue) -> int:
        """Stop a ring; return where it is."""
        answer = self.ask(GET_VRING_BASE, struct.pack("<II", queue.index, 0))
        return int(struct.unpack("<II", answer)[1])

    def get_inflight(self, queues: int, queue_size: int) -> tuple[int, bytes]:
        """Ask for in-flight state; return its descriptor and what SET_INFLIGHT_FD wants to hear."""
        self.send(GET_INFLIGHT_FD, struct.pack("<QQHH", 0, 0, queues, queue_size) + bytes(4))
        _, answer, fds = self.receive()
        assert len(fds) == 1
        return fds[0], answer

    @classmethod
    def ready(cls, path: Path, features: int | None = None, num: int = 64) -> tuple[VhostClient, Queue]:
        """Connect and start one ring."""
        client = cls(path)
        client.negotiate(features)
        client.share_memory()
        return client, client.start_queue(num=num)


def clear_nonblocking(fds: Iterable[int]) -> None:
    """Make descriptors block, as a hostile frontend may."""
    for fd in fds:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
