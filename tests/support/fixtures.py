"""Fixtures of the tests with real parts: the daemon on each I/O engine.

UBI_IO_ENGINE limits a run to one engine.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.waiting import until

ENGINES = [os.environ["UBI_IO_ENGINE"]] if os.environ.get("UBI_IO_ENGINE") else ["io_uring", "threads"]


@pytest.fixture(scope="session", params=ENGINES)
def io_engine(request: pytest.FixtureRequest) -> str:
    """Return the I/O engine that the daemon is to run on."""
    return str(request.param)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a new folder with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="ubi-") as path:
        yield Path(path)


@pytest.fixture
def unstarted_daemon(folder: Path, io_engine: str) -> Iterator[Daemon]:
    """Return a daemon of the test's own, which it starts and ends as it likes."""
    daemon = Daemon(folder, io_engine)
    yield daemon
    daemon.kill()


@pytest.fixture
def fresh_daemon(unstarted_daemon: Daemon) -> Daemon:
    """Return a running daemon of the test's own."""
    return unstarted_daemon.start()


@pytest.fixture(scope="session")
def shared_daemon(io_engine: str) -> Iterator[Daemon]:
    """Return the daemon that most tests share; at the end it must stop cleanly and leave nothing."""
    with tempfile.TemporaryDirectory(prefix="ubi-") as path, Daemon(Path(path), io_engine) as daemon:
        yield daemon
        assert daemon.end() == 0, daemon.log_text()
        left = sorted(one.name for one in Path(path).iterdir())
        assert left == ["state"]


@pytest.fixture
def daemon(shared_daemon: Daemon) -> Iterator[Daemon]:
    """Return the shared daemon without objects; afterwards they are deleted and no descriptor may be left."""
    shared_daemon.call("spdk_get_version")  # its connection stays open
    before = shared_daemon.descriptors()
    yield shared_daemon
    try:
        assert shared_daemon.process.poll() is None, shared_daemon.log_text()
        shared_daemon.delete_all()
        with suppress(AssertionError):
            until(lambda: shared_daemon.descriptors() == before, "what was open before")
        assert shared_daemon.descriptors() == before
    except BaseException:
        shared_daemon.kill()  # the next test gets a new one
        shared_daemon.start()
        raise
