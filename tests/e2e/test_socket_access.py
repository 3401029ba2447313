"""Who may connect to the frontends' Unix sockets: --socket-mode and --socket-group, from the first instant."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.daemon import Daemon

pytestmark = pytest.mark.timeout(60)

STRANGER = 65534
GROUP = 54321
"""A group that nobody is in."""


def sockets(daemon: Daemon) -> list[Path]:
    """Make an export and a controller; return their sockets."""
    daemon.call("bdev_malloc_create", name="m0", num_blocks=2048, block_size=512)
    daemon.call("nbd_create_export", bdev_name="m0")
    daemon.call("vhost_create_blk_controller", ctrlr="vh0", dev_name="m0")
    return [daemon.nbd_socket, daemon.folder / "vh0"]


def seen(path: Path) -> tuple[int, int]:
    """Return a node's mode and group."""
    stat = path.stat()
    return stat.st_mode & 0o777, stat.st_gid


def test_sockets_are_their_users_alone_by_default(unstarted_daemon: Daemon) -> None:
    daemon = unstarted_daemon.start()
    for path in [*sockets(daemon), daemon.rpc_socket]:
        assert seen(path)[0] == 0o600


def test_a_mode_without_a_group(unstarted_daemon: Daemon) -> None:
    daemon = unstarted_daemon.start("--socket-mode", "0666")
    for path in sockets(daemon):
        assert seen(path) == (0o666, os.getegid())
    assert seen(daemon.rpc_socket)[0] == 0o600


@pytest.fixture
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: gives sockets to another group and connects as another user")


def connects(path: Path, user: int, group: int) -> bool:
    """Return whether that user, in that group, can connect.

    Asked by a thread with another file system identity, which has none of root's powers then. Source: setfsuid(2).
    """
    libc = ctypes.CDLL(None)

    def connect() -> bool:
        libc.setfsgid(group)
        libc.setfsuid(user)
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(path))
            except PermissionError:
                return False
            return True

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(connect).result()


@pytest.fixture
def _open_folders(folder: Path) -> Iterator[None]:
    """Let other users as far as the sockets."""
    before = [(one, one.stat().st_mode) for one in (folder, *folder.parents) if not one.stat().st_mode & 0o001]
    for one, mode in before:
        one.chmod(mode | 0o001)
    yield
    for one, mode in before:
        one.chmod(mode)


@pytest.mark.needs_root
@pytest.mark.usefixtures("_root", "_open_folders")
def test_members_of_the_group_connect_and_others_do_not(unstarted_daemon: Daemon) -> None:
    daemon = unstarted_daemon.start("--socket-group", str(GROUP))
    for path in sockets(daemon):
        assert seen(path) == (0o660, GROUP)
        assert connects(path, STRANGER, GROUP)
        assert not connects(path, STRANGER, STRANGER)
    assert seen(daemon.rpc_socket)[0] == 0o600
    assert not connects(daemon.rpc_socket, STRANGER, GROUP)


@pytest.mark.needs_root
@pytest.mark.usefixtures("_root")
def test_nobody_ever_sees_another_mode_or_group(unstarted_daemon: Daemon) -> None:
    daemon = unstarted_daemon.start("--socket-group", str(GROUP), "--socket-mode", "0620")
    daemon.call("bdev_malloc_create", name="m0", num_blocks=2048, block_size=512)
    path, found, is_over = daemon.folder / "vh0", set(), threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            try:
                found.add(seen(path))
            except FileNotFoundError:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(30):
        daemon.call("vhost_create_blk_controller", ctrlr="vh0", dev_name="m0")
        daemon.call("vhost_delete_controller", ctrlr="vh0")
    is_over.set()
    watcher.join()
    assert found == {(0o620, GROUP)}


def test_a_group_that_does_not_exist_ends_the_start(unstarted_daemon: Daemon) -> None:
    unstarted_daemon.launch("--socket-group", "no-such-group")
    assert unstarted_daemon.wait() == 2
    assert "there is no group 'no-such-group'" in unstarted_daemon.log_text()
