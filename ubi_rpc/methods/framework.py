"""The framework's own methods: version, methods, start and end.

Source: SPDK lib/rpc/rpc.c, lib/init/subsystem_rpc.c, lib/event/app_rpc.c.
"""

from __future__ import annotations

import re
import signal
from typing import Annotated, Literal

from pydantic import BeforeValidator

from ubi_rpc.errors import UbiError
from ubi_rpc.methods.services import Services
from ubi_rpc.params import IgnoredParams, NoParams, Params
from ubi_rpc.rpc.method import ANY_STATE, INVALID_PARAMETERS, Method, State
from ubi_rpc.rpc.session import after_answer
from ubi_rpc.rpc.wire_errors import WireError

INIT_FAILED = (-32603, "framework_initialization failed")


class GetMethodsParams(Params):
    """Parameters of rpc_get_methods.

    Args:
        current: only methods that may be called in the present state.
        include_aliases: deprecated names as well; there are none.
    """

    current: bool = False
    include_aliases: bool = False


SIGNALS = ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGKILL", "SIGUSR1")
_BY_NUMBER = {str(signal.Signals[name].value): name for name in SIGNALS}


def _signal_name(given: object) -> object:
    return _BY_NUMBER.get(given, given) if isinstance(given, str) else given


class KillParams(Params):
    """Parameters of spdk_kill_instance.

    Args:
        sig_name: the signal; its number as a string, such as "15", as well.
    """

    sig_name: Annotated[
        Literal["SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGKILL", "SIGUSR1"], BeforeValidator(_signal_name)
    ]


def version_fields(version: str) -> dict[str, object]:
    """Split a version as SPDK does: numbers, the suffix with its sign, and the commit, which a build does not know."""
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)(.*)", version)
    if match is None:
        raise ValueError(f"not a version: {version!r}")
    major, minor, patch, suffix = match.groups()
    return {"major": int(major), "minor": int(minor), "patch": int(patch), "suffix": suffix, "commit": ""}


async def spdk_get_version(services: Services, _: NoParams) -> dict[str, object]:
    """Return the version in SPDK's form."""
    return {"version": f"ubi_rpc v{services.version}", "fields": version_fields(services.version)}


async def rpc_get_methods(services: Services, params: GetMethodsParams) -> list[str]:
    """Return the names of the methods."""
    return services.method_names(params.current)


async def framework_start_init(services: Services, _: NoParams) -> bool:
    """Bring the subsystems up, the second pass of the configuration included."""
    try:
        await services.startup.start_init()
    except UbiError as error:
        raise WireError(INIT_FAILED, error.kind, error.message) from error
    return True


async def framework_wait_init(services: Services, _: IgnoredParams) -> bool:
    """Answer when the subsystems are up."""
    await services.startup.wait_init()
    return True


async def spdk_kill_instance(services: Services, params: KillParams) -> bool:
    """Send this process a signal once the answer is on its way."""
    after_answer(lambda: services.kill(signal.Signals[params.sig_name]))
    return True


METHODS = (
    Method(
        name="spdk_get_version",
        params=NoParams,
        handler=spdk_get_version,
        states=ANY_STATE,
        decode_error=(-32602, "spdk_get_version method requires no parameters"),
    ),
    Method(
        name="rpc_get_methods",
        params=GetMethodsParams,
        handler=rpc_get_methods,
        states=ANY_STATE,
        decode_error=INVALID_PARAMETERS,
    ),
    Method(
        name="framework_start_init",
        params=NoParams,
        handler=framework_start_init,
        states=State.STARTUP,
        decode_error=(-32602, "framework_start_init requires no parameters"),
    ),
    Method(
        name="framework_wait_init",
        params=IgnoredParams,
        handler=framework_wait_init,
        states=ANY_STATE,
        decode_error=(-32602, "framework_wait_init requires no parameters"),
    ),
    Method(
        name="spdk_kill_instance",
        params=KillParams,
        handler=spdk_kill_instance,
        decode_error=INVALID_PARAMETERS,
    ),
)
