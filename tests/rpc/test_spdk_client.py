"""SPDK's own Python client, unmodified, against the server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from spdk.rpc.client import JSONRPCClient, JSONRPCException

from tests.rpc.conftest import World

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("server")]


async def test_client_calls_and_reads_errors(socket_path: Path) -> None:
    def calls() -> None:
        with JSONRPCClient(str(socket_path)) as client:
            assert client.version() == {"version": "v1"}
            assert client.echo(value=["é", {"a": 1.5}]) == ["é", {"a": 1.5}]
            assert client.typed(name="n", size=7)["size"] == 7
            with pytest.raises(JSONRPCException) as caught:
                client.fail(kind="not_found")
            assert '"code": -19' in caught.value.message
            assert '"message": "No such device"' in caught.value.message
            assert client.version() == {"version": "v1"}

    await asyncio.to_thread(calls)


async def test_client_reads_an_answer_of_many_megabytes(socket_path: Path, world: World) -> None:
    world.gate("big").set()

    def call() -> object:
        with JSONRPCClient(str(socket_path)) as client:
            return client.hold(key="big", size=300_000)

    assert await asyncio.to_thread(call) == "x" * 300_000


async def test_client_batch_is_answered_in_one_array(socket_path: Path) -> None:
    def batch() -> tuple[list[object], list[object]]:
        with JSONRPCClient(str(socket_path), batch_mode=True) as client:
            calls = [{"method": "version"}, {"method": "nope"}, {"method": "echo", "params": {"value": 3}}]
            results, errors = client.call_batch(calls)
            return results, errors

    results, errors = await asyncio.to_thread(batch)
    assert results == [{"version": "v1"}, 3]
    assert errors == [{"code": -32601, "message": "Method not found"}]
