"""`--persist FILE`: the running configuration in a file, written before a create or a delete is answered.

Owns which objects are in the file. A change is in the file, whole and durable, or it has failed: whoever made it
undoes it, and the file is as it was before. Requests that come together share one write, so a thousand creations do not
cost a thousand syncs.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass

from ubi_rpc.errors import UbiError
from ubi_rpc.storage.config_save import OptionEntries, document
from ubi_rpc.storage.entries import BdevEntry, ExportEntry
from ubi_rpc.storage.kept_file import KeptFile

Kept = BdevEntry | ExportEntry

LOADING: ContextVar[bool] = ContextVar("LOADING", default=False)
"""Set in the task that applies a configuration: its objects are not written one by one."""

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Change:
    added: tuple[Kept, ...]
    removed: tuple[Kept, ...]
    done: asyncio.Future[None]


class ConfigKeeper:
    """Keeps the configuration in the file.

    Args:
        file: where.
        options: gives the entries of a subsystem's options.
    """

    def __init__(self, file: KeptFile, options: OptionEntries) -> None:
        self._file = file
        self._options = options
        self._kept: dict[Kept, None] = {}
        """What the file has; there it is in the order in which it was asked for."""
        self._waiting: list[_Change] = []
        self._writing: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()

    async def change(self, *, added: Iterable[Kept] = (), removed: Iterable[Kept] = ()) -> None:
        """Put objects into the file, or take them out of it; return when that is durable.

        Raises:
            UbiError: no_space, permission or io: the file cannot be written and says what it said before.
        """
        change = _Change(tuple(added), tuple(removed), asyncio.get_running_loop().create_future())
        if not self._begun.is_set():
            if LOADING.get():
                self._apply(change)
                return
            await self._begun.wait()
        self._waiting.append(change)
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write_all())
        await change.done

    async def begin(self, loaded: object) -> None:
        """Write from now on.

        Args:
            loaded: what the file said at the start; None when there was no file.

        Raises:
            UbiError: there was no file and it cannot be written.
        """
        self._begun.set()
        if loaded == self._document():
            return
        if loaded is not None:
            await self._set_aside()
        try:
            await self.change()
        except UbiError as error:
            if loaded is None:
                raise
            _log.error("%s", error)  # what was asked to run runs; the next change tries again

    async def _set_aside(self) -> None:
        try:
            aside = await asyncio.to_thread(self._file.set_aside)
        except OSError as error:
            _log.error("%s", self._file.failed(error))
        else:
            _log.warning("persist=%s said something else than what runs now: kept as %s", self._file.path, aside)

    async def _write_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            before = dict(self._kept)
            for change in batch:
                self._apply(change)
            try:
                await self._write(before)
            except UbiError as error:
                self._kept = before
                for change in _still_wanted(batch):
                    change.done.set_exception(UbiError(error.kind, error.message, errno=error.errno))
            else:
                for change in _still_wanted(batch):
                    change.done.set_result(None)
        self._writing = None

    def _apply(self, change: _Change) -> None:
        self._kept |= dict.fromkeys(change.added)
        for gone in change.removed:
            self._kept.pop(gone, None)

    async def _write(self, before: dict[Kept, None]) -> None:
        """Write the file; when only its last step fails, write it again as it was `before`."""
        try:
            await asyncio.to_thread(self._file.prepare, _encoded(self._document()))
        except OSError as error:
            raise self._file.failed(error) from error
        try:
            await asyncio.to_thread(self._file.put_in_place)
        except OSError as error:
            self._kept = before
            with suppress(OSError):
                await asyncio.to_thread(self._file.prepare, _encoded(self._document()))
                await asyncio.to_thread(self._file.put_in_place)
            raise self._file.failed(error) from error

    def _document(self) -> dict[str, object]:
        kept = sorted(self._kept, key=lambda one: one.number)
        bdevs = [one for one in kept if isinstance(one, BdevEntry)]
        exports = [one for one in kept if isinstance(one, ExportEntry)]
        return document(bdevs, exports, self._options)


def _still_wanted(changes: list[_Change]) -> list[_Change]:
    return [change for change in changes if not change.done.done()]


def _encoded(value: object) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
