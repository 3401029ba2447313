"""nbd_create_export, nbd_delete_export, nbd_get_exports as a client sees them."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest

from tests.conftest import Domain
from tests.engine_double import EngineError

DECODE = (-32603, "spdk_json_decode_object failed")
INVALID = (-22, "Invalid argument")
EXISTS = (-17, "File exists")
NO_DEVICE = (-19, "No such device")
NOT_PERMITTED = (-1, "Operation not permitted")


@pytest.fixture
async def disk(domain: Domain) -> Domain:
    """Return a domain with one bdev, n."""
    await domain.call("bdev_null_create", name="n", num_blocks=8, block_size=512)
    return domain


async def test_create_answers_name_and_uri_on_the_shared_socket(disk: Domain) -> None:
    path = disk.dir / "nbd.sock"
    assert await disk.call("nbd_create_export", bdev_name="n") == {
        "export_name": "n",
        "uri": f"nbd+unix:///n?socket={path}",
    }
    again = await disk.call("nbd_create_export", bdev_name="n", export_name="a b/ü?")
    assert again == {"export_name": "a b/ü?", "uri": f"nbd+unix:///a%20b%2F%C3%BC%3F?socket={path}"}
    assert disk.world.listeners == [str(path)]


@pytest.mark.parametrize(
    ("params", "uri"),
    [
        ({"export_name": ""}, "nbd+unix:///?socket={dir}/nbd.sock"),
        ({"socket": "other.sock"}, "nbd+unix:///n?socket={dir}/other.sock"),
        ({"socket": "{dir}/./x/../other.sock"}, "nbd+unix:///n?socket={dir}/other.sock"),
        ({"address": "127.0.0.1:10809"}, "nbd://127.0.0.1:10809/n"),
        ({"address": "localhost:10809"}, "nbd://127.0.0.1:10809/n"),
        ({"address": "127.0.0.1:0"}, "nbd://127.0.0.1:20001/n"),
        ({"address": "[::1]:10809", "export_name": ""}, "nbd://[::1]:10809/"),
        ({"address": "0.0.0.0:10809", "allow_plaintext": True}, "nbd://0.0.0.0:10809/n"),
        ({"address": "127.0.0.1:10809", "allow_plaintext": True}, "nbd://127.0.0.1:10809/n"),
    ],
)
async def test_create_listens_where_it_is_told(disk: Domain, params: dict[str, Any], uri: str) -> None:
    given = {
        key: str(value).replace("{dir}", str(disk.dir)) if key == "socket" else value for key, value in params.items()
    }
    created = await disk.call("nbd_create_export", bdev_name="n", **given)
    assert created["uri"] == uri.replace("{dir}", str(disk.dir))


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"bdev_name": "absent"}, NO_DEVICE),
        ({"bdev_name": ...}, DECODE),
        ({"bdev_name": 1}, DECODE),
        ({"export_name": "taken"}, EXISTS),
        ({"export_name": "x" * 4097}, INVALID),
        ({"export_name": "ü" * 2049}, INVALID),
        ({"export_name": "a\0"}, DECODE),
        ({"description": "x" * 4097}, INVALID),
        ({"default": True}, EXISTS),
        ({"socket": "a", "address": "127.0.0.1:1"}, INVALID),
        ({"socket": "x" * 108}, INVALID),
        ({"address": "127.0.0.1"}, INVALID),
        ({"address": "127.0.0.1:"}, INVALID),
        ({"address": ":10809"}, INVALID),
        ({"address": "127.0.0.1:65536"}, INVALID),
        ({"address": "127.0.0.1:-1"}, INVALID),
        ({"address": "127.0.0.1:٣"}, INVALID),
        ({"address": "example.org:10809"}, INVALID),
        ({"address": "0.0.0.0:10809"}, NOT_PERMITTED),
        ({"address": "10.0.0.1:10809"}, NOT_PERMITTED),
        ({"address": "[::]:10809"}, NOT_PERMITTED),
        ({"address": "0.0.0.0:10809", "allow_plaintext": False}, NOT_PERMITTED),
        ({"max_connections": -1}, DECODE),
        ({"max_connections": 2**32}, DECODE),
        ({"max_handshakes_per_s": -1}, DECODE),
        ({"max_handshakes_per_s": 2**32}, DECODE),
        ({"readonly": "yes"}, DECODE),
        ({"surprise": 1}, DECODE),
    ],
)
async def test_create_with_a_fault_answers_its_error_and_creates_nothing(
    disk: Domain, params: dict[str, Any], expected: tuple[int, str]
) -> None:
    await disk.call("nbd_create_export", bdev_name="n", export_name="taken", default=True)
    before = await disk.call("nbd_get_exports"), list(disk.world.log)
    given = {key: value for key, value in {"bdev_name": "n", **params}.items() if value is not ...}
    assert await disk.error("nbd_create_export", **given) == expected
    assert (await disk.call("nbd_get_exports"), disk.world.log) == before


async def test_get_exports_shows_what_was_asked_for(disk: Domain) -> None:
    await disk.call(
        "nbd_create_export",
        bdev_name="n",
        export_name="e",
        readonly=True,
        default=True,
        max_connections=7,
        max_handshakes_per_s=9,
        description="for people",
    )
    assert await disk.call("nbd_get_exports") == [
        {
            "export_name": "e",
            "bdev_name": "n",
            "uri": f"nbd+unix:///e?socket={disk.dir}/nbd.sock",
            "tls": "off",
            "readonly": True,
            "default": True,
            "max_connections": 7,
            "max_handshakes_per_s": 9,
            "description": "for people",
            "connections": 3,
        }
    ]
    assert disk.world.offers["e"] == {
        "readonly": True,
        "default": True,
        "max_connections": 7,
        "max_handshakes_per_s": 9,
        "description": "for people",
    }


async def test_an_export_of_a_read_only_bdev_is_read_only(domain: Domain) -> None:
    await domain.aio(readonly=True)
    await domain.call("nbd_create_export", bdev_name="aio0", readonly=False)
    assert domain.world.offers["aio0"]["readonly"] is True
    assert (await domain.call("nbd_get_exports"))[0]["readonly"] is True


async def test_a_claimed_bdev_is_exported_for_reading_alone(domain: Domain) -> None:
    await domain.aio()
    await domain.ubi()
    assert await domain.error("nbd_create_export", bdev_name="aio0") == NOT_PERMITTED
    assert await domain.call("nbd_create_export", bdev_name="aio0", readonly=True)


async def test_nothing_stands_on_a_bdev_that_clients_may_write_to(domain: Domain) -> None:
    await domain.aio()
    image = domain.file("image", 4 << 20)
    params = {"name": "u", "base_bdev": "aio0", "image_path": image}
    await domain.call("nbd_create_export", bdev_name="aio0", export_name="rw")
    assert await domain.error("bdev_ubi_create", **params) == NOT_PERMITTED
    await domain.call("nbd_delete_export", export_name="rw")
    await domain.call("nbd_create_export", bdev_name="aio0", export_name="ro", readonly=True)
    assert await domain.call("bdev_ubi_create", **params) == "u"


async def test_the_listener_goes_with_its_last_export(disk: Domain) -> None:
    path = disk.dir / "nbd.sock"
    for name in ("a", "b"):
        await disk.call("nbd_create_export", bdev_name="n", export_name=name)
    assert await disk.call("nbd_delete_export", export_name="a") is True
    assert path.exists()
    assert await disk.call("nbd_delete_export", export_name="b") is True
    assert not path.exists()
    assert disk.world.listeners == []
    await disk.call("nbd_create_export", bdev_name="n", export_name="a")


async def test_exports_with_port_0_have_a_port_each_and_others_may_join(disk: Domain) -> None:
    uris = [
        (await disk.call("nbd_create_export", bdev_name="n", export_name=name, address="127.0.0.1:0", default=True))[
            "uri"
        ]
        for name in ("a", "b")
    ]
    assert uris == ["nbd://127.0.0.1:20001/a", "nbd://127.0.0.1:20002/b"]
    joined = await disk.call("nbd_create_export", bdev_name="n", export_name="c", address="127.0.0.1:20001")
    assert joined["uri"] == "nbd://127.0.0.1:20001/c"
    assert (
        await disk.error("nbd_create_export", bdev_name="n", export_name="d", address="127.0.0.1:20001", default=True)
        == EXISTS
    )
    await disk.call("nbd_delete_export", export_name="a")
    assert disk.world.listeners == ["127.0.0.1:20001", "127.0.0.1:20002"]


async def test_two_listeners_may_each_have_a_default(disk: Domain) -> None:
    await disk.call("nbd_create_export", bdev_name="n", export_name="a", default=True)
    await disk.call("nbd_create_export", bdev_name="n", export_name="b", default=True, socket="other")
    await disk.call("nbd_delete_export", export_name="a")
    await disk.call("nbd_create_export", bdev_name="n", export_name="c", default=True)


async def test_concurrent_exports_share_one_listener(disk: Domain) -> None:
    await disk.call("bdev_null_create", name="m", num_blocks=8, block_size=512)
    await asyncio.gather(
        *(disk.call("nbd_create_export", bdev_name="nm"[i % 2], export_name=str(i)) for i in range(20))
    )
    assert disk.world.listeners == [str(disk.dir / "nbd.sock")]
    assert len(await disk.call("nbd_get_exports")) == 20
    await asyncio.gather(*(disk.call("nbd_delete_export", export_name=str(i)) for i in range(20)))
    assert disk.world.listeners == []


async def test_a_listener_that_cannot_be_opened_leaves_nothing(disk: Domain) -> None:
    disk.world.failures["listen"] = EngineError("busy", "the port is taken", errno.EADDRINUSE)
    results = await asyncio.gather(
        *(disk.error("nbd_create_export", bdev_name="n", export_name=str(i)) for i in range(3))
    )
    assert set(results) == {(-98, "Address already in use")}
    disk.world.failures.clear()
    assert await disk.call("nbd_create_export", bdev_name="n", export_name="0")


async def test_delete_of_a_missing_export_answers_no_device(disk: Domain) -> None:
    assert await disk.error("nbd_delete_export", export_name="n") == NO_DEVICE
    assert await disk.error("nbd_delete_export") == DECODE
    assert await disk.error("nbd_get_exports", x=1) == DECODE
