"""What SPDK's protocol leaves unsaid: the methods' description, and the reason of an error, asked for before or after.

SPDK's clients see none of it unless they ask.
"""

from __future__ import annotations

import asyncio

from ubi_rpc.methods.services import Services
from ubi_rpc.params import NoParams, Params
from ubi_rpc.rpc.method import ANY_STATE, INVALID_PARAMETERS, Method
from ubi_rpc.rpc.session import current_session


class SetOptionsParams(Params):
    """Options of the connection that sends them.

    Args:
        error_data: add a `data` member {kind, message, context} to every error.
    """

    error_data: bool


async def ubi_rpc_set_options(_services: object, params: SetOptionsParams) -> bool:
    """Set the options of the current connection; without one (a configuration file) there is nothing to set."""
    session = current_session.get()
    if session is not None:
        session.error_data = params.error_data
    return True


async def ubi_rpc_get_last_error(_services: object, _params: NoParams) -> dict[str, object] | None:
    """Return {kind, message, context} of the last error on this connection, or null."""
    session = current_session.get()
    return None if session is None else session.last_error


async def rpc_discover(services: Services, _params: NoParams) -> dict[str, object]:
    """Return the OpenRPC document of the methods that can be called."""
    return await asyncio.to_thread(services.discover)  # the first time it takes a while


METHODS = (
    Method(
        name="rpc.discover",
        params=NoParams,
        handler=rpc_discover,
        states=ANY_STATE,
        decode_error=(-32602, "rpc.discover requires no parameters"),
    ),
    Method(
        name="ubi_rpc_set_options",
        params=SetOptionsParams,
        handler=ubi_rpc_set_options,
        states=ANY_STATE,
        decode_error=INVALID_PARAMETERS,
    ),
    Method(
        name="ubi_rpc_get_last_error",
        params=NoParams,
        handler=ubi_rpc_get_last_error,
        states=ANY_STATE,
        decode_error=(-32602, "ubi_rpc_get_last_error requires no parameters"),
    ),
)
