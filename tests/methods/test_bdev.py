"""bdev_get_bdevs, and create and delete of the kinds, as a client sees them."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MIB, Domain
from tests.engine_double import EngineError

UUID = "01234567-89AB-cdef-0123-456789abcdef"
NULL_UUID = "00000000-0000-0000-0000-000000000000"
DECODE = (-32603, "spdk_json_decode_object failed")
INVALID = (-22, "Invalid argument")
EXISTS = (-17, "File exists")
NO_DEVICE = (-19, "No such device")
NOT_PERMITTED = (-1, "Operation not permitted")
NO_MEMORY = (-12, "Cannot allocate memory")
UNSUPPORTED = (-95, "Operation not supported")

AIO: dict[str, Any] = {"name": "a", "filename": "{dir}/disk", "block_size": 512}
MALLOC: dict[str, Any] = {"name": "m", "num_blocks": 64, "block_size": 512}
NULL: dict[str, Any] = {"name": "n", "num_blocks": 64, "block_size": 512}
UBI: dict[str, Any] = {"name": "u", "base_bdev": "base", "image_path": "{dir}/image"}

IO_TYPES = """
    read write unmap flush reset nvme_admin nvme_io nvme_io_md write_zeroes zcopy get_zone_info zone_management
    zone_append compare compare_and_write abort seek_hole seek_data copy nvme_iov_md nvme_nssr write_uncorrectable
"""
MEMBERS = """
    name aliases product_name block_size num_blocks preferred_write_alignment preferred_write_granularity
    optimal_write_size preferred_unmap_alignment preferred_unmap_granularity uuid numa_id assigned_rate_limits claimed
    zoned supported_io_types driver_specific
"""


def _filled(params: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Put the directory into the paths; a value of None leaves the parameter out."""
    return {
        key: value.replace("{dir}", str(directory)) if isinstance(value, str) else value
        for key, value in params.items()
        if value is not ...
    }


@pytest.fixture
async def prepared(domain: Domain) -> Domain:
    """Return a domain with files, a base of 16 MiB, a claimed base, and a taken name with a known uuid."""
    domain.file("disk", 4 * MIB)
    domain.file("odd", 1000)
    domain.file("image", 4 * MIB)
    domain.file("large", 8 * MIB + 1)
    (domain.dir / "folder").mkdir()
    os.mkfifo(domain.dir / "fifo")
    await domain.aio("base")
    await domain.aio("claimed")
    await domain.ubi("holder", "claimed")
    await domain.call("bdev_malloc_create", name="taken", num_blocks=8, block_size=512, uuid=UUID)
    await domain.call("bdev_null_create", name="small", num_blocks=16384, block_size=512)
    return domain


