"""An NBD client that sends what it is told to, wrong things included, and can have many requests in flight.

Written from the protocol's text, so that it shares no mistake with the server.

Source: NBD proto.md, "Fixed newstyle negotiation" and "Transmission phase".
"""

from __future__ import annotations

import itertools
import select
import socket
import struct
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from types import TracebackType

NBDMAGIC = b"NBDMAGIC"
IHAVEOPT = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_MAGIC = 0x67446698
STRUCTURED_MAGIC = 0x668E33EF

FIXED_NEWSTYLE = 1
NO_ZEROES = 2
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_INFO, OPT_GO, OPT_STRUCTURED_REPLY = 1, 2, 3, 6, 7, 8
REP_ACK, REP_SERVER, REP_INFO = 1, 2, 3
REP_ERROR = 1 << 31
INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3

CHUNK_DONE = 1
CHUNK_DATA, CHUNK_HOLE, CHUNK_ERROR = 1, 2, 1 << 15


class Command(IntEnum):
    """The commands."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class Flag(IntFlag):
    """The command flags."""

    NONE = 0
    FUA = 1
    NO_HOLE = 2
    DF = 4


class NbdError(Exception):
    """A request that the server refused or could not carry out; `errno` is the wire's."""

    def __init__(self, errno: int, message: str = "") -> None:
        super().__init__(f"error {errno} {message}".rstrip())
        self.errno = errno


class RefusedError(Exception):
    """An option that the server refused; `reply` is its number, without the error bit."""

    def __init__(self, reply: int, message: str) -> None:
        super().__init__(f"refused with {reply}: {message}")
        self.reply = reply


@dataclass(slots=True)
class Reply:
    """An answered request.

    Args:
        cookie: whose answer it is.
        errno: 0, or the error.
        data: what was read.
    """

    cookie: int
    errno: int = 0
    data: bytes = b""


@dataclass(slots=True)
class _Waiting:
    command: int
    offset: int
    length: int
    parts: dict[int, bytes] = field(default_factory=dict)
    errno: int = 0


