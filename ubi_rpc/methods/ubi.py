"""Methods for ubi bdevs alone; their create and delete are in `bdev`, as for every kind."""

from __future__ import annotations

from ubi_rpc.bdevs import KINDS
from ubi_rpc.methods.bdev import BdevNameParams
from ubi_rpc.methods.services import Services
from ubi_rpc.rpc.method import Method

UBI = next(kind for kind in KINDS if kind.name == "ubi")


async def bdev_ubi_get_status(services: Services, params: BdevNameParams) -> dict[str, object]:
    """Return how far the overlay is, what it has cost, and what it survives.

    Raises:
        UbiError: not_found for no such bdev, or one of another kind.
    """
    await services.lifecycle.settle(params.name)
    entry = services.lifecycle.registry.find_kind(UBI, params.name)
    status = await entry.bdev.ubi_status()
    base = entry.base.name if entry.base is not None else None
    return {"name": entry.name, "base_bdev": base, **status, "survives": entry.bdev.info.survives}


METHODS = (Method(name="bdev_ubi_get_status", params=BdevNameParams, handler=bdev_ubi_get_status),)
