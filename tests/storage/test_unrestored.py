"""Entries of the kept file that cannot be applied: what they are known by, and how long they stay."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Domain, running_domain
from tests.engine_double import World
from ubi_rpc.config_source import ConfigSource
from ubi_rpc.rpc.json_values import to_plain
from ubi_rpc.rpc.method import State
from ubi_rpc.rpc.wire_errors import WireError
from ubi_rpc.startup import Startup
from ubi_rpc.storage.config_file import CallFailedError, ConfigError, ConfigReader
from ubi_rpc.storage.config_keep import ConfigKeeper
from ubi_rpc.storage.kept_file import KeptFile
from ubi_rpc.storage.unrestored import Unrestored, UnrestoredEntries

Call = tuple[str, str, dict[str, Any]]

NULL: Call = ("bdev", "bdev_null_create", {"name": "n", "num_blocks": 8, "block_size": 512})
BAD: Call = ("bdev", "bdev_null_create", {"name": "bad", "num_blocks": 8, "block_size": 500})
ON_BAD: Call = ("nbd", "nbd_create_export", {"bdev_name": "bad"})
UNKNOWN: Call = ("bdev", "bdev_of_tomorrow_create", {"name": "t", "huge": 1e3})
OPTIONS: Call = ("sock", "sock_impl_set_options", {"impl_name": "none"})


def _write(path: Path, *calls: Call) -> None:
    names = dict.fromkeys(subsystem for subsystem, _, _ in calls)
    entries = {name: [{"method": call[1], "params": call[2]} for call in calls if call[0] == name] for name in names}
    path.write_text(
        json.dumps({"subsystems": [{"subsystem": name, "config": config} for name, config in entries.items()]})
    )


def _calls(path: Path) -> list[tuple[str, Any]]:
    subsystems = json.loads(path.read_text())["subsystems"]
    return [(call["method"], call.get("params")) for one in subsystems for call in one["config"]]


@asynccontextmanager
async def _started(world: World, folder: Path) -> AsyncIterator[Domain]:
    """Run a domain that has applied and keeps the file of its folder."""
    path = folder / "kept.json"
    source = ConfigSource(path)
    options: list[str] = []
    unrestored = UnrestoredEntries(lambda method, _: method in options, to_plain)
    keeper = ConfigKeeper(KeptFile(path), lambda _: [], unrestored)
    async with running_domain(world, folder, keeper=keeper) as domain:

        async def call(method: str, params: object) -> object:
            try:
                return await domain.dispatcher.call(method, params)
            except WireError as error:
                raise CallFailedError(error.detail) from error

        async def applied() -> None:
            await keeper.begin(to_plain(source.root))

        known = {name: State.STARTUP in method.states for name, method in domain.dispatcher.methods.items()}
        startup = Startup(
            call, ignore_errors=False, applied=applied, failed=domain.failed.append, call_failed=unrestored.add
        )
        startup.steps = ConfigReader(source, known, ignore_errors=False, failed=unrestored.add).steps()
        await startup.run_startup_pass()
        await startup.start_init()
        yield domain


async def test_what_fails_is_told_once_and_stays_with_what_is_made_later(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "kept.json"
    _write(path, BAD, NULL, UNKNOWN, ON_BAD)
    async with _started(world, tmp_path) as domain:
        assert await domain.names() == ["n"]
        assert [one["name"] for one in await domain.call("persist_get_unrestored")] == ["bad", "t", "bad"]
        assert caplog.text.count("3 of 4 objects were not restored: bad, t, bad;") == 1
        await domain.call("bdev_null_create", name="m", num_blocks=8, block_size=512)
        calls = _calls(path)
        assert [call[1:] for call in (BAD, UNKNOWN, ON_BAD)] == [
            call for call in calls if call in [call[1:] for call in (BAD, UNKNOWN, ON_BAD)]
        ]
        assert {params["name"] for method, params in calls if method == "bdev_null_create"} == {"bad", "n", "m"}


async def test_a_create_takes_the_place_and_a_failed_one_does_not(world: World, tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    _write(path, BAD, ON_BAD)
    async with _started(world, tmp_path) as domain:
        await domain.error("bdev_null_create", name="bad", num_blocks=8, block_size=500)
        assert len(await domain.call("persist_get_unrestored")) == 2
        await domain.call("bdev_null_create", name="bad", num_blocks=8, block_size=512)
        (left,) = await domain.call("persist_get_unrestored")
        assert left["method"] == "nbd_create_export"
        assert [params["block_size"] for method, params in _calls(path) if method == "bdev_null_create"] == [512]
        await domain.call("bdev_null_delete", name="bad")
        assert await domain.call("persist_get_unrestored") == [left], "the delete of something else"
        await domain.call("nbd_delete_export", export_name="bad")
        assert await domain.error("nbd_delete_export", export_name="bad") == (-19, "No such device")
        assert [method for method, _ in _calls(path) if "create" in method] == []


async def test_a_file_that_cannot_be_written_keeps_what_it_has(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.json"
    _write(path, BAD)
    async with _started(world, tmp_path) as domain:

        def fail(_self: KeptFile, _content: bytes) -> None:
            raise OSError(28, "full")

        with monkeypatch.context() as patched:
            patched.setattr(KeptFile, "prepare", fail)
            assert await domain.error("bdev_null_delete", name="bad") == (-28, "No space left on device")
        assert len(await domain.call("persist_get_unrestored")) == 1
        assert await domain.call("bdev_null_delete", name="bad") is True
        assert await domain.call("persist_get_unrestored") == []


async def test_an_entry_that_no_file_can_hold_stops_the_start(world: World, tmp_path: Path) -> None:
    (tmp_path / "kept.json").write_text('{"subsystems": [{"subsystem": "bdev", "config": [{"method": 1}]}]}')
    with pytest.raises(ConfigError):
        async with _started(world, tmp_path):
            pass


def test_what_an_entry_is_known_by() -> None:
    def key(method: str, **params: object) -> object:
        return Unrestored("x", {"method": method, "params": params}, "").key

    assert key("bdev_aio_create", name="a") == ("bdev", "a")
    assert key("nbd_create_export", bdev_name="a") == ("nbd", "a")
    assert key("nbd_create_export", bdev_name="a", export_name="e") == ("nbd", "e")
    assert key("vhost_create_blk_controller", ctrlr="c", dev_name="a") == ("vhost_blk", "c")
    assert key("vhost_controller_set_coalescing", ctrlr="c") == ("vhost_blk", "c")
    assert key("bdev_set_options", name="a") is None
    assert key("bdev_aio_create", name=5) is None
    assert Unrestored("x", {"method": "bdev_aio_create"}, "").key is None


def test_options_that_failed_stay_until_they_are_set() -> None:
    is_set: set[tuple[str, str]] = set()
    entries = UnrestoredEntries(lambda method, instance: (method, instance) in is_set)
    entries._entries.append(Unrestored(OPTIONS[0], {"method": OPTIONS[1], "params": OPTIONS[2]}, "why"))
    assert [one.method for one in entries.all()] == [OPTIONS[1]]
    assert entries.has_options({"method": OPTIONS[1], "params": {"impl_name": "none", "x": 1}})
    assert not entries.has_options({"method": OPTIONS[1], "params": {"impl_name": "posix"}})
    is_set.add((OPTIONS[1], "posix"))
    assert entries.of("sock") != []
    is_set.add((OPTIONS[1], "none"))
    assert (entries.all(), entries.subsystems()) == ([], set())
