"""One client of the socket: bytes in, requests started, answers out in the order in which they are ready.

Owns the flow control of a connection. Every queue here has a bound: what is received but not parsed (one
read), what is parsed but not answered (`MAX_IN_FLIGHT`, `MAX_IN_FLIGHT_BYTES`), what is answered but not
taken by the client (`UNSENT_HIGH_WATER_BYTES`, `MAX_UNSENT_BYTES`). What all connections may have together is
`allowance`'s.

Requests start in bursts of `BURST` with a rest of `REST_TURNS` turns of the event loop between them. That is time
enough for the answers of handlers that do not wait to reach the socket, so that a client that asks much and
reads nothing is noticed before the next burst starts.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from typing import Final, Protocol

from ubi_rpc.rpc.allowance import Allowance
from ubi_rpc.rpc.dispatch import MAX_ANSWER_BYTES, Dispatcher
from ubi_rpc.rpc.framing import INCOMPLETE, JsonSyntaxError, request_parser
from ubi_rpc.rpc.session import Session, answer_actions

logger = logging.getLogger(__name__)

MAX_IN_FLIGHT: Final = 1024
"""Requests of one connection that have started and are not answered; an element of a batch is one."""

MAX_IN_FLIGHT_BYTES: Final = 4 * 1024 * 1024
"""Length of those requests together."""

UNSENT_HIGH_WATER_BYTES: Final = 1024 * 1024
"""With more answers than this unread by the client, no further request is read or started."""

BURST: Final = 8
REST_TURNS: Final = 4

MAX_UNSENT_BYTES: Final = BURST * MAX_ANSWER_BYTES
"""With more than this unread (requests that waited go on answering) the connection is dropped."""


class Owner(Protocol):
    """What a connection needs of the server it belongs to."""

    serving: bool
    """False while requests have to wait."""

    allowance: Allowance
    """What all connections have together."""

    tasks: set[asyncio.Task[None]]
    """Requests being handled, kept beyond their connection's life."""

    def watch_hangup(self, connection: Connection) -> None:
        """Call `connection.abort` when the client closes its end completely."""

    def forget(self, connection: Connection) -> None:
        """Free the connection's slot."""


