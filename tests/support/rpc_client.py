"""A JSON-RPC client of the daemon's Unix socket, as small as one can be."""

from __future__ import annotations

import itertools
import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any


class RpcError(Exception):
    """An error object that came back.

    Args:
        code: its code.
        message: its message, as clients match on it.
        detail: the message in its `data` member, which says what to do.
    """

    def __init__(self, code: int, message: str, detail: str) -> None:
        super().__init__(f"{code} {message}: {detail}")
        self.code = code
        self.message = message
        self.detail = detail


class RpcClient:
    """One connection; errors carry their details.

    Args:
        path: the daemon's socket.
        timeout_s: how long one answer may take.
    """

    def __init__(self, path: Path, timeout_s: float = 40.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout_s)
        try:
            self.socket.connect(str(path))
            self._answers = self.socket.makefile("rb")
            self._ids = itertools.count()
            self.call("ubi_rpc_set_options", error_data=True)
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> RpcClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave."""
        self._answers.close()
        self.socket.close()

    def send(self, method: str, **params: object) -> int:
        """Send a request and return its id without waiting."""
        number = next(self._ids)
        request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        self.socket.sendall(json.dumps(request).encode())
        return number

    def receive(self) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            ConnectionError: the daemon has closed the connection.
        """
        line = self._answers.readline()
        if not line:
            raise ConnectionError("the daemon closed the JSON-RPC connection")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def call(self, method: str, **params: object) -> Any:
        """Return a call's result.

        Raises:
            RpcError: it failed.
        """
        number = self.send(method, **params)
        answer = self.receive()
        assert answer["id"] == number
        if "error" in answer:
            error = answer["error"]
            raise RpcError(error["code"], error["message"], error.get("data", {}).get("message", ""))
        return answer["result"]
