"""Create, delete, cascade, undo: the only place where objects come and go.

Each operation decides without waiting, from the registry and from facts gathered before, reserves the name, acts, and
keeps an undo stack until it has succeeded. `turns` puts operations on one object in order; once an act has begun it is
not cancelled.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

from ubi_rpc.bdevs.kind import NULL_UUID, BdevKind, BdevParams
from ubi_rpc.engine import Engine
from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.files import Files, Lookup
from ubi_rpc.frontends.export import Frontend
from ubi_rpc.params import Params
from ubi_rpc.storage.config_keep import ConfigKeeper, Kept
from ubi_rpc.storage.entries import BdevEntry, ExportEntry, ObjectState
from ubi_rpc.storage.events import Events
from ubi_rpc.storage.registry import Registry
from ubi_rpc.storage.turns import Key, Turns
from ubi_rpc.storage.unrestored import ObjectKey, Unrestored

SETTLE_LIMIT_S = 0.5
"""How long a question waits for the creations and deletions that were asked for before it."""

_log = logging.getLogger(__name__)


class Lifecycle:
    """Creates and deletes bdevs and exports.

    Args:
        engine: makes them.
        registry: the objects; read freely, changed here alone.
        events: told of every object that came or went.
        files: where files of requests may be; everywhere when left out.
        keeper: writes what there is to a file before a request is answered; None for no file.
    """

    def __init__(
        self,
        engine: Engine,
        registry: Registry,
        events: Events,
        files: Files | None = None,
        keeper: ConfigKeeper | None = None,
    ) -> None:
        self.registry = registry
        self.events = events
        self._engine = engine
        self._files = Files() if files is None else files
        self._keeper = keeper
        self._turns = Turns()
        self._numbers = itertools.count()
        self._stopping = False

    async def create_bdev(self, kind: BdevKind[Any, Any], params: BdevParams) -> str:
        """Create a bdev and return its name.

        Raises:
            UbiError: as `kind.plan` and `kind.open`; not_found for an absent base, permission for a claimed one,
                already_exists for a taken name or uuid; as `ConfigKeeper.change`. Nothing was created.
        """
        name = params.name
        if name is None:
            if kind.default_prefix is None:
                raise AssertionError(f"a {kind.name} bdev always has a name")
            kind.plan(params, None, None)  # refused parameters use up no name; such a kind needs no other facts
            name = self.registry.default_name(kind.default_prefix)
        base, given, number = params.base, params.uuid, next(self._numbers)

        def keys() -> set[Key]:
            touched: set[Key] = {("bdev", name)} if given is None else {("bdev", name), ("bdev", given)}
            return touched if base is None else touched | self.registry.keys(base)

        await self._turns.run(keys, lambda: self._create_bdev(kind, name, params, number))
        return name

    async def _create_bdev(self, kind: BdevKind[Any, Any], name: str, params: BdevParams, number: int) -> None:
        with Lookup(self._files, self._engine.call) as files:
            facts = await kind.probe(files, params)
            entry = self._plan_bdev(kind, name, params, facts)
            entry.number = number
            async with AsyncExitStack() as undo:
                undo.callback(self.registry.release, entry)
                base = entry.base.bdev if entry.base else None
                entry.handle = await kind.open(self._engine, name, params, facts, base)
                undo.push_async_callback(_undo, entry.handle.close)
                entry.params = await kind.settled(params, entry.handle)
                self.registry.rename_alias(entry, entry.handle.info.uuid or entry.uuid)
                await self._keep(added=[entry])
                undo.pop_all()
        entry.state = ObjectState.ONLINE
        self.events.emit("bdev_register", name)

    def _plan_bdev(self, kind: BdevKind[Any, Any], name: str, params: BdevParams, facts: object) -> BdevEntry:
        """Decide in bdev_ubi's order: base absent, base claimed, the kind's own checks, the name; then the files.

        A repeated create comes before all of them: it finds its own base claimed.
        """
        self._refuse_when_stopping()
        self.registry.refuse_repeated(kind, name, params)
        base = None if params.base is None else self.registry.find_base(params.base)
        kind.plan(params, facts, None if base is None else base.bdev.info)
        alias = params.uuid if params.uuid not in {None, NULL_UUID} else None
        files = kind.files(params, facts)
        entry = BdevEntry(name=name, uuid=alias or str(uuid.uuid4()), kind=kind, params=params, base=base, files=files)
        self.registry.reserve(entry)
        return entry

    async def delete_bdev(self, kind: BdevKind[Any, Any], name: str) -> None:
        """Delete a bdev with everything that stands on it, top first, exports before the bdev that they serve.

        One that is kept for the next start, since it could not be restored at this one, is forgotten.

        Raises:
            UbiError: not_found for no such bdev of this kind; as `ConfigKeeper.change`, and nothing was deleted. Any
                other error was met while closing: the objects are gone all the same, but the last writes of one may not
                be durable.
        """

        async def act() -> None:
            try:
                await self._delete_bdev(kind, name)
            except UbiError as error:
                if not await self._forget_unrestored(error, ("bdev", name), f"bdev_{kind.name}_create"):
                    raise

        await self._turns.run(lambda: self.registry.keys_of_stack(name), act)

    async def _delete_bdev(self, kind: BdevKind[Any, Any], name: str, *, forget: bool = True) -> None:
        """Delete; `forget`: for good, not just until the daemon starts again."""
        doomed = self.registry.stack(self.registry.find_kind(kind, name))
        if forget:
            await self._keep(removed=[*doomed, *(export for entry in doomed for export in entry.exports)])
        for entry in doomed:
            entry.state = ObjectState.DELETING
        failures = _Failures()
        for entry in doomed:
            for export in list(entry.exports):
                await failures.collect(functools.partial(self._close_export, export))
            await failures.collect(entry.bdev.close)
            self.registry.release(entry)
            self.events.emit("bdev_unregister", entry.name)
        failures.raise_first()

    async def resize_bdev(self, name: str, plan: Callable[[BdevEntry], int | None]) -> None:
        """Let a bdev grow, and with it what stands on it. Clients that connect afterwards see the new sizes.

        Args:
            name: its name or uuid.
            plan: gives the new number of blocks, None for what the storage has by now; raises to refuse.

        Raises:
            UbiError: not_found; as `plan`; invalid_params or busy for less than it has. Its size is the old one. As
                `ConfigKeeper.change`: it has grown, and the file does not say so yet. As what stands on it, which has
                its old size then: the same call tries it again.
        """
        await self._turns.run(lambda: self.registry.keys_of_stack(name), lambda: self._resize_bdev(name, plan))

    async def _resize_bdev(self, name: str, plan: Callable[[BdevEntry], int | None]) -> None:
        entry = self.registry.find(name)
        wanted = plan(entry)
        has_grown = await self._grow(entry, wanted)
        if has_grown and wanted is not None:
            entry.params = entry.params.model_copy(update={"num_blocks": entry.bdev.info.num_blocks})
            await self._keep()
        for above in reversed(self.registry.stack(entry)[:-1]):
            if above.state is ObjectState.ONLINE:
                await self._grow(above, None)

    async def _grow(self, entry: BdevEntry, num_blocks: int | None) -> bool:
        """Let one bdev grow and tell its clients; return whether it has another size now."""
        had = entry.bdev.info.num_blocks
        await entry.bdev.resize(num_blocks)
        if entry.bdev.info.num_blocks == had:
            return False
        for export in entry.exports:
            if export.state is ObjectState.ONLINE:
                await export.opened.resized()
        self.events.emit("bdev_resize", entry.name)
        return True

    async def create_export(
        self, frontend: Frontend[Any], bdev_name: str, export_name: str | None, params: Params
    ) -> ExportEntry:
        """Offer a bdev by a frontend.

        Raises:
            UbiError: not_found for an absent bdev; permission for writing to a claimed one; already_exists for a taken
                export name; as the frontend; as `ConfigKeeper.change`. Nothing was created.
        """

        def keys() -> set[Key]:
            return {(frontend.name, bdev_name if export_name is None else export_name)} | self.registry.keys(bdev_name)

        number = next(self._numbers)
        return await self._turns.run(keys, lambda: self._create_export(frontend, bdev_name, params, number))

    async def _create_export(self, frontend: Frontend[Any], bdev_name: str, params: Params, number: int) -> ExportEntry:
        self._refuse_when_stopping()
        entry = self.registry.find(bdev_name)
        export = ExportEntry(frontend, frontend.plan(params, entry.name, entry.bdev.info), entry, params, number=number)
        self.registry.reserve_export(export)
        async with AsyncExitStack() as undo:
            undo.callback(self.registry.release_export, export)
            export.handle = await frontend.open(export.plan, params, entry.bdev)
            undo.push_async_callback(_undo, export.handle.close)
            await self._keep(added=[export])
            undo.pop_all()
        export.plan = dataclasses.replace(export.plan, listener=export.handle.listener)
        export.state = ObjectState.ONLINE
        self.events.emit(f"{frontend.name}_export", export.plan.name)
        return export

    async def delete_export(self, frontend: Frontend[Any], name: str) -> None:
        """Take an export away: new clients are refused, what is in flight is finished, connections end.

        One that is kept for the next start, since it could not be restored at this one, is forgotten.

        Raises:
            UbiError: not_found; as `ConfigKeeper.change`, and nothing was deleted.
        """

        async def act() -> None:
            try:
                export = self.registry.find_export(frontend, name)
            except UbiError as error:
                if not await self._forget_unrestored(error, (frontend.name, name)):
                    raise
                return
            await self._keep(removed=[export])
            await self._close_export(export)

        await self._turns.run(lambda: {(frontend.name, name)}, act)

    async def change_export(
        self, frontend: Frontend[Any], name: str, change: Callable[[ExportEntry], Awaitable[None]]
    ) -> None:
        """Change how an export behaves.

        Raises:
            UbiError: not_found; as `change`; as `ConfigKeeper.change`: it has changed, and the file does not
                say so yet.
        """

        async def act() -> None:
            await change(self.registry.find_export(frontend, name))
            await self._keep()

        await self._turns.run(lambda: {(frontend.name, name)}, act)

    async def _close_export(self, export: ExportEntry) -> None:
        export.state = ObjectState.DELETING
        try:
            await export.opened.close()
        finally:
            self.registry.release_export(export)
            self.events.emit(f"{export.frontend.name}_unexport", export.plan.name)

    async def settle(self, name: str | None = None) -> None:
        """Wait a short while for what was asked before, so that a pipelined question sees what it follows."""
        await self._turns.settled(None if name is None else self.registry.keys(name), SETTLE_LIMIT_S)

    async def stop(self) -> None:
        """Finish what acts, then delete every object, stacks side by side.

        Creations that still wait for their turn are refused.

        Raises:
            UbiError: the first error met while closing; the objects are gone all the same.
        """
        self._stopping = True
        await self._turns.drain()
        failures = _Failures()
        await asyncio.gather(
            *(
                failures.collect(functools.partial(self._stop_stack, entry))
                for entry in self.registry.bdevs()
                if entry.base is None
            )
        )
        failures.raise_first()

    async def _stop_stack(self, entry: BdevEntry) -> None:
        keys = functools.partial(self.registry.keys_of_stack, entry.name)
        await self._turns.run(keys, lambda: self._delete_bdev(entry.kind, entry.name, forget=False))

    def unrestored(self) -> list[Unrestored]:
        """Return the entries of the kept file that could not be applied and still are in it."""
        return [] if self._keeper is None else self._keeper.unrestored.all()

    async def _forget_unrestored(self, error: UbiError, key: ObjectKey, method: str | None = None) -> bool:
        """After an object was not found: take the entries that should have made it out of the file, if any."""
        found = [] if self._keeper is None else self._keeper.unrestored.find(key, method)
        if self._keeper is None or error.kind is not ErrorKind.NOT_FOUND or not found:
            return False
        await self._keeper.change(dropped=found)
        return True

    async def _keep(self, *, added: Iterable[Kept] = (), removed: Iterable[Kept] = ()) -> None:
        if self._keeper is not None:
            await self._keeper.change(added=added, removed=removed)

    def _refuse_when_stopping(self) -> None:
        if self._stopping:
            raise UbiError(ErrorKind.CANCELLED, "the daemon is stopping; nothing is created any more")


async def _undo(close: Callable[[], Awaitable[None]]) -> None:
    """Close what is not wanted after all; the caller is told why, not how the close went."""
    try:
        await close()
    except UbiError as error:
        _log.error("undo failed as well: %s", error)


class _Failures:
    """The errors of steps that all have to be tried."""

    def __init__(self) -> None:
        self._errors: list[UbiError] = []

    async def collect(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except UbiError as error:
            self._errors.append(error)

    def raise_first(self) -> None:
        for error in self._errors[1:]:
            _log.error("close failed as well: %s", error)
        if self._errors:
            raise self._errors[0]
