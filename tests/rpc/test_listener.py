"""The socket's files: lock, stale and live sockets, mode, removal."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ubi_rpc.errors import UbiError
from ubi_rpc.rpc.listener import MAX_PATH_BYTES, SocketInUseError, lock_path, open_listener


@pytest.fixture
def bound(socket_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(socket_path))
        yield other


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("no_umask")
def test_open_makes_both_files_private(socket_path: Path) -> None:
    listener = open_listener(socket_path)
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600
    assert stat.S_ISSOCK(socket_path.stat().st_mode)
    assert stat.S_IMODE(lock_path(socket_path).stat().st_mode) == 0o600
    listener.close()


def test_close_removes_both_files(socket_path: Path) -> None:
    open_listener(socket_path).close()
    assert list(socket_path.parent.iterdir()) == []


def test_open_stale_socket_is_replaced(socket_path: Path, bound: socket.socket) -> None:
    bound.close()
    assert socket_path.exists()
    listener = open_listener(socket_path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(socket_path))
    listener.close()


def test_open_files_left_by_a_crash_are_taken_over(socket_path: Path, bound: socket.socket) -> None:
    bound.close()
    lock_path(socket_path).touch()
    open_listener(socket_path).close()


def test_open_live_socket_without_lock_is_in_use(socket_path: Path, bound: socket.socket) -> None:
    bound.listen()
    with pytest.raises(SocketInUseError):
        open_listener(socket_path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(socket_path))
    assert not lock_path(socket_path).exists()


def test_open_lock_of_another_process_is_in_use(socket_path: Path) -> None:
    lock = lock_path(socket_path)
    holder_code = (
        "import fcntl, sys\n"
        "lock = open(sys.argv[1], 'w')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", holder_code, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        message = f"RPC Unix domain socket path {socket_path} in use. Specify another."
        with pytest.raises(SocketInUseError) as caught:
            open_listener(socket_path)
        assert str(caught.value) == message
        assert lock.exists()
        holder.communicate()
    open_listener(socket_path).close()


def test_open_twice_is_in_use_and_leaves_the_first_alone(socket_path: Path) -> None:
    first = open_listener(socket_path)
    with pytest.raises(SocketInUseError):
        open_listener(socket_path)
    assert socket_path.exists()
    assert lock_path(socket_path).exists()
    first.close()


def test_open_something_else_than_a_socket_is_refused_and_kept(socket_path: Path) -> None:
    socket_path.write_text("precious")
    with pytest.raises(UbiError, match="not a socket"):
        open_listener(socket_path)
    assert socket_path.read_text() == "precious"
    assert not lock_path(socket_path).exists()


def test_open_symbolic_link_for_a_lock_is_refused(socket_path: Path) -> None:
    target = socket_path.with_name("target")
    lock_path(socket_path).symlink_to(target)
    with pytest.raises(UbiError):
        open_listener(socket_path)
    assert not target.exists()


def test_open_path_length_is_limited_by_sun_path(tmp_path: Path) -> None:
    longest = tmp_path / ("x" * (MAX_PATH_BYTES - len(str(tmp_path)) - 1))
    assert len(str(longest)) == MAX_PATH_BYTES
    open_listener(longest).close()
    with pytest.raises(UbiError, match="107 bytes") as caught:
        open_listener(longest.with_name(longest.name + "x"))
    assert caught.value.errno == errno.ENAMETOOLONG
    assert list(tmp_path.iterdir()) == []


def test_open_in_a_folder_that_does_not_exist_says_so(tmp_path: Path) -> None:
    with pytest.raises(UbiError, match="No such file or directory"):
        open_listener(tmp_path / "nowhere" / "rpc.sock")


def test_close_keeps_a_socket_that_replaced_ours(socket_path: Path) -> None:
    listener = open_listener(socket_path)
    socket_path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(socket_path))
        listener.close()
        assert socket_path.exists()


@pytest.mark.needs_root
def test_a_groups_members_may_connect_and_others_may_not(socket_path: Path) -> None:
    listener = open_listener(socket_path, group=12345)
    found = socket_path.stat()
    listener.close()
    assert (found.st_gid, found.st_mode & 0o777) == (12345, 0o660)


def test_a_group_that_cannot_be_given_leaves_nothing(socket_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.chown", refuse)
    with pytest.raises(UbiError, match="Operation not permitted"):
        open_listener(socket_path, group=12345)
    monkeypatch.undo()
    open_listener(socket_path).close()
