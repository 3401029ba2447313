"""What is logged, changed while the daemon runs: level, flags, timestamps.

As in SPDK, a flag makes a part of the program tell its details, at level DEBUG, and the print level decides what
reaches standard error. The log level is syslog's in SPDK; there is no syslog here, so it is kept and given back alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from ubi_rpc.log_output import FORMAT

FORMAT_WITHOUT_TIME: Final = FORMAT.removeprefix("%(asctime)s ")

FLAGS: Final = ("bdevs", "daemon", "engine", "frontends", "images", "methods", "rpc", "startup", "storage")
"""Parts of the program that can tell their details: the modules and packages of `ubi_rpc`."""


class Level(StrEnum):
    """SPDK's levels. NOTICE is between WARNING and INFO; nothing here logs at it."""

    ERROR = "ERROR"
    WARNING = "WARNING"
    NOTICE = "NOTICE"
    INFO = "INFO"
    DEBUG = "DEBUG"

    @property
    def number(self) -> int:
        """The level as `logging` has it."""
        return (logging.WARNING + logging.INFO) // 2 if self is Level.NOTICE else logging.getLevelNamesMapping()[self]


class LogControl:
    """The daemon's log.

    Args:
        handlers: where its lines go.
    """

    def __init__(self, handlers: Sequence[logging.Handler]) -> None:
        self._handlers = handlers
        self.log_level = Level.NOTICE
        self.print_level = Level.INFO

    def set_print_level(self, level: Level) -> None:
        """Let through what is at least as important as `level`."""
        self.print_level = level
        for handler in self._handlers:
            handler.setLevel(level.number)

    def flags(self) -> dict[str, bool]:
        """Return which parts tell their details."""
        return {name: _logger(name).isEnabledFor(logging.DEBUG) for name in FLAGS}

    def set_flag(self, name: str, *, enabled: bool) -> None:
        """Turn a part's details on or off; "all" is every part.

        Raises:
            KeyError: there is no such flag.
        """
        if name not in (*FLAGS, "all"):
            raise KeyError(name)
        for flag in FLAGS if name == "all" else (name,):
            _logger(flag).setLevel(logging.DEBUG if enabled else logging.NOTSET)

    def enable_timestamps(self, *, enabled: bool) -> None:
        """Begin lines with the time, or not."""
        for handler in self._handlers:
            handler.setFormatter(logging.Formatter(FORMAT if enabled else FORMAT_WITHOUT_TIME))


def _logger(flag: str) -> logging.Logger:
    return logging.getLogger(f"ubi_rpc.{flag}")
