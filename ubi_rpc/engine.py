"""The border to the native data plane: the only importer of `ubi_rpc._native`.

Every native call that may wait runs in a bounded pool of threads, off the event loop, with the interpreter lock
released by the native side. Its errors become `UbiError`s here, its events become log lines. Decides nothing.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeAlias, TypeVar, cast

from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.settings import BLOCKING_CALLS, MEMORY_BUDGET_BYTES, PRIVATE_SOCKET, IoEngine

if TYPE_CHECKING:
    from ubi_rpc import _native
    from ubi_rpc._native import NbdExportInfo, UbiStatus, VhostSessionInfo

P = ParamSpec("P")
R = TypeVar("R")

UbiProblem: TypeAlias = "_native.UbiProblem"
UbiRepairPlan: TypeAlias = "_native.UbiRepairPlan"
UbiReport: TypeAlias = "_native.UbiReport"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BdevInfo:
    """What a bdev is, fixed from its opening to its close but for its size. Fields as `_native.BdevInfo`."""

    block_size: int
    num_blocks: int
    write_cache: bool
    readonly: bool
    unmap: bool
    write_zeroes: bool
    flush: bool
    unmap_reads_zero: bool
    survives: str
    remote: bool
    uuid: str | None

    @property
    def size_bytes(self) -> int:
        """Return the size in bytes."""
        return self.block_size * self.num_blocks


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """How a listener speaks TLS.

    Args:
        required: clients that do not use it are refused.
        certificates: a directory with server-cert.pem, server-key.pem and, for `verify_peer`, ca-cert.pem.
        verify_peer: clients need a certificate that the CA has signed.
        psk_file: a file of pre-shared keys.
    """

    required: bool
    certificates: str | None
    verify_peer: bool
    psk_file: str | None


def version() -> str:
    """Return the product's version; the native module carries it."""
    from ubi_rpc import _native

    return _native.VERSION


def error_kinds() -> list[str]:
    """Return the native engine's error kinds, in its order."""
    from ubi_rpc import _native

    return list(_native.ERROR_KINDS)


def sweep_maps(state_dir: Path) -> int:
    """Remove the volatile maps of other boots; return how many. Errors as `_native.sweep_maps`."""
    from ubi_rpc import _native

    try:
        return _native.sweep_maps(str(state_dir))
    except _native.EngineError as error:
        raise _translated(error) from error


def inspect(
    path: str, *, image_path: str | None, stripe_size_kb: int | None, block_size: int | None, wait_s: float
) -> UbiReport:
    """Look at a base that nobody has open. Arguments and errors as `_native.ubi_inspect`."""
    from ubi_rpc import _native

    try:
        return _native.ubi_inspect(
            path, image_path=image_path, stripe_size_kb=stripe_size_kb, block_size=block_size, wait_s=wait_s
        )
    except _native.EngineError as error:
        raise _translated(error) from error


def plan_repair(
    path: str,
    *,
    choice: Literal["keep", "drop"],
    image_path: str | None,
    stripe_size_kb: int | None,
    uuid: str | None,
    block_size: int | None,
    wait_s: float,
) -> UbiRepairPlan:
    """Say what a repair would do. Arguments and errors as `_native.ubi_plan_repair`."""
    from ubi_rpc import _native

    try:
        return _native.ubi_plan_repair(
            path,
            choice=choice,
            image_path=image_path,
            stripe_size_kb=stripe_size_kb,
            uuid=uuid,
            block_size=block_size,
            wait_s=wait_s,
        )
    except _native.EngineError as error:
        raise _translated(error) from error


def repair(
    path: str,
    *,
    choice: Literal["keep", "drop"],
    token: int,
    image_path: str | None,
    stripe_size_kb: int | None,
    uuid: str | None,
    block_size: int | None,
    wait_s: float,
) -> None:
    """Carry out a plan. Arguments and errors as `_native.ubi_repair`."""
    from ubi_rpc import _native

    try:
        _native.ubi_repair(
            path,
            choice=choice,
            token=token,
            image_path=image_path,
            stripe_size_kb=stripe_size_kb,
            uuid=uuid,
            block_size=block_size,
            wait_s=wait_s,
        )
    except _native.EngineError as error:
        raise _translated(error) from error


class Bdev:
    """An open bdev of the engine. Made by `Engine`."""

    __slots__ = ("_engine", "info", "native")

    def __init__(self, engine: Engine, native: _native.Bdev, info: BdevInfo) -> None:
        self._engine = engine
        self.native = native
        self.info = info

    async def ubi_status(self) -> UbiStatus:
        """Return progress and state of a ubi bdev; `UbiError` unsupported for the other kinds."""
        return await self._engine.call(self.native.ubi_status)

    async def iostat(self, *, forget_extremes: bool = False) -> Mapping[str, int]:
        """Return counters and times of completed requests, fields as `_native.IoStat`.

        Args:
            forget_extremes: the longest and the shortest times begin anew afterwards.
        """
        answer = await self._engine.call(self.native.iostat, forget_extremes=forget_extremes)
        return cast("Mapping[str, int]", answer)

    async def resize(self, num_blocks: int | None) -> None:
        """Grow to `num_blocks`, or to what the storage has by now; `info` is the new one. Errors as `_native`."""

        def resize_and_ask() -> BdevInfo:
            self.native.resize(num_blocks)
            return BdevInfo(**self.native.info())

        self.info = await self._engine.call(resize_and_ask)

    async def close(self) -> None:
        """Finish what is in flight, publish, sync, release locks and descriptors; idempotent.

        Raises:
            UbiError: io, the last sync failed; the descriptors are released all the same.
        """
        await self._engine.call(self.native.close)


