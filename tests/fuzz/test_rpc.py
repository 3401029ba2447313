"""Random requests: each answer is JSON in SPDK's form, nothing is logged with a traceback, memory stays bounded.

UBI_FUZZ_FRAMES is how many (10,000 in process, a fifth of it on the wire), UBI_FUZZ_SEED which.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import resource
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Domain
from tests.fuzz.grammar import Grammar
from ubi_rpc.methods import METHODS
from ubi_rpc.rpc.framing import INCOMPLETE, JsonSyntaxError, request_parser
from ubi_rpc.rpc.session import Session
from ubi_rpc.rpc.unix_server import UnixServer

FRAMES = int(os.environ.get("UBI_FUZZ_FRAMES", "10000"))
SEED = int(os.environ.get("UBI_FUZZ_SEED", str(random.randrange(2**32))))
WAITING = {"bdev_get_bdevs", "framework_wait_init"}  # they may wait for ever
MOST_GROWTH_KIB = 64 * 1024

pytestmark = pytest.mark.timeout(60 + FRAMES // 100)


class _Tracebacks(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(record.getMessage())


@pytest.fixture
def tracebacks() -> Iterator[list[str]]:
    """Collect what is logged with a traceback; let nothing else be formatted."""
    handler = _Tracebacks()
    logger = logging.getLogger("ubi_rpc")
    logger.addHandler(handler)
    logger.propagate = False
    yield handler.found
    logger.propagate = True
    logger.removeHandler(handler)


@pytest.fixture
def grammar(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> Grammar:
    """Return frames for every method that answers at once; file names are relative to an empty folder."""
    monkeypatch.chdir(domain.dir)
    print(f"UBI_FUZZ_SEED={SEED}")
    return Grammar([method for method in METHODS if method.name not in WAITING], SEED)


def _check(answer: bytes) -> None:
    """Check the form of one answer, or of a batch's."""
    assert answer.isascii()
    assert answer.endswith(b"\n")
    value = json.loads(answer)
    for one in value if isinstance(value, list) else [value]:
        assert list(one)[:2] == ["jsonrpc", "id"]
        assert set(one) in ({"jsonrpc", "id", "result"}, {"jsonrpc", "id", "error"})
        if "error" in one:
            assert set(one["error"]) <= {"code", "message", "data"}
            assert isinstance(one["error"]["code"], int)
            assert one["error"]["message"] != "Internal error"


def _rss_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def test_frames_in_process(domain: Domain, grammar: Grammar, tracebacks: list[str]) -> None:
    session, before, answered = Session(), _rss_kib(), 0
    for _ in range(FRAMES):
        parser, values = request_parser(), []
        frame = grammar.frame()
        with contextlib.suppress(JsonSyntaxError):
            for piece in grammar.pieces(frame):
                parser.feed(piece)
                while (value := parser.next_value()) is not INCOMPLETE:
                    values.append(value)
        for value in values:
            answer = await domain.dispatcher.handle(value, session)
            if answer is not None:
                _check(answer)
                answered += 1
        session.error_data = False
        domain.world.log.clear()
        domain.killed.clear()
    assert tracebacks == []
    assert answered > FRAMES // 2
    assert _rss_kib() - before < MOST_GROWTH_KIB


async def _talk(socket: str, frames: list[bytes]) -> bytes:
    """Send frames on one connection, half-close, return what came."""
    reader, writer = await asyncio.open_unix_connection(socket, limit=1 << 26)
    with contextlib.suppress(ConnectionError):
        writer.write(b"\n".join(frames))
        await writer.drain()
        writer.write_eof()
    received = b""
    with contextlib.suppress(ConnectionError):
        received = await reader.read()
    writer.close()
    return received


async def test_frames_on_the_wire(domain: Domain, grammar: Grammar, tracebacks: list[str]) -> None:
    server = UnixServer(domain.dir / "rpc.sock", domain.dispatcher)
    await server.start()
    socket, before = str(domain.dir / "rpc.sock"), _rss_kib()
    for _ in range(FRAMES // 5 // 80):
        talks = [_talk(socket, [grammar.frame() for _ in range(10)]) for _ in range(8)]
        for received in await asyncio.gather(*talks):
            for line in received.splitlines(keepends=True):
                _check(line)
        domain.world.log.clear()
    health: Any = json.loads(await _talk(socket, [b'{"id":1,"method":"spdk_get_version"}']))
    await server.stop()
    assert health["result"]["fields"]["major"] == 1
    assert tracebacks == []
    assert _rss_kib() - before < MOST_GROWTH_KIB
