"""framework_get_subsystems and framework_get_config: SPDK's save_config is made of them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Domain
from ubi_rpc.rpc.method import State

UUID = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"


async def _config(domain: Domain, name: str, **params: Any) -> list[dict[str, Any]]:
    found = await domain.call("framework_get_config", name=name, **params)
    assert isinstance(found, list)
    return found


async def test_subsystems_come_after_those_that_they_need(domain: Domain) -> None:
    seen: set[str] = set()
    for subsystem in await domain.call("framework_get_subsystems"):
        assert list(subsystem) == ["subsystem", "depends_on"]
        assert set(subsystem["depends_on"]) <= seen
        seen.add(subsystem["subsystem"])
    assert {"iobuf", "accel", "bdev", "nbd"} <= seen


async def test_an_empty_daemon_has_spdks_defaults(domain: Domain) -> None:
    assert await _config(domain, "scheduler") == [{"method": "framework_set_scheduler", "params": {"name": "static"}}]
    assert await _config(domain, "sock") == []
    assert await _config(domain, "nbd") == []
    assert [entry["method"] for entry in await _config(domain, "bdev")] == ["bdev_set_options", "bdev_wait_for_examine"]
    (iobuf,) = await _config(domain, "iobuf")
    assert iobuf["params"] == {
        "small_pool_count": 8192,
        "large_pool_count": 1024,
        "small_bufsize": 8192,
        "large_bufsize": 135168,
        "enable_numa": False,
    }


async def test_objects_are_saved_with_what_made_them_and_their_uuid(domain: Domain) -> None:
    await domain.aio("a", uuid=UUID.upper(), fallocate=True, cache="writeback")
    await domain.call("bdev_malloc_create", num_blocks=8, block_size=512)
    await domain.ubi("u", "a", stripe_size_mb=1, copy_on_read=False)
    await domain.call("nbd_create_export", bdev_name="u", address="127.0.0.1:0", readonly=True)
    aio, malloc, ubi, last = (await _config(domain, "bdev"))[1:]
    assert aio == {
        "method": "bdev_aio_create",
        "params": {
            "name": "a",
            "filename": str(domain.dir / "a.raw"),
            "block_size": 512,
            "readonly": False,
            "fallocate": True,
            "nowait": False,
            "cache": "writeback",
            "uuid": UUID,
        },
    }
    assert malloc["params"]["name"] == "Malloc0"
    assert malloc["params"]["uuid"] == (await domain.bdev("Malloc0"))["uuid"]
    assert list(ubi["params"]) == [
        *("name", "base_bdev", "image_path", "stripe_size_kb", "copy_on_read", "directio", "no_sync", "uuid")
    ]
    assert (ubi["params"]["stripe_size_kb"], ubi["params"]["copy_on_read"]) == (1024, False)
    assert last == {"method": "bdev_wait_for_examine"}
    (export,) = await _config(domain, "nbd")
    assert export == {
        "method": "nbd_create_export",
        "params": {
            "bdev_name": "u",
            "export_name": "u",
            "address": "127.0.0.1:0",
            "allow_plaintext": False,
            "tls": "off",
            "tls_verify_peer": True,
            "readonly": True,
            "default": False,
            "max_connections": 0,
            "max_handshakes_per_s": 0,
            "description": "",
        },
    }


async def test_options_of_absent_parts_are_saved_once_they_are_set(domain: Domain) -> None:
    domain.startup.state = State.STARTUP
    for method, params in (
        ("sock_set_default_impl", {"impl_name": "uring"}),
        ("sock_impl_set_options", {"impl_name": "uring", "recv_buf_size": 1}),
        ("bdev_nvme_set_options", {"bdev_retry_count": -1}),
        ("bdev_raid_set_options", {"process_window_size_kb": 1}),
        ("scheduler_set_options", {"scheduling_core": 1}),
    ):
        await domain.call(method, **params)
        subsystem = {"sock": "sock", "bdev": "bdev"}.get(method.partition("_")[0], "scheduler")
        domain.startup.state = State.RUNTIME
        assert {"method": method, "params": params} in await _config(domain, subsystem)
        domain.startup.state = State.STARTUP


async def test_an_aio_bdev_that_asked_for_nothing_of_ours_is_saved_so_that_spdk_loads_it(domain: Domain) -> None:
    await domain.aio("a", cache="none")
    (aio,) = (await _config(domain, "bdev"))[1:-1]
    assert set(aio["params"]) == {"name", "block_size", "filename", "readonly", "fallocate", "nowait", "uuid"}


@pytest.mark.parametrize("with_batches", [False, True])
async def test_batches_are_accepted(domain: Domain, with_batches: bool) -> None:
    assert await _config(domain, "nbd", with_batches=with_batches) == []


@pytest.mark.parametrize(
    ("method", "params", "error"),
    [
        ("framework_get_config", {"name": "nvmf"}, (-32602, "Subsystem 'nvmf' not found")),
        ("framework_get_config", {"name": ""}, (-32602, "Subsystem '' not found")),
        ("framework_get_config", {}, (-32602, "Invalid arguments")),
        ("framework_get_config", {"name": "bdev", "x": 1}, (-32602, "Invalid arguments")),
        ("framework_get_subsystems", {"x": 1}, (-32602, "'framework_get_subsystems' requires no arguments")),
    ],
)
async def test_wrong_params_get_spdks_answer(
    domain: Domain, method: str, params: dict[str, Any], error: tuple[int, str]
) -> None:
    assert await domain.error(method, **params) == error
