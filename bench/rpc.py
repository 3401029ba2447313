"""A JSON-RPC client on a Unix socket, with as little of its own as possible between the daemon and the clock."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.process import BenchError

RECEIVE_BYTES = 1 << 16


class RpcClient:
    """One connection; requests may be sent ahead of their answers."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._text = ""
        self._decoder = json.JSONDecoder()
        self._next_id = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def call(self, method: str, **params: object) -> Any:
        """Call and wait for the answer.

        Raises:
            BenchError: the daemon answered with an error, or hung up.
        """
        self.send(self.encode(method, params))
        answer = self.receive()
        if "error" in answer:
            raise BenchError(f"{method} {params}: {answer['error']}")
        return answer["result"]

    def encode(self, method: str, params: dict[str, object]) -> bytes:
        """Return a request as it goes over the wire."""
        request: dict[str, object] = {"jsonrpc": "2.0", "id": self._next_id, "method": method}
        self._next_id += 1
        return json.dumps(request | ({"params": params} if params else {})).encode()

    def send(self, data: bytes) -> None:
        """Send requests."""
        self._socket.sendall(data)

    def receive(self) -> dict[str, Any]:
        """Return the next answer, whichever request it belongs to."""
        while True:
            try:
                answer, end = self._decoder.raw_decode(self._text)
            except json.JSONDecodeError:
                self._fill()
                continue
            self._text = self._text[end:].lstrip()
            if not isinstance(answer, dict):
                raise BenchError(f"not an answer: {answer!r}")
            return answer

    def _fill(self) -> None:
        data = self._socket.recv(RECEIVE_BYTES)
        if not data:
            raise BenchError("the daemon hung up")
        self._text = (self._text + data.decode()).lstrip()
