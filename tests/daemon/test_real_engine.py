"""The daemon over the real engine: objects come and go, clients notice, nothing is left."""

from __future__ import annotations

import ast
import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.process import CHECKOUT, READY, Process

STUB = CHECKOUT / "ubi_rpc/_native.pyi"

MIB = 1 << 20


@pytest.fixture(params=os.environ.get("UBI_TEST_IO_ENGINES", "io_uring threads").split())
async def daemon(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Process]:
    """Return a running daemon; it must end cleanly."""
    process = Process(tmp_path)
    await process.start("--io-engine", request.param, module="ubi_rpc")
    assert f"io_engine={request.param}" in await process.until(READY)
    try:
        yield process
        assert await process.end(signal.SIGTERM) == 0
        assert not _sockets(tmp_path)
    finally:
        process.kill()


def _members(name: str) -> set[str]:
    """Return the members of a class in the stub of the native module."""
    classes = (node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ClassDef))
    found = next(node for node in classes if node.name == name)
    return {
        item.target.id for item in found.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


def _sockets(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_socket()]


def _file(daemon: Process, name: str, size_bytes: int = 16 * MIB) -> str:
    path = daemon.folder / name
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return str(path)


async def _aio(daemon: Process, name: str = "aio0", **params: Any) -> None:
    filename = _file(daemon, f"{name}.raw")
    await daemon.call("bdev_aio_create", name=name, filename=filename, block_size=512, cache="writeback", **params)


def _left(daemon: Process) -> tuple[list[str], list[str]]:
    """Return what descriptors the daemon has, its JSON-RPC connections excepted, and which locks."""
    unix = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    rpc = {f"socket:[{fields[6]}]" for fields in unix if fields[7:] == [str(daemon.socket)]}
    process = Path(f"/proc/{daemon.running.pid}")
    locks = [
        line.split(": ", 1)[1] for line in Path("/proc/locks").read_text().splitlines() if f" {process.name} " in line
    ]
    descriptors = []
    for descriptor in (process / "fd").iterdir():
        with suppress(FileNotFoundError):  # a connection that has just ended
            descriptors.append(str(descriptor.readlink()))
    return sorted(name for name in descriptors if name not in rpc), sorted(locks)


async def _greeted(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    assert (await reader.readexactly(18)).startswith(b"NBDMAGICIHAVEOPT")
    return reader, writer


async def test_kinds_come_and_go_and_leave_nothing(daemon: Process) -> None:
    await daemon.call("bdev_get_bdevs")
    before = _left(daemon)
    await _aio(daemon)
    await _aio(daemon, "ro", readonly=True)
    await daemon.call("bdev_malloc_create", name="m", num_blocks=2048, block_size=4096)
    await daemon.call("bdev_null_create", name="n", num_blocks=2**40, block_size=512)
    for name in ("aio0", "ro", "m", "n"):
        await daemon.call("nbd_create_export", bdev_name=name)
    await daemon.call("nbd_create_export", bdev_name="m", export_name="tcp", address="127.0.0.1:0")
    shown = {bdev["name"]: bdev for bdev in await daemon.call("bdev_get_bdevs")}
    assert {name: (bdev["block_size"], bdev["num_blocks"]) for name, bdev in shown.items()} == {
        "aio0": (512, 16 * MIB // 512),
        "ro": (512, 16 * MIB // 512),
        "m": (4096, 2048),
        "n": (512, 2**40),
    }
    assert [export["readonly"] for export in await daemon.call("nbd_get_exports")] == [False, True, False, False, False]
    assert _left(daemon) != before
    for kind, name in (("aio", "aio0"), ("aio", "ro"), ("malloc", "m"), ("null", "n")):
        assert await daemon.call(f"bdev_{kind}_delete", name=name) is True
    assert await daemon.call("nbd_get_exports") == []
    assert not (daemon.folder / "nbd.sock").exists()
    assert _left(daemon) == before


async def test_deleting_a_bdev_ends_its_clients(daemon: Process) -> None:
    await _aio(daemon)
    await daemon.call("nbd_create_export", bdev_name="aio0", default=True)
    reader, writer = await _greeted(daemon.folder / "nbd.sock")
    assert await daemon.call("bdev_aio_delete", name="aio0") is True
    assert await reader.read() == b""
    writer.close()


async def test_a_socket_that_another_program_serves_is_left_alone(daemon: Process) -> None:
    await daemon.call("bdev_null_create", name="n", num_blocks=8, block_size=512)
    path = daemon.folder / "theirs.sock"
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(path))
        theirs.listen()
        answer = await daemon.request("nbd_create_export", bdev_name="n", socket=str(path))
        assert answer["error"]["code"] == -16, answer
        assert path.is_socket()
        own = await daemon.request("nbd_create_export", bdev_name="n", socket=str(daemon.socket))
        assert own["error"]["code"] == -16, own
    created = await daemon.call("nbd_create_export", bdev_name="n", socket=str(path))  # nobody serves it any more
    assert created["uri"].endswith("theirs.sock")


@pytest.mark.parametrize(
    ("where", "code"),
    [({"socket": "no/such/folder.sock"}, -2), ({"address": "192.0.2.1:0", "allow_plaintext": True}, -99)],
)
async def test_a_listener_that_the_system_refuses_leaves_nothing(
    daemon: Process, where: dict[str, Any], code: int
) -> None:
    await daemon.call("bdev_null_create", name="n", num_blocks=8, block_size=512)
    for _ in range(2):
        assert (await daemon.request("nbd_create_export", bdev_name="n", **where))["error"]["code"] == code
    assert await daemon.call("nbd_get_exports") == []


async def test_a_file_that_another_daemon_holds_is_refused_after_a_while(daemon: Process, tmp_path: Path) -> None:
    """The engine waits for the lock, and other requests do not wait with it."""
    await _aio(daemon)
    (tmp_path / "second").mkdir()
    second = Process(tmp_path / "second")
    await second.start(module="ubi_rpc")
    await second.until(READY)
    try:
        params = {"name": "a", "filename": str(tmp_path / "aio0.raw"), "block_size": 512, "cache": "writeback"}
        waiting = asyncio.create_task(second.request("bdev_aio_create", **params))
        await second.call("bdev_null_create", name="n", num_blocks=8, block_size=512)
        await daemon.call("bdev_aio_delete", name="aio0")
        assert (await waiting)["result"] == "a"
        assert await second.end(signal.SIGTERM) == 0
    finally:
        second.kill()


async def test_an_overlay_is_formatted_shown_opened_again_and_leaves_nothing(daemon: Process) -> None:
    await daemon.call("bdev_get_bdevs")
    before = _left(daemon)
    image = _file(daemon, "image.raw", 4 * MIB + 512)
    for _ in range(2):
        await _aio(daemon)
        params = {"name": "ubi0", "base_bdev": "aio0", "image_path": image, "stripe_size_kb": 64}
        assert await daemon.call("bdev_ubi_create", **params) == "ubi0"
        status = await daemon.call("bdev_ubi_get_status", name="ubi0")
        assert _members("UbiStatus") <= set(status)
        assert (status["stripes_total"], status["stripe_size_kb"], status["sync_failed"]) == (65, 64, False)
        (shown,) = await daemon.call("bdev_get_bdevs", name="ubi0")
        assert (shown["block_size"], shown["num_blocks"]) == (512, 8 * MIB // 512)
        assert set(status) - {"name"} == set(shown["driver_specific"]["ubi"])
        await daemon.call("nbd_create_export", bdev_name="ubi0")
        assert await daemon.call("bdev_aio_delete", name="aio0") is True
        assert await daemon.call("bdev_get_bdevs") == []
        assert _left(daemon) == before


async def test_a_base_that_holds_something_else_is_refused_and_untouched(daemon: Process) -> None:
    image = _file(daemon, "image.raw", 4 * MIB)
    await _aio(daemon)
    base = daemon.folder / "aio0.raw"
    with base.open("r+b") as file:
        file.write(b"NOT_UBI!")
    before = base.read_bytes()
    params = {"name": "ubi0", "base_bdev": "aio0", "image_path": image}
    for _ in range(2):
        assert (await daemon.request("bdev_ubi_create", **params))["error"] == {
            "code": -22,
            "message": "Invalid argument",
        }
    assert [bdev["claimed"] for bdev in await daemon.call("bdev_get_bdevs")] == [False]
    assert base.read_bytes() == before


async def test_an_image_may_be_shared_and_is_not_written_to(daemon: Process) -> None:
    image = _file(daemon, "image.raw", 4 * MIB)
    for number in range(3):
        await _aio(daemon, f"base{number}")
        await daemon.call("bdev_ubi_create", name=f"u{number}", base_bdev=f"base{number}", image_path=image)
    answer = await daemon.request("bdev_aio_create", name="w", filename=image, block_size=512, cache="writeback")
    assert answer["error"]["code"] == -16
    assert len(await daemon.call("bdev_get_bdevs")) == 6


async def test_a_bdev_grows_with_its_file_and_a_null_bdev_as_told(daemon: Process) -> None:
    await _aio(daemon)
    await daemon.call("nbd_create_export", bdev_name="aio0")
    _file(daemon, "aio0.raw", 32 * MIB)
    assert await daemon.call("bdev_aio_rescan", name="aio0") is True
    await daemon.call("bdev_null_create", name="n", num_blocks=2048, block_size=512)
    assert await daemon.call("bdev_null_resize", name="n", new_size=5) is True
    shown = {bdev["name"]: bdev["num_blocks"] for bdev in await daemon.call("bdev_get_bdevs")}
    assert shown == {"aio0": 32 * MIB // 512, "n": 5 * 2048}
    _file(daemon, "aio0.raw", 16 * MIB)
    assert (await daemon.request("bdev_aio_rescan", name="aio0"))["error"]["code"] == -16
    assert (await daemon.request("bdev_null_resize", name="n", new_size=4))["error"]["code"] == -22


async def test_statistics_and_reactors_are_the_engines(daemon: Process) -> None:
    await daemon.call("bdev_malloc_create", name="m", num_blocks=2048, block_size=512)
    (stat,) = (await daemon.call("bdev_get_iostat"))["bdevs"]
    assert (stat["name"], stat["bytes_read"], stat["num_write_ops"]) == ("m", 0, 0)
    found = await daemon.call("framework_get_reactors")
    assert found["pid"] == daemon.running.pid
    assert [reactor["lw_threads"][0]["name"] for reactor in found["reactors"]] == [
        f"reactor_{index}" for index in range(len(found["reactors"]))
    ]
    assert found["reactors"]
    stats = await daemon.call("thread_get_stats")
    assert [thread["name"] for thread in stats["threads"]] == [
        reactor["lw_threads"][0]["name"] for reactor in found["reactors"]
    ]
