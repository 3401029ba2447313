r"""Python values -> the JSON text that SPDK's writer would produce: compact, ASCII, \uXXXX in upper case.

Source: SPDK lib/json/json_write.c, write_string_or_name ("/" stays, DEL is escaped).
"""

from __future__ import annotations

import json
import re
from typing import Final

_ESCAPE: Final = re.compile(r"\\(?:u([0-9a-f]{4})|.)")
_encoder: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def encode(value: object) -> str:
    """Give the JSON text of a handler's result.

    Raises:
        TypeError, ValueError: the value has no JSON form (an object of ours, NaN, a cycle).
    """
    text = _encoder.encode(value)
    return _ESCAPE.sub(_upper, text) if "\\u" in text else text


def _upper(escape: re.Match[str]) -> str:
    digits: str | None = escape[1]
    return escape[0] if digits is None else "\\u" + digits.upper()
