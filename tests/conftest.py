"""Fixtures for every folder: the domain over the engine's double."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import engine_double
from tests.engine_double import World
from ubi_rpc.engine import Engine
from ubi_rpc.files import Files
from ubi_rpc.frontends.nbd import NbdFrontend
from ubi_rpc.frontends.vhost_blk import VhostBlkFrontend
from ubi_rpc.methods import METHODS
from ubi_rpc.methods.services import Services
from ubi_rpc.rpc.contract import openrpc
from ubi_rpc.rpc.dispatch import Dispatcher
from ubi_rpc.rpc.method import State
from ubi_rpc.rpc.wire_errors import WireError
from ubi_rpc.startup import Startup
from ubi_rpc.storage.config_file import ConfigError
from ubi_rpc.storage.config_keep import ConfigKeeper
from ubi_rpc.storage.events import Events
from ubi_rpc.storage.lifecycle import Lifecycle
from ubi_rpc.storage.registry import Registry

MIB = 1 << 20


@dataclass
class Domain:
    """The control plane without its socket, over the double."""

    world: World
    lifecycle: Lifecycle
    dispatcher: Dispatcher
    startup: Startup
    dir: Path
    killed: list[int]
    failed: list[ConfigError]

    async def call(self, method: str, **params: Any) -> Any:
        """Call a method as a client does; raises WireError."""
        return await self.dispatcher.call(method, params)

    async def error(self, method: str, **params: Any) -> tuple[int, str]:
        """Call a method that must fail; return its code and message."""
        with pytest.raises(WireError) as caught:
            await self.call(method, **params)
        return caught.value.code, caught.value.message

    def file(self, name: str, size_bytes: int = 16 * MIB) -> str:
        """Make a file and return its path."""
        path = self.dir / name
        with path.open("wb") as file:
            file.truncate(size_bytes)
        return str(path)

    async def aio(self, name: str = "aio0", size_bytes: int = 16 * MIB, **params: Any) -> str:
        """Make an aio bdev on a file of its own."""
        filename = self.file(f"{name}.raw", size_bytes)
        await self.call("bdev_aio_create", name=name, filename=filename, block_size=512, **params)
        return name

    async def ubi(self, name: str = "ubi0", base: str = "aio0", **params: Any) -> str:
        """Make a ubi bdev on a base that exists."""
        image = self.file("image.raw", 4 * MIB)
        await self.call("bdev_ubi_create", name=name, base_bdev=base, image_path=image, **params)
        return name

    async def bdev(self, name: str) -> dict[str, Any]:
        """Return what bdev_get_bdevs says of one bdev."""
        (found,) = await self.call("bdev_get_bdevs", name=name)
        assert isinstance(found, dict)
        return found

    async def names(self) -> list[str]:
        """Return the names of all bdevs."""
        return [bdev["name"] for bdev in await self.call("bdev_get_bdevs")]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Return what the double's objects do; the double is installed."""
    made = World()
    engine_double.install(monkeypatch, made)
    return made


@asynccontextmanager
async def running_domain(
    world: World, tmp_path: Path, files: Files | None = None, keeper: ConfigKeeper | None = None
) -> AsyncIterator[Domain]:
    """Run a domain over an installed double; afterwards everything must close in order."""
    killed: list[int] = []
    failed: list[ConfigError] = []
    engine = Engine()
    await engine.start(cpus=None, reactors=1, io_engine="auto")
    lifecycle = Lifecycle(engine, Registry(), Events(), files, keeper)

    async def call(name: str, params: object) -> object:
        return await made.dispatcher.call(name, params)

    async def applied() -> None:
        if keeper is not None:
            await keeper.begin(None)

    startup = Startup(call, ignore_errors=False, applied=applied, failed=failed.append)
    startup.state = State.RUNTIME
    services = Services(
        lifecycle=lifecycle,
        nbd=NbdFrontend(engine, tmp_path),
        vhost_blk=VhostBlkFrontend(engine, tmp_path),
        startup=startup,
        method_names=lambda current: made.dispatcher.method_names(current=current),
        kill=killed.append,
        version=engine_double.VERSION,
        discover=functools.cache(lambda: openrpc(dispatcher.methods.values(), engine_double.VERSION)),
    )
    dispatcher = Dispatcher(METHODS, services, state=lambda: startup.state)
    made = Domain(world, lifecycle, dispatcher, startup, tmp_path, killed, failed)
    try:
        yield made
    finally:
        world.failures.clear()
        world.let_go()
        await lifecycle.stop()
        await engine.shutdown()


@pytest.fixture
async def domain(world: World, tmp_path: Path) -> AsyncIterator[Domain]:
    """Return a running domain; afterwards everything must close in order."""
    async with running_domain(world, tmp_path) as made:
        yield made
