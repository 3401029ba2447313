"""The kept configuration: written before an answer, undone when it cannot be, and shared by requests that meet."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from tests.conftest import MIB, Domain, running_domain
from tests.engine_double import World
from ubi_rpc.errors import UbiError
from ubi_rpc.storage.config_keep import ConfigKeeper
from ubi_rpc.storage.kept_file import KeptFile

NO_SPACE = (-28, "No space left on device")
NULL = {"num_blocks": 8, "block_size": 512}


class File(KeptFile):
    """A kept file that fails or waits where it is told to, and counts its writes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.fails: dict[str, int] = {}
        self.writes = 0
        self.gate = threading.Event()
        self.gate.set()

    @override
    def prepare(self, content: bytes) -> None:
        self.writes += 1
        assert self.gate.wait(30)
        self._fail("prepare")
        super().prepare(content)

    @override
    def put_in_place(self) -> None:
        self._fail("replace")
        super().put_in_place()
        self._fail("sync folder")

    def _fail(self, step: str) -> None:
        if code := self.fails.pop(step, 0):
            raise OSError(code, step)

    def methods(self) -> list[tuple[str, str]]:
        """Return the calls in the file that make objects, each with the object's name."""
        subsystems = json.loads(self.path.read_text())["subsystems"]
        calls = [entry for one in subsystems if one["subsystem"] in ("bdev", "nbd") for entry in one["config"]]
        names = [(call["method"], call.get("params", {})) for call in calls]
        return [(method, params.get("export_name") or params["name"]) for method, params in names if "create" in method]


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "kept.json")


@pytest.fixture
async def kept(world: World, tmp_path: Path, file: File) -> AsyncIterator[Domain]:
    """Return a domain that keeps its configuration and has begun to."""
    keeper = ConfigKeeper(file, lambda _: [])
    async with running_domain(world, tmp_path, keeper=keeper) as domain:
        await domain.startup.start_init()
        yield domain
        file.gate.set()


async def _stack(domain: Domain) -> None:
    await domain.aio()
    await domain.ubi()
    await domain.call("nbd_create_export", bdev_name="ubi0")


STACK = [("bdev_aio_create", "aio0"), ("bdev_ubi_create", "ubi0"), ("nbd_create_export", "ubi0")]


async def test_every_answer_finds_its_change_in_the_file(kept: Domain, file: File) -> None:
    assert file.methods() == []
    await _stack(kept)
    assert file.methods() == STACK
    await kept.call("nbd_delete_export", export_name="ubi0")
    assert file.methods() == STACK[:2]
    await kept.call("nbd_create_export", bdev_name="ubi0")
    await kept.call("bdev_aio_delete", name="aio0")
    assert file.methods() == []
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert sorted(one.name for one in file.path.parent.iterdir() if "kept" in one.name) == ["kept.json"]


async def test_a_stop_leaves_the_file_as_it_is(world: World, tmp_path: Path, file: File) -> None:
    async with running_domain(world, tmp_path, keeper=ConfigKeeper(file, lambda _: [])) as domain:
        await domain.startup.start_init()
        await _stack(domain)
    assert file.methods() == STACK


@pytest.mark.parametrize("step", ["prepare", "replace", "sync folder"])
@pytest.mark.parametrize("number", [0, 1, 2])
async def test_a_create_that_cannot_be_kept_is_undone(kept: Domain, file: File, step: str, number: int) -> None:
    async with AsyncExitStack() as made:
        for position, (method, name) in enumerate(STACK):
            before = (list(kept.world.open), list(kept.world.listeners), file.path.read_bytes())
            if position == number:
                file.fails[step] = errno.ENOSPC
                assert await kept.error(method, **_params(kept, name, method)) == NO_SPACE
                assert (list(kept.world.open), list(kept.world.listeners), file.path.read_bytes()) == before
                assert await kept.call("nbd_get_exports") == []
            await kept.call(method, **_params(kept, name, method))  # nothing of the failed one is in the way
        made.push_async_callback(kept.call, "bdev_aio_delete", name="aio0")
    assert file.methods() == []


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  what it waits for happens in threads
            await asyncio.sleep(0.001)


