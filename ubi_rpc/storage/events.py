"""What happened to the objects: a bounded history, and a way to wait for the next event.

Types and numbering are those of SPDK's notifications. Owns no object.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from dataclasses import dataclass

HISTORY = 1024
"""Events kept. Source: SPDK lib/notify/notify.c, SPDK_NOTIFY_MAX_EVENTS."""

TYPES = (
    "bdev_register",
    "bdev_unregister",
    "bdev_resize",
    "nbd_export",
    "nbd_unexport",
    "vhost_blk_export",
    "vhost_blk_unexport",
)
"""Every type there is; the first three are SPDK's."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """One event: `type` as SPDK names it (`bdev_register`), `ctx` the object's name, `id` counts from 0."""

    type: str
    ctx: str
    id: int


class Events:
    """The daemon's events, newest last."""

    def __init__(self) -> None:
        self._ids = itertools.count()
        self._history: deque[Event] = deque(maxlen=HISTORY)
        self._next: asyncio.Future[None] | None = None

    @property
    def history(self) -> list[Event]:
        """The last `HISTORY` events, oldest first."""
        return list(self._history)

    def emit(self, event_type: str, ctx: str) -> None:
        """Record an event of one of `TYPES`, log it once and wake who waits for one."""
        if event_type not in TYPES:
            raise AssertionError(f"{event_type} is no type of event")
        self._history.append(Event(event_type, ctx, next(self._ids)))
        _log.info("object=%s event=%s", ctx, event_type)
        if self._next is not None:
            self._next.set_result(None)
            self._next = None

    async def wait(self) -> None:
        """Return at the next event after this call."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._next)