class NbdListener:
    """A listening NBD socket of the engine. Made by `Engine`."""

    __slots__ = ("_engine", "_native", "address")

    def __init__(self, engine: Engine, native: _native.NbdListener) -> None:
        self._engine = engine
        self._native = native
        self.address = native.address

    async def add_export(
        self,
        bdev: Bdev,
        *,
        name: str,
        readonly: bool,
        default: bool,
        max_connections: int,
        max_handshakes_per_s: int,
        description: str,
    ) -> None:
        """Offer `bdev` as `name` at once. Limits of 0 are none."""
        await self._engine.call(
            self._native.add_export,
            name=name,
            bdev=bdev.native,
            readonly=readonly,
            default=default,
            max_connections=max_connections,
            max_handshakes_per_s=max_handshakes_per_s,
            description=description,
        )

    async def remove_export(self, name: str) -> None:
        """Refuse new clients, finish what is in flight, close the export's connections."""
        await self._engine.call(self._native.remove_export, name)

    async def exports(self) -> list[NbdExportInfo]:
        """Return what the listener offers, with the number of connections of each."""
        return await self._engine.call(self._native.exports)

    async def open(self) -> None:
        """Let clients in; before, none is answered. Idempotent."""
        await self._engine.call(self._native.open)

    async def close(self) -> None:
        """Stop listening and remove the socket file. Exports must be gone first."""
        await self._engine.call(self._native.close)


class VhostController:
    """A vhost-user-blk controller of the engine. Made by `Engine`."""

    __slots__ = ("_engine", "_native", "path")

    def __init__(self, engine: Engine, native: _native.VhostController) -> None:
        self._engine = engine
        self._native = native
        self.path = native.path

    async def open(self) -> None:
        """Let machines in; before, none is answered. Idempotent."""
        await self._engine.call(self._native.open)

    def set_coalescing(self, delay_base_us: int, iops_threshold: int) -> None:
        """Hold notifications back from now on, 0 microseconds for never."""
        self._native.set_coalescing(delay_base_us=delay_base_us, iops_threshold=iops_threshold)

    async def sessions(self) -> list[VhostSessionInfo]:
        """Return the machines that are connected."""
        return await self._engine.call(self._native.sessions)

    async def notify_config_change(self) -> None:
        """Tell the machines that the bdev has another size."""
        await self._engine.call(self._native.notify_config_change)

    async def close(self) -> None:
        """Stop listening, finish what is in flight, part with the machines, remove the socket. Idempotent."""
        await self._engine.call(self._native.close)


@dataclass(frozen=True, slots=True)
class SocketAccess:
    """Who may connect to the frontends' Unix sockets.

    Args:
        mode: permission bits; connecting takes the permission to write.
        group: number of the group that they belong to; None for the one that the system gives them.
    """

    mode: int = PRIVATE_SOCKET
    group: int | None = None


