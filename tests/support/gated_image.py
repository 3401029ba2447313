"""A slow image: a file on a file system of our own, whose reads a test holds, releases or fails, one range at a time.

A delay would only make it likely that a fetch is in flight; here the test knows, and decides when it ends.

Source: linux/include/uapi/linux/fuse.h, protocol 7.31.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

DEVICE = Path("/dev/fuse")
ROOT_NODE, IMAGE_NODE = 1, 2
MAX_READ_BYTES = 1 << 20
MS_NOSUID, MS_NODEV = 2, 4
MNT_FORCE, MNT_DETACH = 1, 2

LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT = 1, 2, 3, 14, 15, 18, 25, 26
ACCESS, INTERRUPT, DESTROY, BATCH_FORGET = 34, 36, 38, 42
UNANSWERED = {FORGET, INTERRUPT, BATCH_FORGET}
ASYNC_READ, ASYNC_DIO, MAX_PAGES = 1 << 0, 1 << 15, 1 << 22
FOPEN_DIRECT_IO = 1

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True, eq=False)
class Gate:
    """A range of the image whose reads wait.

    Args:
        offset: where it begins, in bytes.
        length: its bytes.
        reached: set when the first read has arrived.
    """

    offset: int
    length: int
    reached: threading.Event = field(default_factory=threading.Event)
    parked: list[Callable[[int], None]] = field(default_factory=list)

    def wait_reached(self, timeout_s: float = 20.0) -> None:
        """Return when a read of the range is waiting.

        Raises:
            AssertionError: none came.
        """
        assert self.reached.wait(timeout_s), f"nothing read bytes {self.offset} to {self.offset + self.length}"


class GatedImage:
    """A mounted image; needs root and /dev/fuse.

    Args:
        folder: an empty folder to mount on.
        data: the image's bytes.
    """

    name = "image.raw"
    mode = 0o444

    def __init__(self, folder: Path, data: bytes | bytearray) -> None:
        self.data = data
        self.path = folder / self.name
        self.reads: list[tuple[int, int]] = []
        """(offset, length) of every read that arrived."""
        self._folder = folder
        self._gates: list[Gate] = []
        self._made: list[Gate] = []
        self._lock = threading.Lock()
        self._device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,max_read={MAX_READ_BYTES}"
        if _libc.mount(b"ubi-test", bytes(folder), b"fuse", MS_NOSUID | MS_NODEV, options.encode()):
            code = ctypes.get_errno()
            os.close(self._device)
            raise OSError(code, f"mount {folder}: {os.strerror(code)}")
        self._server = threading.Thread(target=self._serve, daemon=True)
        self._server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release_all()
        # Forced: requests still in flight fail, so nobody can be left waiting for an answer.
        _libc.umount2(bytes(self._folder), MNT_FORCE | MNT_DETACH)
        self._server.join(20)
        os.close(self._device)

    def hold(self, offset: int, length: int) -> Gate:
        """Let reads of a range wait from now on."""
        gate = Gate(offset, length)
        with self._lock:
            self._gates.append(gate)
            self._made.append(gate)
        return gate

    def let_others_pass(self, gate: Gate) -> None:
        """Hold no request that comes from now on; those that wait go on waiting."""
        with self._lock:
            self._gates.remove(gate)

    def release(self, gate: Gate, error: int = 0) -> None:
        """Answer the requests that wait, with their bytes or with an errno, and hold the range no longer."""
        if gate in self._gates:
            self.let_others_pass(gate)
        parked, gate.parked = gate.parked, []
        for answer in parked:
            answer(error)

    def release_all(self) -> None:
        """Hold nothing any longer."""
        for gate in list(self._made):
            self.release(gate)

    # The file system.

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._device, MAX_READ_BYTES + 4096)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                return  # ENODEV: unmounted
            _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
            if opcode not in UNANSWERED:
                self._take(opcode, unique, node, request[40:])

    def _take(self, opcode: int, unique: int, node: int, body: bytes) -> None:
        if opcode == READ:
            self._read(unique, body)
        else:
            self._answer(unique, self._handle(opcode, node, body))

    def _handle(self, opcode: int, node: int, body: bytes) -> bytes | int:
        """Return an answer's payload, or an errno."""
        if opcode == INIT:
            flags = struct.unpack_from("<I", body, 12)[0] & (ASYNC_READ | ASYNC_DIO | MAX_PAGES)
            # max_readahead 0: what arrives here is what was asked for.
            head = struct.pack("<IIIIHHIIHH", 7, 31, 0, flags, 64, 48, MAX_READ_BYTES, 1, MAX_READ_BYTES >> 12, 0)
            return head.ljust(64, b"\0")
        if opcode == LOOKUP and node == ROOT_NODE and body.rstrip(b"\0") == bytes(self.path.name, "ascii"):
            return struct.pack("<QQQQII", IMAGE_NODE, 0, 60, 60, 0, 0) + self._attr(IMAGE_NODE)
        if opcode == GETATTR:
            return struct.pack("<QII", 60, 0, 0) + self._attr(node)
        if opcode == OPEN:
            return struct.pack("<QIi", 0, FOPEN_DIRECT_IO, 0)
        if opcode in (RELEASE, FLUSH, ACCESS, DESTROY):
            return b""
        return errno.ENOENT if opcode == LOOKUP else errno.ENOSYS

    def _attr(self, node: int) -> bytes:
        mode = stat.S_IFDIR | 0o755 if node == ROOT_NODE else stat.S_IFREG | self.mode
        size = 0 if node == ROOT_NODE else len(self.data)
        times = (1_700_000_000,) * 3
        return struct.pack("<6Q10I", node, size, -(-size // 512), *times, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _read(self, unique: int, body: bytes) -> None:
        _, offset, size = struct.unpack_from("<QQI", body)

        def answer(error: int) -> None:
            self._answer(unique, error or bytes(self.data[offset : offset + size]))

        with self._lock:
            self.reads.append((offset, size))
        self._pass(offset, size, answer)

    def _pass(self, offset: int, size: int, answer: Callable[[int], None]) -> None:
        """Answer, or wait at a gate."""
        with self._lock:
            for gate in self._gates:
                if offset < gate.offset + gate.length and gate.offset < offset + size:
                    gate.parked.append(answer)
                    gate.reached.set()
                    return
        answer(0)

    def _answer(self, unique: int, answer: bytes | int) -> None:
        payload, code = (b"", answer) if isinstance(answer, int) else (answer, 0)
        with suppress(FileNotFoundError):  # the request was given up
            os.write(self._device, struct.pack("<IiQ", 16 + len(payload), -code, unique) + payload)