FAULTS: list[tuple[str, dict[str, Any], dict[str, Any], tuple[int, str]]] = [
    ("aio", AIO, {"name": "taken"}, EXISTS),
    ("aio", AIO, {"name": UUID.lower()}, EXISTS),
    ("aio", AIO, {"uuid": UUID}, EXISTS),
    ("aio", AIO, {"name": ""}, INVALID),
    ("aio", AIO, {"name": ...}, DECODE),
    ("aio", AIO, {"name": 5}, DECODE),
    ("aio", AIO, {"name": "a\0b"}, DECODE),
    ("aio", AIO, {"name": None}, DECODE),
    ("aio", AIO, {"filename": ...}, DECODE),
    ("aio", AIO, {"filename": "{dir}/absent"}, (-2, "No such file or directory")),
    ("aio", AIO, {"filename": "{dir}/absent", "name": "taken"}, (-2, "No such file or directory")),
    ("aio", AIO, {"filename": "{dir}/disk/below"}, (-20, "Not a directory")),
    ("aio", AIO, {"filename": "{dir}/folder"}, (-21, "Is a directory")),
    ("aio", AIO, {"filename": "{dir}/folder", "readonly": True}, (-21, "Is a directory")),
    ("aio", AIO, {"filename": "{dir}/fifo"}, INVALID),
    ("aio", AIO, {"filename": "{dir}/odd"}, INVALID),
    ("aio", AIO, {"block_size": 0}, INVALID),
    ("aio", AIO, {"block_size": ...}, INVALID),
    ("aio", AIO, {"block_size": 256}, INVALID),
    ("aio", AIO, {"block_size": 513}, INVALID),
    ("aio", AIO, {"block_size": 1536}, INVALID),
    ("aio", AIO, {"block_size": -1}, DECODE),
    ("aio", AIO, {"block_size": 2**32}, DECODE),
    ("aio", AIO, {"block_size": "512"}, DECODE),
    ("aio", AIO, {"block_size": True}, DECODE),
    ("aio", AIO, {"block_size": 512.5}, DECODE),
    ("aio", AIO, {"nowait": True}, UNSUPPORTED),
    ("aio", AIO, {"readonly": 1}, DECODE),
    ("aio", AIO, {"cache": "unsafe"}, DECODE),
    ("aio", AIO, {"uuid": "0123456789abcdef0123456789abcdef"}, DECODE),
    ("aio", AIO, {"uuid": "{01234567-89ab-cdef-0123-456789abcdef}"}, DECODE),
    ("aio", AIO, {"uuid": None}, DECODE),
    ("aio", AIO, {"surprise": 1}, DECODE),
    ("malloc", MALLOC, {"num_blocks": 0}, INVALID),
    ("malloc", MALLOC, {"num_blocks": ...}, DECODE),
    ("malloc", MALLOC, {"num_blocks": -1}, DECODE),
    ("malloc", MALLOC, {"num_blocks": 2**64}, DECODE),
    ("malloc", MALLOC, {"num_blocks": 2**64 - 1}, NO_MEMORY),
    ("malloc", MALLOC, {"num_blocks": 2**50, "name": "taken"}, NO_MEMORY),
    ("malloc", MALLOC, {"block_size": 0}, NO_MEMORY),
    ("malloc", MALLOC, {"block_size": 513}, INVALID),
    ("malloc", MALLOC, {"block_size": 513, "num_blocks": 0}, INVALID),
    ("malloc", MALLOC, {"physical_block_size": 513}, INVALID),
    ("malloc", MALLOC, {"name": "taken"}, EXISTS),
    ("malloc", MALLOC, {"name": ""}, INVALID),
    ("malloc", MALLOC, {"uuid": UUID}, EXISTS),
    ("malloc", MALLOC, {"md_size": 8}, UNSUPPORTED),
    ("malloc", MALLOC, {"dif_type": 1}, INVALID),
    ("malloc", MALLOC, {"name": None}, DECODE),
    ("malloc", MALLOC, {"surprise": 1}, DECODE),
    ("null", NULL, {"name": ...}, DECODE),
    ("null", NULL, {"name": "taken"}, EXISTS),
    ("null", NULL, {"name": ""}, INVALID),
    ("null", NULL, {"num_blocks": 0}, INVALID),
    ("null", NULL, {"num_blocks": 2**60}, INVALID),
    ("null", NULL, {"block_size": 0}, INVALID),
    ("null", NULL, {"block_size": 513}, INVALID),
    ("null", NULL, {"md_size": 8}, UNSUPPORTED),
    ("null", NULL, {"uuid": UUID}, EXISTS),
    ("null", NULL, {"optimal_write_size": -1}, DECODE),
    ("ubi", UBI, {"base_bdev": "absent"}, NO_DEVICE),
    ("ubi", UBI, {"base_bdev": "claimed"}, NOT_PERMITTED),
    ("ubi", UBI, {"base_bdev": "absent", "image_path": "{dir}/absent"}, NO_DEVICE),
    ("ubi", UBI, {"base_bdev": "claimed", "image_path": "{dir}/absent"}, NOT_PERMITTED),
    ("ubi", UBI, {"base_bdev": "claimed", "name": "taken"}, NOT_PERMITTED),
    ("ubi", UBI, {"image_path": "{dir}/absent"}, INVALID),
    ("ubi", UBI, {"image_path": "{dir}/absent", "name": "taken"}, INVALID),
    ("ubi", UBI, {"image_path": "{dir}/folder"}, INVALID),
    ("ubi", UBI, {"image_path": "{dir}/fifo"}, INVALID),
    ("ubi", UBI, {"image_path": "{dir}/large"}, INVALID),
    ("ubi", UBI, {"base_bdev": "small"}, INVALID),
    ("ubi", UBI, {"image_path": ...}, DECODE),
    ("ubi", UBI, {"stripe_size_kb": 32}, INVALID),
    ("ubi", UBI, {"stripe_size_kb": 65}, INVALID),
    ("ubi", UBI, {"stripe_size_kb": 0}, INVALID),
    ("ubi", UBI, {"stripe_size_kb": 2048}, INVALID),
    ("ubi", UBI, {"stripe_size_kb": -64}, DECODE),
    ("ubi", UBI, {"stripe_size_mb": 2}, INVALID),
    ("ubi", UBI, {"stripe_size_mb": 1, "stripe_size_kb": 1024}, INVALID),
    ("ubi", UBI, {"name": "taken"}, EXISTS),
    ("ubi", UBI, {"name": ""}, INVALID),
    ("ubi", UBI, {"uuid": UUID}, EXISTS),
    ("ubi", UBI, {"no_sync": "no"}, DECODE),
    ("ubi", UBI, {"stripe_size_kb": None}, DECODE),
    ("ubi", UBI, {"surprise": 1}, DECODE),
]


