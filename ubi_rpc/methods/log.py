"""Methods for the daemon's log.

Source: SPDK lib/log/log_rpc.c.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

from ubi_rpc.errors import ErrorKind
from ubi_rpc.log_control import FLAGS, Level
from ubi_rpc.methods.services import Services
from ubi_rpc.params import NoParams, Params, Text
from ubi_rpc.rpc.method import ANY_STATE, DECODE_FAILED, Method, State
from ubi_rpc.rpc.wire_errors import WireError
from ubi_rpc.suggest import did_you_mean


class LevelParams(Params):
    """Parameters of log_set_level and log_set_print_level."""

    level: Literal["ERROR", "WARNING", "NOTICE", "INFO", "DEBUG"]


class FlagParams(Params):
    """Parameters of log_set_flag and log_clear_flag: a flag of log_get_flags, or "all"."""

    flag: Text


class TimestampParams(Params):
    """Parameters of log_enable_timestamps."""

    enabled: bool


async def log_get_level(services: Services, _params: NoParams) -> str:
    """Return the level of syslog, which nothing here writes to."""
    return services.log.log_level.value


async def log_set_level(services: Services, params: LevelParams) -> bool:
    """Keep the level of syslog."""
    services.log.log_level = Level(params.level)
    return True


async def log_get_print_level(services: Services, _params: NoParams) -> str:
    """Return from which level on lines go to standard error."""
    return services.log.print_level.value


async def log_set_print_level(services: Services, params: LevelParams) -> bool:
    """Set from which level on lines go to standard error."""
    services.log.set_print_level(Level(params.level))
    return True


async def log_get_flags(services: Services, _params: NoParams) -> dict[str, bool]:
    """Return which parts of the program tell their details."""
    return services.log.flags()


def _flag(*, enabled: bool) -> Callable[[Services, FlagParams], Awaitable[bool]]:
    async def handler(services: Services, params: FlagParams) -> bool:
        try:
            services.log.set_flag(params.flag, enabled=enabled)
        except KeyError:
            detail = f"flag is none of {', '.join(FLAGS)}, all{did_you_mean(params.flag, (*FLAGS, 'all'))}"
            raise WireError((-32602, "invalid log flag"), ErrorKind.INVALID_PARAMS, detail) from None
        return True

    handler.__doc__ = f"Let a part of the program {'tell' if enabled else 'keep'} its details."
    return handler


async def log_enable_timestamps(services: Services, params: TimestampParams) -> bool:
    """Begin lines with the time, or not."""
    services.log.enable_timestamps(enabled=params.enabled)
    return True


def _getter(name: str, handler: Callable[[Any, Any], Awaitable[object]]) -> Method:
    return Method(name, NoParams, handler, ANY_STATE, (-32602, f"{name} requires no parameters"))


METHODS = (
    _getter("log_get_level", log_get_level),
    Method("log_set_level", LevelParams, log_set_level, ANY_STATE),
    _getter("log_get_print_level", log_get_print_level),
    Method("log_set_print_level", LevelParams, log_set_print_level, ANY_STATE),
    _getter("log_get_flags", log_get_flags),
    Method("log_set_flag", FlagParams, _flag(enabled=True), ANY_STATE),
    Method("log_clear_flag", FlagParams, _flag(enabled=False), ANY_STATE),
    Method("log_enable_timestamps", TimestampParams, log_enable_timestamps, State.RUNTIME, (-32602, DECODE_FAILED[1])),
)
