"""The composition root: builds the daemon's objects, starts them in order, stops them in the reverse order.

Everything that a request meets is put together here and nowhere else; what each part does is its own business.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import functools
import gc
import json
import logging
import os
import resource
import signal
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from ubi_rpc import engine as native
from ubi_rpc.config_source import ConfigSource
from ubi_rpc.engine import Engine, SocketAccess
from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.files import Files
from ubi_rpc.frontends.nbd import NbdFrontend
from ubi_rpc.frontends.vhost_blk import VhostBlkFrontend
from ubi_rpc.log_control import FLAGS, LogControl
from ubi_rpc.methods import METHODS
from ubi_rpc.methods.config import option_entries
from ubi_rpc.methods.services import Services
from ubi_rpc.rpc.contract import openrpc
from ubi_rpc.rpc.dispatch import Dispatcher
from ubi_rpc.rpc.json_values import DuplicateKeyError, to_plain
from ubi_rpc.rpc.method import State
from ubi_rpc.rpc.unix_server import SocketInUseError, UnixServer
from ubi_rpc.rpc.wire_errors import WireError
from ubi_rpc.settings import STOP_TIMEOUT_S, Settings
from ubi_rpc.startup import Startup
from ubi_rpc.storage.config_file import CallFailedError, ConfigError, ConfigReader, Failed, Step
from ubi_rpc.storage.config_keep import ConfigKeeper
from ubi_rpc.storage.events import Events
from ubi_rpc.storage.kept_file import KeptFile
from ubi_rpc.storage.lifecycle import Lifecycle
from ubi_rpc.storage.options import Options
from ubi_rpc.storage.registry import Registry
from ubi_rpc.storage.unrestored import UnrestoredEntries

EXIT_FAILED = 1
EXIT_SOCKET_IN_USE = 234
"""-EINVAL as a process's exit code. Source: SPDK, seen."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TABLE_OF_DESCRIPTORS = 65_536
"""Entries; eight bytes each."""

_log = logging.getLogger(__name__)


