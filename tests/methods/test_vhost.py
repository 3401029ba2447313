"""vhost-user-blk controllers by name: create, show, change, delete, save; SPDK's codes and texts."""

from __future__ import annotations

import os

import pytest

from tests.conftest import Domain
from tests.engine_double import EngineError

CPU = min(os.sched_getaffinity(0))
MASK = hex(1 << CPU)
ALL = hex(sum(1 << cpu for cpu in os.sched_getaffinity(0)))


async def test_a_controller_has_a_socket_in_the_directory_and_is_shown_as_spdk_shows_it(domain: Domain) -> None:
    await domain.aio()
    assert await domain.call("vhost_create_blk_controller", ctrlr="vh0", dev_name="aio0") is True
    path = domain.dir / "vh0"
    assert path.exists()
    assert await domain.call("vhost_get_controllers") == [
        {
            "ctrlr": "vh0",
            "cpumask": ALL,
            "delay_base_us": 0,
            "iops_threshold": 60000,
            "socket": str(path),
            "sessions": [
                {"vid": 7, "id": 0, "name": "vh0s7", "started": True, "max_queues": 2, "inflight_task_cnt": 1}
            ],
            "backend_specific": {"block": {"readonly": False, "bdev": "aio0", "transport": "vhost_user_blk"}},
        }
    ]
    assert len(await domain.call("vhost_get_controllers", name="vh0")) == 1
    assert await domain.call("vhost_delete_controller", ctrlr="vh0") is True
    assert not path.exists()
    assert await domain.call("vhost_get_controllers") == []


async def test_all_parameters_of_spdk_are_taken(domain: Domain) -> None:
    await domain.aio()
    await domain.call(
        "vhost_create_blk_controller",
        ctrlr="vh0",
        dev_name="aio0",
        readonly=True,
        packed_ring=False,
        cpumask=MASK,
        transport="vhost_user_blk",
    )
    (shown,) = await domain.call("vhost_get_controllers")
    assert shown["cpumask"] == MASK
    assert shown["backend_specific"]["block"]["readonly"] is True
    assert f"create_vhost_blk vh0 True [{CPU}]" in domain.world.log


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"ctrlr": "vh0"}, "File exists"),
        ({"dev_name": "nothing"}, "No such device"),
        ({"transport": "vfio_user"}, "Invalid argument"),
        ({"cpumask": "0x0"}, "Invalid argument"),
        ({"cpumask": "everything"}, "Invalid argument"),
        ({"cpumask": hex(1 << 1023)}, "Invalid argument"),
        ({"ctrlr": ""}, "Invalid argument"),
        ({"ctrlr": "../x"}, "Invalid argument"),
        ({"ctrlr": "x" * 108}, "Invalid argument"),
        ({"ctrlr": 5}, "Invalid argument"),
        ({"readonly": None}, "Invalid argument"),
        ({"packed_ring": True}, "Operation not supported"),
    ],
)
async def test_a_create_that_cannot_be_is_refused_as_spdk_does(
    domain: Domain, params: dict[str, object], text: str
) -> None:
    await domain.aio()
    await domain.call("vhost_create_blk_controller", ctrlr="vh0", dev_name="aio0")
    given = {"ctrlr": "vh1", "dev_name": "aio0", **params}
    assert await domain.error("vhost_create_blk_controller", **given) == (-32602, text)
    assert [one["ctrlr"] for one in await domain.call("vhost_get_controllers")] == ["vh0"]


async def test_parameters_that_only_another_transport_or_release_knows_are_ignored(domain: Domain) -> None:
    await domain.aio()
    given = {"ctrlr": "vh0", "dev_name": "aio0", "packed_ring_recovery": False, "vfio": {"x": 1}}
    assert await domain.call("vhost_create_blk_controller", **given) is True
    (saved,) = await domain.call("framework_get_config", name="vhost_blk")
    assert set(saved["params"]) == {"ctrlr", "dev_name", "readonly", "transport"}


async def test_a_claimed_bdev_can_only_be_read(domain: Domain) -> None:
    await domain.aio()
    await domain.ubi()
    error = await domain.error("vhost_create_blk_controller", ctrlr="vh0", dev_name="aio0")
    assert error == (-32602, "Operation not permitted")
    assert await domain.call("vhost_create_blk_controller", ctrlr="vh0", dev_name="aio0", readonly=True) is True


async def test_two_controllers_may_share_a_bdev(domain: Domain) -> None:
    await domain.aio()
    for name in ("vh0", "vh1"):
        await domain.call("vhost_create_blk_controller", ctrlr=name, dev_name="aio0")
    assert len(await domain.call("vhost_get_controllers")) == 2


