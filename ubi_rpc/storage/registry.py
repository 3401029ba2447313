"""The named objects: names and aliases, who stands on whom, who claims what.

Pure memory, all of it synchronous: what is read here and decided before the next await is true. Opens and closes
nothing; `lifecycle` acts.
"""

from __future__ import annotations

import errno
from collections import Counter
from typing import Any

from ubi_rpc.bdevs.kind import BdevKind, BdevParams
from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.files import FileId
from ubi_rpc.frontends.export import Frontend
from ubi_rpc.storage.entries import BdevEntry, ExportEntry, ObjectState
from ubi_rpc.storage.turns import Key


class FileUsers:
    """Which bdevs use which files: one writes, or many read."""

    def __init__(self) -> None:
        self._users: dict[bool, dict[FileId, list[BdevEntry]]] = {True: {}, False: {}}  # by whether they write

    def require(self, entry: BdevEntry) -> None:
        """Raise busy when a file of `entry` is in use otherwise.

        A file whose bdev is being deleted is about to be free: the engine waits for its lock.
        """
        for file, writes in entry.files.items():
            others = [*self._users[True].get(file, ()), *(self._users[False].get(file, ()) if writes else ())]
            for other in others:
                if other.state is not ObjectState.DELETING:
                    raise UbiError(
                        ErrorKind.BUSY,
                        f"a file of bdev {entry.name} is in use by bdev {other.name} of kind {other.kind.name}",
                    )

    def add(self, entry: BdevEntry) -> None:
        """Note what `entry` uses."""
        for file, writes in entry.files.items():
            self._users[writes].setdefault(file, []).append(entry)

    def remove(self, entry: BdevEntry) -> None:
        """Forget what `entry` uses."""
        for file, writes in entry.files.items():
            users = self._users[writes][file]
            users.remove(entry)
            if not users:
                del self._users[writes][file]


