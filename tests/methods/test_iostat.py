"""bdev_get_iostat and bdev_reset_iostat."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Domain
from ubi_rpc.storage.stats import COUNTERS, LATENCIES


async def _bdevs(domain: Domain) -> None:
    for name, factor in (("a", 1), ("b", 10)):
        await domain.call("bdev_null_create", name=name, num_blocks=8, block_size=512)
        domain.world.counters[name] = {
            "bytes_read": 512 * factor,
            "num_read_ops": factor,
            "num_errors": factor - 1,
            "bytes_written": 2048 * factor,
            "num_write_ops": 2 * factor,
        }


async def test_members_are_spdks_in_its_order(domain: Domain) -> None:
    await _bdevs(domain)
    found = await domain.call("bdev_get_iostat")
    assert list(found) == ["tick_rate", "ticks", "bdevs"]
    a, b = found["bdevs"]
    assert list(a) == ["name", *COUNTERS, *LATENCIES, "io_error"]
    assert LATENCIES[:3] == ("read_latency_ticks", "max_read_latency_ticks", "min_read_latency_ticks")
    assert (a["name"], a["bytes_read"], a["num_write_ops"], a["io_error"]) == ("a", 512, 2, {})
    assert (b["name"], b["bytes_read"], b["num_write_ops"], b["io_error"]) == ("b", 5120, 20, {"failed": 9})
    assert all(isinstance(value, int) for name, value in a.items() if name not in {"name", "io_error"})


async def test_ticks_go_on_at_tick_rate(domain: Domain) -> None:
    first, second = [await domain.call("bdev_get_iostat", names=[]) for _ in range(2)]
    assert first["tick_rate"] == second["tick_rate"] == 1_000_000_000
    assert 0 < second["ticks"] - first["ticks"] < 60 * first["tick_rate"]
    assert first["bdevs"] == []


async def test_some_bdevs_are_chosen_by_name_uuid_or_the_old_name(domain: Domain) -> None:
    await _bdevs(domain)
    uuid = (await domain.bdev("b"))["uuid"]
    for params in ({"names": ["b"]}, {"name": "b"}, {"names": [uuid]}):
        found = await domain.call("bdev_get_iostat", **params)
        assert [bdev["name"] for bdev in found["bdevs"]] == ["b"]
    found = await domain.call("bdev_get_iostat", names=["b", "a", "b"])
    assert [bdev["name"] for bdev in found["bdevs"]] == ["b", "a", "b"]


async def test_channels_of_one_bdev(domain: Domain) -> None:
    await _bdevs(domain)
    found = await domain.call("bdev_get_iostat", names=["a"], per_channel=True)
    assert list(found) == ["tick_rate", "ticks", "name", "channels"]
    assert found["name"] == "a"
    (channel,) = found["channels"]
    assert list(channel)[:2] == ["thread_id", "bytes_read"]
    assert channel["bytes_read"] == 512


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"name": "x"}, (-19, "No such device")),
        ({"names": ["a", "x"]}, (-19, "No such device")),
        ({"name": "a", "names": ["a"]}, (-22, "Invalid argument")),
        ({"per_channel": True}, (-22, "Invalid argument")),
        ({"per_channel": True, "names": ["a", "b"]}, (-22, "Invalid argument")),
        ({"reset_mode": "ALL"}, (-32603, "spdk_json_decode_object failed")),
        ({"names": "a"}, (-32603, "spdk_json_decode_object failed")),
        ({"names": ["a"] * 1025}, (-32603, "spdk_json_decode_object failed")),
    ],
)
async def test_wrong_params_get_spdks_answer(domain: Domain, params: dict[str, Any], error: tuple[int, str]) -> None:
    await _bdevs(domain)
    assert await domain.error("bdev_get_iostat", **params) == error


@pytest.mark.parametrize(
    ("mode", "left", "errors"), [("all", 0, {}), ("maxmin", 5120, {"failed": 9}), ("error", 5120, {})]
)
async def test_a_reset_sets_back_what_it_names(domain: Domain, mode: str, left: int, errors: dict[str, int]) -> None:
    await _bdevs(domain)
    before = await domain.call("bdev_get_iostat", reset_mode=mode)
    assert before["bdevs"][1]["bytes_read"] == 5120
    _, b = (await domain.call("bdev_get_iostat"))["bdevs"]
    assert (b["bytes_read"], b["io_error"]) == (left, errors)
    domain.world.counters["b"]["bytes_read"] += 512
    _, b = (await domain.call("bdev_get_iostat"))["bdevs"]
    assert b["bytes_read"] == left + 512


async def test_reset_iostat_resets_one_or_all(domain: Domain) -> None:
    await _bdevs(domain)
    assert await domain.call("bdev_reset_iostat", name="a", mode="none") is True
    assert await domain.call("bdev_reset_iostat", name="a") is True
    assert [bdev["bytes_read"] for bdev in (await domain.call("bdev_get_iostat"))["bdevs"]] == [0, 5120]
    assert await domain.call("bdev_reset_iostat") is True
    assert [bdev["bytes_read"] for bdev in (await domain.call("bdev_get_iostat"))["bdevs"]] == [0, 0]
    assert await domain.error("bdev_reset_iostat", name="x") == (-19, "No such device")
    assert await domain.error("bdev_reset_iostat", mode="x") == (-32603, "spdk_json_decode_object failed")


async def test_times_are_sums_and_extremes_and_each_reset_takes_its_own(domain: Domain) -> None:
    await domain.call("bdev_null_create", name="n", num_blocks=8, block_size=512)

    async def times(mode: str) -> tuple[int, int, int, int]:
        (found,) = (await domain.call("bdev_get_iostat", reset_mode=mode))["bdevs"]
        names = ("read_latency_ticks", "max_read_latency_ticks", "min_read_latency_ticks", "write_latency_ticks")
        return tuple(found[name] for name in names)

    def measure() -> None:
        domain.world.counters["n"] = {
            "read_latency_ns": 1000,
            "max_read_latency_ns": 900,
            "min_read_latency_ns": 100,
            "write_latency_ns": 7,
        }

    measure()
    assert await times("none") == await times("error") == await times("maxmin") == (1000, 900, 100, 7)
    assert await times("none") == (1000, 0, 0, 7)
    measure()
    assert await times("all") == (1000, 900, 100, 7)
    assert await times("none") == (0, 0, 0, 0)
    domain.world.counters["n"]["read_latency_ns"] += 50
    assert await times("none") == (50, 0, 0, 0)
