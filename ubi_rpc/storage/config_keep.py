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
from ubi_rpc.storage.config_save import Entry, OptionEntries, document
from ubi_rpc.storage.entries import BdevEntry, ExportEntry
from ubi_rpc.storage.kept_file import KeptFile
from ubi_rpc.storage.unrestored import Unrestored, UnrestoredEntries

Kept = BdevEntry | ExportEntry

LOADING: ContextVar[bool] = ContextVar("LOADING", default=False)
"""Set in the task that applies a configuration: its objects are not written one by one."""

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Change:
    added: tuple[Kept, ...]
    removed: tuple[Kept, ...]
    dropped: tuple[Unrestored, ...]
    done: asyncio.Future[None]


class ConfigKeeper:
    """Keeps the configuration in the file.

    Args:
        file: where.
        options: gives the entries of a subsystem's options.
        unrestored: entries of the file that could not be applied, which stay in it.
    """

    def __init__(self, file: KeptFile, options: OptionEntries, unrestored: UnrestoredEntries | None = None) -> None:
        self._file = file
        self._options = options
        self.unrestored = UnrestoredEntries() if unrestored is None else unrestored
        """Changed here alone once the file is written."""
        self._kept: dict[Kept, None] = {}
        """What the file has; there it is in the order in which it was asked for."""
        self._waiting: list[_Change] = []
        self._writing: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()

    async def change(
        self, *, added: Iterable[Kept] = (), removed: Iterable[Kept] = (), dropped: Iterable[Unrestored] = ()
    ) -> None:
        """Put objects into the file, or take them out of it; return when that is durable.

        An object that is added takes the place of entries of its name that could not be applied.

        Raises:
            UbiError: no_space, permission or io: the file cannot be written and says what it said before.
        """
        change = _Change(tuple(added), tuple(removed), tuple(dropped), asyncio.get_running_loop().create_future())
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
        self.unrestored.tell(self._file.path, len(self._kept))
        if _is_same(loaded, self._document()):
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
            before = (dict(self._kept), self.unrestored)
            for change in batch:
                self._apply(change)
            try:
                await self._write(before)
            except UbiError as error:
                self._kept, self.unrestored = before
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
        replaced = [one for added in change.added for one in self.unrestored.find(key_of(added))]
        if replaced or change.dropped:
            self.unrestored = self.unrestored.without([*replaced, *change.dropped])

    async def _write(self, before: tuple[dict[Kept, None], UnrestoredEntries]) -> None:
        """Write the file; when only its last step fails, write it again as it was `before`."""
        try:
            await asyncio.to_thread(self._file.prepare, _encoded(self._document()))
        except OSError as error:
            raise self._file.failed(error) from error
        try:
            await asyncio.to_thread(self._file.put_in_place)
        except OSError as error:
            self._kept, self.unrestored = before
            with suppress(OSError):
                await asyncio.to_thread(self._file.prepare, _encoded(self._document()))
                await asyncio.to_thread(self._file.put_in_place)
            raise self._file.failed(error) from error

    def _document(self) -> dict[str, object]:
        kept = sorted(self._kept, key=lambda one: one.number)
        bdevs = [one for one in kept if isinstance(one, BdevEntry)]
        exports = [one for one in kept if isinstance(one, ExportEntry)]
        more = {name: self.unrestored.of(name) for name in self.unrestored.subsystems()}
        return document(bdevs, exports, self._options_that_apply, more)

    def _options_that_apply(self, subsystem: str) -> list[Entry]:
        """Return the options without the defaults of those whose entry could not be applied."""
        return [entry for entry in self._options(subsystem) if not self.unrestored.has_options(entry)]


def key_of(kept: Kept) -> tuple[str, str]:
    """Return what an object is known by among entries."""
    return ("bdev", kept.name) if isinstance(kept, BdevEntry) else (kept.frontend.name, kept.plan.name)


def _is_same(loaded: object, written: dict[str, object]) -> bool:
    """Whether a file says what would be written, whatever the order of its entries."""
    return loaded == written or _entries(loaded) == _entries(written)


def _entries(configuration: object) -> list[str] | None:
    match configuration:
        case {"subsystems": [*subsystems]}:
            found = [(one["subsystem"], entry) for one in subsystems for entry in one["config"] or ()]
            return sorted(json.dumps(entry, sort_keys=True, default=repr) for entry in found)
        case _:
            return None


def _still_wanted(changes: list[_Change]) -> list[_Change]:
    return [change for change in changes if not change.done.done()]


def _encoded(value: object) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