class Daemon:
    """One run of the daemon.

    Args:
        settings: what the command line asked for.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop_asked = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None
        self._exit_code = 0

    async def run(self) -> int:
        """Start, serve until told to stop, stop; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._signalled, number)
        parts = AsyncExitStack()
        try:
            try:
                await self._start_unless_told_to_stop(parts)
                await self._stop_asked.wait()
            finally:
                give_up = loop.call_later(STOP_TIMEOUT_S, self._give_up)
                await parts.aclose()
                give_up.cancel()
        except (ConfigError, SocketInUseError, UbiError) as error:
            self._fail(error)
        _log.info("ubi_tgt stopped exit_code=%d", self._exit_code)
        return self._exit_code

    async def _start_unless_told_to_stop(self, parts: AsyncExitStack) -> None:
        self._starting = asyncio.get_running_loop().create_task(self._start(parts))
        try:
            await self._starting
        except asyncio.CancelledError:
            if not self._stop_asked.is_set():
                raise

    async def _start(self, parts: AsyncExitStack) -> None:
        """Build the parts, then start them in order; `parts` takes them down again in the reverse order."""
        settings = self._settings
        _raise_file_limit()
        if settings.ignored:
            _log.info("options without effect here: %s", " ".join(settings.ignored))
        kept = None if settings.persist is None else _lock_kept(settings.persist, parts)
        source, loaded = _read_config(settings.config, kept)
        access = SocketAccess(settings.socket_mode, settings.socket_group)
        engine, options = Engine(settings.state_dir, access), Options()
        files = Files(settings.allowed_dirs)
        parts.callback(files.close)
        unrestored = UnrestoredEntries(lambda method, instance: bool(options.get(method, instance)), _as_kept)
        keeper = None if kept is None else ConfigKeeper(kept, functools.partial(option_entries, options), unrestored)
        # What is in the kept file was acknowledged once: one entry that fails takes no other with it, nor itself away.
        call_failed = unrestored.add if source is not None and loaded is not None else None
        lifecycle = Lifecycle(engine, Registry(), Events(), files, keeper)
        nbd = NbdFrontend(engine, settings.socket_dir)
        vhost_blk = VhostBlkFrontend(engine, settings.socket_dir, settings.cpus)

        async def applied() -> None:
            if keeper is not None:
                await keeper.begin(loaded)
            await nbd.gate.release()
            await vhost_blk.gate.release()

        startup = Startup(
            lambda name, params: _call(dispatcher, name, params),
            ignore_errors=settings.ignore_init_errors,
            applied=applied,
            failed=self._init_failed,
            call_failed=call_failed,
        )
        services = Services(
            lifecycle=lifecycle,
            nbd=nbd,
            vhost_blk=vhost_blk,
            startup=startup,
            method_names=lambda current: dispatcher.method_names(current=current),
            kill=lambda number: os.kill(os.getpid(), number),
            version=native.version(),
            discover=functools.cache(lambda: openrpc(dispatcher.methods.values(), native.version())),
            log=LogControl(logging.getLogger().handlers),
            options=options,
        )
        _set_log_flags(services.log, settings.log_flags)
        dispatcher = Dispatcher(METHODS, services, state=lambda: startup.state, allowed=settings.rpcs_allowed)
        server = UnixServer(settings.rpc_socket, dispatcher, settings.rpc_group)
        if source is not None:
            startup.steps = _plan_config(source, dispatcher, settings.ignore_init_errors, call_failed)

        if settings.rpc_server:
            parts.push_async_callback(server.stop)
            await server.start(paused=True)
        if settings.pid_file is not None:
            parts.callback(settings.pid_file.unlink, missing_ok=True)
            _write_pid(settings.pid_file)
        _make_state_dir(settings.state_dir)
        await asyncio.to_thread(_sweep_state_dir, settings.state_dir)
        parts.push_async_callback(engine.shutdown)
        await engine.start(cpus=settings.cpus, reactors=settings.reactors, io_engine=settings.io_engine)
        parts.push_async_callback(lifecycle.stop)
        parts.push_async_callback(server.quiesce)
        nbd.gate.hold()
        vhost_blk.gate.hold()
        await startup.run_startup_pass()
        if not settings.wait_for_rpc:
            await startup.start_init()
        gc.freeze()  # what is there by now stays: no pause to look through it for garbage
        if settings.rpc_server:
            server.resume()
        self._announce(engine, startup, source)

    def _announce(self, engine: Engine, startup: Startup, source: ConfigSource | None) -> None:
        settings = self._settings
        _log.info(
            "ubi_tgt ready rpc=%s reactors=%d io_engine=%s config=%s state=%s",
            settings.rpc_socket,
            settings.reactors,
            engine.io_engine,
            "none" if source is None else source.name,
            (startup.state.name or "").lower(),
        )

    def _init_failed(self, error: ConfigError) -> None:
        """Stop after a second pass that failed; who asked for it is still answered."""
        if self._stop_asked.is_set():
            return  # the stop refused the rest of the file, which is no fault of it
        self._fail(error)
        self._stop_asked.set()

    def _fail(self, error: Exception) -> None:
        """Log why the daemon ends and keep the exit code that says so; the first reason stands."""
        if not self._exit_code:
            self._exit_code = EXIT_SOCKET_IN_USE if isinstance(error, SocketInUseError) else EXIT_FAILED
            if isinstance(error, ConfigError):
                self._exit_code = error.exit_code
            _log.error("ubi_tgt failed: %s", error)

    def _signalled(self, number: signal.Signals) -> None:
        """Stop cleanly at the first signal, at once at the second."""
        if self._stop_asked.is_set():
            _log.warning("ubi_tgt signal=%s came again: ending at once", number.name)
            _end_at_once()
        _log.info("ubi_tgt signal=%s: stopping", number.name)
        self._stop_asked.set()
        if self._starting is not None:
            self._starting.cancel()

    @staticmethod
    def _give_up() -> None:
        _log.error("ubi_tgt did not stop in %d s: ending at once", STOP_TIMEOUT_S)
        _end_at_once()