class Registry:
    """All objects of the daemon."""

    def __init__(self) -> None:
        self._bdevs: dict[str, BdevEntry] = {}
        self._by_alias: dict[str, BdevEntry] = {}
        self._exports: dict[tuple[str, str], ExportEntry] = {}
        self._default_names: Counter[str] = Counter()
        self._files = FileUsers()

    def bdevs(self) -> list[BdevEntry]:
        """Return the online bdevs in the order in which they were asked for."""
        online = [entry for entry in self._bdevs.values() if entry.state is ObjectState.ONLINE]
        return sorted(online, key=lambda entry: entry.number)

    def find(self, name: str) -> BdevEntry:
        """Return the online bdev called `name`, which may be its uuid.

        Raises:
            UbiError: not_found.
        """
        entry = self._by_alias.get(name)
        if entry is None or entry.state is not ObjectState.ONLINE:
            raise UbiError(ErrorKind.NOT_FOUND, f"no bdev is called {name!r}; bdev_get_bdevs lists them")
        return entry

    def find_kind(self, kind: BdevKind[Any, Any], name: str) -> BdevEntry:
        """Return the online bdev called `name` if it is of this kind, else raise not_found as SPDK does."""
        entry = self.find(name)
        if entry.kind is not kind:
            raise UbiError(ErrorKind.NOT_FOUND, f"bdev {name!r} is of kind {entry.kind.name}, not {kind.name}")
        return entry

    def keys(self, name: str) -> set[Key]:
        """Return what a request that names this bdev touches: its name and its uuid, or just what was said."""
        entry = self._by_alias.get(name)
        return {("bdev", name)} if entry is None else {("bdev", entry.name), ("bdev", entry.uuid)}

    def keys_of_stack(self, name: str) -> set[Key]:
        """Return the keys of the bdev, of what stands on it, and of their exports."""
        entry = self._by_alias.get(name)
        if entry is None:
            return {("bdev", name)}
        keys: set[Key] = set()
        for one in self.stack(entry):
            keys |= self.keys(one.name)
            keys |= {(export.frontend.name, export.plan.name) for export in one.exports}
        return keys

    def stack(self, entry: BdevEntry) -> list[BdevEntry]:
        """Return what stands on `entry`, top first, and `entry` itself last."""
        stack = [entry]
        while (above := stack[0].claimed_by) is not None:
            stack.insert(0, above)
        return stack

    def default_name(self, prefix: str) -> str:
        """Return the next free name that starts with `prefix`; each is given once."""
        while True:
            name = f"{prefix}{self._default_names[prefix]}"
            self._default_names[prefix] += 1
            if name not in self._by_alias:
                return name

    def find_base(self, name: str) -> BdevEntry:
        """Return the bdev called `name` if another may stand on it.

        Raises:
            UbiError: not_found; permission when it is claimed, or when clients may write to it.
        """
        entry = self.find(name)
        self._refuse_claimed(entry)
        if any(not export.plan.readonly for export in entry.exports):
            raise UbiError(
                ErrorKind.PERMISSION,
                f"bdev {entry.name} is exported for writing; delete the export before something stands on it",
                errno=errno.EPERM,
            )
        return entry

    def refuse_repeated(self, kind: BdevKind[Any, Any], name: str, params: BdevParams) -> None:
        """Raise already_exists when this create made the bdev of that name: a caller that repeats itself is told so."""
        other = self._bdevs.get(name)
        if other is not None and other.state is ObjectState.ONLINE and other.is_made_by(kind, params):
            raise UbiError(ErrorKind.ALREADY_EXISTS, f"bdev {name} already exists and is the same", same=True)

    def reserve(self, entry: BdevEntry) -> None:
        """Take the names of a bdev that is about to be made, and claim its base. All or nothing.

        Raises:
            UbiError: invalid_params for an empty name, already_exists for a name or uuid that is taken, busy for a file
                that another bdev writes to, or reads while this one would write.
        """
        if not entry.name:
            raise UbiError(ErrorKind.INVALID_PARAMS, "a bdev's name is not empty")
        for alias in (entry.name, entry.uuid):
            if (other := self._by_alias.get(alias)) is not None:
                raise UbiError(
                    ErrorKind.ALREADY_EXISTS,
                    f"{alias!r} is already the name or uuid of bdev {other.name}, which is another one",
                    same=False,
                )
        self._files.require(entry)
        if entry.base is not None:
            self._refuse_claimed(entry.base)
            entry.base.claimed_by = entry
        self._files.add(entry)
        self._bdevs[entry.name] = entry
        self._by_alias[entry.name] = entry
        self._by_alias[entry.uuid] = entry

    def rename_alias(self, entry: BdevEntry, uuid: str) -> None:
        """Give a bdev the uuid that turned out to be its own.

        Raises:
            UbiError: already_exists when another has it, as a copy of the base would.
        """
        if uuid == entry.uuid:
            return
        if (other := self._by_alias.get(uuid)) is not None:
            raise UbiError(
                ErrorKind.ALREADY_EXISTS,
                f"bdev {entry.name} is volume {uuid}, and so is bdev {other.name}: one of them is a copy",
                same=False,
            )
        del self._by_alias[entry.uuid]
        entry.uuid = uuid
        self._by_alias[uuid] = entry

    def release(self, entry: BdevEntry) -> None:
        """Give the names and the claim back."""
        self._files.remove(entry)
        del self._bdevs[entry.name]
        self._by_alias.pop(entry.name)
        self._by_alias.pop(entry.uuid, None)
        if entry.base is not None:
            entry.base.claimed_by = None

    def exports(self, frontend: Frontend[Any]) -> list[ExportEntry]:
        """Return a frontend's online exports in order of creation."""
        return [export for export in self.all_exports() if export.frontend is frontend]

    def all_exports(self) -> list[ExportEntry]:
        """Return the online exports of every frontend in the order in which they were asked for."""
        online = [export for export in self._exports.values() if export.state is ObjectState.ONLINE]
        return sorted(online, key=lambda export: export.number)

    def find_export(self, frontend: Frontend[Any], name: str) -> ExportEntry:
        """Return the online export called `name`, or raise not_found."""
        export = self._exports.get((frontend.name, name))
        if export is None or export.state is not ObjectState.ONLINE:
            raise UbiError(ErrorKind.NOT_FOUND, f"no {frontend.name} export is called {name!r}")
        return export

    def reserve_export(self, export: ExportEntry) -> None:
        """Take the name of an export that is about to be made.

        Raises:
            UbiError: already_exists for a taken name or a second default on one listener; permission when it would
                write to a bdev that another one claims.
        """
        plan, frontend = export.plan, export.frontend
        if not plan.readonly:
            self._refuse_claimed(export.entry)
        if (frontend.name, plan.name) in self._exports:
            same = self._exports[(frontend.name, plan.name)].is_made_by(export.entry, export.params)
            raise UbiError(
                ErrorKind.ALREADY_EXISTS,
                f"{frontend.name} export {plan.name!r} already exists and is {'the same' if same else 'another one'}",
                same=same,
            )
        for other in self._exports.values():
            if plan.default and other.plan.default and other.plan.listener == plan.listener and not plan.any_port:
                raise UbiError(
                    ErrorKind.ALREADY_EXISTS, f"{other.plan.name!r} is already the default export of {plan.listener}"
                )
        self._exports[(frontend.name, plan.name)] = export
        export.entry.exports.append(export)

    def release_export(self, export: ExportEntry) -> None:
        """Give the name back."""
        del self._exports[(export.frontend.name, export.plan.name)]
        export.entry.exports.remove(export)

    @staticmethod
    def _refuse_claimed(entry: BdevEntry) -> None:
        if entry.claimed_by is not None:
            raise UbiError(
                ErrorKind.PERMISSION,
                f"bdev {entry.name} is claimed by {entry.claimed_by.name} (exclusive_write)",
                errno=errno.EPERM,
            )
