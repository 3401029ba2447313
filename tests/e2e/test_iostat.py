"""Statistics of real requests: counts, bytes and times that agree with what a client saw."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.e2e.conftest import Volume
from tests.support.images import MIB
from tests.support.nbd_client import NbdClient

pytestmark = pytest.mark.timeout(60)


def _stat(volume: Volume, name: str, **params: object) -> dict[str, Any]:
    (found,) = volume.daemon.call("bdev_get_iostat", names=[name], **params)["bdevs"]
    assert isinstance(found, dict)
    return found


def _run(client: NbdClient) -> dict[str, int]:
    """Make requests of each kind, large enough to be sent from where they lie as well; return the time of each kind."""
    spent_ns = {}
    for kind in ("write", "read", "unmap"):
        began = time.monotonic_ns()
        for at in range(0, 4 * MIB, MIB // 2):
            if kind == "write":
                client.write(at, b"x" * 65536)
                client.write(at + 65536, b"x" * 4096)
            elif kind == "read":
                assert client.read(at, 65536) == b"x" * 65536
                assert client.read(at + 65536, 4096) == b"x" * 4096
            else:
                client.trim(at, 65536 + 4096)
        spent_ns[kind] = time.monotonic_ns() - began
    return spent_ns


@pytest.mark.parametrize("cache", ["none", "writeback"])
def test_times_add_up_to_no_more_than_the_client_waited(volume: Volume, cache: str) -> None:
    volume.daemon.call("bdev_ubi_delete", name="ubi0")
    volume.daemon.call("bdev_aio_delete", name="base0")
    volume.daemon.call(
        "bdev_aio_create", name="base0", filename=str(volume.base), block_size=512, cache=cache, fallocate=True
    )
    volume.daemon.create_ubi("ubi0", "base0", volume.image)
    _stat(volume, "ubi0", reset_mode="all")
    with volume.daemon.client("ubi0") as client:
        spent_ns = _run(client)
    stat = _stat(volume, "ubi0")
    assert (stat["num_write_ops"], stat["bytes_written"]) == (16, 8 * (65536 + 4096))
    assert (stat["num_read_ops"], stat["bytes_read"]) == (16, 8 * (65536 + 4096))
    assert (stat["num_unmap_ops"], stat["bytes_unmapped"]) == (8, 8 * (65536 + 4096))
    for kind, spent in spent_ns.items():
        total, most, least = (stat[f"{bound}{kind}_latency_ticks"] for bound in ("", "max_", "min_"))
        assert 0 < least <= most <= total <= spent * 1.001, kind
        assert least * stat[f"num_{kind}_ops"] <= total, kind
    base = _stat(volume, "base0")
    assert base["num_write_ops"] > 0
    assert base["max_write_latency_ticks"] >= base["min_write_latency_ticks"] > 0


def test_what_was_reset_counts_anew(volume: Volume) -> None:
    with volume.daemon.client("ubi0") as client:
        client.read(0, 4096)
        before = _stat(volume, "ubi0", reset_mode="maxmin")
        assert before["max_read_latency_ticks"] >= before["min_read_latency_ticks"] > 0
        after = _stat(volume, "ubi0")
        assert (after["max_read_latency_ticks"], after["min_read_latency_ticks"]) == (0, 0)
        assert after["read_latency_ticks"] > 0
        assert volume.daemon.call("bdev_reset_iostat", name="ubi0") is True
        assert _stat(volume, "ubi0")["read_latency_ticks"] == 0
        client.read(0, 4096)
    again = _stat(volume, "ubi0")
    assert again["max_read_latency_ticks"] == again["min_read_latency_ticks"] > 0
    assert abs(again["read_latency_ticks"] - again["max_read_latency_ticks"]) <= 1  # a difference of rounded numbers
