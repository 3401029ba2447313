"""Methods for NBD exports."""

from __future__ import annotations

from ubi_rpc.frontends.nbd import NbdExportParams
from ubi_rpc.frontends.nbd_tls import tls_mode
from ubi_rpc.methods.listing import describe_all
from ubi_rpc.methods.services import Services
from ubi_rpc.params import NoParams, Params, Text
from ubi_rpc.rpc.method import Method
from ubi_rpc.storage.entries import ExportEntry


class ExportNameParams(Params):
    """Parameters of nbd_delete_export."""

    export_name: Text


async def nbd_create_export(services: Services, params: NbdExportParams) -> dict[str, object]:
    """Offer a bdev over NBD; answers the name that clients ask for and the URI that they connect to."""
    export = await services.lifecycle.create_export(services.nbd, params.bdev_name, params.export_name, params)
    return {"export_name": export.plan.name, "uri": export.opened.uri}


async def nbd_delete_export(services: Services, params: ExportNameParams) -> bool:
    """Take an export away once what is in flight is finished."""
    await services.lifecycle.delete_export(services.nbd, params.export_name)
    return True


async def nbd_get_exports(services: Services, _: NoParams) -> list[dict[str, object]]:
    """Return the exports in order of creation."""
    await services.lifecycle.settle()
    return await describe_all(services.lifecycle.registry.exports(services.nbd), _describe)


async def _describe(export: ExportEntry) -> dict[str, object]:
    plan = export.plan
    return {
        "export_name": plan.name,
        "bdev_name": export.entry.name,
        "uri": export.opened.uri,
        "tls": tls_mode(plan.tls),
        "readonly": plan.readonly,
        "default": plan.default,
        "max_connections": plan.max_connections,
        "max_handshakes_per_s": plan.max_handshakes_per_s,
        "description": plan.description,
        "connections": await export.opened.connections(),
    }


METHODS = (
    Method(name="nbd_create_export", params=NbdExportParams, handler=nbd_create_export),
    Method(name="nbd_delete_export", params=ExportNameParams, handler=nbd_delete_export),
    Method(name="nbd_get_exports", params=NoParams, handler=nbd_get_exports),
)
