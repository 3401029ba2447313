"""Five thousand clients, two hundred of them slow: all of them find a place, and who behaves is served."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.daemon.process import READY, Process

pytestmark = pytest.mark.timeout(180)

CROWD = 5000
SLOW = 200
MOST_KIB_EACH = 32
REQUEST = b'{"id":1,"method":"spdk_get_version"}'


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Process]:
    """Return a running daemon; it must end cleanly, whoever is connected."""
    process = await Process(tmp_path).start()
    await process.until(READY)
    try:
        yield process
        assert await process.end(signal.SIGTERM) == 0
    finally:
        process.kill()


@contextmanager
def _many_descriptors() -> Iterator[None]:
    """Take what a crowd needs, which is what the daemon itself takes at its start."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 2 * CROWD + 1000, f"RLIMIT_NOFILE allows {hard}"
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _rss_kib(process: Process) -> int:
    status = Path(f"/proc/{process.running.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def _descriptors(process: Process) -> int:
    return len(list(Path(f"/proc/{process.running.pid}/fd").iterdir()))


async def _connect(process: Process, crowd: ExitStack) -> socket.socket:
    client = crowd.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
    while True:
        try:
            client.connect(str(process.socket))
        except BlockingIOError:  # the backlog is full: it is being worked off
            await asyncio.sleep(0.001)
        else:
            return client


async def _answered(client: socket.socket) -> bool:
    """Ask on a connection, alone; say whether the answer is right."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, REQUEST)
    received = b""
    while not received.endswith(b"\n"):
        piece = await loop.sock_recv(client, 4096)
        if not piece:
            return False
        received += piece
    return "result" in json.loads(received)


async def test_a_crowd_is_served_in_bounded_memory_and_leaves_nothing(daemon: Process) -> None:
    with _many_descriptors(), ExitStack() as crowd:
        healthy = await _connect(daemon, crowd)
        assert await _answered(healthy)
        descriptors, rss_kib = _descriptors(daemon), _rss_kib(daemon)
        clients = []
        for index in range(CROWD):
            clients.append(await _connect(daemon, crowd))
            if index % 250 == 0:
                assert await _answered(healthy)
        assert await _answered(clients[-1])
        slow = clients[:SLOW]
        for byte in REQUEST[:-1]:
            for client in slow:
                client.send(bytes([byte]))
            assert await _answered(healthy)
        assert _descriptors(daemon) == descriptors + CROWD
        assert _rss_kib(daemon) - rss_kib < CROWD * MOST_KIB_EACH
        loop = asyncio.get_running_loop()
        for client in slow:
            client.send(REQUEST[-1:])
            assert b'"result"' in await loop.sock_recv(client, 4096)
        for client in clients[:: CROWD // 50]:
            assert await _answered(client)
        for client in clients:
            client.close()
        while _descriptors(daemon) != descriptors:
            assert await _answered(healthy)
        # While the daemon stops, some are there that say nothing.
        for _ in range(100):
            await _connect(daemon, crowd)
        assert await daemon.end(signal.SIGTERM) == 0
        await daemon.start()
        await daemon.until(READY)
