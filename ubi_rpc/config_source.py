"""A configuration file as text: read, parsed with SPDK's leniencies (comments), and able to say where things are."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ubi_rpc.rpc.json_parser import parse_document, position
from ubi_rpc.rpc.json_tokens import JsonSyntaxError
from ubi_rpc.rpc.json_values import JsonObject
from ubi_rpc.storage.config_file import ConfigError

EXIT_NO_FILE = 1
"""Source: SPDK, seen."""


class ConfigSource:
    """A configuration file, read and parsed.

    Raises:
        ConfigError: it cannot be read (exit code 1), or it is not JSON.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            self._data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: {os.strerror(error.errno or errno.EIO)}", EXIT_NO_FILE) from error
        try:
            self.root = parse_document(self._data, comments=True)
        except JsonSyntaxError as error:
            raise ConfigError(f"{path}:{error.line}:{error.column}: {error.reason}") from error

    def position(self, value: dict[str, object]) -> tuple[int, int]:
        """Return line and column of an object, counted from 1."""
        return position(self._data, value.offset) if isinstance(value, JsonObject) else (1, 1)

    def member_position(self, value: object, path: str) -> tuple[int, int] | None:
        """Return line and column of the last key of a path such as `multipath_opts.policy` that is there."""
        found = None
        for part in path.split("."):
            if isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
                continue
            if not isinstance(value, JsonObject) or part not in (value.key_offsets or {}):
                break
            found = (value.key_offsets or {})[part]
            value = value.get(part)
        return None if found is None else position(self._data, found)

    def duplicates(self, value: dict[str, object]) -> list[str]:
        """Return the keys that an object has more than once."""
        return value.duplicates if isinstance(value, JsonObject) else []
