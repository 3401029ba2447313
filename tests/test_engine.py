"""The border to the native module: errors, events, threads."""

from __future__ import annotations

import asyncio
import errno
import logging
import threading

import pytest

from tests.conftest import Domain
from tests.engine_double import EngineError, World
from ubi_rpc import engine
from ubi_rpc.engine import Engine, SocketAccess
from ubi_rpc.errors import DEFAULT_ERRNO, ErrorKind, UbiError


@pytest.mark.parametrize("kind", list(ErrorKind))
async def test_every_kind_of_engine_error_becomes_the_same_kind(world: World, kind: ErrorKind) -> None:
    world.failures["start"] = EngineError(kind.value, "because", errno.EXDEV)
    with pytest.raises(UbiError) as caught:
        await Engine().start(cpus=None, reactors=1, io_engine="auto")
    assert (caught.value.kind, caught.value.message, caught.value.errno) == (kind, "because", errno.EXDEV)
    assert isinstance(caught.value.__cause__, EngineError)


def test_every_kind_has_an_errno() -> None:
    assert set(DEFAULT_ERRNO) == set(ErrorKind)


def test_the_native_module_has_the_same_kinds() -> None:
    """Against the real module: `ubi_rpc/errors.py` and `native/engine/src/error.rs` are one list."""
    assert engine.error_kinds() == [kind.value for kind in ErrorKind]


async def test_options_reach_the_engine(world: World) -> None:
    running = Engine(access=SocketAccess(0o660, 105))
    await running.start(cpus=(0, 2), reactors=2, io_engine="threads")
    assert world.log == ["start [0, 2] 2 threads"]
    assert world.socket_access == (0o660, 105)
    assert running.io_engine == "threads"
    await running.shutdown()
    await running.shutdown()
    assert world.log[1:] == ["shutdown"]


async def test_events_are_logged_with_their_level(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    heard = asyncio.Event()

    def listen(record: logging.LogRecord) -> bool:
        if "ubi1" in record.getMessage():
            heard.set()
        return True

    caplog.handler.addFilter(listen)
    running = Engine()
    await running.start(cpus=None, reactors=1, io_engine="auto")
    native = running._running
    native.post("warning", "ubi0", "a fetch failed")  # type: ignore[attr-defined]
    native.post("odd", "ubi1", "an unknown level")  # type: ignore[attr-defined]
    await heard.wait()
    native.post("error", "ubi2", "the last word")  # type: ignore[attr-defined]
    await running.shutdown()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "object=ubi0 event='a fetch failed'"),
        ("WARNING", "object=ubi1 event='an unknown level'"),
        ("ERROR", "object=ubi2 event='the last word'"),
    ]


async def test_a_call_that_waits_does_not_stop_the_event_loop(domain: Domain) -> None:
    waiting, let_go = domain.world.hold("create_null")
    slow = asyncio.create_task(domain.call("bdev_null_create", name="slow", num_blocks=8, block_size=512))
    await asyncio.to_thread(waiting.wait, 30)
    assert await domain.call("bdev_malloc_create", num_blocks=8, block_size=512) == "Malloc0"
    assert not slow.done()
    let_go.set()
    assert await slow == "slow"
    assert any(thread.name.startswith("engine") for thread in threading.enumerate())
