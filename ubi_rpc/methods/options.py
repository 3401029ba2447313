"""SPDK's option methods: accepted, checked and kept, without effect.

Source: lib/bdev/bdev_rpc.c, lib/accel/accel_rpc.c, lib/sock/sock_rpc.c, lib/event/app_rpc.c,
module/event/subsystems/iobuf/iobuf_rpc.c, module/bdev/{nvme,raid}/*_rpc.c (codes, texts, limits).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from typing import Any

from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.methods import option_params as models
from ubi_rpc.methods.services import Services
from ubi_rpc.params import IgnoredParams, NoParams, Params
from ubi_rpc.rpc.method import ANY_STATE, DECODE_FAILED, INVALID_PARAMETERS, Method, State
from ubi_rpc.rpc.wire_errors import WireError
from ubi_rpc.settings import parse_cpus
from ubi_rpc.storage.options import Options
from ubi_rpc.suggest import did_you_mean

SOCK_IMPLS = ("posix", "ssl", "uring")
SCHEDULERS = ("static", "dynamic")
DEFAULT_SCHEDULER = "static"
DYNAMIC_DEFAULTS = {"load_limit": 20, "core_limit": 80, "core_busy": 95}
DEFAULT_PERIOD_US = 1_000_000

SMALLEST_IOBUF = {"small_pool_count": 64, "large_pool_count": 8, "small_bufsize": 4096, "large_bufsize": 8192}
"""Source: SPDK lib/thread/iobuf.c, IOBUF_MIN_*."""

SECRETS = frozenset({"psk_key", "psk_identity"})
"""Parameters that are not even kept: nothing here needs them."""

BAD_NAME = (-32603, os.strerror(errno.EINVAL))

Check = Callable[[dict[str, object]], None]


def defaults(model: type[Params]) -> dict[str, object]:
    """Return the parameters that have a default, with it."""
    return {
        name: field.default
        for name, field in model.model_fields.items()
        if not field.is_required() and field.default is not None
    }


def current(options: Options, method: str, model: type[Params], instance: str = "") -> dict[str, object]:
    """Return an option method's values as they are now: what was set, over the defaults."""
    return {**defaults(model), **options.get(method, instance)}


def check_bdev(values: dict[str, object]) -> None:
    """Refuse a pool that cannot fill the caches. Source: SPDK lib/bdev/bdev.c, spdk_bdev_set_opts."""
    pool, cache = int(str(values["bdev_io_pool_size"])), int(str(values["bdev_io_cache_size"]))
    if pool < cache * 2:
        text = f"Pool size {pool} too small for cache size {cache}"
        raise WireError((-32602, text), ErrorKind.INVALID_PARAMS, f"bdev_set_options: {text}")


def check_iobuf(values: dict[str, object]) -> None:
    """Refuse pools and buffers below SPDK's minimum."""
    for name, least in SMALLEST_IOBUF.items():
        if int(str(values[name])) < least:
            raise UbiError(ErrorKind.INVALID_PARAMS, f"{name} {values[name]} is less than {least}")


def check_sock_impl(values: dict[str, object]) -> None:
    """Refuse a socket implementation that SPDK does not have."""
    if values["impl_name"] not in SOCK_IMPLS:
        hint = did_you_mean(str(values["impl_name"]), SOCK_IMPLS)
        raise WireError(
            INVALID_PARAMETERS, ErrorKind.INVALID_PARAMS, f"impl_name is none of {', '.join(SOCK_IMPLS)}{hint}"
        )


def isolated_cpus(mask: str) -> set[int]:
    """Return the CPUs of an isolated_core_mask, none for 0.

    Raises:
        ValueError: it is no mask.
    """
    return set() if mask.lower() in {"0", "0x0"} else set(parse_cpus(mask))


def check_scheduler_options(values: dict[str, object]) -> None:
    """Refuse an isolated_core_mask that is none, or that has the scheduler's own CPU in it."""
    text = None
    try:
        if values.get("scheduling_core", 0) in isolated_cpus(str(values.get("isolated_core_mask", "0"))):
            text = "Scheduling core cannot be included in isolated core mask.\n"
    except ValueError:
        text = "Invalid isolated core mask\n"
    if text is not None:
        raise WireError((-32602, text), ErrorKind.INVALID_PARAMS, f"scheduler_set_options: {text.strip()}")


def _nothing(_values: dict[str, object]) -> None:
    """Accept any value of the right type."""


def _setter(
    name: str,
    model: type[Params],
    *,
    states: State = State.STARTUP,
    decode_error: tuple[int, str] = DECODE_FAILED,
    check: Check = _nothing,
    instance: str | None = None,
) -> Method:
    """Make the method that keeps its parameters; `instance` is the parameter that says of what they are options."""

    async def handler(services: Services, params: Params) -> bool:
        given = params.model_dump(exclude_unset=True)
        of = "" if instance is None else str(given[instance])
        check({**current(services.options, name, model, of), **given})
        services.options.update(name, {key: value for key, value in given.items() if key not in SECRETS}, of)
        return True

    handler.__doc__ = f"{(model.__doc__ or '').partition(chr(10))[0]} Kept, without effect."
    return Method(name=name, params=model, handler=handler, states=states, decode_error=decode_error)


def _answer(name: str, answer: Callable[[Services], Any], refusal: str, states: State = State.RUNTIME) -> Method:
    """Make a method without parameters that answers from what is kept."""

    async def handler(services: Services, _params: NoParams) -> object:
        return answer(services)

    return Method(name=name, params=NoParams, handler=handler, states=states, decode_error=(-32602, refusal))