class Connection(asyncio.Protocol):
    """Serves one client.

    Args:
        owner: the server.
        dispatcher: answers the requests.
    """

    def __init__(self, owner: Owner, dispatcher: Dispatcher) -> None:
        self._owner = owner
        self._dispatcher = dispatcher
        self._parser = request_parser()
        self._transport: asyncio.Transport | None = None
        self._session = Session()
        self._in_flight = 0
        self._in_flight_bytes = 0
        self._half_closed = False  # the client sends no more
        self._refused = False  # nothing more is read: the stream is not JSON, or the server stops
        self._unread = False  # answers pile up that the client does not read
        self._burst = 0  # requests started since the connection last rested or had nothing to do
        self._resting = False
        self._readers: set[asyncio.Task[None]] = set()  # requests under way that change nothing
        self.fd = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, with the client's identity as the kernel tells it."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a connection needs a stream")
        self._transport = transport
        transport.set_write_buffer_limits(high=UNSENT_HIGH_WATER_BYTES)
        peer: socket.socket = transport.get_extra_info("socket")
        self.fd = peer.fileno()
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self._session.peer_pid, self._session.peer_uid, _gid = struct.unpack("3i", credentials)
        self.advance()

    def data_received(self, data: bytes) -> None:
        """Take bytes in; once the stream is refused they are dropped."""
        if not self._refused:
            self._parser.feed(data)
            self.advance()

    def eof_received(self) -> bool:
        """Keep a half-closed connection until its requests are answered."""
        self._half_closed = True
        self.advance()
        if self._transport is not None and not self._transport.is_closing():
            self._owner.watch_hangup(self)
        return True

    def pause_writing(self) -> None:
        """Start nothing while the client leaves its answers unread."""
        self._unread = True

    def resume_writing(self) -> None:
        """Go on: the client has read."""
        self._unread = False
        self._owner.allowance.unsent(self, self.unsent_bytes)
        self.advance()

    def connection_lost(self, exc: Exception | None) -> None:
        """End. What changes something goes on and its answer is dropped; what only reads is ended."""
        logger.debug("peer_pid=%d connection closed error=%r", self._session.peer_pid, exc)
        self._transport = None
        for task in self._readers:
            task.cancel()
        self._owner.allowance.forget(self)
        self._owner.forget(self)

    def finish(self) -> None:
        """Read nothing more; close when what has started is answered and sent."""
        self._refused = True
        self.advance()

    def give_up(self, reason: str) -> None:
        """Drop the request that is arriving and read no more; close when what has started is answered and sent."""
        logger.warning("peer_pid=%d closing connection: %s", self._session.peer_pid, reason)
        self._parser = request_parser()
        self.finish()

    def abort(self) -> None:
        """Close at once; unsent answers are lost."""
        if self._transport is not None:
            self._transport.abort()

    def advance(self) -> None:
        """Start what may start; then read on, wait, or close, whichever the state asks for."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        while not self._refused and not self.blocked:
            if not self._start_next():
                break
        blocked = self.blocked
        if blocked and self._in_flight and self._owner.allowance.is_full:
            self._owner.allowance.wait(self)
        if self._refused or (self._half_closed and not blocked):
            if self._in_flight == 0:
                transport.close()
        elif self._half_closed:
            pass  # asyncio has stopped reading by itself
        elif blocked:
            transport.pause_reading()
        else:
            transport.resume_reading()

    @property
    def unsent_bytes(self) -> int:
        """Answers that the client has not read."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def blocked(self) -> bool:
        """Whether nothing is read and nothing started just now."""
        return (
            not self._owner.serving
            or (self._in_flight > 0 and self._owner.allowance.is_full)
            or self._in_flight >= MAX_IN_FLIGHT
            or self._in_flight_bytes >= MAX_IN_FLIGHT_BYTES
            or self._unread
            or self._resting
        )

    def _start_next(self) -> bool:
        """Start the next whole request received; false when there is none."""
        try:
            value = self._parser.next_value()
        except JsonSyntaxError as error:
            # A stream has no point to resume at. SPDK closes as well, but loses the answers still pending.
            logger.error("peer_pid=%d closing connection: bad request: %s", self._session.peer_pid, error)
            self._refused = True
            self._owner.allowance.arrived(self)
            return False
        if value is INCOMPLETE:
            if held_bytes := self._parser.held_bytes:
                self._owner.allowance.arriving(self, held_bytes)
            return False
        self._owner.allowance.arrived(self)
        count = max(len(value), 1) if isinstance(value, list) else 1
        size_bytes = self._parser.last_size_bytes
        self._in_flight += count
        self._in_flight_bytes += size_bytes
        self._owner.allowance.start(size_bytes)
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._serve(value, count, size_bytes))
        self._owner.tasks.add(task)
        task.add_done_callback(self._owner.tasks.discard)
        if self._dispatcher.only_reads(value):
            self._readers.add(task)
            task.add_done_callback(self._readers.discard)
        self._burst += count
        if self._burst >= BURST:
            self._resting = True
            loop.call_soon(self._rest, REST_TURNS)
        return True

    def _rest(self, turns: int) -> None:
        """Let `turns` turns of the event loop pass, then go on."""
        if turns > 0:
            asyncio.get_running_loop().call_soon(self._rest, turns - 1)
        else:
            self._resting = False
            self._burst = 0
            self.advance()

    async def _serve(self, value: object, count: int, size_bytes: int) -> None:
        """Answer one request or batch."""
        actions: list[Callable[[], None]] = []
        answer_actions.set(actions)
        try:
            self._send(await self._dispatcher.handle(value, self._session))
        except Exception:
            logger.exception("peer_pid=%d a request ended without an answer", self._session.peer_pid)
        finally:
            self._in_flight -= count
            self._in_flight_bytes -= size_bytes
            self._owner.allowance.end(size_bytes)
            if self._in_flight == 0:
                self._burst = 0
            for action in actions:
                action()
            self.advance()

    def _send(self, answer: bytes | None) -> None:
        """Hand an answer to the socket; nobody is there to take it once the client is gone."""
        transport = self._transport
        if answer is None or transport is None or transport.is_closing():
            return
        transport.write(answer)
        self._owner.allowance.unsent(self, transport.get_write_buffer_size())
        if transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            logger.warning("peer_pid=%d dropping a client that does not read", self._session.peer_pid)
            transport.abort()