@pytest.mark.parametrize(("kind", "valid", "fault", "expected"), FAULTS)
async def test_create_with_a_fault_answers_spdks_error_and_creates_nothing(
    prepared: Domain, kind: str, valid: dict[str, Any], fault: dict[str, Any], expected: tuple[int, str]
) -> None:
    before, log = await prepared.names(), list(prepared.world.log)
    assert await prepared.error(f"bdev_{kind}_create", **_filled({**valid, **fault}, prepared.dir)) == expected
    assert await prepared.names() == before
    assert prepared.world.log == log
    if valid["name"] not in before:  # the names and the claim are free again
        assert await prepared.call(f"bdev_{kind}_create", **_filled(valid, prepared.dir)) == valid["name"]


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("aio", {"readonly": False, "fallocate": False, "nowait": False}),
        ("aio", {"uuid": UUID, "cache": "writeback", "block_size": 4096}),
        ("malloc", {"physical_block_size": 4096, "optimal_io_boundary": 8, "md_size": 0, "md_interleave": False}),
        ("malloc", {"dif_type": 0, "dif_is_head_of_md": False, "dif_pi_format": 0, "numa_id": -1}),
        ("null", {"physical_block_size": 512, "md_size": 0, "dif_type": 0, "dif_is_head_of_md": False}),
        ("null", {"dif_pi_format": 0, "preferred_write_alignment": 1, "preferred_write_granularity": 2}),
        ("null", {"optimal_write_size": 3, "preferred_unmap_alignment": 4, "preferred_unmap_granularity": 5}),
        ("ubi", {"stripe_size_kb": 64, "no_sync": False, "copy_on_read": False, "directio": True}),
        ("ubi", {"stripe_size_mb": 1, "uuid": "ffffffff-0000-0000-0000-00000000000F"}),
    ],
)
async def test_create_takes_the_parameters_of_every_spdk_version(
    domain: Domain, kind: str, params: dict[str, Any]
) -> None:
    domain.file("disk", 4 * MIB)
    domain.file("image", 4 * MIB)
    await domain.aio("base")
    valid = {"aio": AIO, "malloc": MALLOC, "null": NULL, "ubi": UBI}[kind]
    name = await domain.call(f"bdev_{kind}_create", **_filled({**valid, **params}, domain.dir))
    assert name == valid["name"]
    shown = await domain.bdev(name)
    if "uuid" in params:
        assert shown["uuid"] == params["uuid"].lower()
    assert shown["preferred_write_granularity"] == params.get("preferred_write_granularity", 0)


