"""Many clients at once: slow, greedy and absent ones pay for themselves, and who behaves is served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.rpc.conftest import Client, World
from tests.rpc.test_unix_server import VERSION, VERSION_ANSWER, answer, request, turns
from ubi_rpc.rpc import allowance
from ubi_rpc.rpc.dispatch import Dispatcher
from ubi_rpc.rpc.unix_server import UnixServer

Connect = Callable[[], Awaitable[Client]]

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
async def crowded(dispatcher: Dispatcher, socket_path: Path) -> AsyncIterator[UnixServer]:
    """Serve as many connections as descriptors allow."""
    server = UnixServer(socket_path, dispatcher)
    await server.start()
    yield server
    await server.stop()


async def test_a_request_that_does_not_arrive_in_time_ends_its_connection(
    connect: Connect, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has started is answered; idle clients, and those between two requests, have all the time they like."""
    monkeypatch.setattr(allowance, "REQUEST_TIMEOUT_S", 0.3)
    idle, between, busy = await connect(), await connect(), await connect()
    slow = [await connect() for _ in range(3)]
    assert await between.ask(VERSION) == VERSION_ANSWER
    await busy.send(request("hold", "held", key="held"))
    await slow[0].send(request("hold", 0, key="first") + VERSION[:5])
    await slow[1].send(b'{"method":"ver')
    await slow[2].send(b" 12 [")
    assert await slow[1].rest() == b""
    assert await slow[2].line() == b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"Invalid request"}}\n'
    assert await slow[2].rest() == b""
    world.gate("first").set()
    assert await slow[0].rest() == answer("first", 0)
    world.gate("held").set()
    assert await busy.line() == answer("held", "held")
    for client in (idle, between, busy):
        assert await client.ask(VERSION) == VERSION_ANSWER


async def test_bytes_that_keep_coming_do_not_move_the_deadline(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowance, "REQUEST_TIMEOUT_S", 0.3)
    client = await connect()
    ended = asyncio.create_task(client.rest())
    await client.send(b'"')
    while not ended.done():
        client.writer.write(b"x")
        await asyncio.wait([ended], timeout=0.01)
    assert ended.result() == b""


@pytest.mark.parametrize("fill", [b'["' + b"x" * 9_990, b"[" + b"1," * 76])
async def test_unfinished_requests_are_bounded_together_and_the_oldest_pay(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, fill: bytes
) -> None:
    """By their text or by their values: each of these takes about 10,000 bytes."""
    monkeypatch.setattr(allowance, "MAX_HELD_BYTES", 100_000)
    clients = [await connect() for _ in range(30)]
    for client in clients:
        await client.send(fill)
        await turns(10)
    healthy = await connect()
    assert await healthy.ask(VERSION) == VERSION_ANSWER
    dropped = [client for client in clients if client.reader.at_eof()]
    assert dropped == clients[: len(dropped)]
    assert 19 <= len(dropped) <= 22
    for client in clients[len(dropped) :]:
        await client.send(b'x"]' if fill.startswith(b'["') else b"1]")
        assert b"Invalid request" in await client.line()
    assert await healthy.ask(VERSION) == VERSION_ANSWER


async def test_requests_in_flight_are_bounded_together_and_everybody_has_one(
    connect: Connect, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowance, "MAX_IN_FLIGHT_BYTES", 100_000)
    key = "k" * 9_900
    greedy = [await connect() for _ in range(4)]
    for client in greedy:
        await client.send(b"".join(request("hold", i, key=key) for i in range(10)))
    await world.until(lambda: world.started[key] >= 10)
    await turns()
    assert world.started[key] <= 13  # ten fill it, and those that have none yet may start one
    healthy = await connect()
    for _ in range(5):
        assert await healthy.ask(VERSION) == VERSION_ANSWER
    world.gate(key).set()
    for client in greedy:
        assert {await client.line() for _ in range(10)} == {answer(key, i) for i in range(10)}


async def test_answers_that_nobody_reads_are_bounded_together_and_the_largest_pays(
    connect: Connect, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowance, "MAX_UNSENT_BYTES", 20_000_000)
    clients = [await connect() for _ in range(4)]
    for index, client in enumerate(clients):
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(request("hold", key="big", size=(index + 4) * 1_000_000))
    await world.until(lambda: world.started["big"] == 4)
    world.gate("big").set()
    await world.until(lambda: world.ended["big"] == 4)
    assert await (await connect()).ask(VERSION) == VERSION_ANSWER
    for client in clients:
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    received = [len(await client.line()) if client is not clients[3] else 0 for client in clients]
    assert received[:3] == [len(answer("x" * size)) for size in (4_000_000, 5_000_000, 6_000_000)]
    assert len(await clients[3].rest()) < 7_000_000


async def test_what_only_reads_ends_with_its_client_and_what_changes_does_not(
    crowded: UnixServer, connect: Connect, world: World
) -> None:
    for method in ("get_held", "hold"):
        client = await connect()
        await client.send(request(method, key=method) * 20)
        await world.until(lambda name=method: world.started[name] == 20)  # type: ignore[misc]
        await client.close()
    await world.until(lambda: world.cancelled["get_held"] == 20)
    await turns()
    assert len(crowded.tasks) == 20
    world.gate("hold").set()
    await world.until(lambda: world.ended["hold"] == 20)
    assert world.cancelled["hold"] == 0
