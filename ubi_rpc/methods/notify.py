"""Methods for what happened to the objects.

Source: SPDK lib/notify/notify_rpc.c.
"""

from __future__ import annotations

from ubi_rpc.methods.services import Services
from ubi_rpc.params import NoParams, Params, UInt64
from ubi_rpc.rpc.method import Method
from ubi_rpc.storage.events import TYPES


class GetNotificationsParams(Params):
    """Parameters of notify_get_notifications.

    Args:
        id: the first one wanted; older ones that are no longer kept are left out.
        max: how many at most.
    """

    id: UInt64 = 0
    max: UInt64 = 2**64 - 1


async def notify_get_types(_services: Services, _params: NoParams) -> list[str]:
    """Return the types of notifications."""
    return list(TYPES)


async def notify_get_notifications(services: Services, params: GetNotificationsParams) -> list[dict[str, object]]:
    """Return what happened, oldest first; `id` counts from 0 since the daemon started."""
    await services.lifecycle.settle()
    wanted = [event for event in services.lifecycle.events.history if event.id >= params.id]
    return [{"type": event.type, "ctx": event.ctx, "id": event.id} for event in wanted[: params.max]]


METHODS = (
    Method(
        name="notify_get_types",
        params=NoParams,
        handler=notify_get_types,
        decode_error=(-32602, "No parameters required"),
    ),
    Method(
        name="notify_get_notifications",
        params=GetNotificationsParams,
        handler=notify_get_notifications,
        decode_error=(-32602, "Invalid argument"),
    ),
)
