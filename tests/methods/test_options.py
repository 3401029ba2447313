"""SPDK's option methods: what is accepted, refused, kept and given back."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Domain
from ubi_rpc.rpc.method import State

NVME = {
    "action_on_timeout": "none",
    "timeout_us": 0,
    "keep_alive_timeout_ms": 10000,
    "bdev_retry_count": -1,
    "dhchap_digests": ["sha256"],
    "multipath_opts": {"policy": "active_active", "selector": "round_robin"},
}


ISOLATED = "Scheduling core cannot be included in isolated core mask.\n"


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("iobuf_set_options", {}),
        ("iobuf_set_options", {"small_pool_count": 19200 * 2, "large_pool_count": 2400 * 2, "enable_numa": True}),
        ("accel_set_options", {}),
        ("bdev_set_options", {}),
        ("bdev_set_options", {"bdev_io_pool_size": 65536}),
        ("bdev_set_options", {"bdev_io_pool_size": 512, "bdev_io_cache_size": 256}),
        ("scheduler_set_options", {"isolated_core_mask": "0x2", "scheduling_core": 0}),
        ("scheduler_set_options", {"isolated_core_mask": "0", "scheduling_core": 1}),
        ("sock_set_default_impl", {"impl_name": "uring"}),
        ("sock_impl_set_options", {"impl_name": "ssl", "tls_version": 13, "psk_key": "secret"}),
        ("bdev_nvme_set_options", NVME),
        ("bdev_raid_set_options", {"process_window_size_kb": 4}),
        ("bdev_iscsi_set_options", {"timeout_sec": 0}),
        ("framework_set_scheduler", {"name": "dynamic", "period": 5, "unknown": [1]}),
    ],
)
async def test_options_are_accepted_before_the_subsystems_are_up(
    domain: Domain, method: str, params: dict[str, Any]
) -> None:
    domain.startup.state = State.STARTUP
    assert await domain.call(method, **params) is True


@pytest.mark.parametrize(
    ("method", "params", "error"),
    [
        ("iobuf_set_options", {"small_pool_count": 63}, (-22, "Invalid argument")),
        ("iobuf_set_options", {"large_bufsize": 4096}, (-22, "Invalid argument")),
        ("iobuf_set_options", {"small": 1}, (-32602, "spdk_json_decode_object failed")),
        ("accel_set_options", {"task_count": -1}, (-32700, "spdk_json_decode_object failed")),
        ("bdev_set_options", {"bdev_io_pool_size": 511}, (-32602, "Pool size 511 too small for cache size 256")),
        ("bdev_set_options", {"bdev_io_cache_size": 40000}, (-32602, "Pool size 65535 too small for cache size 40000")),
        ("bdev_set_options", {"small_buf_pool_size": 1}, (-32602, "Invalid parameters")),
        ("bdev_nvme_set_options", {"nope": 1}, (-32603, "spdk_json_decode_object failed")),
        ("bdev_nvme_set_options", {"action_on_timeout": "NONE"}, (-32603, "spdk_json_decode_object failed")),
        ("sock_set_default_impl", {"impl_name": "tls"}, (-32602, "Invalid parameters")),
        ("sock_impl_set_options", {"impl_name": "vpp"}, (-32602, "Invalid parameters")),
        ("sock_impl_get_options", {"impl_name": "vpp"}, (-32602, "Invalid parameters")),
        ("framework_set_scheduler", {"name": "fair"}, (-32603, "Invalid argument")),
        ("framework_set_scheduler", {}, (-32602, "Invalid parameters")),
        ("scheduler_set_options", {"x": 1}, (-32602, "Invalid parameters")),
        ("framework_get_scheduler", {"x": 1}, (-32602, "'rpc_get_scheduler' requires no arguments")),
        ("scheduler_set_options", {"isolated_core_mask": "0x3"}, (-32602, ISOLATED)),
        ("scheduler_set_options", {"isolated_core_mask": "[1,5]", "scheduling_core": 5}, (-32602, ISOLATED)),
        ("scheduler_set_options", {"isolated_core_mask": "x"}, (-32602, "Invalid isolated core mask\n")),
        ("bdev_raid_set_options", {"x": 1}, (-32700, "spdk_json_decode_object failed")),
        ("bdev_iscsi_set_options", {"x": 1}, (-32603, "spdk_json_decode_object failed")),
    ],
)
async def test_wrong_options_get_spdks_answer_and_change_nothing(
    domain: Domain, method: str, params: dict[str, Any], error: tuple[int, str]
) -> None:
    before = [await domain.call("framework_get_config", name=name) for name in ("iobuf", "accel", "bdev", "sock")]
    domain.startup.state = State.STARTUP
    assert await domain.error(method, **params) == error
    domain.startup.state = State.RUNTIME
    after = [await domain.call("framework_get_config", name=name) for name in ("iobuf", "accel", "bdev", "sock")]
    assert before == after


async def test_methods_that_need_the_subsystems_refuse_in_spdks_words(domain: Domain) -> None:
    governor = (-32602, "'rpc_get_governor' requires no arguments")
    assert await domain.error("framework_get_governor", x=1) == governor
    for params in ({}, {"enable": 1}, {"enable": True, "x": 1}):
        assert await domain.error("bdev_nvme_set_hotplug", **params) == (-32602, "Invalid argument")


async def test_the_isolated_cpus_are_shown_as_spdk_shows_them(domain: Domain) -> None:
    domain.startup.state = State.STARTUP
    for given, shown in (("0x6", "6"), ("[1,4]", "12"), ("0x0", "0")):
        await domain.call("scheduler_set_options", isolated_core_mask=given)
        assert (await domain.call("framework_get_scheduler"))["isolated_core_mask"] == shown


async def test_a_period_of_0_is_none(domain: Domain) -> None:
    await domain.call("framework_set_scheduler", name="static", period=0)
    assert (await domain.call("framework_get_scheduler"))["scheduler_period"] == 1_000_000


async def test_options_that_are_not_named_keep_their_value(domain: Domain) -> None:
    domain.startup.state = State.STARTUP
    await domain.call("bdev_set_options", bdev_io_pool_size=1000)
    await domain.call("bdev_set_options", bdev_io_cache_size=500)
    assert await domain.error("bdev_set_options", bdev_io_cache_size=501) == (
        -32602,
        "Pool size 1000 too small for cache size 501",
    )


async def test_socket_options_are_kept_for_each_implementation_without_keys(domain: Domain) -> None:
    domain.startup.state = State.STARTUP
    await domain.call("sock_impl_set_options", impl_name="ssl", recv_buf_size=1, psk_key="secret")
    ssl, posix = [await domain.call("sock_impl_get_options", impl_name=name) for name in ("ssl", "posix")]
    assert (ssl["recv_buf_size"], posix["recv_buf_size"]) == (1, 2097152)
    assert "secret" not in str(ssl)
    assert await domain.call("sock_get_default_impl") == {"impl_name": "posix"}


async def test_the_scheduler_is_kept(domain: Domain) -> None:
    shown = await domain.call("framework_get_scheduler")
    assert list(shown.values()) == ["static", 0, "0", 0]
    await domain.call("framework_set_scheduler", name="dynamic", load_limit=30)
    shown = await domain.call("framework_get_scheduler")
    assert shown == {
        "scheduler_name": "dynamic",
        "scheduler_period": 1_000_000,
        "isolated_core_mask": "0",
        "scheduling_core": 0,
        "load_limit": 30,
        "core_limit": 80,
        "core_busy": 95,
    }


async def test_the_context_switch_monitor_is_asked_and_set(domain: Domain) -> None:
    assert await domain.call("framework_monitor_context_switch") == {"enabled": False}
    assert await domain.call("framework_monitor_context_switch", enabled=True) == {"enabled": True}
    assert await domain.call("framework_monitor_context_switch") == {"enabled": True}


async def test_examine_is_refused_while_bdevs_are_examined_by_themselves(domain: Domain) -> None:
    assert await domain.call("bdev_wait_for_examine") is True
    assert await domain.error("bdev_wait_for_examine", x=1) == (-32602, "bdev_wait_for_examine requires no parameters")
    assert await domain.error("bdev_examine", name="x") == (-22, "Invalid argument")
    domain.startup.state = State.STARTUP
    await domain.call("bdev_set_options", bdev_auto_examine=False)
    domain.startup.state = State.RUNTIME
    assert await domain.call("bdev_examine", name="x") is True
