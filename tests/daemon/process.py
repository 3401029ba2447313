"""A daemon in a process of its own, over the engine's double, and the shortest possible client."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent.parent
READY = "ubi_tgt ready"


class Process:
    """One run of ubi_tgt in a folder; its log is kept in `log`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "rpc.sock"
        self.log: list[str] = []
        self._process: asyncio.subprocess.Process | None = None

    @property
    def running(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    async def start(self, *arguments: str, module: str = "tests.daemon_double", **environ: str) -> Process:
        """Start it; return at once."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", module, "-r", str(self.socket), "--state-dir", str(self.folder / "state"), *arguments),
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), **environ},
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        return self

    async def until(self, text: str) -> str:
        """Read the log up to a line with `text` and return that line."""
        assert self.running.stderr is not None
        async with asyncio.timeout(30):
            async for line in self.running.stderr:
                self.log.append(line.decode())
                if text in self.log[-1]:
                    return self.log[-1]
        raise AssertionError(f"no {text!r} in the log:\n" + "".join(self.log))

    async def end(self, *signals: signal.Signals) -> int:
        """Send signals, each once the one before was noticed, and return the exit code."""
        for number in signals:
            self.running.send_signal(number)
            await self.until(f"signal={number.name}")
        return await self.exit_code()

    async def exit_code(self) -> int:
        """Wait for its end."""
        async with asyncio.timeout(30):
            _, rest = await self.running.communicate()
        self.log.extend(rest.decode().splitlines(keepends=True))
        assert self.running.returncode is not None
        return self.running.returncode

    async def request(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one request on a connection of its own and return the answer."""
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        writer.write(json.dumps({"id": 1, "method": method, "params": params}).encode())
        async with asyncio.timeout(30):
            answer = json.loads(await reader.readline())
        writer.close()
        await writer.wait_closed()
        assert isinstance(answer, dict)
        return answer

    async def call(self, method: str, **params: Any) -> Any:
        """Return the result of a call that succeeds."""
        answer = await self.request(method, **params)
        assert "result" in answer, answer
        return answer["result"]

    def kill(self) -> None:
        """End it if it is still there."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
