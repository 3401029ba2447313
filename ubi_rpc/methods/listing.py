"""Lists of objects that come and go while they are asked about."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from ubi_rpc.errors import UbiError
from ubi_rpc.storage.entries import BdevEntry, ExportEntry, ObjectState

EntryT = TypeVar("EntryT", BdevEntry, ExportEntry)


async def describe_all(
    entries: Iterable[EntryT], describe: Callable[[EntryT], Awaitable[dict[str, object]]]
) -> list[dict[str, object]]:
    """Return what `describe` says of each, in order, without those that went meanwhile."""
    shown = []
    for entry in entries:
        try:
            shown.append(await describe(entry))
        except UbiError:
            if entry.state is ObjectState.ONLINE:  # otherwise it went while it was asked
                raise
    return shown
