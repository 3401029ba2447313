"""What all clients together may take of the daemon's memory, and how long a request may take to arrive.

The limits of one connection are `connection`'s. Where many together are over a limit it is the slowest or the largest
that pays for it, so that a client that behaves is served whatever the others do. Owns no connection.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

REQUEST_TIMEOUT_S: Final = 60.0
"""From a request's first byte to its last. A person who types one into a terminal has time enough."""

MAX_HELD_BYTES: Final = 32 * 1024 * 1024
"""Requests that have begun and not ended, together: 128 of the largest, or thousands of the usual ones."""

MAX_IN_FLIGHT_BYTES: Final = 64 * 1024 * 1024
"""Requests that are not answered, together; beyond, each connection has one at a time."""

MAX_UNSENT_BYTES: Final = 256 * 1024 * 1024
"""Answers that clients have not read, together."""


class Client(Protocol):
    """A connection, as far as it is limited from here."""

    @property
    def blocked(self) -> bool:
        """Whether it is not read just now, which is no fault of the request that is arriving."""

    @property
    def unsent_bytes(self) -> int:
        """Answers that the client has not read."""

    def advance(self) -> None:
        """Go on: something that was short is there again."""

    def give_up(self, reason: str) -> None:
        """Drop the request that is arriving and read no more; what has started is answered."""

    def abort(self) -> None:
        """Close at once."""


class Allowance:
    """What the clients of one server hold together."""

    def __init__(self) -> None:
        self._arriving: dict[Client, tuple[float, int]] = {}  # the oldest first; when it began, bytes held
        self._held_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._in_flight_bytes = 0
        self._waiting: dict[Client, None] = {}
        self._unsent: dict[Client, int] = {}  # as far as is known
        self._unsent_bytes = 0

    def arriving(self, client: Client, held_bytes: int) -> None:
        """Note how much of a request is there that has not ended; over the limit, the oldest are given up."""
        loop = asyncio.get_running_loop()
        began, had = self._arriving.get(client, (loop.time(), 0))
        self._arriving[client] = (began, held_bytes)
        self._held_bytes += held_bytes - had
        if self._timer is None:
            self._timer = loop.call_later(REQUEST_TIMEOUT_S, self._end_slow_ones)
        while self._held_bytes > MAX_HELD_BYTES:
            self._give_up(next(iter(self._arriving)), f"over {MAX_HELD_BYTES} bytes of unfinished requests")

    def arrived(self, client: Client) -> None:
        """Forget what was arriving: it has ended."""
        if client in self._arriving:
            self._held_bytes -= self._arriving.pop(client)[1]

    def _give_up(self, client: Client, reason: str) -> None:
        self.arrived(client)
        client.give_up(reason)

    def _end_slow_ones(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for client, (began, held_bytes) in list(self._arriving.items()):
            if began + REQUEST_TIMEOUT_S > now:
                break
            if client.blocked:
                del self._arriving[client]
                self._arriving[client] = (now, held_bytes)
            else:
                self._give_up(client, f"a request did not arrive in {REQUEST_TIMEOUT_S:g} s")
        if self._arriving:
            began, _ = next(iter(self._arriving.values()))
            delay_s = max(began + REQUEST_TIMEOUT_S - now, 0.0)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._end_slow_ones)

    def start(self, size_bytes: int) -> None:
        """Count a request that has started."""
        self._in_flight_bytes += size_bytes

    def end(self, size_bytes: int) -> None:
        """Count a request that is answered, and let those go on that waited for it."""
        was_full = self.is_full
        self._in_flight_bytes -= size_bytes
        if was_full and not self.is_full:
            waiting, self._waiting = self._waiting, {}
            for client in waiting:
                asyncio.get_running_loop().call_soon(client.advance)

    @property
    def is_full(self) -> bool:
        """Whether only connections that have no request in flight may start one."""
        return self._in_flight_bytes >= MAX_IN_FLIGHT_BYTES

    def wait(self, client: Client) -> None:
        """Have `client.advance` called when there is room again."""
        self._waiting[client] = None

    def unsent(self, client: Client, size_bytes: int) -> None:
        """Note what a client has not read yet; over the limit, who leaves most unread is dropped."""
        if size_bytes == 0 and client not in self._unsent:
            return
        self._note_unsent(client, size_bytes)
        if self._unsent_bytes > MAX_UNSENT_BYTES:
            for one in list(self._unsent):  # some may have read meanwhile
                self._note_unsent(one, one.unsent_bytes)
        while self._unsent_bytes > MAX_UNSENT_BYTES:
            largest = max(self._unsent, key=self._unsent.__getitem__)
            self._note_unsent(largest, 0)
            largest.abort()

    def _note_unsent(self, client: Client, size_bytes: int) -> None:
        self._unsent_bytes += size_bytes - self._unsent.pop(client, 0)
        if size_bytes:
            self._unsent[client] = size_bytes

    def forget(self, client: Client) -> None:
        """Forget a client that is gone; its requests in flight count until they end."""
        self.arrived(client)
        self._waiting.pop(client, None)
        self._note_unsent(client, 0)

    def close(self) -> None:
        """Stop looking at the clock."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
