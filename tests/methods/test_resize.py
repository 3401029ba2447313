"""bdev_null_resize and bdev_aio_rescan."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Domain
from tests.engine_double import EngineError

SHOWN = {"name": "n", "num_blocks": 2048, "block_size": 512}


async def _events(domain: Domain) -> list[str]:
    return [event["type"] for event in await domain.call("notify_get_notifications")]


async def test_a_null_bdev_grows_and_is_saved_so(domain: Domain) -> None:
    await domain.call("bdev_null_create", **SHOWN)
    assert await domain.call("bdev_null_resize", name="n", new_size=3) is True
    assert (await domain.bdev("n"))["num_blocks"] == 3 * 2048
    saved = await domain.call("framework_get_config", name="bdev")
    assert saved[1]["params"]["num_blocks"] == 3 * 2048
    assert await _events(domain) == ["bdev_register", "bdev_resize"]


async def test_the_same_size_is_accepted_without_an_event(domain: Domain) -> None:
    await domain.call("bdev_null_create", **SHOWN)
    assert await domain.call("bdev_null_resize", name="n", new_size=1) is True
    assert await _events(domain) == ["bdev_register"]


async def test_an_aio_bdev_takes_the_files_size_by_name_or_uuid(domain: Domain) -> None:
    await domain.aio("a")
    before = await domain.bdev("a")
    assert await domain.call("bdev_aio_rescan", name=before["uuid"]) is True
    after = await domain.bdev("a")
    assert after == {**before, "num_blocks": before["num_blocks"] + 8}
    assert await _events(domain) == ["bdev_register", "bdev_resize"]


@pytest.mark.parametrize(
    ("method", "params", "error"),
    [
        ("bdev_null_resize", {"name": "n", "new_size": 0}, (-22, "Invalid argument")),
        ("bdev_null_resize", {"name": "a", "new_size": 100}, (-22, "Invalid argument")),
        ("bdev_null_resize", {"name": "x", "new_size": 100}, (-19, "No such device")),
        ("bdev_null_resize", {"name": "n"}, (-32603, "spdk_json_decode_object failed")),
        ("bdev_null_resize", {"name": "n", "new_size": 2**64}, (-32603, "spdk_json_decode_object failed")),
        ("bdev_aio_rescan", {"name": "n"}, (-19, "No such device")),
        ("bdev_aio_rescan", {"name": "x"}, (-19, "No such device")),
        ("bdev_aio_rescan", {}, (-32603, "spdk_json_decode_object failed")),
    ],
)
async def test_wrong_requests_get_spdks_answer(
    domain: Domain, method: str, params: dict[str, Any], error: tuple[int, str]
) -> None:
    await domain.call("bdev_null_create", **SHOWN)
    await domain.aio("a")
    assert await domain.error(method, **params) == error
    assert (await domain.bdev("n"))["num_blocks"] == 2048


async def test_a_refusal_of_the_engine_leaves_the_size(domain: Domain) -> None:
    await domain.aio("a")
    domain.world.failures["resize"] = EngineError("busy", "a: the file is smaller", 16)
    before = await domain.bdev("a")
    assert await domain.error("bdev_aio_rescan", name="a") == (-16, "Device or resource busy")
    assert await domain.bdev("a") == before


async def test_a_volume_grows_with_its_base_and_its_machines_hear_of_it(domain: Domain) -> None:
    await domain.aio("a")
    await domain.ubi("u", "a")
    await domain.call("vhost_create_blk_controller", ctrlr="vh0", dev_name="u")
    before = await domain.bdev("u")
    assert await domain.call("bdev_aio_rescan", name="a") is True
    assert (await domain.bdev("u"))["num_blocks"] == before["num_blocks"] + 8
    grown = [line for line in domain.world.log if line.startswith(("resize", "grow", "notify_config_change"))]
    assert grown == ["resize a", "grow u", "notify_config_change vh0"]
    assert (await _events(domain))[-2:] == ["bdev_resize", "bdev_resize"]


async def test_a_volume_that_could_not_grow_does_when_it_is_asked_again(domain: Domain) -> None:
    await domain.aio("a")
    await domain.ubi("u", "a")
    before = await domain.bdev("u")
    domain.world.failures["grow"] = EngineError("no_space", "a: no room for zeros", 28)
    assert await domain.error("bdev_aio_rescan", name="a") == (-28, "No space left on device")
    assert await domain.bdev("u") == before
    domain.world.failures.clear()
    assert await domain.call("bdev_aio_rescan", name="a") is True
    assert (await domain.bdev("u"))["num_blocks"] > before["num_blocks"]
