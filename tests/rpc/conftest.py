"""Methods to call, a server to call them on, and clients that see every byte."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.methods.rpc import METHODS as CONNECTION_METHODS
from ubi_rpc.params import NoParams, Params, UInt32
from ubi_rpc.rpc.dispatch import Dispatcher
from ubi_rpc.rpc.method import ANY_STATE, INVALID_PARAMETERS, Method, State
from ubi_rpc.rpc.session import after_answer, current_session
from ubi_rpc.rpc.unix_server import UnixServer


@dataclass
class World:
    """What the test methods share: gates that hold requests, and counts of what has happened."""

    state: State = State.RUNTIME
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    started: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    cancelled: Counter[str] = field(default_factory=Counter)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    actions: list[Callable[[], None]] = field(default_factory=list)

    def gate(self, key: str) -> asyncio.Event:
        return self.gates.setdefault(key, asyncio.Event())

    async def count(self, counter: Counter[str], key: str) -> None:
        counter[key] += 1
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self.changed:
            await self.changed.wait_for(condition)


class ValueParams(Params):
    value: Any


class HoldParams(Params):
    key: str
    size: int = 0


class FailParams(Params):
    kind: str
    errno: int | None = None


class TypedParams(Params):
    name: str
    size: UInt32 = 0
    ratio: float = 0.0
    secret: str = ""


async def echo(world: World, params: ValueParams) -> object:
    await world.count(world.started, "echo")
    return params.value


async def hold(world: World, params: HoldParams) -> object:
    await world.count(world.started, params.key)
    try:
        await world.gate(params.key).wait()
    except asyncio.CancelledError:
        world.cancelled[params.key] += 1
        raise
    await world.count(world.ended, params.key)
    return "x" * params.size if params.size else params.key


async def fail(_world: World, params: FailParams) -> object:
    raise UbiError(ErrorKind(params.kind), "bdev aio0: it failed on purpose", errno=params.errno, bdev="aio0")


async def typed(_world: World, params: TypedParams) -> object:
    return params.model_dump()


async def version(_world: World, _params: NoParams) -> object:
    return {"version": "v1"}


async def broken(_world: World, _params: NoParams) -> object:
    raise RuntimeError("a secret in a Python message")


async def not_a_number(_world: World, _params: NoParams) -> object:
    return float("nan")


async def whoami(_world: World, _params: NoParams) -> object:
    session = current_session.get()
    return None if session is None else [session.peer_pid, session.peer_uid]


async def act_later(world: World, _params: NoParams) -> object:
    for action in world.actions:
        after_answer(action)
    return True


TEST_METHODS = (
    Method("echo", ValueParams, echo, ANY_STATE),
    Method("hold", HoldParams, hold),
    Method("get_held", HoldParams, hold),
    Method("fail", FailParams, fail),
    Method("fail_602", FailParams, fail, failure_code=-32602),
    Method("typed", TypedParams, typed, decode_error=INVALID_PARAMETERS),
    Method("version", NoParams, version, ANY_STATE, (-32602, "version requires no parameters")),
    Method("broken", NoParams, broken),
    Method("not_a_number", NoParams, not_a_number),
    Method("whoami", NoParams, whoami),
    Method("act_later", NoParams, act_later),
    Method("startup_only", NoParams, version, State.STARTUP),
    *CONNECTION_METHODS,
)


CONNECTIONS = 64
"""Served at once by the fixture's server."""


class Client:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def line(self) -> bytes:
        return await self.reader.readuntil(b"\n")

    async def ask(self, data: bytes) -> bytes:
        await self.send(data)
        return await self.line()

    async def rest(self) -> bytes:
        """Everything up to the end of the connection, which may come as a reset or a broken pipe."""
        received = b""
        try:
            while piece := await self.reader.read(1 << 20):
                received += piece
        except ConnectionError:
            pass
        return received

    def end_writing(self) -> None:
        self.writer.write_eof()

    async def close(self) -> None:
        self.writer.close()
        with suppress(BrokenPipeError, ConnectionResetError):
            await self.writer.wait_closed()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def dispatcher(world: World) -> Dispatcher:
    logging.getLogger("jsonrpcserver").setLevel(logging.CRITICAL)
    return Dispatcher(TEST_METHODS, world, state=lambda: world.state)


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "rpc.sock"


@pytest.fixture
async def server(dispatcher: Dispatcher, socket_path: Path) -> AsyncIterator[UnixServer]:
    server = UnixServer(socket_path, dispatcher, max_connections=CONNECTIONS)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def connect(socket_path: Path) -> AsyncIterator[Callable[[], Any]]:
    """Give a coroutine function that opens a connection, closed at the end of the test."""
    async with AsyncExitStack() as stack:

        async def open_client() -> Client:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            await asyncio.get_running_loop().sock_connect(connection, str(socket_path))
            client = Client(*await asyncio.open_unix_connection(sock=connection, limit=1 << 26))
            stack.push_async_callback(client.close)
            return client

        yield open_client
