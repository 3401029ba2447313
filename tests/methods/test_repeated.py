"""A create that is repeated answers -17 and says whether the existing object is the same."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Domain
from ubi_rpc.rpc.wire_errors import WireError

UUID = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"


async def _same(domain: Domain, method: str, params: dict[str, Any]) -> object:
    with pytest.raises(WireError) as caught:
        await domain.call(method, **params)
    assert (caught.value.code, caught.value.message) == (-17, "File exists")
    data: Any = caught.value.data
    assert ("is the same" in data["message"]) is data["context"]["same"]
    return data["context"]["same"]


async def _objects(domain: Domain) -> list[tuple[str, dict[str, Any]]]:
    image = domain.file("image.raw", 4 << 20)
    made: list[tuple[str, dict[str, Any]]] = [
        ("bdev_aio_create", {"name": "a", "filename": domain.file("a.raw"), "block_size": 512}),
        ("bdev_malloc_create", {"name": "m", "num_blocks": 8, "block_size": 512, "uuid": UUID}),
        ("bdev_null_create", {"name": "n", "num_blocks": 8, "block_size": 512}),
        ("bdev_ubi_create", {"name": "u", "base_bdev": "a", "image_path": image}),
        ("nbd_create_export", {"bdev_name": "u", "export_name": "e"}),
        ("nbd_create_export", {"bdev_name": "n", "address": "127.0.0.1:0"}),
    ]
    for method, params in made:
        await domain.call(method, **params)
    return made


async def test_an_identical_create_is_told_that_the_object_is_the_same(domain: Domain) -> None:
    for method, params in await _objects(domain):
        before = await domain.call("bdev_get_bdevs"), await domain.call("nbd_get_exports")
        assert await _same(domain, method, params) is True
        assert (await domain.call("bdev_get_bdevs"), await domain.call("nbd_get_exports")) == before


@pytest.mark.parametrize(
    ("index", "change"),
    [
        (0, {"fallocate": True}),
        (1, {"num_blocks": 16}),
        (1, {"uuid": UUID.replace("3", "4")}),
        (2, {"optimal_write_size": 1}),
        (4, {"readonly": True}),
        (4, {"bdev_name": "n"}),
        (5, {"max_connections": 1}),
    ],
)
async def test_another_create_of_a_taken_name_is_told_so(domain: Domain, index: int, change: dict[str, Any]) -> None:
    method, params = (await _objects(domain))[index]
    assert await _same(domain, method, {**params, **change}) is False


async def test_what_was_left_out_the_first_time_may_be_said(domain: Domain) -> None:
    made = await _objects(domain)
    uuids = {bdev["name"]: bdev["uuid"] for bdev in await domain.call("bdev_get_bdevs")}
    for method, params in made[:4]:
        assert await _same(domain, method, {**params, "uuid": uuids[params["name"]].upper()}) is True
    assert await _same(domain, "bdev_ubi_create", {**made[3][1], "stripe_size_mb": 1}) is True
    assert await _same(domain, "nbd_create_export", {**made[4][1], "bdev_name": uuids["u"]}) is True


async def test_a_name_of_another_kind_is_another_object(domain: Domain) -> None:
    await _objects(domain)
    assert await _same(domain, "bdev_null_create", {"name": "m", "num_blocks": 8, "block_size": 512}) is False