class NbdClient:
    """One connection, in transmission unless `go` is False.

    Args:
        path: the server's Unix socket.
        export: whose; "" for the default export.
        structured: ask for structured replies.
        timeout_s: how long one receive may wait.
        go: False stops after the greeting and the client's flags.
    """

    def __init__(
        self, path: str, export: str = "", *, structured: bool = True, timeout_s: float = 10.0, go: bool = True
    ) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout_s)
        self._buffer = bytearray()
        self._cookies = itertools.count(1)
        self._waiting: dict[int, _Waiting] = {}
        self.size_bytes = self.flags = 0
        self.min_block = 1
        self.structured = False
        try:
            self.socket.connect(path)
            self._greet()
            if go:
                self._go(export, structured)
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> NbdClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave without a word."""
        self.socket.close()

    # The handshake.

    def _greet(self) -> None:
        magic, option_magic, flags = struct.unpack(">8sQH", self._take(18))
        assert (magic, option_magic) == (NBDMAGIC, IHAVEOPT)
        assert flags & (FIXED_NEWSTYLE | NO_ZEROES) == FIXED_NEWSTYLE | NO_ZEROES
        self.send_raw(struct.pack(">I", FIXED_NEWSTYLE | NO_ZEROES))

    def _go(self, export: str, structured: bool) -> None:
        if structured:
            self.option(OPT_STRUCTURED_REPLY)
            self.structured = True
        name = export.encode()
        query = struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, INFO_BLOCK_SIZE)
        for data in self.option(OPT_GO, query):
            kind = struct.unpack_from(">H", data)[0]
            if kind == INFO_EXPORT:
                self.size_bytes, self.flags = struct.unpack(">QH", data[2:])
            elif kind == INFO_BLOCK_SIZE:
                self.min_block = struct.unpack(">III", data[2:])[0]

    def option(self, number: int, data: bytes = b"") -> list[bytes]:
        """Send an option and return the data of the replies before its ACK.

        Raises:
            RefusedError: it was refused.
        """
        self.send_raw(struct.pack(">QII", IHAVEOPT, number, len(data)) + data)
        replies: list[bytes] = []
        while True:
            magic, option, kind, length = struct.unpack(">QIII", self._take(20))
            assert (magic, option) == (OPTION_REPLY_MAGIC, number)
            payload = self._take(length)
            if kind & REP_ERROR:
                raise RefusedError(kind & ~REP_ERROR, payload.decode())
            if kind == REP_ACK:
                return replies
            replies.append(payload)

    # Bytes.

    def send_raw(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            piece = self.socket.recv(max(1 << 16, count - len(self._buffer)))
            if not piece:
                raise ConnectionError("the server closed the connection")
            self._buffer += piece
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def is_answer_there(self, timeout_s: float = 0.0) -> bool:
        """Say whether something has arrived."""
        return bool(self._buffer) or bool(select.select([self.socket], [], [], timeout_s)[0])

    def is_closed(self) -> bool:
        """Read until the server closes; True when it does, False when an answer comes first."""
        try:
            return not self._buffer and not self.socket.recv(1)
        except ConnectionError:
            return True

    # Transmission.

    def send(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        data: bytes = b"",
        flags: int = 0,
        *,
        magic: int = REQUEST_MAGIC,
    ) -> int:
        """Send a request and return its cookie without waiting; a payload's length is its own."""
        cookie = next(self._cookies)
        length = len(data) if command == Command.WRITE and data else length
        self._waiting[cookie] = _Waiting(command, offset, length)
        header = struct.pack(">IHHQQI", magic, flags, command, cookie, offset, length)
        self.send_raw(header + data)
        return cookie

    def receive(self) -> Reply:
        """Return the next request that is answered in full, in whatever order the server likes."""
        while True:
            magic = struct.unpack(">I", self._take(4))[0]
            if magic == SIMPLE_MAGIC:
                return self._simple()
            assert magic == STRUCTURED_MAGIC, hex(magic)
            assert self.structured, "a structured reply that was not negotiated"
            reply = self._chunk()
            if reply is not None:
                return reply

    def _simple(self) -> Reply:
        errno, cookie = struct.unpack(">IQ", self._take(12))
        waiting = self._waiting.pop(cookie)
        if waiting.command != Command.READ:
            return Reply(cookie, errno)
        assert not self.structured, "a simple reply to a read after structured replies were agreed on"
        return Reply(cookie, errno, b"" if errno else self._take(waiting.length))

    def _chunk(self) -> Reply | None:
        flags, kind, cookie, length = struct.unpack(">HHQI", self._take(16))
        payload = self._take(length)
        waiting = self._waiting[cookie]
        if kind & CHUNK_ERROR:
            waiting.errno = struct.unpack_from(">I", payload)[0]
        elif kind == CHUNK_DATA:
            waiting.parts[struct.unpack_from(">Q", payload)[0]] = payload[8:]
        elif kind == CHUNK_HOLE:
            offset, count = struct.unpack(">QI", payload)
            waiting.parts[offset] = bytes(count)
        if not flags & CHUNK_DONE:
            return None
        del self._waiting[cookie]
        data = b"".join(part for _, part in sorted(waiting.parts.items()))
        assert waiting.errno or waiting.command != Command.READ or len(data) == waiting.length
        return Reply(cookie, waiting.errno, data)

    def call(self, command: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> bytes:
        """Send a request and wait for its answer, the only one outstanding.

        Raises:
            NbdError: it failed.
        """
        cookie = self.send(command, offset, length, data, flags)
        reply = self.receive()
        assert reply.cookie == cookie
        if reply.errno:
            raise NbdError(reply.errno)
        return reply.data

    def read(self, offset: int, length: int) -> bytes:
        """Read."""
        return self.call(Command.READ, offset, length)

    def read_range(self, start: int, end: int, step: int = 1 << 20) -> bytes:
        """Read from `start` to `end`, `step` bytes at a time."""
        return b"".join(self.read(at, min(step, end - at)) for at in range(start, end, step))

    def read_all(self) -> bytes:
        """Read the whole export."""
        return self.read_range(0, self.size_bytes)

    def write(self, offset: int, data: bytes, flags: int = 0) -> None:
        """Write."""
        self.call(Command.WRITE, offset, data=data, flags=flags)

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Write zeroes."""
        self.call(Command.WRITE_ZEROES, offset, length, flags=flags)

    def trim(self, offset: int, length: int) -> None:
        """Discard."""
        self.call(Command.TRIM, offset, length)

    def flush(self) -> None:
        """Flush."""
        self.call(Command.FLUSH)

    def disconnect(self) -> None:
        """Say goodbye and read to the end."""
        self.send(Command.DISC)
        assert self.is_closed()
        self.close()
