"""Whose turn it is: requests that touch the same object act one after the other, in order of arrival.

SPDK's handlers for these methods finish before the next request is looked at, so a client may pipeline "create a,
create b on a, delete b" and rely on it. Here they wait for storage; turns keep that order per object, while requests
for different objects overlap. Knows keys, not objects; decides nothing about them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

Key = tuple[str, str]
"""A namespace and a name in it, such as ("bdev", "aio0")."""

R = TypeVar("R")

_log = logging.getLogger(__name__)


class _Ticket:
    __slots__ = ("done", "granted", "keys")

    def __init__(self, keys: Callable[[], set[Key]]) -> None:
        loop = asyncio.get_running_loop()
        self.keys = keys
        self.granted: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()


class Turns:
    """The queue of requests that change objects."""

    def __init__(self) -> None:
        self._waiting: dict[_Ticket, None] = {}
        self._acting: dict[_Ticket, set[Key]] = {}
        self._taken: set[Key] = set()  # by those that act; no two have one in common
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, keys: Callable[[], set[Key]], act: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Run `act` when no earlier request shares a key with this one.

        Until then the caller can be cancelled and nothing happened. Once `act` has started it runs to its end,
        whether the caller is still there or not.

        Args:
            keys: what the request touches, as of now; asked again whenever its turn may have come, because what
                stands on an object changes while the request waits.
            act: decides without waiting, then acts.
        """
        ticket = _Ticket(keys)
        self._waiting[ticket] = None
        self._grant()
        try:
            await ticket.granted
        except asyncio.CancelledError:
            self._leave(ticket)
            raise
        task = asyncio.get_running_loop().create_task(act())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._leave(ticket))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_abandoned)
            raise

    async def settled(self, keys: Iterable[Key] | None, limit_s: float) -> None:
        """Wait until the requests now in the queue for `keys` (None: all of them) are done, `limit_s` at most."""
        wanted = None if keys is None else set(keys)
        ahead = [
            ticket.done
            for ticket in (*self._acting, *self._waiting)
            if wanted is None or not wanted.isdisjoint(self._acting.get(ticket) or ticket.keys())
        ]
        if ahead:
            await asyncio.wait(ahead, timeout=limit_s)

    async def drain(self) -> None:
        """Wait until nothing acts any more."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _grant(self) -> None:
        ahead: set[Key] = set()
        for ticket in list(self._waiting):
            if ticket.granted.cancelled():  # it leaves as soon as its caller runs
                continue
            keys = ticket.keys()
            if self._taken.isdisjoint(keys) and ahead.isdisjoint(keys):
                del self._waiting[ticket]
                self._acting[ticket] = keys
                self._taken |= keys
                ticket.granted.set_result(None)
            else:
                ahead |= keys

    def _leave(self, ticket: _Ticket) -> None:
        self._waiting.pop(ticket, None)
        self._taken -= self._acting.pop(ticket, set())
        if not ticket.done.done():
            ticket.done.set_result(None)
        self._grant()


def _log_abandoned(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("act=%s abandoned by its caller and failed: %s", task.get_name(), error)
