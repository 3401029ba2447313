"""Methods for I/O statistics.

Source: SPDK lib/bdev/bdev_rpc.c, rpc_bdev_get_iostat, rpc_bdev_reset_iostat.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.methods.services import Services
from ubi_rpc.params import Params, Text
from ubi_rpc.rpc.method import Method
from ubi_rpc.storage.entries import BdevEntry, ObjectState
from ubi_rpc.storage.stats import TICK_RATE, ResetMode, ticks

MAX_NAMES = 1024
"""Source: SPDK lib/bdev/bdev_rpc.c, SPDK_BDEV_MAX_GET_IOSTAT_BDEV_NAMES."""

ENGINE_CHANNEL = 1
"""The thread_id of the one channel shown: the engine counts a bdev's requests together, whichever reactor ran them."""


class GetIostatParams(Params):
    """Parameters of bdev_get_iostat.

    Args:
        name: one bdev, by name or uuid (clients before 26.05).
        names: some bdevs; not together with `name`. All of them when both are left out.
        per_channel: show the channels of exactly one bdev.
        reset_mode: what to set back to 0 afterwards.
    """

    name: Text | None = None
    per_channel: bool = False
    reset_mode: ResetMode = "none"
    names: Annotated[list[Text], Field(max_length=MAX_NAMES)] | None = None


class ResetIostatParams(Params):
    """Parameters of bdev_reset_iostat.

    Args:
        name: one bdev, by name or uuid; all of them when left out.
        mode: what to set back to 0.
    """

    name: Text | None = None
    mode: ResetMode = "all"


def chosen(params: GetIostatParams) -> list[str] | None:
    """Return the names asked for, None for all.

    Raises:
        UbiError: invalid_params for both ways at once, or channels of other than one bdev.
    """
    if params.name is not None and params.names is not None:
        raise UbiError(ErrorKind.INVALID_PARAMS, "give name or names, not both")
    names = params.names if params.name is None else [params.name]
    if params.per_channel and (names is None or len(names) != 1):
        raise UbiError(ErrorKind.INVALID_PARAMS, "per_channel needs exactly one name")
    return names


async def _read(entry: BdevEntry, mode: ResetMode) -> dict[str, object] | None:
    """Return a bdev's statistics and set them back; None for one that went meanwhile."""
    try:
        counters = await entry.bdev.iostat(forget_extremes=mode in {"all", "maxmin"})
    except UbiError:
        if entry.state is ObjectState.ONLINE:
            raise
        return None
    shown = entry.stats.show(counters)
    entry.stats.reset(counters, mode)
    return shown


async def bdev_get_iostat(services: Services, params: GetIostatParams) -> dict[str, object]:
    """Return the statistics of some or all bdevs, or of one bdev's channels; times are in ticks of `tick_rate`."""
    names = chosen(params)
    await services.lifecycle.settle()
    registry = services.lifecycle.registry
    entries = registry.bdevs() if names is None else [registry.find(name) for name in names]
    read = [(entry.name, await _read(entry, params.reset_mode)) for entry in entries]
    head: dict[str, object] = {"tick_rate": TICK_RATE, "ticks": ticks()}
    if not params.per_channel:
        return {**head, "bdevs": [{"name": name, **stat} for name, stat in read if stat is not None]}
    channels = [{"thread_id": ENGINE_CHANNEL, **stat} for _, stat in read if stat is not None]
    return {**head, "name": entries[0].name, "channels": channels}


async def bdev_reset_iostat(services: Services, params: ResetIostatParams) -> bool:
    """Set the statistics of one or all bdevs back to 0."""
    await services.lifecycle.settle()
    registry = services.lifecycle.registry
    for entry in registry.bdevs() if params.name is None else [registry.find(params.name)]:
        await _read(entry, params.mode)
    return True


METHODS = (
    Method(name="bdev_get_iostat", params=GetIostatParams, handler=bdev_get_iostat),
    Method(name="bdev_reset_iostat", params=ResetIostatParams, handler=bdev_reset_iostat),
)