class Engine:
    """The data plane: nothing before `start`, nothing after `shutdown`.

    Args:
        state_dir: where the volatile maps of volumes live; None: volumes do without, and say so.
        access: who may connect to Unix sockets; the RPC socket is none of these.
    """

    def __init__(self, state_dir: Path | None = None, access: SocketAccess | None = None) -> None:
        self._state_dir = state_dir
        self._access = access or SocketAccess()
        self._pool = ThreadPoolExecutor(max_workers=BLOCKING_CALLS, thread_name_prefix="engine")
        self._started: _native.Engine | None = None
        self._error_type: type[_native.EngineError] | tuple[()] = ()

    async def start(self, *, cpus: tuple[int, ...] | None, reactors: int, io_engine: IoEngine) -> None:
        """Load the native module, start its reactors and watch its events.

        Args:
            cpus: one reactor is pinned to each; None leaves `reactors` of them unpinned.
            reactors: how many reactors run.
            io_engine: how they do I/O.

        Raises:
            UbiError: the reactors cannot be started, for instance io_uring was demanded and is not allowed.
        """
        from ubi_rpc import _native

        self._error_type = _native.EngineError
        self._started = await self.call(
            _native.Engine,
            cpus=None if cpus is None else list(cpus),
            reactors=reactors,
            io_engine=io_engine,
            memory_budget_bytes=MEMORY_BUDGET_BYTES,
            socket_mode=self._access.mode,
            socket_group=self._access.group,
        )
        asyncio.get_running_loop().add_reader(self._started.event_fd, self._log_events)

    @property
    def io_engine(self) -> str:
        """How I/O is done: io_uring or threads."""
        return self._running.io_engine

    @property
    def _running(self) -> _native.Engine:
        if self._started is None:
            raise AssertionError("the engine is not running")
        return self._started

    async def call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a call that may wait off the event loop.

        Raises:
            UbiError: the engine refused; kind, message and errno are the engine's.
        """
        work = functools.partial(function, *args, **kwargs)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except self._error_type as error:
            raise _translated(error) from error

    async def create_aio(
        self,
        *,
        name: str,
        path: str,
        block_size: int | None,
        readonly: bool,
        cache: Literal["none", "writeback"],
        fallocate: bool,
        descriptor: int,
    ) -> Bdev:
        """Open and lock what `descriptor` stands for, called `path`. Errors as `_native.Engine.create_aio`."""
        return await self._open(
            functools.partial(
                self._running.create_aio,
                name=name,
                path=path,
                block_size=block_size,
                readonly=readonly,
                cache=cache,
                fallocate=fallocate,
                descriptor=descriptor,
            )
        )

    async def create_malloc(self, *, name: str, num_blocks: int, block_size: int) -> Bdev:
        """Make a bdev of zeroed memory."""
        make = self._running.create_malloc
        return await self._open(functools.partial(make, name=name, num_blocks=num_blocks, block_size=block_size))

    async def create_null(self, *, name: str, num_blocks: int, block_size: int) -> Bdev:
        """Make a bdev that drops writes and reads as zeros."""
        make = self._running.create_null
        return await self._open(functools.partial(make, name=name, num_blocks=num_blocks, block_size=block_size))

    async def create_ubi(
        self,
        *,
        name: str,
        base: Bdev,
        image_path: str,
        image_descriptor: int,
        stripe_size_kb: int | None,
        no_sync: bool,
        copy_on_read: bool,
        directio: bool,
        uuid: str | None = None,
        wipe: bool = False,
        adopt: bool = False,
        recover: str | None = None,
    ) -> Bdev:
        """Format `base` or open what is on it, as an overlay over the image, which is what the descriptor stands for.

        Nothing is written on an error. Arguments as `_native.Engine.create_ubi`.
        """
        return await self._open(
            functools.partial(
                self._running.create_ubi,
                name=name,
                base=base.native,
                image_path=image_path,
                image_descriptor=image_descriptor,
                stripe_size_kb=stripe_size_kb,
                no_sync=no_sync,
                copy_on_read=copy_on_read,
                directio=directio,
                uuid=uuid,
                wipe=wipe,
                adopt=adopt,
                recover=recover,
                state_dir=None if self._state_dir is None else str(self._state_dir),
            )
        )

    async def listen_nbd_unix(self, path: str, tls: TlsOptions | None) -> NbdListener:
        """Prepare a Unix socket for NBD clients; `NbdListener.open` lets them in."""
        return NbdListener(
            self, await self.call(self._running.listen_nbd_unix, path=path, tls=None if tls is None else asdict(tls))
        )

    async def listen_nbd_tcp(self, host: str, port: int, tls: TlsOptions | None) -> NbdListener:
        """Prepare a TCP port for NBD clients, 0 for a free one; `NbdListener.open` lets them in."""
        native = await self.call(
            self._running.listen_nbd_tcp, host=host, port=port, tls=None if tls is None else asdict(tls)
        )
        return NbdListener(self, native)

    async def create_vhost_blk(
        self, bdev: Bdev, *, name: str, path: str, readonly: bool, cpus: tuple[int, ...]
    ) -> VhostController:
        """Prepare a vhost-user-blk socket; `VhostController.open` lets machines in. Errors as `_native`."""
        create = functools.partial(self._running.create_vhost_blk, bdev=bdev.native, readonly=readonly, cpus=list(cpus))
        return VhostController(self, await self.call(create, name=name, path=path))

    async def shutdown(self) -> None:
        """Stop the reactors and the threads. All listeners and bdevs must be closed. Idempotent."""
        if self._started is not None:
            await self.call(self._started.shutdown)
            asyncio.get_running_loop().remove_reader(self._started.event_fd)
            self._log_events()
            self._started = None
        self._pool.shutdown(wait=False)

    async def _open(self, make: Callable[[], _native.Bdev]) -> Bdev:
        def make_and_ask() -> tuple[_native.Bdev, BdevInfo]:
            native = make()
            return native, BdevInfo(**native.info())

        native, info = await self.call(make_and_ask)
        return Bdev(self, native, info)

    def _log_events(self) -> None:
        levels = logging.getLevelNamesMapping()
        for level, subject, message in self._running.drain_events():
            _log.log(levels.get(level.upper(), logging.WARNING), "object=%s event=%r", subject, message)


def _translated(error: _native.EngineError) -> UbiError:
    return UbiError(ErrorKind(error.kind), error.message, errno=error.errno)
