"""Methods for bdevs of every kind: bdev_get_bdevs, and bdev_<kind>_create and _delete for each kind.

Source: SPDK lib/bdev/bdev_rpc.c and module/bdev/*/*_rpc.c.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from ubi_rpc.bdevs import KINDS
from ubi_rpc.bdevs.kind import IO_TYPES, PREFERENCES, BdevKind, BdevParams
from ubi_rpc.bdevs.null import MAX_SIZE_BYTES
from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.methods.listing import describe_all
from ubi_rpc.methods.services import Services
from ubi_rpc.params import NoParams, Params, Text, UInt64
from ubi_rpc.rpc.method import DECODE_FAILED, Method
from ubi_rpc.storage.entries import BdevEntry
from ubi_rpc.storage.lifecycle import Lifecycle

RATE_LIMITS = ("rw_ios_per_sec", "rw_mbytes_per_sec", "r_mbytes_per_sec", "w_mbytes_per_sec")


class GetBdevsParams(Params):
    """Parameters of bdev_get_bdevs.

    Args:
        name: only this bdev, by name or uuid; all of them when left out.
        timeout: milliseconds to wait for that bdev to appear; 0 answers at once.
    """

    name: Text | None = None
    timeout: UInt64 = 0


class BdevNameParams(Params):
    """Parameters of the delete methods: the bdev's name or uuid."""

    name: Text


class NullResizeParams(BdevNameParams):
    """Parameters of bdev_null_resize.

    Args:
        new_size: MiB; not less than it has.
    """

    new_size: Annotated[int, Field(ge=0, le=MAX_SIZE_BYTES >> 20)]


async def describe(entry: BdevEntry) -> dict[str, object]:
    """Return a bdev as bdev_get_bdevs shows it, members in SPDK's order."""
    info, kind, params = entry.bdev.info, entry.kind, entry.params
    supported = kind.io_types(params, info)
    shown: dict[str, object] = {
        "name": entry.name,
        "aliases": [entry.uuid],
        "product_name": kind.product_name,
        "block_size": info.block_size,
        "num_blocks": info.num_blocks,
        **{name: getattr(params, name, 0) for name in PREFERENCES},
        "uuid": entry.uuid,
    }
    if kind.numa_id is not None:
        shown["numa_id"] = kind.numa_id
    shown["assigned_rate_limits"] = dict.fromkeys(RATE_LIMITS, 0)
    shown["claimed"] = entry.claimed_by is not None
    if entry.claimed_by is not None:
        shown["claim_type"] = "exclusive_write"
    shown["zoned"] = False
    shown["supported_io_types"] = {io_type: io_type in supported for io_type in IO_TYPES}
    shown["driver_specific"] = await kind.driver_specific(params, entry.bdev)
    return shown


async def find(lifecycle: Lifecycle, name: str, timeout_ms: int) -> BdevEntry:
    """Return the bdev called `name`, waiting for it to appear.

    Raises:
        UbiError: not_found at once without a timeout, timeout (ETIMEDOUT) after it.
    """
    deadline = asyncio.get_running_loop().time() + timeout_ms / 1000
    while True:
        try:
            return lifecycle.registry.find(name)
        except UbiError:
            if not timeout_ms:
                raise
        try:
            async with asyncio.timeout_at(deadline):
                await lifecycle.events.wait()
        except TimeoutError:
            raise UbiError(ErrorKind.TIMEOUT, f"no bdev called {name!r} appeared in {timeout_ms} ms") from None


async def bdev_get_bdevs(services: Services, params: GetBdevsParams) -> list[dict[str, object]]:
    """Return one bdev, or all in order of creation."""
    lifecycle = services.lifecycle
    await lifecycle.settle(params.name)
    if params.name is not None:
        return [await describe(await find(lifecycle, params.name, params.timeout))]
    return await describe_all(lifecycle.registry.bdevs(), describe)


def _create(kind: BdevKind[Any, Any]) -> Method:
    async def create(services: Services, params: BdevParams) -> str:
        return await services.lifecycle.create_bdev(kind, params)

    create.__doc__ = f"Create a bdev of kind {kind.name}; answers its name."
    return Method(name=f"bdev_{kind.name}_create", params=kind.params, handler=create)


def _delete(kind: BdevKind[Any, Any]) -> Method:
    async def delete(services: Services, params: BdevNameParams) -> bool:
        await services.lifecycle.delete_bdev(kind, params.name)
        return True

    delete.__doc__ = f"Delete a bdev of kind {kind.name} and everything that stands on it, exports included."
    return Method(name=f"bdev_{kind.name}_delete", params=BdevNameParams, handler=delete)


def _of_kinds() -> Iterator[Method]:
    for kind in KINDS:
        yield _create(kind)
        yield _delete(kind)


async def bdev_aio_rescan(services: Services, params: BdevNameParams) -> bool:
    """Take the size that the file or device of an aio bdev has by now."""

    def plan(entry: BdevEntry) -> None:
        if entry.kind.name != "aio":
            raise UbiError(ErrorKind.NOT_FOUND, f"bdev {entry.name} is of kind {entry.kind.name}, not aio")

    await services.lifecycle.resize_bdev(params.name, plan)
    return True


async def bdev_null_resize(services: Services, params: NullResizeParams) -> bool:
    """Let a null bdev grow."""

    def plan(entry: BdevEntry) -> int:
        if entry.kind.name != "null":
            raise UbiError(ErrorKind.INVALID_PARAMS, f"bdev {entry.name} is of kind {entry.kind.name}, not null")
        return (params.new_size << 20) // entry.bdev.info.block_size

    await services.lifecycle.resize_bdev(params.name, plan)
    return True


async def bdev_wait_for_examine(services: Services, _params: NoParams) -> bool:
    """Answer when the creations that were asked for before are done; nothing is examined here."""
    await services.lifecycle.settle()
    return True


async def bdev_examine(services: Services, params: BdevNameParams) -> bool:
    """Answer true: nothing is ever found on a bdev without a create. Refused while bdevs are examined by themselves."""
    if services.options.get("bdev_set_options").get("bdev_auto_examine", True):
        raise UbiError(
            ErrorKind.INVALID_PARAMS, f"bdev {params.name!r} is examined by itself; see bdev_set_options, auto_examine"
        )
    return True


METHODS = (
    Method(name="bdev_aio_rescan", params=BdevNameParams, handler=bdev_aio_rescan),
    Method(name="bdev_null_resize", params=NullResizeParams, handler=bdev_null_resize),
    Method(
        name="bdev_wait_for_examine",
        params=NoParams,
        handler=bdev_wait_for_examine,
        decode_error=(-32602, "bdev_wait_for_examine requires no parameters"),
    ),
    Method(
        name="bdev_examine",
        params=BdevNameParams,
        handler=bdev_examine,
        decode_error=(-32602, DECODE_FAILED[1]),
    ),
    Method(name="bdev_get_bdevs", params=GetBdevsParams, handler=bdev_get_bdevs),
    *_of_kinds(),
)
