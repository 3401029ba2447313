"""An in-memory double of the native module, of the shape of `ubi_rpc/_native.pyi`.

It moves no data. It keeps the contract's rules (closing order, one listener a socket, one name an export), records what
is open, fails where it is told to and waits where it is told to, so that the domain is tested without the engine.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
import threading
import types
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import ubi_rpc
from ubi_rpc.errors import ErrorKind

METADATA_BYTES = 8 << 20
VERSION = "1.2.3-rc4"


class EngineError(Exception):
    """As `_native.EngineError`."""

    def __init__(self, kind: str, message: str, code: int) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.errno = code


class World:
    """What the double's objects have done, and what is to go wrong.

    Attributes:
        failures: the error that calls of a name raise.
        failures_once: the error that the next call of a name raises.
        held: calls of a name wait for the event; `waiting` is set when one does.
        open: names of open bdevs in order of opening.
        offers: how each export was last added.
        tls: how each address was last listened on.
        socket_access: mode and group of the frontends' sockets.
        counters: what a bdev's I/O statistics say.
        log: every call that changed something, in order.
    """

    def __init__(self) -> None:
        self.failures: dict[str, EngineError] = {}
        self.failures_once: dict[str, EngineError] = {}
        self.held: dict[str, threading.Event] = {}
        self.waiting: dict[str, threading.Event] = {}
        self.open: list[str] = []
        self.listeners: list[str] = []
        self.log: list[str] = []
        self.engine_running = False
        self.offers: dict[str, dict[str, object]] = {}
        self.tls: dict[str, dict[str, Any] | None] = {}
        self.socket_access: tuple[int, int | None] | None = None
        self.counters: dict[str, dict[str, int]] = {}
        self._next_port = 20000

    def hold(self, call: str) -> tuple[threading.Event, threading.Event]:
        """Make calls of that name wait; return (set when one waits, to be set to let them go)."""
        self.waiting[call], self.held[call] = threading.Event(), threading.Event()
        return self.waiting[call], self.held[call]

    def let_go(self) -> None:
        """Let every call go that waits."""
        for event in self.held.values():
            event.set()

    def enter(self, call: str, subject: str) -> None:
        if call in self.held:
            self.waiting[call].set()
            assert self.held[call].wait(30), f"nobody let {call} go"
        if call in self.failures_once:
            raise self.failures_once.pop(call)
        if call in self.failures:
            raise self.failures[call]
        self.log.append(f"{call} {subject}")

    def port(self) -> int:
        self._next_port += 1
        return self._next_port


class Bdev:
    """As `_native.Bdev`."""

    def __init__(self, world: World, name: str, info: dict[str, object], base: Bdev | None = None) -> None:
        self._world = world
        self.name = name
        self._info = info
        self.base = base
        self.users = 0
        self.closed = False
        self.ubi: dict[str, object] | None = None
        if base is not None:
            base.users += 1
        world.open.append(name)

    def info(self) -> dict[str, object]:
        return dict(self._info)

    def iostat(self, *, forget_extremes: bool = False) -> dict[str, int]:
        zero = dict.fromkeys(("bytes_read", "num_read_ops", "bytes_written", "num_write_ops"), 0)
        counters = self._world.counters.setdefault(self.name, {})
        answer = {**zero, **counters}
        if forget_extremes:
            counters.update({name: 0 for name in counters if name.startswith(("max_", "min_"))})
        return answer

    def resize(self, num_blocks: int | None = None) -> None:
        """Grow; None is 8 blocks more, as if the file or the base had grown."""
        self._world.enter("resize" if self.base is None else "grow", self.name)
        had = int(str(self._info["num_blocks"]))
        wanted = had + 8 if num_blocks is None else num_blocks
        if wanted < had:
            raise EngineError("invalid_params", f"{self.name} would shrink", errno.EINVAL)
        self._info["num_blocks"] = wanted

    def ubi_status(self) -> dict[str, object]:
        if self.closed:
            raise EngineError("invalid_state", f"{self.name} is closed", errno.EPERM)
        if self.ubi is None:
            raise EngineError("unsupported", f"{self.name} is no ubi bdev", errno.EOPNOTSUPP)
        return dict(self.ubi)

    def close(self) -> None:
        if self.closed:
            return
        assert self.users == 0, f"{self.name} is closed with {self.users} users above"
        self.closed = True
        self._world.open.remove(self.name)
        if self.base is not None:
            self.base.users -= 1
        self._world.enter("close", self.name)


class NbdListener:
    """As `_native.NbdListener`."""

    def __init__(self, world: World, address: str, *, unix: bool) -> None:
        if address in world.listeners:
            raise EngineError("busy", f"{address} is in use", errno.EADDRINUSE)
        self._world = world
        self.address = address
        self._unix = unix
        self._exports: dict[str, Bdev] = {}
        self.offers = world.offers
        self._open = False
        world.listeners.append(address)

    def add_export(
        self,
        *,
        name: str,
        bdev: Bdev,
        readonly: bool,
        default: bool,
        max_connections: int,
        max_handshakes_per_s: int,
        description: str,
    ) -> None:
        self._world.enter("add_export", name)
        self.offers[name] = {
            "readonly": readonly,
            "default": default,
            "max_connections": max_connections,
            "max_handshakes_per_s": max_handshakes_per_s,
            "description": description,
        }
        assert name not in self._exports
        assert not bdev.closed
        self._exports[name] = bdev
        bdev.users += 1

    def remove_export(self, name: str) -> None:
        self._world.enter("remove_export", name)
        self._exports.pop(name).users -= 1

    def open(self) -> None:
        self._world.enter("open_listener", self.address)
        if self._unix and not self._open:
            Path(self.address).touch()
        self._open = True

    def exports(self) -> list[dict[str, object]]:
        return [{"name": name, "connections": 3} for name in self._exports]

    def close(self) -> None:
        assert not self._exports, f"listener closed with exports {list(self._exports)}"
        self._world.enter("close_listener", self.address)
        self._world.listeners.remove(self.address)
        if self._unix and self._open:
            with suppress(FileNotFoundError):
                Path(self.address).unlink()


class VhostController:
    """As `_native.VhostController`; one machine is connected once it is open."""

    def __init__(self, world: World, name: str, path: str, bdev: Bdev) -> None:
        if path in world.listeners:
            raise EngineError("busy", f"{path} is in use", errno.EADDRINUSE)
        self._world = world
        self._bdev = bdev
        self.name = name
        self.path = path
        self._open = False
        bdev.users += 1
        world.listeners.append(path)

    def open(self) -> None:
        self._world.enter("open_controller", self.name)
        Path(self.path).touch()
        self._open = True

    def set_coalescing(self, *, delay_base_us: int, iops_threshold: int) -> None:
        self._world.log.append(f"set_coalescing {self.name} {delay_base_us} {iops_threshold}")

    def sessions(self) -> list[dict[str, object]]:
        one: dict[str, object] = {"vid": 7, "id": 0, "started": True, "max_queues": 2, "inflight_task_cnt": 1}
        return [one] if self._open else []

    def notify_config_change(self) -> None:
        self._world.enter("notify_config_change", self.name)

    def close(self) -> None:
        if self.path not in self._world.listeners:
            return
        self._world.enter("close_controller", self.name)
        self._world.listeners.remove(self.path)
        self._bdev.users -= 1
        if self._open:
            Path(self.path).unlink(missing_ok=True)


def _info(block_size: int, num_blocks: int, **changes: object) -> dict[str, object]:
    flags = dict.fromkeys(("write_cache", "unmap", "write_zeroes", "flush", "unmap_reads_zero"), True)
    info: dict[str, object] = {"block_size": block_size, "num_blocks": num_blocks, "readonly": False, **flags}
    return {**info, "survives": "power", "remote": False, "uuid": None, **changes}


class Engine:
    """As `_native.Engine`."""

    def __init__(
        self,
        world: World,
        *,
        cpus: list[int] | None,
        reactors: int,
        io_engine: str,
        memory_budget_bytes: int,
        socket_mode: int,
        socket_group: int | None,
    ) -> None:
        world.enter("start", f"{cpus} {reactors} {io_engine}")
        world.socket_access = (socket_mode, socket_group)
        assert memory_budget_bytes > 0
        self._world = world
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._events: list[tuple[str, str, str]] = []
        self.io_engine = "threads" if io_engine == "auto" else io_engine
        world.engine_running = True

    @property
    def event_fd(self) -> int:
        return self._event_fd

    def post(self, level: str, subject: str, message: str) -> None:
        """Post an event, as a reactor does."""
        self._events.append((level, subject, message))
        os.eventfd_write(self._event_fd, 1)

    def drain_events(self) -> list[tuple[str, str, str]]:
        with suppress(BlockingIOError):
            os.eventfd_read(self._event_fd)
        events, self._events = self._events, []
        return events

    def create_aio(
        self,
        *,
        name: str,
        path: str,
        block_size: int | None,
        readonly: bool,
        cache: str,
        fallocate: bool,
        descriptor: int | None = None,
    ) -> Bdev:
        self._world.enter("create_aio", name)
        assert cache in {"none", "writeback"}
        size = (Path(path).stat() if descriptor is None else os.fstat(descriptor)).st_size
        assert block_size is not None
        return Bdev(self._world, name, _info(block_size, size // block_size, readonly=readonly, unmap=fallocate))

    def create_malloc(self, *, name: str, num_blocks: int, block_size: int) -> Bdev:
        self._world.enter("create_malloc", name)
        return Bdev(self._world, name, _info(block_size, num_blocks, write_cache=False, survives="nothing"))

    def create_null(self, *, name: str, num_blocks: int, block_size: int) -> Bdev:
        self._world.enter("create_null", name)
        return Bdev(self._world, name, _info(block_size, num_blocks, unmap=False, flush=False, survives="nothing"))

    def create_ubi(
        self,
        *,
        name: str,
        base: Bdev,
        image_path: str,
        stripe_size_kb: int | None,
        no_sync: bool,
        copy_on_read: bool,
        directio: bool,
        image_descriptor: int | None = None,
        uuid: str | None = None,
        wipe: bool = False,
        adopt: bool = False,
        recover: str | None = None,
        state_dir: str | None = None,
    ) -> Bdev:
        self._world.enter("create_ubi", name)
        del wipe, adopt, recover, state_dir
        stripe_size_kb = stripe_size_kb or 1024
        info = base.info()
        block_size = int(str(info["block_size"]))
        blocks = int(str(info["num_blocks"])) - METADATA_BYTES // block_size
        own = uuid or str(uuid4())
        bdev = Bdev(self._world, name, {**info, "num_blocks": blocks, "uuid": own}, base)
        image_bytes = (Path(image_path).stat() if image_descriptor is None else os.fstat(image_descriptor)).st_size
        bdev.ubi = {
            "uuid": own,
            "state": "clean",
            "epoch": 0,
            "map_path": "",
            "acknowledged_by": "map",
            "recovered": "",
            "image_path": image_path,
            "image_size_bytes": image_bytes,
            "stripe_size_kb": stripe_size_kb,
            "stripes_total": -(-image_bytes // (stripe_size_kb * 1024)),
            "stripes_present": 0,
            "copy_on_read": copy_on_read,
            "no_sync": no_sync,
            "directio": directio,
        }
        return bdev

    def listen_nbd_unix(self, *, path: str, tls: dict[str, Any] | None) -> NbdListener:
        self._world.enter("listen", path)
        self._world.tls[path] = tls
        return NbdListener(self._world, path, unix=True)

    def listen_nbd_tcp(self, *, host: str, port: int, tls: dict[str, Any] | None) -> NbdListener:
        self._world.enter("listen", f"{host}:{port}")
        address = f"[{host}]" if ":" in host else host
        self._world.tls[f"{address}:{port}"] = tls
        return NbdListener(self._world, f"{address}:{port or self._world.port()}", unix=False)

    def create_vhost_blk(self, *, name: str, path: str, bdev: Bdev, readonly: bool, cpus: list[int]) -> VhostController:
        self._world.enter("create_vhost_blk", f"{name} {readonly} {cpus}")
        assert not bdev.closed
        return VhostController(self._world, name, path, bdev)

    def shutdown(self) -> None:
        assert not self._world.open, f"shut down with open bdevs {self._world.open}"
        assert not self._world.listeners, f"shut down with listeners {self._world.listeners}"
        if self._world.engine_running:
            self._world.log.append("shutdown")
        self._world.engine_running = False


def install(patch: pytest.MonkeyPatch, world: World) -> None:
    """Make `import ubi_rpc._native` give the double, acting in `world`."""
    module: Any = types.ModuleType("ubi_rpc._native")
    module.EngineError = EngineError
    module.ERROR_KINDS = [kind.value for kind in ErrorKind]
    module.VERSION = VERSION
    module.sweep_maps = lambda _state_dir: 0
    module.Engine = functools.partial(Engine, world)
    patch.setitem(sys.modules, "ubi_rpc._native", module)
    patch.setattr(ubi_rpc, "_native", module, raising=False)  # what `from ubi_rpc import` looks at first
