"""bdev_ubi_get_status."""

from __future__ import annotations

from tests.conftest import Domain


async def test_status_shows_parameters_and_progress(domain: Domain) -> None:
    await domain.aio()
    await domain.ubi(stripe_size_kb=64, no_sync=True)
    assert await domain.call("bdev_ubi_get_status", name="ubi0") == {
        "name": "ubi0",
        "base_bdev": "aio0",
        "uuid": (await domain.bdev("ubi0"))["uuid"],
        "state": "clean",
        "epoch": 0,
        "map_path": "",
        "acknowledged_by": "map",
        "recovered": "",
        "image_path": str(domain.dir / "image.raw"),
        "image_size_bytes": 4 << 20,
        "stripe_size_kb": 64,
        "stripes_total": 64,
        "stripes_present": 0,
        "copy_on_read": True,
        "no_sync": True,
        "directio": True,
        "survives": "power",
    }


async def test_status_of_what_is_no_ubi_bdev_answers_no_device(domain: Domain) -> None:
    await domain.aio()
    assert await domain.error("bdev_ubi_get_status", name="aio0") == (-19, "No such device")
    assert await domain.error("bdev_ubi_get_status", name="absent") == (-19, "No such device")
    assert await domain.error("bdev_ubi_get_status") == (-32603, "spdk_json_decode_object failed")
