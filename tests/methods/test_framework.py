"""The framework's methods: version, list of methods, states, kill."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Domain
from ubi_rpc.methods import METHODS
from ubi_rpc.methods.framework import version_fields
from ubi_rpc.rpc.method import ANY_STATE, State
from ubi_rpc.rpc.session import answer_actions

TOO_EARLY = (-1, "Method may only be called after framework is initialized using framework_start_init RPC.")
BEFORE = [
    "framework_start_init",
    "scheduler_set_options",
    *(f"{part}_set_options" for part in ("iobuf", "accel", "bdev")),
    "sock_set_default_impl",
    "sock_impl_set_options",
]
ALWAYS = [
    "spdk_get_version",
    "rpc_get_methods",
    "rpc.discover",
    "framework_wait_init",
    *(f"framework_{verb}_scheduler" for verb in ("get", "set")),
    *(f"framework_{verb}_cpumask_locks" for verb in ("enable", "disable")),
    *(f"log_{verb}_{what}level" for verb in ("get", "set") for what in ("", "print_")),
    *("log_get_flags", "log_set_flag", "log_clear_flag"),
    *("bdev_raid_set_options", "bdev_iscsi_set_options", "bdev_nvme_set_options"),
    *("sock_get_default_impl", "sock_impl_get_options"),
    "ubi_rpc_set_options",
    "ubi_rpc_get_last_error",
]
RUNTIME = [
    "spdk_kill_instance",
    *("framework_get_subsystems", "framework_get_config", "framework_get_reactors", "framework_get_governor"),
    *("framework_monitor_context_switch", "thread_get_stats", "iobuf_get_stats"),
    *("thread_get_pollers", "thread_get_io_channels", "framework_get_pci_devices"),
    *("log_enable_timestamps", "notify_get_types", "notify_get_notifications"),
    *("bdev_get_bdevs", "bdev_wait_for_examine", "bdev_examine", "bdev_get_iostat", "bdev_reset_iostat"),
    *("bdev_aio_rescan", "bdev_null_resize"),
    *(f"bdev_{kind}_{verb}" for kind in ("aio", "malloc", "null", "ubi") for verb in ("create", "delete")),
    "bdev_nvme_set_hotplug",
    *("bdev_ubi_get_status", "persist_get_unrestored"),
    "nbd_create_export",
    "nbd_delete_export",
    "nbd_get_exports",
    *("vhost_create_blk_controller", "vhost_delete_controller", "vhost_get_controllers"),
    *("vhost_controller_set_coalescing", "virtio_blk_get_transports"),
]


async def test_version_has_spdks_form(domain: Domain) -> None:
    assert await domain.call("spdk_get_version") == {
        "version": "ubi_rpc v1.2.3-rc4",
        "fields": {"major": 1, "minor": 2, "patch": 3, "suffix": "-rc4", "commit": ""},
    }


def test_version_without_suffix() -> None:
    assert version_fields("0.1.0") == {"major": 0, "minor": 1, "patch": 0, "suffix": "", "commit": ""}


def test_version_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="not a version"):
        version_fields("next")


async def test_get_methods_lists_every_method(domain: Domain) -> None:
    assert sorted(await domain.call("rpc_get_methods")) == sorted(BEFORE + ALWAYS + RUNTIME)
    assert sorted(await domain.call("rpc_get_methods", include_aliases=True)) == sorted(BEFORE + ALWAYS + RUNTIME)


async def test_get_methods_current_lists_what_the_state_allows(domain: Domain) -> None:
    assert sorted(await domain.call("rpc_get_methods", current=True)) == sorted(ALWAYS + RUNTIME)
    domain.startup.state = State.STARTUP
    assert sorted(await domain.call("rpc_get_methods", current=True)) == sorted(BEFORE + ALWAYS)


@pytest.mark.parametrize("name", RUNTIME)
async def test_runtime_methods_are_too_early_before_init(domain: Domain, name: str) -> None:
    domain.startup.state = State.STARTUP
    assert await domain.error(name) == TOO_EARLY


async def test_start_init_is_too_late_after_init(domain: Domain) -> None:
    code, message = await domain.error("framework_start_init")
    assert code == -1
    assert message.startswith("Method may only be called before framework is initialized.")


async def test_start_init_brings_the_subsystems_up_for_all_who_wait(domain: Domain) -> None:
    domain.startup.state = State.STARTUP
    waiting = asyncio.create_task(domain.call("framework_wait_init"))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await asyncio.gather(domain.call("framework_start_init"), domain.call("rpc_get_methods", current=True))
    assert await waiting is True
    assert domain.startup.state is State.RUNTIME
    assert await domain.call("framework_wait_init") is True


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("spdk_get_version", {"x": 1}, (-32602, "spdk_get_version method requires no parameters")),
        ("rpc_get_methods", {"x": 1}, (-32602, "Invalid parameters")),
        ("rpc_get_methods", {"current": 1}, (-32602, "Invalid parameters")),
        ("spdk_kill_instance", {}, (-32602, "Invalid parameters")),
        ("spdk_kill_instance", {"sig_name": "SIGSEGV"}, (-32602, "Invalid parameters")),
        ("spdk_kill_instance", {"sig_name": "sigterm"}, (-32602, "Invalid parameters")),
        ("spdk_kill_instance", {"sig_name": 15}, (-32602, "Invalid parameters")),
    ],
)
async def test_wrong_params_get_spdks_answer(
    domain: Domain, name: str, params: dict[str, Any], expected: tuple[int, str]
) -> None:
    assert await domain.error(name, **params) == expected
    assert domain.killed == []


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGKILL", "SIGUSR1"])
async def test_kill_answers_before_it_acts(domain: Domain, name: str) -> None:
    after: list[Callable[[], None]] = []
    answer_actions.set(after)
    assert await domain.call("spdk_kill_instance", sig_name=name) is True
    assert domain.killed == []
    for action in after:
        action()
    assert domain.killed == [signal.Signals[name]]


async def test_kill_takes_a_signals_number_as_older_servers_do(domain: Domain) -> None:
    for number in ("2", "15", "3", "1", "9", "10"):
        assert await domain.call("spdk_kill_instance", sig_name=number) is True
    await asyncio.sleep(0)
    assert domain.killed == [signal.Signals(number) for number in (2, 15, 3, 1, 9, 10)]
    for refused in ("11", "0", "015", "-15", 15):
        assert await domain.error("spdk_kill_instance", sig_name=refused) == (-32602, "Invalid parameters")


RELAXED = {"framework_set_scheduler", "framework_wait_init", "iobuf_get_stats", "vhost_create_blk_controller"}
"""Methods for which SPDK ignores parameters that it does not know, or any."""


async def test_methods_that_never_look_at_parameters_take_any(domain: Domain) -> None:
    domain.startup.state = State.STARTUP
    await domain.call("framework_start_init")
    assert await domain.call("framework_wait_init", x=1) is True
    assert await domain.call("iobuf_get_stats", x=1) == []


def test_methods_have_one_name_each_and_models_that_are_frozen_and_strict() -> None:
    assert len({method.name for method in METHODS}) == len(METHODS)
    for method in METHODS:
        config = method.params.model_config
        extra = "ignore" if method.name in RELAXED else "forbid"
        assert (config.get("frozen"), config.get("strict"), config.get("extra")) == (True, True, extra), method.name
        assert method.states in {ANY_STATE, State.STARTUP, State.RUNTIME}