def _params(domain: Domain, name: str, method: str) -> dict[str, Any]:
    if method == "bdev_aio_create":
        return {"name": name, "filename": domain.file("aio0.raw", 64 * MIB), "block_size": 512}
    if method == "bdev_ubi_create":
        return {"name": name, "base_bdev": "aio0", "image_path": domain.file("image")}
    return {"bdev_name": "ubi0"}


@pytest.mark.parametrize("step", ["prepare", "replace", "sync folder"])
async def test_a_delete_that_cannot_be_kept_deletes_nothing(kept: Domain, file: File, step: str) -> None:
    await _stack(kept)
    before, kept.world.log[:] = file.path.read_bytes(), []
    for method, params in (("nbd_delete_export", {"export_name": "ubi0"}), ("bdev_aio_delete", {"name": "aio0"})):
        file.fails[step] = errno.ENOSPC
        assert await kept.error(method, **params) == NO_SPACE
        assert file.path.read_bytes() == before
    assert kept.world.log == []
    assert len(await kept.call("nbd_get_exports")) == 1
    await kept.call("bdev_aio_delete", name="aio0")


async def test_the_message_says_that_nothing_was_changed(kept: Domain, file: File) -> None:
    file.fails["prepare"] = errno.EROFS
    with pytest.raises(Exception, match=r"kept\.json cannot be written: Read-only file system; nothing was changed"):
        await kept.call("bdev_null_create", name="n", **NULL)


async def test_requests_that_meet_share_a_write_and_its_failure(kept: Domain, file: File) -> None:
    file.gate.clear()
    had = file.writes
    first = asyncio.create_task(kept.call("bdev_null_create", name="first", **NULL))
    await _until(lambda: file.writes > had)
    names = [f"n{number}" for number in range(50)]
    others = [asyncio.create_task(kept.call("bdev_null_create", name=name, **NULL)) for name in names]
    await _until(lambda: len(kept.world.open) == 51)
    assert not any(task.done() for task in (first, *others))
    assert [bdev["name"] for bdev in await kept.call("bdev_get_bdevs")] == []  # not there before it is kept
    file.gate.set()
    await asyncio.gather(first, *others)
    assert file.writes <= had + 3
    assert len(file.methods()) == 51

    file.gate.clear()
    file.fails["prepare"] = errno.ENOSPC
    doomed = [asyncio.create_task(kept.call("bdev_null_delete", name=name)) for name in names]
    await asyncio.sleep(0.01)
    file.gate.set()
    outcomes = await asyncio.gather(*doomed, return_exceptions=True)
    there = {bdev["name"] for bdev in await kept.call("bdev_get_bdevs")}
    failed = {name for name, outcome in zip(names, outcomes, strict=True) if outcome is not True}
    assert failed
    assert there == {"first", *failed} == {name for _, name in file.methods()}


async def test_a_resize_is_kept_too(kept: Domain, file: File) -> None:
    await kept.call("bdev_null_create", name="n", num_blocks=2048, block_size=512)
    await kept.call("bdev_null_resize", name="n", new_size=2)
    assert '"num_blocks": 4096' in file.path.read_text()


async def test_the_first_start_needs_a_file_that_can_be_written(file: File) -> None:
    file.fails["prepare"] = errno.EROFS
    with pytest.raises(UbiError, match="Read-only"):
        await ConfigKeeper(file, lambda _: []).begin(None)


async def test_a_file_that_said_something_else_is_set_aside(file: File, caplog: pytest.LogCaptureFixture) -> None:
    file.path.write_text('{"subsystems": []}')
    await ConfigKeeper(file, lambda _: []).begin({"subsystems": []})
    aside = file.path.with_name("kept.json.before")
    assert aside.read_text() == '{"subsystems": []}'
    assert str(aside) in caplog.text
    had, written = file.writes, json.loads(file.path.read_text())
    await ConfigKeeper(file, lambda _: []).begin(written)
    assert file.writes == had  # what is said already is not written again


async def test_a_later_start_serves_though_nothing_can_be_written(file: File) -> None:
    file.path.write_text('{"subsystems": []}')
    file.fails["prepare"] = errno.EROFS
    await ConfigKeeper(file, lambda _: []).begin({"subsystems": []})


async def test_a_file_has_one_daemon(file: File) -> None:
    file.lock()
    other = KeptFile(file.path)
    with pytest.raises(UbiError, match="another daemon's"):
        other.lock()
    file.unlock()
    other.lock()
    other.unlock()
