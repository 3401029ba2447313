"""Log lines to standard error, written by a thread of their own.

Whoever reads the daemon's standard error may stop reading. Then lines are dropped and counted, and nothing waits: not
the event loop, not a request, not the end of the daemon.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from typing import Final

LINES_WAITING: Final = 10_000
"""Lines kept for a reader that is slow; about 2 MB."""

FLUSH_S: Final = 1.0
"""How long the end of the daemon waits for a reader that does not read."""

FORMAT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"


MESSAGE_CHARACTERS: Final = 2000
"""Longest message; what a client sent may be part of it."""

_CONTROL: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


class _Formatter(logging.Formatter):
    """One line a message: what a client sent cannot begin a line of its own, nor move a terminal's cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  its name in the standard library
        record.message = record.message[:MESSAGE_CHARACTERS].translate(_CONTROL)
        return super().formatMessage(record)


class LogOutput(logging.Handler):
    """A handler that never waits.

    Args:
        descriptor: where the lines go; standard error unless a test says otherwise.
    """

    def __init__(self, descriptor: int = 2) -> None:
        super().__init__()
        self.setFormatter(_Formatter(FORMAT))
        self._descriptor = descriptor
        self._lines: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        self._dropped = 0
        threading.Thread(target=self._write_lines, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a line over, or drop it when too many wait."""
        if self._lines.qsize() >= LINES_WAITING:
            self._dropped += 1
            return
        self._lines.put(self.format(record) + "\n")

    def flush(self) -> None:
        """Wait until what was handed over is written, `FLUSH_S` at most."""
        written = threading.Event()
        self._lines.put(written)
        written.wait(FLUSH_S)

    def _write_lines(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                line += f"(log) {dropped} lines were dropped here: nobody read standard error\n"
            self._write(line.encode(errors="backslashreplace"))

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:  # nobody will ever read it: as good as dropped, and no reason to stop serving
            self._dropped += 1