async def test_get_bdevs_shows_spdks_members_in_spdks_order(domain: Domain) -> None:
    await domain.call("bdev_malloc_create", num_blocks=8, block_size=4096, uuid=UUID)
    assert await domain.call("bdev_get_bdevs") == [
        {
            "name": "Malloc0",
            "aliases": [UUID.lower()],
            "product_name": "Malloc disk",
            "block_size": 4096,
            "num_blocks": 8,
            "preferred_write_alignment": 0,
            "preferred_write_granularity": 0,
            "optimal_write_size": 0,
            "preferred_unmap_alignment": 0,
            "preferred_unmap_granularity": 0,
            "uuid": UUID.lower(),
            "numa_id": -1,
            "assigned_rate_limits": {
                "rw_ios_per_sec": 0,
                "rw_mbytes_per_sec": 0,
                "r_mbytes_per_sec": 0,
                "w_mbytes_per_sec": 0,
            },
            "claimed": False,
            "zoned": False,
            "supported_io_types": {
                name: name in {"read", "write", "unmap", "flush", "reset", "write_zeroes"} for name in IO_TYPES.split()
            },
            "driver_specific": {},
        }
    ]
    assert list(await domain.bdev("Malloc0")) == MEMBERS.split()


async def test_get_bdevs_of_aio_shows_its_parameters(domain: Domain) -> None:
    await domain.aio(readonly=True, fallocate=True, cache="writeback")
    shown = await domain.bdev("aio0")
    assert shown["product_name"] == "AIO disk"
    assert "numa_id" not in shown
    assert shown["supported_io_types"]["unmap"]
    assert shown["driver_specific"] == {
        "aio": {
            "filename": str(domain.dir / "aio0.raw"),
            "block_size_override": True,
            "readonly": True,
            "fallocate": True,
            "nowait": False,
            "cache": "writeback",
            "survives": "power",
        }
    }


