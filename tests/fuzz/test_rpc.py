"""Random requests: each answer is JSON in SPDK's form, nothing is logged with a traceback, memory stays bounded.

UBI_FUZZ_FRAMES is how many (10,000 in process, a tenth of it on the wire; `make test` has 200,000),
UBI_FUZZ_SEED which.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Domain
from tests.fuzz.grammar import Grammar, check
from tests.fuzz.run import ANSWERING, Tracebacks, rss_kib
from ubi_rpc.rpc.unix_server import UnixServer

CHECKOUT = Path(__file__).resolve().parents[2]
FRAMES = int(os.environ.get("UBI_FUZZ_FRAMES", "10000"))
SEED = int(os.environ.get("UBI_FUZZ_SEED", str(random.randrange(2**32))))
PROCESSES = len(os.sched_getaffinity(0))
MOST_GROWTH_KIB = 64 * 1024

pytestmark = pytest.mark.timeout(60 + FRAMES // 100)


async def _share(folder: Path, seed: int, frames: int) -> dict[str, Any]:
    """Run a share of the frames in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.fuzz.run", str(seed), str(frames)),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, f"UBI_FUZZ_SEED={SEED}"
    found = json.loads(out.splitlines()[-1])
    assert isinstance(found, dict)
    return found


async def test_frames_in_process(tmp_path: Path) -> None:
    print(f"UBI_FUZZ_SEED={SEED}")
    frames = -(-FRAMES // PROCESSES)
    folders = [tmp_path / str(index) for index in range(PROCESSES)]
    for folder in folders:
        folder.mkdir()
    shares = [_share(folder, SEED + index, frames) for index, folder in enumerate(folders)]
    for found in await asyncio.gather(*shares):
        assert found["tracebacks"] == []
        assert found["answered"] > frames // 2
        assert found["growth_kib"] < MOST_GROWTH_KIB


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


async def test_frames_on_the_wire(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    print(f"UBI_FUZZ_SEED={SEED}")
    monkeypatch.chdir(domain.dir)  # file names are relative, to an empty folder
    with Tracebacks().installed() as tracebacks:
        await _talk_a_lot(domain, Grammar(ANSWERING, SEED))
    assert tracebacks == []


async def _talk_a_lot(domain: Domain, grammar: Grammar) -> None:
    server = UnixServer(domain.dir / "rpc.sock", domain.dispatcher)
    await server.start()
    socket, before = str(domain.dir / "rpc.sock"), rss_kib()
    for _ in range(FRAMES // 10 // 80):
        talks = [_talk(socket, [grammar.frame() for _ in range(10)]) for _ in range(8)]
        for received in await asyncio.gather(*talks):
            for line in received.splitlines(keepends=True):
                check(line)
        domain.world.log.clear()
    health: Any = json.loads(await _talk(socket, [b'{"id":1,"method":"spdk_get_version"}']))
    await server.stop()
    assert health["result"]["fields"]["major"] == 1
    assert rss_kib() - before < MOST_GROWTH_KIB
