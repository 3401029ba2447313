"""Methods for vhost-user-blk controllers.

Source: SPDK lib/vhost/vhost_rpc.c; errors are -32602 with strerror's text, and -32603 for a question.
"""

from __future__ import annotations

from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.frontends.vhost_blk import (
    MAX_DELAY_BASE_US,
    MIN_IOPS_THRESHOLD,
    TRANSPORT,
    CoalescingParams,
    VhostBlkController,
    VhostBlkParams,
)
from ubi_rpc.methods.listing import describe_all
from ubi_rpc.methods.services import Services
from ubi_rpc.params import Params, Text
from ubi_rpc.rpc.method import INVALID_PARAMETERS, Method
from ubi_rpc.storage.entries import ExportEntry

REFUSED = -32602
NOT_FOUND = -32603
INVALID_ARGUMENT = "Invalid argument"


class ControllerNameParams(Params):
    """Parameters of vhost_delete_controller."""

    ctrlr: Text


class GetControllersParams(Params):
    """Parameters of vhost_get_controllers.

    Args:
        name: show this one alone.
    """

    name: Text | None = None


class GetTransportsParams(Params):
    """Parameters of virtio_blk_get_transports.

    Args:
        name: show this one alone.
    """

    name: Text | None = None


async def vhost_create_blk_controller(services: Services, params: VhostBlkParams) -> bool:
    """Offer a bdev as a disk to virtual machines, by a socket of the controller's name in the -S directory."""
    await services.lifecycle.create_export(services.vhost_blk, params.dev_name, params.ctrlr, params)
    return True


async def vhost_delete_controller(services: Services, params: ControllerNameParams) -> bool:
    """Take a controller away: what is in flight is finished, machines that are connected lose the disk."""
    await services.lifecycle.delete_export(services.vhost_blk, params.ctrlr)
    return True


async def vhost_get_controllers(services: Services, params: GetControllersParams) -> list[dict[str, object]]:
    """Return the controllers in order of creation, or the one that is named."""
    await services.lifecycle.settle()
    registry = services.lifecycle.registry
    if params.name is not None:
        return [await _describe(registry.find_export(services.vhost_blk, params.name))]
    return await describe_all(registry.exports(services.vhost_blk), _describe)


async def vhost_controller_set_coalescing(services: Services, params: CoalescingParams) -> bool:
    """Hold notifications of a controller back while requests come faster than a threshold."""

    async def set_it(export: ExportEntry) -> None:
        if params.delay_base_us > MAX_DELAY_BASE_US:
            raise UbiError(ErrorKind.INVALID_PARAMS, f"delay_base_us is at most {MAX_DELAY_BASE_US}")
        if params.iops_threshold < MIN_IOPS_THRESHOLD:
            raise UbiError(ErrorKind.INVALID_PARAMS, f"iops_threshold is at least {MIN_IOPS_THRESHOLD}")
        _opened(export).set_coalescing(params.delay_base_us, params.iops_threshold)

    await services.lifecycle.change_export(services.vhost_blk, params.ctrlr, set_it)
    return True


async def virtio_blk_get_transports(_services: Services, params: GetTransportsParams) -> list[dict[str, str]]:
    """Return the ways from a machine to its disk."""
    if params.name not in {None, TRANSPORT}:
        raise UbiError(ErrorKind.NOT_FOUND, f"there is no transport {params.name!r}; there is {TRANSPORT}")
    return [{"name": TRANSPORT}]


def _opened(export: ExportEntry) -> VhostBlkController:
    if not isinstance(export.opened, VhostBlkController):
        raise AssertionError(f"{export.plan.name} is a controller")
    return export.opened


async def _describe(export: ExportEntry) -> dict[str, object]:
    controller, name = _opened(export), export.plan.name
    block = {"readonly": export.plan.readonly, "bdev": export.entry.name, "transport": TRANSPORT}
    return {
        "ctrlr": name,
        "cpumask": controller.cpumask,
        "delay_base_us": controller.delay_base_us,
        "iops_threshold": controller.iops_threshold,
        "socket": controller.listener,
        "sessions": await controller.sessions(name),
        "backend_specific": {"block": block},
    }


METHODS = (
    Method(
        name="vhost_create_blk_controller",
        params=VhostBlkParams,
        handler=vhost_create_blk_controller,
        decode_error=(REFUSED, INVALID_ARGUMENT),
        failure_code=REFUSED,
    ),
    Method(
        name="vhost_delete_controller",
        params=ControllerNameParams,
        handler=vhost_delete_controller,
        decode_error=(REFUSED, INVALID_ARGUMENT),
        failure_code=REFUSED,
    ),
    Method(
        name="vhost_get_controllers",
        params=GetControllersParams,
        handler=vhost_get_controllers,
        decode_error=(NOT_FOUND, INVALID_ARGUMENT),
        failure_code=NOT_FOUND,
    ),
    Method(
        name="vhost_controller_set_coalescing",
        params=CoalescingParams,
        handler=vhost_controller_set_coalescing,
        decode_error=(REFUSED, INVALID_ARGUMENT),
        failure_code=REFUSED,
    ),
    Method(
        name="virtio_blk_get_transports",
        params=GetTransportsParams,
        handler=virtio_blk_get_transports,
        decode_error=INVALID_PARAMETERS,
    ),
)
