"""The files of a JSON-RPC socket: its lock, its path, its mode.

Owns `<sock>.lock` and the socket file from `open_listener` to `Listener.close`; a crash leaves both, the next
start takes them over.

Source: SPDK lib/rpc/rpc.c, spdk_rpc_listen and spdk_rpc_server_close.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ubi_rpc.errors import ErrorKind, UbiError

logger = logging.getLogger(__name__)

BACKLOG: Final = 4096
"""Clients that may wait to be accepted; the kernel may allow fewer (net.core.somaxconn)."""
MAX_PATH_BYTES: Final = 107
"""sun_path is 108 bytes with its NUL. Source: unix(7)."""

_KINDS: Final = {
    errno.ENOENT: ErrorKind.NOT_FOUND,
    errno.EACCES: ErrorKind.PERMISSION,
    errno.EPERM: ErrorKind.PERMISSION,
    errno.ENOSPC: ErrorKind.NO_SPACE,
}


class SocketInUseError(Exception):
    """Another process serves the path; `str()` is SPDK's message. The daemon exits with 234."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"RPC Unix domain socket path {path} in use. Specify another.")


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket and the lock that makes its path ours."""

    path: Path
    socket: socket.socket
    identity: tuple[int, int]  # device and inode of the socket file
    lock_fd: int

    def close(self) -> None:
        """Stop listening, remove both files, give the lock back. A socket file that is another's stays."""
        with suppress(OSError):
            if _identity(self.path.lstat()) == self.identity:
                self.path.unlink()
        self.socket.close()
        _unlock(self.path, self.lock_fd)


def open_listener(path: Path, group: int | None = None) -> Listener:
    """Lock `path`, replace a stale socket there, and listen with mode 0600 from the start.

    Args:
        path: of the socket.
        group: its members may connect too: the socket becomes theirs, then 0660.

    Raises:
        SocketInUseError: another process holds the lock or accepts connections there.
        UbiError: the path cannot be used; names why. Nothing is left behind.
    """
    if not 0 < len(os.fsencode(path)) <= MAX_PATH_BYTES:
        message = f"RPC socket path {path} is longer than {MAX_PATH_BYTES} bytes; choose a shorter one"
        raise UbiError(ErrorKind.INVALID_PARAMS, message, errno=errno.ENAMETOOLONG)
    try:
        lock_fd = _lock(path)
        try:
            _remove_stale(path)
            listening, identity = _listen(path, group)
        except BaseException:
            _unlock(path, lock_fd)
            raise
    except OSError as error:
        kind = _KINDS.get(error.errno or 0, ErrorKind.IO)
        message = f"cannot listen on RPC socket {path}: {error.strerror}"
        raise UbiError(kind, message, errno=error.errno) from error
    return Listener(path, listening, identity, lock_fd)


def lock_path(path: Path) -> Path:
    """Give the path of a socket's lock file."""
    return path.with_name(path.name + ".lock")


def _lock(path: Path) -> int:
    """Take the lock for the life of the descriptor, without waiting."""
    file = lock_path(path)
    while True:
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed the file between open and flock: lock the one that is there.
            if file.exists() and _identity(file.stat()) == _identity(os.fstat(fd)):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise SocketInUseError(path) from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _unlock(path: Path, lock_fd: int) -> None:
    lock_path(path).unlink(missing_ok=True)
    os.close(lock_fd)


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on; refuse one that is live, and anything that is no socket."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        message = f"RPC socket path {path} exists and is not a socket; remove it or choose another"
        raise UbiError(ErrorKind.ALREADY_EXISTS, message)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        # EAGAIN: live, with a full backlog.
        if probe.connect_ex(os.fspath(path)) in (0, errno.EAGAIN):
            raise SocketInUseError(path)
    path.unlink(missing_ok=True)
    logger.info("rpc_socket=%s a stale socket was removed", path)


def _listen(path: Path, group: int | None) -> tuple[socket.socket, tuple[int, int]]:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # On Linux bind gives the file the socket's own mode, so it never exists with a wider one.
        os.fchmod(listening.fileno(), 0o600)
        listening.bind(os.fspath(path))
        if group is not None:
            os.chown(path, -1, group, follow_symlinks=False)
            path.chmod(0o660)
        listening.listen(BACKLOG)
        return listening, _identity(path.lstat())
    except BaseException:
        listening.close()
        raise


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
