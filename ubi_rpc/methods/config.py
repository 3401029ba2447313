"""Methods that give the configuration: what save_config is made of.

Source: SPDK lib/init/subsystem_rpc.c.
"""

from __future__ import annotations

import functools

from ubi_rpc.errors import ErrorKind
from ubi_rpc.methods import option_params as models
from ubi_rpc.methods.options import DEFAULT_SCHEDULER, SOCK_IMPLS, current
from ubi_rpc.methods.services import Services
from ubi_rpc.params import NoParams, Params, Text
from ubi_rpc.rpc.method import Method
from ubi_rpc.rpc.wire_errors import WireError
from ubi_rpc.storage.config_save import SUBSYSTEMS, Entry, subsystem_config
from ubi_rpc.storage.options import Options

ALWAYS_SAVED: dict[str, tuple[str, type[Params]]] = {
    "iobuf": ("iobuf_set_options", models.IobufOptions),
    "accel": ("accel_set_options", models.AccelOptions),
    "bdev": ("bdev_set_options", models.BdevOptions),
}
"""Options that every SPDK program has: saved with their defaults even when nobody set them."""

SAVED_ONCE_SET: dict[str, tuple[str, ...]] = {
    "scheduler": ("scheduler_set_options",),
    "sock": ("sock_set_default_impl",),
    "bdev": ("bdev_raid_set_options", "bdev_iscsi_set_options", "bdev_nvme_set_options", "bdev_nvme_set_hotplug"),
}
"""Options of parts that are not here."""


class GetConfigParams(Params):
    """Parameters of framework_get_config.

    Args:
        name: the subsystem.
        with_batches: keep calls that belong together in arrays; there are none.
    """

    name: Text
    with_batches: bool = False


def option_entries(options: Options, subsystem: str) -> list[Entry]:
    """Return the entries of a subsystem's options."""
    entries: list[Entry] = []
    if subsystem == "scheduler":
        kept = options.get("framework_set_scheduler")
        entries.append({"method": "framework_set_scheduler", "params": {"name": DEFAULT_SCHEDULER, **kept}})
    if subsystem in ALWAYS_SAVED:
        method, model = ALWAYS_SAVED[subsystem]
        entries.append({"method": method, "params": current(options, method, model)})
    once_set = [(method, options.get(method)) for method in SAVED_ONCE_SET.get(subsystem, ())]
    entries += [{"method": method, "params": values} for method, values in once_set if values]
    if subsystem == "sock":
        method = "sock_impl_set_options"
        entries += [
            {"method": method, "params": options.get(method, impl)}
            for impl in SOCK_IMPLS
            if impl in options.instances(method)
        ]
    return entries


async def framework_get_subsystems(_services: Services, _params: NoParams) -> list[dict[str, object]]:
    """Return the subsystems in the order in which they come up, each with those that it depends on."""
    return [{"subsystem": name, "depends_on": list(needed)} for name, needed in SUBSYSTEMS.items()]


async def framework_get_config(services: Services, params: GetConfigParams) -> list[Entry]:
    """Return the calls that configure a subsystem as it is now."""
    if params.name not in SUBSYSTEMS:
        text = f"Subsystem '{params.name}' not found"
        raise WireError((-32602, text), ErrorKind.NOT_FOUND, f"{text}; there are {', '.join(SUBSYSTEMS)}")
    await services.lifecycle.settle()
    registry = services.lifecycle.registry
    options = functools.partial(option_entries, services.options)
    return subsystem_config(params.name, registry.bdevs(), registry.all_exports(), options)


async def persist_get_unrestored(services: Services, _params: NoParams) -> list[dict[str, object]]:
    """Return the entries of the --persist file that could not be applied at the start and are kept for the next."""
    await services.lifecycle.settle()
    return [
        {
            "subsystem": one.subsystem,
            "method": one.method,
            "name": None if one.key is None else one.key[1],
            "reason": one.reason,
        }
        for one in services.lifecycle.unrestored()
    ]


METHODS = (
    Method(
        name="framework_get_subsystems",
        params=NoParams,
        handler=framework_get_subsystems,
        decode_error=(-32602, "'framework_get_subsystems' requires no arguments"),
    ),
    Method(
        name="framework_get_config",
        params=GetConfigParams,
        handler=framework_get_config,
        decode_error=(-32602, "Invalid arguments"),
    ),
    Method(name="persist_get_unrestored", params=NoParams, handler=persist_get_unrestored),
)
