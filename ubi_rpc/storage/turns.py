"""Whose turn it is: requests that touch the same object act one after the other, in order of arrival.

SPDK's handlers for these methods finish before the next request is looked at, so a client may pipeline "create a,
create b on a, delete b" and rely on it. Here they wait for storage; turns keep that order per object, while requests
for different objects overlap. Knows keys, not objects; decides nothing about them.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

Key = tuple[str, str]
"""A namespace and a name in it, such as ("bdev", "aio0")."""

R = TypeVar("R")

_log = logging.getLogger(__name__)


class _Ticket:
    """One request. It stands in the queue of each of its keys, and acts once it is first in all of them."""

    __slots__ = ("done", "granted", "keys", "number", "queues")

    def __init__(self, number: int, keys: Callable[[], set[Key]]) -> None:
        loop = asyncio.get_running_loop()
        self.number = number
        self.keys = keys
        self.queues: set[Key] = set()
        self.granted: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()

    @property
    def acting(self) -> bool:
        """Whether its turn has come and is not over."""
        return self.granted.done() and not self.granted.cancelled() and not self.done.done()


class Turns:
    """The requests that change objects, in a queue for each key.

    What is done with is taken out of a queue when it has come to its front.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._queues: dict[Key, deque[_Ticket]] = {}
        self._tickets: dict[_Ticket, None] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, keys: Callable[[], set[Key]], act: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Run `act` when no earlier request shares a key with this one.

        Until then the caller can be cancelled and nothing happened. Once `act` has started it runs to its end,
        whether the caller is still there or not.

        Args:
            keys: what the request touches, as of now; asked again whenever its turn may have come, because what
                stands on an object changes while the request waits. What it once touched stays its own.
            act: decides without waiting, then acts.
        """
        ticket = _Ticket(next(self._numbers), keys)
        self._tickets[ticket] = None
        self._grant_if_first(ticket)
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
        if keys is None:
            ahead = [ticket.done for ticket in self._tickets]
        else:
            ahead = [ticket.done for key in keys for ticket in self._queues.get(key, ()) if not ticket.done.done()]
        if ahead:
            await asyncio.wait(ahead, timeout=limit_s)

    async def drain(self) -> None:
        """Wait until nothing acts any more."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _grant_if_first(self, ticket: _Ticket) -> None:
        for key in ticket.keys() - ticket.queues:
            self._enqueue(key, ticket)
        if all(self._first(key) is ticket for key in ticket.queues):
            ticket.granted.set_result(None)

    def _enqueue(self, key: Key, ticket: _Ticket) -> None:
        """Stand in a queue: behind what acts, before what waits and came later.

        Waiting requests stand in the order of their numbers in every queue, so none waits for another in a circle.
        """
        queue = self._queues.setdefault(key, deque())
        ticket.queues.add(key)
        if not queue or queue[-1].number < ticket.number:
            queue.append(ticket)
            return
        later = (place for place, other in enumerate(queue) if other.number > ticket.number and not other.acting)
        queue.insert(next(later, len(queue)), ticket)

    def _first(self, key: Key) -> _Ticket | None:
        queue = self._queues.get(key)
        while queue and queue[0].done.done():
            queue.popleft()
        if queue:
            return queue[0]
        self._queues.pop(key, None)
        return None

    def _leave(self, ticket: _Ticket) -> None:
        del self._tickets[ticket]
        ticket.done.set_result(None)
        firsts = {first for key in ticket.queues if (first := self._first(key)) is not None}
        for first in sorted(firsts, key=lambda waiting: waiting.number):
            if not first.granted.done():  # one that was cancelled leaves as soon as it runs
                self._grant_if_first(first)


def _log_abandoned(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("act=%s abandoned by its caller and failed: %s", task.get_name(), error)