async def sock_impl_get_options(services: Services, params: models.SockImplName) -> dict[str, object]:
    """Return the options of a socket implementation as they were set, over SPDK's defaults."""
    values = current(services.options, "sock_impl_set_options", models.SockImplOptions, params.impl_name)
    check_sock_impl({"impl_name": params.impl_name})
    return {name: value for name, value in values.items() if name not in {"impl_name", "enable_zerocopy_send"}}


async def framework_set_scheduler(services: Services, params: models.SchedulerParams) -> bool:
    """Keep the scheduler's name and period. Threads are the kernel's to schedule."""
    if params.name not in SCHEDULERS:
        hint = did_you_mean(params.name, SCHEDULERS)
        raise WireError(BAD_NAME, ErrorKind.INVALID_PARAMS, f"scheduler is none of {', '.join(SCHEDULERS)}{hint}")
    services.options.update("framework_set_scheduler", params.model_dump(exclude_unset=True))
    return True


def scheduler(services: Services) -> dict[str, object]:
    """Return the scheduler as framework_get_scheduler shows it."""
    kept = services.options.get("framework_set_scheduler")
    options = services.options.get("scheduler_set_options")
    name = kept.get("name", DEFAULT_SCHEDULER)
    mask = str(options.get("isolated_core_mask", "0"))
    shown: dict[str, object] = {
        "scheduler_name": name,
        "scheduler_period": kept.get("period") or (DEFAULT_PERIOD_US if kept else 0),
        "isolated_core_mask": f"{sum(1 << cpu for cpu in isolated_cpus(mask)):x}",
        "scheduling_core": options.get("scheduling_core", 0),
    }
    if name == "dynamic":
        shown |= {key: kept.get(key, default) for key, default in DYNAMIC_DEFAULTS.items()}
    return shown


async def framework_monitor_context_switch(services: Services, params: models.MonitorParams) -> dict[str, object]:
    """Keep whether context switches are monitored, and answer it."""
    name = "framework_monitor_context_switch"
    services.options.update(name, params.model_dump(exclude_unset=True))
    return {"enabled": services.options.get(name).get("enabled", False)}


async def iobuf_get_stats(_services: Services, _params: IgnoredParams) -> list[object]:
    """Return an empty list: there are no such buffers."""
    return []


async def framework_cpumask_locks(_services: Services, _params: NoParams) -> bool:
    """Answer true: CPUs are never locked here."""
    return True


def _locks(verb: str) -> Method:
    name = f"framework_{verb}_cpumask_locks"
    refusal = (-32602, f"{name} requires no arguments")
    return Method(name, NoParams, framework_cpumask_locks, ANY_STATE, refusal)


def _method(
    name: str,
    model: type[Params],
    handler: Callable[[Any, Any], Awaitable[object]],
    states: State,
    decode_error: tuple[int, str] = INVALID_PARAMETERS,
) -> Method:
    return Method(name=name, params=model, handler=handler, states=states, decode_error=decode_error)


METHODS = (
    _method("framework_set_scheduler", models.SchedulerParams, framework_set_scheduler, ANY_STATE),
    _answer("framework_get_scheduler", scheduler, "'rpc_get_scheduler' requires no arguments", ANY_STATE),
    _setter(
        "scheduler_set_options",
        models.SchedulerOptions,
        decode_error=INVALID_PARAMETERS,
        check=check_scheduler_options,
    ),
    _answer("framework_get_governor", lambda _: {}, "'rpc_get_governor' requires no arguments"),
    _method("framework_monitor_context_switch", models.MonitorParams, framework_monitor_context_switch, State.RUNTIME),
    _locks("disable"),
    _locks("enable"),
    _setter(
        "iobuf_set_options",
        models.IobufOptions,
        decode_error=(-32602, DECODE_FAILED[1]),
        check=check_iobuf,
    ),
    _method("iobuf_get_stats", IgnoredParams, iobuf_get_stats, State.RUNTIME),
    _setter("accel_set_options", models.AccelOptions, decode_error=(-32700, DECODE_FAILED[1])),
    _setter("bdev_set_options", models.BdevOptions, decode_error=INVALID_PARAMETERS, check=check_bdev),
    _setter(
        "bdev_raid_set_options",
        models.RaidOptions,
        states=ANY_STATE,
        decode_error=(-32700, DECODE_FAILED[1]),
    ),
    _setter("bdev_iscsi_set_options", models.IscsiOptions, states=ANY_STATE),
    _setter("bdev_nvme_set_options", models.NvmeOptions, states=ANY_STATE),
    _setter(
        "bdev_nvme_set_hotplug",
        models.NvmeHotplug,
        states=State.RUNTIME,
        decode_error=(-32602, os.strerror(errno.EINVAL)),
    ),
    _setter(
        "sock_set_default_impl",
        models.SockImplName,
        decode_error=INVALID_PARAMETERS,
        check=check_sock_impl,
    ),
    _answer(
        "sock_get_default_impl",
        lambda services: {"impl_name": services.options.get("sock_set_default_impl").get("impl_name", "posix")},
        "sock_get_default_impl requires no parameters",
        ANY_STATE,
    ),
    _setter(
        "sock_impl_set_options",
        models.SockImplOptions,
        decode_error=INVALID_PARAMETERS,
        check=check_sock_impl,
        instance="impl_name",
    ),
    _method("sock_impl_get_options", models.SockImplName, sock_impl_get_options, ANY_STATE),
)
