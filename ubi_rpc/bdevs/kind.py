"""What a bdev kind is, and what the kinds share: the parameters, the plan, the opening, the description.

A kind turns parameters into native options. It knows neither names nor claims; those are `storage`'s.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from ubi_rpc.engine import Bdev, BdevInfo, Engine
from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.files import FileId, Lookup
from ubi_rpc.params import Params, Text, Uuid

IO_TYPES = (
    "read",
    "write",
    "unmap",
    "flush",
    "reset",
    "nvme_admin",
    "nvme_io",
    "nvme_io_md",
    "write_zeroes",
    "zcopy",
    "get_zone_info",
    "zone_management",
    "zone_append",
    "compare",
    "compare_and_write",
    "abort",
    "seek_hole",
    "seek_data",
    "copy",
    "nvme_iov_md",
    "nvme_nssr",
    "write_uncorrectable",
)
"""Every I/O type that bdev_get_bdevs lists, in SPDK's order.

Source: SPDK lib/bdev/bdev.c, spdk_bdev_get_io_type_name.
"""

PREFERENCES = (
    "preferred_write_alignment",
    "preferred_write_granularity",
    "optimal_write_size",
    "preferred_unmap_alignment",
    "preferred_unmap_granularity",
)
"""Members of bdev_get_bdevs, in blocks, 0 meaning none. Source: SPDK include/spdk/bdev.h."""

NULL_UUID = "00000000-0000-0000-0000-000000000000"


class BdevParams(Params):
    """What every create takes. `name` may only be left out where the kind has a `default_prefix`."""

    name: Text | None = None
    uuid: Uuid | None = None

    @property
    def base(self) -> str | None:
        """The name or uuid of the bdev to stand on; None for one that stands by itself."""
        return None


P_contra = TypeVar("P_contra", bound=BdevParams, contravariant=True)
F = TypeVar("F")


class BdevKind(Protocol[P_contra, F]):
    """One kind of bdev. `P_contra` is its params model, `F` the facts that its plan needs from outside."""

    name: str
    """As in bdev_<name>_create."""
    product_name: str
    default_prefix: str | None
    """Names are <prefix>0, <prefix>1, … when the caller gives none; None: a name is required."""
    numa_id: int | None
    """As bdev_get_bdevs shows it, -1 for any; None: not shown."""

    @property
    def params(self) -> type[BdevParams]:
        """The params model of bdev_<name>_create."""

    async def probe(self, files: Lookup, params: P_contra) -> F:
        """Look for files without opening or changing them; what cannot be found is a fact, not an error."""

    def plan(self, params: P_contra, facts: F, base: BdevInfo | None) -> None:
        """Raise the `UbiError` that SPDK would give for these parameters, or return. Without I/O."""

    def files(self, params: P_contra, facts: F) -> dict[FileId, bool]:
        """Return the files that it uses, each with whether it writes to it."""

    async def open(self, engine: Engine, name: str, params: P_contra, facts: F, base: Bdev | None) -> Bdev:
        """Act, on the files that `probe` found. After a failure nothing is open and nothing is written."""

    async def settled(self, params: P_contra, bdev: Bdev) -> BdevParams:
        """Return the parameters as the open bdev has them: what was left out and is known now is filled in."""
        del bdev
        return params

    def io_types(self, params: P_contra, info: BdevInfo) -> frozenset[str]:
        """Which of `IO_TYPES` are supported."""

    async def driver_specific(self, params: P_contra, bdev: Bdev) -> dict[str, object]:
        """What bdev_get_bdevs shows of this kind alone."""

    def saved(self, params: P_contra) -> dict[str, object]:
        """Return the parameters that make this bdev again, name and uuid excepted."""
        return params.model_dump(exclude_none=True, exclude={"name", "uuid"})


def invalid(message: str) -> UbiError:
    """Return the error for a value that cannot be served: EINVAL."""
    return UbiError(ErrorKind.INVALID_PARAMS, message)


def is_power_of_two(number: int) -> bool:
    """Say whether `number` is 1, 2, 4, 8 and so on."""
    return number > 0 and number & (number - 1) == 0