def _end_at_once() -> None:
    """End as a crash would: nothing that a client was told is lost by it, see docs on crash safety."""
    logging.shutdown()
    os._exit(EXIT_FAILED)


def _raise_file_limit() -> None:
    """Take as many descriptors as this process may have: each volume and each client needs some.

    The kernel's table of them is made large while there is one thread: to enlarge it later it waits for every CPU, some
    10 ms in the middle of a request (expand_fdtable, synchronize_rcu).
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with suppress(OSError), Path(os.devnull).open() as file:
        os.close(fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, min(most, _TABLE_OF_DESCRIPTORS) - 1))


def _set_log_flags(log: LogControl, flags: tuple[str, ...]) -> None:
    for flag in flags:
        try:
            log.set_flag(flag, enabled=True)
        except KeyError:
            _log.warning("logflag=%s is no part of this program; there are %s, all", flag, ", ".join(FLAGS))


def _write_pid(path: Path) -> None:
    try:
        path.write_text(f"{os.getpid()}\n")
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO)
        raise UbiError(ErrorKind.IO, f"pid file {path}: {reason}", errno=error.errno) from error


def _make_state_dir(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        _log.warning("state_dir=%s cannot be used: %s", path, os.strerror(error.errno or errno.EIO))


def _sweep_state_dir(path: Path) -> None:
    """Remove the volatile maps that an earlier boot has left: nobody believes them any more."""
    try:
        swept = native.sweep_maps(path)
    except UbiError as error:
        _log.debug("state_dir=%s is not swept: %s", path, error)
        return
    if swept:
        _log.info("state_dir=%s had %d volatile maps of earlier boots; removed", path, swept)


def _lock_kept(path: Path, parts: AsyncExitStack) -> KeptFile:
    kept = KeptFile(path)
    parts.callback(kept.unlock)
    kept.lock()
    return kept


def _read_config(path: Path | None, kept: KeptFile | None) -> tuple[ConfigSource | None, object]:
    """Return the configuration to apply, and what the kept file says: once there is one, it is the configuration."""
    if kept is not None and kept.path.exists():
        source = ConfigSource(kept.path)
        if path is not None:
            _log.info("config=%s is not applied: persist=%s has what ran last", path, kept.path)
        try:
            return source, to_plain(source.root)
        except DuplicateKeyError:
            return source, source.root  # whoever applies it refuses it, and says where
    return (None if path is None else ConfigSource(path)), None


def _plan_config(
    source: ConfigSource, dispatcher: Dispatcher, ignore_errors: bool, failed: Failed | None
) -> list[Step]:
    methods = {name: State.STARTUP in method.states for name, method in dispatcher.methods.items()}
    return ConfigReader(source, methods, ignore_errors=ignore_errors, failed=failed).steps()


def _as_kept(entry: object) -> object:
    """Return an entry of the kept file as it can be written again.

    Raises:
        ConfigError: it repeats a key, or has a number that nothing holds.
    """
    try:
        plain = to_plain(entry)
        json.dumps(plain)
    except (DuplicateKeyError, TypeError) as error:
        raise ConfigError(f"an entry of the kept file is not to be kept as it stands: {error}") from error
    return plain


async def _call(dispatcher: Dispatcher, name: str, params: object) -> object:
    try:
        return await dispatcher.call(name, params)
    except WireError as error:
        parameter = str(error.context.get("parameter", ""))
        stopping = error.kind is ErrorKind.CANCELLED
        raise CallFailedError(f"{error.code} {error.message}: {error.detail}", parameter, stopping=stopping) from error
