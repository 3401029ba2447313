"""The JSON-RPC Unix socket: who is served, who waits, and how it begins and ends.

Owns the accept loop and the connections' number. The files are `listener`'s, a connection's flow is
`connection`'s.

SPDK serves 64 connections at once, so that as many idle ones shut everybody else out. Here there are as many as
descriptors allow; an idle one costs some kilobytes.

Source: SPDK lib/jsonrpc/jsonrpc_server_tcp.c.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import select
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from ubi_rpc.rpc.allowance import Allowance
from ubi_rpc.rpc.connection import Connection
from ubi_rpc.rpc.dispatch import Dispatcher
from ubi_rpc.rpc.listener import Listener, SocketInUseError, open_listener

__all__ = ["MAX_CONNECTIONS", "SocketInUseError", "UnixServer"]

logger = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 10_000
"""More wait in the backlog."""
ACCEPT_BURST: Final = 16
"""Connections accepted in a turn of the event loop, so that a crowd at the door does not hold up who is inside."""
STOP_GRACE_S: Final = 2.0
"""How long `stop` waits for requests to end, and then again for clients to take their answers."""

_ACCEPT_RETRY_S: Final = 0.5  # after accept failed for want of descriptors or memory


class UnixServer:
    """Serves a dispatcher on a Unix socket.

    Args:
        path: of the socket; its lock is beside it, `<path>.lock`.
        dispatcher: answers the requests.
        group: the group whose members may connect; None for the user alone.
        max_connections: served at once; None for as many as descriptors allow, half of them staying free.
    """

    def __init__(
        self, path: Path, dispatcher: Dispatcher, group: int | None = None, max_connections: int | None = None
    ) -> None:
        self._path = path
        self._group = group
        self._dispatcher = dispatcher
        self._listener: Listener | None = None
        self._max_connections = max_connections
        self._accepting = False
        self._connections: set[Connection] = set()
        self._taken = 0  # slots: connections, and sockets about to become one
        self._hangups: dict[int, Connection] = {}
        self._hangup_poll: select.epoll | None = None
        self._empty = asyncio.Event()
        self._adoptions: set[asyncio.Task[None]] = set()
        self.serving = False
        self.allowance = Allowance()
        self.tasks: set[asyncio.Task[None]] = set()

    async def start(self, *, paused: bool = False) -> None:
        """Lock, bind and listen.

        Args:
            paused: clients connect, but their requests wait for `resume`.

        Raises:
            SocketInUseError: another process serves this path.
            UbiError: the path cannot be used. Nothing is left behind.
        """
        self._listener = open_listener(self._path, self._group)
        if self._max_connections is None:
            self._max_connections = min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._hangup_poll = select.epoll()
        self.serving = not paused
        loop = asyncio.get_running_loop()
        loop.add_reader(self._hangup_poll.fileno(), self._hung_up)
        self._accepting = True
        self._watch_listener()
        logger.info("rpc_socket=%s listening%s", self._path, " (paused)" if paused else "")

    def resume(self) -> None:
        """Serve the requests that waited, and those to come."""
        self.serving = True
        for connection in tuple(self._connections):
            connection.advance()

    async def quiesce(self) -> None:
        """Stop accepting, finish what is ready and close every connection; the socket and its lock stay. Idempotent.

        Requests under way have `STOP_GRACE_S` to end and are then cancelled; clients have as long to take
        their answers.
        """
        if self._hangup_poll is None or self._listener is None:
            return
        self._accepting = False
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.socket)
        for connection in tuple(self._connections):
            connection.finish()
        await self._end_tasks()
        await self._wait_until_empty()
        for connection in tuple(self._connections):
            connection.abort()
        await self._wait_until_empty()
        self.allowance.close()
        loop.remove_reader(self._hangup_poll.fileno())
        self._hangup_poll.close()
        self._hangup_poll = None

    async def stop(self) -> None:
        """Quiesce, then remove the socket and its lock. Idempotent."""
        await self.quiesce()
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
            logger.info("rpc_socket=%s closed", self._path)

    async def _wait_until_empty(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_GRACE_S):
                while self._taken:
                    self._empty.clear()
                    await self._empty.wait()

    async def _end_tasks(self) -> None:
        """Wait for the requests under way, then cancel those that are left and wait for their end."""
        if self.tasks:
            await asyncio.wait(tuple(self.tasks), timeout=STOP_GRACE_S)
        left = tuple(self.tasks)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=STOP_GRACE_S)

    def watch_hangup(self, connection: Connection) -> None:
        """Notice when a half-closed client is gone for good, so that it does not hold a slot until its answer."""
        if self._hangup_poll is not None and connection.fd not in self._hangups:
            self._hangups[connection.fd] = connection
            self._hangup_poll.register(connection.fd, 0)  # EPOLLHUP is always reported

    def forget(self, connection: Connection) -> None:
        """Free a closed connection's slot."""
        if self._hangups.pop(connection.fd, None) is not None and self._hangup_poll is not None:
            self._hangup_poll.unregister(connection.fd)
        self._connections.discard(connection)
        self._release_slot()

    def _hung_up(self) -> None:
        if self._hangup_poll is not None:
            for fd, _events in self._hangup_poll.poll(0):
                self._hangup_poll.unregister(fd)
                self._hangups.pop(fd).abort()

    def _watch_listener(self) -> None:
        if self._listener is not None and self._accepting:
            asyncio.get_running_loop().add_reader(self._listener.socket, self._accept)

    def _accept(self) -> None:
        """Accept some of what waits, as far as there are free slots."""
        if self._listener is None:
            return
        loop = asyncio.get_running_loop()
        for _ in range(ACCEPT_BURST):
            if self._is_full:
                loop.remove_reader(self._listener.socket)
                return
            try:
                peer, _address = self._listener.socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                logger.error("rpc_socket=%s accept failed: %s", self._path, error)
                loop.remove_reader(self._listener.socket)
                loop.call_later(_ACCEPT_RETRY_S, self._watch_listener)
                return
            self._taken += 1
            task = loop.create_task(self._adopt(peer))
            self._adoptions.add(task)
            task.add_done_callback(self._adoptions.discard)

    async def _adopt(self, peer: socket.socket) -> None:
        """Make a connection of an accepted socket."""
        peer.setblocking(False)
        connection = Connection(self, self._dispatcher)
        self._connections.add(connection)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, peer)
        except OSError:
            logger.exception("rpc_socket=%s a connection failed as it began", self._path)
            peer.close()
            self.forget(connection)

    @property
    def _is_full(self) -> bool:
        return self._max_connections is not None and self._taken >= self._max_connections

    def _release_slot(self) -> None:
        if self._is_full:
            self._watch_listener()
        self._taken -= 1
        if self._taken == 0:
            self._empty.set()
