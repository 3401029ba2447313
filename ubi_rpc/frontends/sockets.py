"""What the frontends' sockets have in common: how long a path may be, and that those of a start appear all at once."""

from __future__ import annotations

from typing import Protocol

from ubi_rpc.errors import ErrorKind, UbiError

MAX_SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket: sun_path less its NUL. Source: unix(7)."""


def check_socket_path(path: str) -> None:
    """Raise `UbiError` EINVAL for a path that is too long for a socket."""
    if len(path.encode()) > MAX_SOCKET_PATH_BYTES:
        raise UbiError(ErrorKind.INVALID_PARAMS, f"socket path {path} is longer than {MAX_SOCKET_PATH_BYTES} bytes")


class Openable(Protocol):
    """A listening socket that lets nobody in before it is opened."""

    async def open(self) -> None:
        """Let clients in. Idempotent."""


class SocketGate:
    """Lets clients in at once or, while held, at the end of a start: they meet all that is offered, or nobody."""

    def __init__(self) -> None:
        self._held: list[Openable] | None = None

    def hold(self) -> None:
        """Let no client in from now on."""
        self._held = []

    async def release(self) -> None:
        """Let clients in wherever they have been held off, and at once from now on.

        Raises:
            UbiError: a socket cannot take its place.
        """
        held, self._held = self._held or [], None
        for socket in held:
            await socket.open()

    async def admit(self, socket: Openable) -> None:
        """Let clients in, now or when the gate is released.

        Raises:
            UbiError: the socket cannot take its place.
        """
        if self._held is None:
            await socket.open()
        elif socket not in self._held:
            self._held.append(socket)

    def forget(self, socket: Openable) -> None:
        """Never mind a socket that is about to close."""
        if self._held is not None and socket in self._held:
            self._held.remove(socket)
