"""What the registry keeps of each object: a bdev or an export by name, and where it is in its life."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ubi_rpc.bdevs.kind import NULL_UUID, BdevKind, BdevParams
from ubi_rpc.engine import Bdev
from ubi_rpc.files import FileId
from ubi_rpc.frontends.export import Export, ExportPlan, Frontend
from ubi_rpc.params import Params
from ubi_rpc.storage.stats import Baseline


class ObjectState(StrEnum):
    """Where an object is in its life. Only an online one can be found by a request."""

    CREATING = "creating"
    ONLINE = "online"
    DELETING = "deleting"


@dataclass(slots=True, eq=False)
class BdevEntry:
    """A bdev by name.

    Args:
        name: its name.
        uuid: its uuid, lower case; an alias of the name.
        kind: what sort of bdev.
        params: what it was created with.
        base: the bdev that it stands on and claims.
        files: the files that it uses, each with whether it writes to it.
        state: see `ObjectState`.
        handle: the open bdev, from ONLINE on.
        claimed_by: the bdev that stands on this one.
        exports: the exports that serve this one, in order of creation.
        stats: the zero point of its statistics.
        number: objects are listed by it: the order in which they were asked for.
    """

    name: str
    uuid: str
    kind: BdevKind[Any, Any]
    params: BdevParams
    base: BdevEntry | None
    files: dict[FileId, bool]
    state: ObjectState = ObjectState.CREATING
    handle: Bdev | None = None
    claimed_by: BdevEntry | None = None
    exports: list[ExportEntry] = field(default_factory=list)
    stats: Baseline = field(default_factory=Baseline)
    number: int = 0

    def is_made_by(self, kind: BdevKind[Any, Any], params: BdevParams) -> bool:
        """Say whether a create with these parameters would make this very bdev; a uuid left out may be any."""
        return (
            self.kind is kind
            and params.uuid in {None, NULL_UUID, self.uuid}
            and kind.saved(self.params) == kind.saved(params)
        )

    @property
    def bdev(self) -> Bdev:
        """The open bdev of an entry that has been online."""
        if self.handle is None:
            raise AssertionError(f"bdev {self.name} is not open")
        return self.handle


@dataclass(slots=True, eq=False)
class ExportEntry:
    """An export by name, of one frontend, with the parameters that it was created with."""

    frontend: Frontend[Any]
    plan: ExportPlan
    entry: BdevEntry
    params: Params
    state: ObjectState = ObjectState.CREATING
    handle: Export | None = None
    number: int = 0

    def is_made_by(self, entry: BdevEntry, params: Params) -> bool:
        """Say whether a create with these parameters would make this very export, of a bdev called in either way."""
        names = {"bdev_name", "export_name", "dev_name", "ctrlr"}
        return self.entry is entry and self.params.model_dump(exclude=names) == params.model_dump(exclude=names)

    @property
    def opened(self) -> Export:
        """The open export of an entry that has been online."""
        if self.handle is None:
            raise AssertionError(f"export {self.plan.name} is not open")
        return self.handle
