"""Entries of the `--persist` file that could not be applied at the start: kept as they stand, until they can be.

Pure memory. Each is tried again at the next start, replaced when its object is created, and dropped when it is deleted.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ubi_rpc.storage.config_file import Entry as ConfigEntry
from ubi_rpc.storage.config_file import makes_object
from ubi_rpc.storage.config_save import Entry

NAMED_MAX = 10
"""Objects that the summary names; the method tells of all."""

ObjectKey = tuple[str, str]
"""What an object is known by: "bdev" or its frontend, and its name."""

_NAME_MEMBERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "nbd_create_export": ("nbd", ("export_name", "bdev_name")),
    "vhost_create_blk_controller": ("vhost_blk", ("ctrlr",)),
    "vhost_controller_set_coalescing": ("vhost_blk", ("ctrlr",)),
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Unrestored:
    """One entry.

    Args:
        subsystem: where it stands.
        call: the entry as it stands there.
        reason: why it failed.
        position: line and column, from which the order follows.
    """

    subsystem: str
    call: Entry
    reason: str
    position: tuple[int, int] = (0, 0)

    @property
    def method(self) -> str:
        """Its method."""
        return str(self.call["method"])

    @property
    def instance(self) -> str | None:
        """Which of them it sets, "" for most, of an entry that sets options; None for any other."""
        if "_set_" not in self.method or self.method in _NAME_MEMBERS:
            return None
        params = self.call.get("params")
        return str(params.get("impl_name", "")) if isinstance(params, dict) else ""

    @property
    def key(self) -> ObjectKey | None:
        """What its object is known by; None for one that has no name of its own, such as options."""
        params = self.call.get("params")
        if not isinstance(params, dict):
            return None
        kind, members = _NAME_MEMBERS.get(self.method, ("bdev", ("name",)))
        if kind == "bdev" and not makes_object(self.method):
            return None
        name = next((params[member] for member in members if params.get(member) is not None), None)
        return (kind, name) if isinstance(name, str) else None


class UnrestoredEntries:
    """All of them, in the order of the file.

    Args:
        is_set: whether an option method has been called with success since, for an instance of it or for "".
        plain: gives the plain value of what the parser made.
    """

    def __init__(
        self, is_set: Callable[[str, str], bool] = lambda *_: False, plain: Callable[[object], object] = lambda one: one
    ) -> None:
        self._is_set = is_set
        self._plain = plain
        self._entries: list[Unrestored] = []

    def add(self, entry: ConfigEntry, reason: str) -> None:
        """Keep an entry that failed, and tell the operator."""
        call = self._plain(entry.found)
        if not isinstance(call, dict):
            raise AssertionError(f"{entry.where} is an object")
        one = Unrestored(entry.subsystem, call, reason, entry.source.position(entry.found))
        bisect.insort(self._entries, one, key=lambda other: other.position)
        _log.error("persist=%s; it stays in the file and is tried again at the next start", reason)

    def tell(self, path: object, restored: int) -> None:
        """Log how many of the file's objects are not there, beside so many that are."""
        missing = [one for one in self._entries if makes_object(one.method)]
        if not missing:
            return
        names = [one.method if one.key is None else one.key[1] for one in missing]
        more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
        _log.error(
            "persist=%s %d of %d objects were not restored: %s%s; persist_get_unrestored says why",
            path,
            len(missing),
            len(missing) + restored,
            ", ".join(names[:NAMED_MAX]),
            more,
        )

    def all(self) -> list[Unrestored]:
        """Return those that still count."""
        return [one for one in self._entries if one.instance is None or not self._is_set(one.method, one.instance)]

    def of(self, subsystem: str) -> list[Entry]:
        """Return a subsystem's entries as they stood in the file."""
        return [one.call for one in self.all() if one.subsystem == subsystem]

    def subsystems(self) -> set[str]:
        """Return where they stand."""
        return {one.subsystem for one in self.all()}

    def has_options(self, call: Entry) -> bool:
        """Whether an entry that sets the same options could not be applied."""
        wanted = Unrestored("", call, "")
        return any((one.method, one.instance) == (wanted.method, wanted.instance) for one in self.all())

    def find(self, key: ObjectKey, method: str | None = None) -> list[Unrestored]:
        """Return the entries of an object; with `method`, only if that one makes it."""
        found = [one for one in self._entries if one.key == key]
        return found if method is None or any(one.method == method for one in found) else []

    def without(self, gone: Iterable[Unrestored]) -> UnrestoredEntries:
        """Return the others."""
        left, gone = UnrestoredEntries(self._is_set, self._plain), set(gone)
        left._entries = [one for one in self._entries if one not in gone]
        return left