async def test_get_bdevs_of_a_stack_shows_the_claim_and_the_overlay(domain: Domain) -> None:
    await domain.aio()
    await domain.ubi(copy_on_read=False)
    base, ubi = await domain.bdev("aio0"), await domain.bdev("ubi0")
    assert (base["claimed"], base["claim_type"]) == (True, "exclusive_write")
    assert list(base).index("claim_type") == list(base).index("claimed") + 1
    assert ubi["product_name"] == "Ubi disk"
    assert (ubi["block_size"], ubi["num_blocks"]) == (512, 8 * MIB // 512)
    assert ubi["driver_specific"]["ubi"]["base_bdev"] == "aio0"
    assert ubi["driver_specific"]["ubi"]["image_path"] == str(domain.dir / "image.raw")
    assert ubi["driver_specific"]["ubi"]["stripe_size_kb"] == 1024
    assert ubi["driver_specific"]["ubi"]["copy_on_read"] is False
    assert ubi["driver_specific"]["ubi"]["stripes_total"] == 4
    assert [name for name, yes in ubi["supported_io_types"].items() if yes] == [
        "read",
        "write",
        "flush",
        "write_zeroes",
    ]


async def test_default_uuids_are_random_and_lower_case(domain: Domain) -> None:
    await domain.call("bdev_null_create", name="n0", num_blocks=8, block_size=512)
    await domain.call("bdev_null_create", name="n1", num_blocks=8, block_size=512, uuid=NULL_UUID)
    uuids = [(await domain.bdev(name))["uuid"] for name in ("n0", "n1")]
    assert len({*uuids}) == 2
    for uuid in uuids:
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", uuid)


async def test_default_names_of_malloc_count_and_skip_taken_ones(domain: Domain) -> None:
    size = {"num_blocks": 8, "block_size": 512}
    await domain.call("bdev_malloc_create", name="Malloc1", **size)
    assert await domain.error("bdev_malloc_create", num_blocks=0, block_size=512) == INVALID
    assert await domain.call("bdev_malloc_create", **size) == "Malloc0"
    assert await domain.call("bdev_malloc_create", **size) == "Malloc2"
    await domain.call("bdev_malloc_delete", name="Malloc2")
    assert await domain.call("bdev_malloc_create", **size) == "Malloc3"


async def test_a_uuid_works_wherever_a_name_does(domain: Domain) -> None:
    await domain.aio(uuid=UUID)
    lower = UUID.lower()
    assert (await domain.bdev(lower))["name"] == "aio0"
    assert await domain.error("bdev_get_bdevs", name=UUID) == NO_DEVICE  # SPDK keeps the lower-case alias alone
    await domain.ubi(base=lower, uuid="ffffffff-0000-0000-0000-00000000000f")
    status = await domain.call("bdev_ubi_get_status", name="ffffffff-0000-0000-0000-00000000000f")
    assert (status["name"], status["base_bdev"]) == ("ubi0", "aio0")
    assert await domain.call("nbd_create_export", bdev_name="ffffffff-0000-0000-0000-00000000000f")
    assert await domain.call("bdev_aio_delete", name=lower) is True
    assert await domain.names() == []


@pytest.mark.parametrize("kind", ["aio", "malloc", "null", "ubi"])
async def test_delete_of_a_missing_bdev_or_another_kinds_answers_no_device(domain: Domain, kind: str) -> None:
    other = "null" if kind == "malloc" else "malloc"
    await domain.call(f"bdev_{other}_create", name="other", num_blocks=8, block_size=512)
    assert await domain.error(f"bdev_{kind}_delete", name="absent") == NO_DEVICE
    assert await domain.error(f"bdev_{kind}_delete", name="other") == NO_DEVICE
    assert await domain.error(f"bdev_{kind}_delete", name="") == NO_DEVICE
    assert await domain.error(f"bdev_{kind}_delete") == DECODE
    assert await domain.names() == ["other"]


async def test_delete_frees_name_and_uuid(domain: Domain) -> None:
    params = {"name": "m", "num_blocks": 8, "block_size": 512, "uuid": UUID}
    for _ in range(2):
        assert await domain.call("bdev_malloc_create", **params) == "m"
        assert await domain.call("bdev_malloc_delete", name=UUID.lower()) is True


async def test_get_bdevs_lists_in_order_of_creation(domain: Domain) -> None:
    for name in ("z", "a", "m"):
        await domain.call("bdev_null_create", name=name, num_blocks=8, block_size=512)
    assert await domain.names() == ["z", "a", "m"]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"name": "absent"}, NO_DEVICE),
        ({"name": "absent", "timeout": 0}, NO_DEVICE),
        ({"name": "absent", "timeout": 1}, (-110, "Connection timed out")),
        ({"name": 1}, DECODE),
        ({"name": None}, DECODE),
        ({"timeout": -1}, DECODE),
        ({"surprise": 1}, DECODE),
    ],
)
async def test_get_bdevs_with_a_fault_answers_spdks_error(
    domain: Domain, params: dict[str, Any], expected: tuple[int, str]
) -> None:
    assert await domain.error("bdev_get_bdevs", **params) == expected


async def test_get_bdevs_with_a_timeout_answers_when_the_bdev_appears(domain: Domain) -> None:
    waiting = asyncio.create_task(domain.call("bdev_get_bdevs", name="late", timeout=2**64 - 1))
    await domain.call("bdev_null_create", name="other", num_blocks=8, block_size=512)
    assert not waiting.done()
    await domain.call("bdev_null_create", name="late", num_blocks=8, block_size=512)
    assert (await waiting)[0]["name"] == "late"


async def test_engine_errors_keep_their_errno(domain: Domain) -> None:
    domain.world.failures["create_null"] = EngineError("no_space", "no room", errno.ENOSPC)
    assert await domain.error("bdev_null_create", **NULL) == (-28, "No space left on device")
    domain.world.failures.clear()
    assert await domain.call("bdev_null_create", **NULL) == "n"


async def test_a_socket_is_no_disk(domain: Domain) -> None:
    path = domain.dir / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert await domain.error("bdev_aio_create", name="a", filename=str(path), block_size=512) == INVALID
