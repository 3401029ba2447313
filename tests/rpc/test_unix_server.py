"""A live server under well-behaved, slow, rude and absent clients."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.rpc.conftest import CONNECTIONS, Client, World
from ubi_rpc.rpc import connection, unix_server
from ubi_rpc.rpc.connection import (
    BURST,
    MAX_IN_FLIGHT,
    MAX_IN_FLIGHT_BYTES,
    UNSENT_HIGH_WATER_BYTES,
)
from ubi_rpc.rpc.dispatch import Dispatcher
from ubi_rpc.rpc.framing import MAX_REQUEST_BYTES
from ubi_rpc.rpc.listener import lock_path
from ubi_rpc.rpc.unix_server import UnixServer

Connect = Callable[[], Awaitable[Client]]

pytestmark = pytest.mark.timeout(60)


def request(method: str, request_id: object = 1, **params: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": request_id}).encode()


def answer(result: object, request_id: object = 1) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "result": result}, separators=(",", ":")).encode() + b"\n"


VERSION = request("version")
VERSION_ANSWER = answer({"version": "v1"})


async def turns(count: int = 50) -> None:
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.usefixtures("server")
async def test_request_in_any_pieces_is_answered(connect: Connect) -> None:
    client = await connect()
    for i in range(len(VERSION)):
        await client.send(VERSION[i : i + 1])
    assert await client.line() == VERSION_ANSWER
    assert await client.ask(b" \n\t " + VERSION + b"\n\n") == VERSION_ANSWER


@pytest.mark.usefixtures("server")
async def test_pipelined_requests_are_all_answered_in_order_when_none_waits(connect: Connect) -> None:
    client = await connect()
    await client.send(b"".join(request("echo", i, value=i) for i in range(3000)))
    for i in range(3000):
        assert await client.line() == answer(i, i)


@pytest.mark.usefixtures("server")
async def test_pipelined_requests_are_answered_as_they_end(connect: Connect, world: World) -> None:
    client = await connect()
    await client.send(request("hold", "slow", key="slow") + request("hold", "fast", key="fast") + VERSION)
    assert await client.line() == VERSION_ANSWER
    world.gate("fast").set()
    assert await client.line() == answer("fast", "fast")
    world.gate("slow").set()
    assert await client.line() == answer("slow", "slow")


@pytest.mark.usefixtures("server")
async def test_refused_request_does_not_overtake_the_one_before(connect: Connect) -> None:
    client = await connect()
    await client.send(VERSION + b"5 " + VERSION)
    assert await client.line() == VERSION_ANSWER
    assert await client.line() == b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"Invalid request"}}\n'
    assert await client.line() == VERSION_ANSWER


@pytest.mark.usefixtures("server")
async def test_batch_of_notifications_sends_no_byte(connect: Connect) -> None:
    client = await connect()
    assert await client.ask(b'[{"method":"version"}]' + VERSION) == VERSION_ANSWER


@pytest.mark.usefixtures("server")
async def test_half_closed_client_gets_every_answer_then_the_end(connect: Connect, world: World) -> None:
    client = await connect()
    await client.send(request("hold", "slow", key="slow") + VERSION)
    client.end_writing()
    assert await client.line() == VERSION_ANSWER
    await turns()
    world.gate("slow").set()
    assert await client.rest() == answer("slow", "slow")


@pytest.mark.usefixtures("server")
async def test_half_closed_client_gets_a_large_answer_whole(connect: Connect, world: World) -> None:
    client = await connect()
    await client.send(request("hold", key="big", size=8_000_000))
    client.end_writing()
    world.gate("big").set()
    assert await client.rest() == answer("x" * 8_000_000)


@pytest.mark.usefixtures("server")
async def test_half_close_inside_a_request_ends_the_connection(connect: Connect) -> None:
    client = await connect()
    await client.send(VERSION + VERSION[:-1])
    client.end_writing()
    assert await client.rest() == VERSION_ANSWER


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("bad", [b"{bad", b"[1,]", b"\0", b'"\xff"', b"// comment\n", b"[" * 65])
async def test_bad_json_closes_without_a_byte(connect: Connect, bad: bytes) -> None:
    client = await connect()
    await client.send(bad)
    assert await client.rest() == b""
    assert await (await connect()).ask(VERSION) == VERSION_ANSWER


@pytest.mark.usefixtures("server")
async def test_bad_json_does_not_lose_the_answers_before_it(connect: Connect, world: World) -> None:
    client = await connect()
    await client.send(request("hold", "slow", key="slow") + VERSION + b"}" + request("echo", value="after"))
    assert await client.line() == VERSION_ANSWER
    world.gate("slow").set()
    assert await client.rest() == answer("slow", "slow")
    assert world.started["echo"] == 0


@pytest.mark.usefixtures("server")
async def test_request_at_the_size_limit_passes_and_one_byte_more_closes(connect: Connect) -> None:
    fits = request("echo", value="")
    fits = fits.replace(b'""', b'"' + b"x" * (MAX_REQUEST_BYTES - len(fits)) + b'"')
    assert len(fits) == MAX_REQUEST_BYTES
    client = await connect()
    assert len(await client.ask(fits)) > MAX_REQUEST_BYTES - 100
    assert await client.ask(VERSION) == VERSION_ANSWER
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await client.ask(fits.replace(b"xx", b"xxx", 1))


@pytest.mark.usefixtures("server")
async def test_notification_is_silent_and_its_failure_is_not(connect: Connect) -> None:
    client = await connect()
    assert await client.ask(b'{"method":"version"}' + VERSION) == VERSION_ANSWER
    failed = await client.ask(b'{"method":"nope"}')
    assert failed == b'{"jsonrpc":"2.0","id":null,"error":{"code":-32601,"message":"Method not found"}}\n'


@pytest.mark.usefixtures("server")
async def test_client_that_leaves_does_not_cancel_its_request(connect: Connect, world: World) -> None:
    client = await connect()
    await client.send(request("hold", key="slow"))
    await world.until(lambda: world.started["slow"] == 1)
    await client.close()
    await turns()
    world.gate("slow").set()
    await world.until(lambda: world.ended["slow"] == 1)
    assert world.cancelled["slow"] == 0


@pytest.mark.usefixtures("server")
async def test_request_of_a_client_that_left_at_once_is_carried_out(socket_path: Path, world: World) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(socket_path))
        client.sendall(request("echo", value=1))
    await world.until(lambda: world.started["echo"] == 1)


@pytest.mark.usefixtures("server")
async def test_200_connections_64_are_served_and_the_others_wait(connect: Connect, world: World) -> None:
    clients = [await connect() for _ in range(200)]
    for index, client in enumerate(clients):
        await client.send(request("hold", index, key="all"))
    await world.until(lambda: world.started["all"] == CONNECTIONS)
    for client in clients[:CONNECTIONS]:
        assert await client.ask(VERSION) == VERSION_ANSWER
    assert world.started["all"] == CONNECTIONS
    world.gate("all").set()
    for index, client in enumerate(clients):
        assert await client.line() == answer("all", index)
        await client.close()
    assert world.started["all"] == 200


@pytest.mark.usefixtures("server")
async def test_clients_that_left_free_their_places_while_requests_run(connect: Connect, world: World) -> None:
    for _ in range(CONNECTIONS):
        client = await connect()
        await client.send(request("hold", key="stuck"))
        await client.close()
    await world.until(lambda: world.started["stuck"] == CONNECTIONS)
    assert await (await connect()).ask(VERSION) == VERSION_ANSWER
    world.gate("stuck").set()
    await world.until(lambda: world.ended["stuck"] == CONNECTIONS)


@pytest.mark.usefixtures("server")
async def test_half_closed_clients_that_leave_later_free_their_places(connect: Connect, world: World) -> None:
    clients = []
    for _ in range(CONNECTIONS):
        client = await connect()
        await client.send(request("hold", key="stuck"))
        client.end_writing()
        clients.append(client)
    await world.until(lambda: world.started["stuck"] == CONNECTIONS)
    for client in clients:
        await client.close()
    assert await (await connect()).ask(VERSION) == VERSION_ANSWER
    world.gate("stuck").set()
    await world.until(lambda: world.ended["stuck"] == CONNECTIONS)


@pytest.mark.usefixtures("server")
async def test_requests_in_flight_on_a_connection_are_bounded(connect: Connect, world: World) -> None:
    client = await connect()
    other = await connect()
    sending = asyncio.create_task(
        client.send(b"".join(request("hold", i, key="many") for i in range(MAX_IN_FLIGHT + 500)))
    )
    await world.until(lambda: world.started["many"] == MAX_IN_FLIGHT)
    for _ in range(20):
        assert await other.ask(VERSION) == VERSION_ANSWER
    assert world.started["many"] == MAX_IN_FLIGHT
    world.gate("many").set()
    received = [await client.line() for _ in range(MAX_IN_FLIGHT + 500)]
    assert sorted(received) == sorted(answer("many", i) for i in range(MAX_IN_FLIGHT + 500))
    await sending


@pytest.mark.usefixtures("server")
async def test_bytes_in_flight_on_a_connection_are_bounded(connect: Connect, world: World) -> None:
    client = await connect()
    other = await connect()
    key = "k" * 200_000
    sending = asyncio.create_task(client.send(b"".join(request("hold", i, key=key) for i in range(40))))
    await world.until(lambda: world.started[key] * len(key) > MAX_IN_FLIGHT_BYTES)
    for _ in range(50):
        assert await other.ask(VERSION) == VERSION_ANSWER
    assert world.started[key] <= MAX_IN_FLIGHT_BYTES // len(key) + 1
    world.gate(key).set()
    assert {await client.line() for _ in range(40)} == {answer(key, i) for i in range(40)}
    await sending


@pytest.mark.usefixtures("server")
async def test_burst_of_small_requests_with_large_answers_is_held_back(connect: Connect, world: World) -> None:
    client = await connect()
    other = await connect()
    world.gate("big").set()
    size = UNSENT_HIGH_WATER_BYTES // 2
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await client.send(b"".join(request("hold", i, key="big", size=size) for i in range(200)))
    await world.until(lambda: world.ended["big"] > 2)
    for _ in range(100):
        await other.ask(VERSION)
    assert world.started["big"] <= 2 * BURST
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    for i in range(200):
        assert await client.line() == answer("x" * size, i)


@pytest.mark.usefixtures("server")
async def test_client_that_does_not_read_is_not_read_either(connect: Connect, world: World) -> None:
    client = await connect()
    other = await connect()
    value = "x" * 100_000
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    sending = asyncio.create_task(client.send(b"".join(request("echo", i, value=value) for i in range(200))))
    await world.until(lambda: world.started["echo"] * len(value) > UNSENT_HIGH_WATER_BYTES)
    for _ in range(100):
        await other.ask(VERSION)
    assert world.started["echo"] * len(value) < 3 * UNSENT_HIGH_WATER_BYTES
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    for i in range(200):
        assert await client.line() == answer(value, i)
    await sending


@pytest.mark.usefixtures("server")
async def test_client_that_never_reads_what_it_asked_for_is_dropped(
    connect: Connect, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, size, count = 4_000_000, 1_000_000, 10
    monkeypatch.setattr(connection, "MAX_UNSENT_BYTES", limit)
    client = await connect()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await client.send(b"".join(request("hold", i, key="big", size=size) for i in range(count)))
    await world.until(lambda: world.started["big"] == count)
    world.gate("big").set()
    await world.until(lambda: world.ended["big"] == count)
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    assert len(await client.rest()) < limit


async def test_paused_server_accepts_and_answers_after_resume(
    dispatcher: Dispatcher, socket_path: Path, connect: Connect, world: World
) -> None:
    server = UnixServer(socket_path, dispatcher)
    await server.start(paused=True)
    client = await connect()
    await client.send(request("echo", value=1))
    half_closed = await connect()
    await half_closed.send(request("echo", value=2))
    half_closed.end_writing()
    await turns()
    assert world.started["echo"] == 0
    server.resume()
    assert await client.line() == answer(1)
    assert await half_closed.rest() == answer(2)
    await server.stop()


async def test_stop_delivers_what_is_ready_and_removes_the_files(
    server: UnixServer, connect: Connect, world: World, socket_path: Path
) -> None:
    client = await connect()
    await client.send(request("hold", key="slow") + VERSION)
    assert await client.line() == VERSION_ANSWER
    stopping = asyncio.create_task(server.stop())
    await turns()
    world.gate("slow").set()
    assert await client.rest() == answer("slow")
    await stopping
    assert list(socket_path.parent.iterdir()) == []
    await server.stop()


async def test_stop_ends_although_a_request_does_not(
    server: UnixServer, connect: Connect, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_server, "STOP_GRACE_S", 0.05)
    client = await connect()
    await client.send(request("hold", key="never"))
    await world.until(lambda: world.started["never"] == 1)
    await server.stop()
    assert await client.rest() == b""
    assert world.cancelled["never"] == 1


async def test_stop_ends_although_a_client_does_not_read(
    server: UnixServer, connect: Connect, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_server, "STOP_GRACE_S", 0.05)
    client = await connect()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await client.send(request("hold", key="big", size=8_000_000))
    world.gate("big").set()
    await world.until(lambda: world.ended["big"] == 1)
    await server.stop()


async def test_request_that_stops_the_server_is_answered_first(
    server: UnixServer, connect: Connect, world: World
) -> None:
    stopped = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def stop() -> None:
        await server.stop()
        stopped.set()

    world.actions.append(lambda: tasks.append(asyncio.create_task(stop())))
    client = await connect()
    await client.send(request("act_later"))
    assert await client.rest() == answer(True)
    await stopped.wait()


@pytest.mark.usefixtures("server")
async def test_session_knows_its_peer(connect: Connect) -> None:
    client = await connect()
    assert await client.ask(request("whoami")) == answer([os.getpid(), os.getuid()])


@pytest.mark.usefixtures("server")
async def test_error_data_belongs_to_the_connection_that_asked(connect: Connect) -> None:
    first, second = await connect(), await connect()
    option = b'{"method":"ubi_rpc_set_options","params":{"error_data":true}}'
    failing = request("fail", kind="busy")
    assert b'"data"' in await first.ask(option + failing)
    assert b'"data"' not in await second.ask(failing)


async def test_server_starts_again_on_the_same_path(
    dispatcher: Dispatcher, socket_path: Path, connect: Connect
) -> None:
    for _ in range(2):
        server = UnixServer(socket_path, dispatcher)
        await server.start()
        assert lock_path(socket_path).exists()
        assert await (await connect()).ask(VERSION) == VERSION_ANSWER
        await server.stop()
