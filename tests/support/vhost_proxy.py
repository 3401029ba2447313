"""A proxy between a virtual machine and a controller that hides protocol features: how a backend without them would do.

Source: QEMU docs/interop/vhost-user.rst, GET_PROTOCOL_FEATURES.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
import threading
from pathlib import Path

from tests.support.vhost_client import GET_PROTOCOL_FEATURES, REPLY

HEADER = struct.Struct("<III")


class VhostProxy:
    """Listens at `path`, connects to `target` for each client, and clears `hidden` from the features on offer."""

    def __init__(self, path: Path, target: Path, hidden: int) -> None:
        self._target, self._hidden = target, hidden
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Let nobody in any longer."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                backend = socket.socket(socket.AF_UNIX)
                try:
                    backend.connect(str(self._target))
                except OSError:
                    client.close()
                    backend.close()
                    continue
                threads = [
                    threading.Thread(target=self._relay, args=ends, daemon=True)
                    for ends in ((client, backend), (backend, client))
                ]
                for thread in threads:
                    thread.start()
                threading.Thread(target=self._end, args=(threads, client, backend), daemon=True).start()

    @staticmethod
    def _end(threads: list[threading.Thread], *ends: socket.socket) -> None:
        for thread in threads:
            thread.join()
        for end in ends:
            end.close()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while (message := self._receive(source)) is not None:
                head, payload, fds = message
                request, flags, size = HEADER.unpack(head)
                if request == GET_PROTOCOL_FEATURES and flags & REPLY and size == 8:
                    payload = struct.pack("<Q", struct.unpack("<Q", payload)[0] & ~self._hidden)
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                sink.sendmsg([head + payload], rights)
                for fd in fds:
                    os.close(fd)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _receive(source: socket.socket) -> tuple[bytes, bytes, list[int]] | None:
        head, fds = b"", array.array("i")
        while len(head) < HEADER.size:
            data, ancillary, _, _ = source.recvmsg(HEADER.size - len(head), 512)
            if not data:
                return None
            head += data
            for _, _, rights in ancillary:
                fds.frombytes(rights)
        payload, size = b"", HEADER.unpack(head)[2]
        while len(payload) < size:
            payload += source.recv(size - len(payload))
        return head, payload, list(fds)
