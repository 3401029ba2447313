"""Where one request ends and the next begins, and how large one may be.

Owns the limits of the wire; the grammar is `json_parser`'s. A stream has no delimiter: requests are
found by parsing, whatever their chunks, and white space between them is skipped.

Source: SPDK lib/jsonrpc/jsonrpc_internal.h (26.05: 256 KiB, 8192 values), json_parse.c (64 levels).
"""

from __future__ import annotations

from typing import Final

from ubi_rpc.rpc.json_parser import INCOMPLETE, JsonParser, Limits
from ubi_rpc.rpc.json_tokens import JsonSyntaxError

__all__ = ["INCOMPLETE", "MAX_REQUEST_BYTES", "MAX_REQUEST_VALUES", "JsonSyntaxError", "request_parser"]

MAX_REQUEST_BYTES: Final = 256 * 1024
"""262144 bytes pass, one more closes the connection."""

MAX_REQUEST_VALUES: Final = 8192


def request_parser() -> JsonParser:
    """Make the parser of one connection's requests."""
    return JsonParser(Limits(max_bytes=MAX_REQUEST_BYTES, max_values=MAX_REQUEST_VALUES))
