"""The JSON-RPC Unix socket (skeleton: the interface is final)."""

from __future__ import annotations

from pathlib import Path

from ubi_rpc.rpc.dispatch import Dispatcher


class SocketInUse(Exception):
    """Another process holds the socket's lock; `str()` is SPDK's message. The daemon exits with 234."""


class UnixServer:
    """Serves `dispatcher` on a Unix socket."""

    def __init__(self, path: Path, dispatcher: Dispatcher) -> None:
        raise NotImplementedError

    async def start(self, *, paused: bool = False) -> None:
        """Lock, bind and listen. `paused`: clients connect, their requests wait for `resume`.

        Raises SocketInUse, or UbiError for a path that cannot be used. Nothing is left after a failure.
        """
        raise NotImplementedError

    def resume(self) -> None:
        """Serve the requests that waited and those to come."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Stop accepting, finish the answers that are ready (bounded), close, remove both files."""
        raise NotImplementedError