async def test_what_is_missing_is_no_such_device(domain: Domain) -> None:
    missing = (-32602, "No such device")
    assert await domain.error("vhost_delete_controller", ctrlr="vh0") == missing
    assert await domain.error("vhost_get_controllers", name="vh0") == (-32603, "No such device")
    arguments = {"ctrlr": "vh0", "delay_base_us": 1, "iops_threshold": 1}
    assert await domain.error("vhost_controller_set_coalescing", **arguments) == missing


async def test_coalescing_is_set_shown_and_saved(domain: Domain) -> None:
    await domain.aio()
    await domain.call("vhost_create_blk_controller", ctrlr="vh0", dev_name="aio0")
    arguments: dict[str, object] = {"ctrlr": "vh0", "delay_base_us": 50, "iops_threshold": 1000}
    assert await domain.call("vhost_controller_set_coalescing", **arguments) is True
    (shown,) = await domain.call("vhost_get_controllers")
    assert (shown["delay_base_us"], shown["iops_threshold"]) == (50, 1000)
    assert "set_coalescing vh0 50 1000" in domain.world.log
    assert await domain.call("framework_get_config", name="vhost_blk") == [
        {
            "method": "vhost_create_blk_controller",
            "params": {"ctrlr": "vh0", "dev_name": "aio0", "readonly": False, "transport": "vhost_user_blk"},
        },
        {"method": "vhost_controller_set_coalescing", "params": arguments},
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"iops_threshold": 0},
        {"iops_threshold": 99},
        {"iops_threshold": -1},
        {"iops_threshold": 2**32},
        {"iops_threshold": "many"},
        {"delay_base_us": 1717987},
        {"delay_base_us": 2**32 - 1},
        {"delay_base_us": 2**32},
        {"delay_base_us": -1},
        {"delay_base_us": 1.5},
        {"delay_base_us": None},
        {"ctrlr": None},
    ],
)
async def test_coalescing_that_spdk_refuses_is_refused_and_changes_nothing(
    domain: Domain, wrong: dict[str, object]
) -> None:
    await domain.aio()
    await domain.call("vhost_create_blk_controller", ctrlr="vh0", dev_name="aio0")
    right: dict[str, object] = {"ctrlr": "vh0", "delay_base_us": 1717986, "iops_threshold": 100}
    assert await domain.call("vhost_controller_set_coalescing", **right) is True
    given = {name: value for name, value in {**right, **wrong}.items() if value is not None}
    assert await domain.error("vhost_controller_set_coalescing", **given) == (-32602, "Invalid argument")
    (shown,) = await domain.call("vhost_get_controllers")
    assert (shown["delay_base_us"], shown["iops_threshold"]) == (1717986, 100)


async def test_a_machine_hears_of_a_bdev_that_has_grown(domain: Domain) -> None:
    await domain.aio()
    await domain.call("vhost_create_blk_controller", ctrlr="vh0", dev_name="aio0")
    await domain.call("bdev_aio_rescan", name="aio0")
    assert "notify_config_change vh0" in domain.world.log


async def test_a_controller_goes_with_its_bdev(domain: Domain) -> None:
    path = domain.dir / "vh0"
    await domain.aio()
    await domain.call("vhost_create_blk_controller", ctrlr="vh0", dev_name="aio0")
    await domain.call("bdev_aio_delete", name="aio0")
    assert await domain.call("vhost_get_controllers") == []
    assert not path.exists()


async def test_a_socket_that_cannot_open_leaves_nothing(domain: Domain) -> None:
    await domain.aio()
    domain.world.failures_once["open_controller"] = EngineError("busy", "another listens", 16)
    error = await domain.error("vhost_create_blk_controller", ctrlr="vh0", dev_name="aio0")
    assert error == (-32602, "Device or resource busy")
    assert await domain.call("vhost_create_blk_controller", ctrlr="vh0", dev_name="aio0") is True


async def test_the_transport_is_shown(domain: Domain) -> None:
    assert await domain.call("virtio_blk_get_transports") == [{"name": "vhost_user_blk"}]
    assert await domain.call("virtio_blk_get_transports", name="vhost_user_blk") == [{"name": "vhost_user_blk"}]
    assert await domain.error("virtio_blk_get_transports", name="x") == (-19, "No such device")
    assert await domain.error("virtio_blk_get_transports", x=1) == (-32602, "Invalid parameters")
