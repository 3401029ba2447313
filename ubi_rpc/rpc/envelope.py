"""The JSON-RPC request object by SPDK's rules: what is accepted, and which id a refusal carries.

Owns the members around `params`; what is in `params` belongs to the method.

Source: SPDK lib/jsonrpc/jsonrpc_server.c, parse_single_request: an answer carries the request's id only when
everything before `params` was in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ubi_rpc.errors import ErrorKind
from ubi_rpc.rpc.encoding import encode
from ubi_rpc.rpc.json_values import JsonNumber, JsonObject
from ubi_rpc.rpc.wire_errors import INVALID_REQUEST, WireError

NULL_ID: Final = "null"
_MEMBERS: Final = frozenset({"jsonrpc", "method", "params", "id"})
_SHOWN: Final = 64  # characters of a client's text that a message repeats


@dataclass(frozen=True, slots=True)
class Request:
    """One well-formed request.

    Args:
        method: as written.
        params: the parsed object or array; None when absent or null.
        id_text: the id as JSON text to echo, `null` for a notification.
    """

    method: str
    params: object
    id_text: str

    @property
    def is_notification(self) -> bool:
        """True when success is not answered. A failure is, with id null."""
        return self.id_text == NULL_ID


class InvalidRequestError(Exception):
    """The request object is refused with -32600 and `id_text`."""

    def __init__(self, detail: str, id_text: str = NULL_ID) -> None:
        super().__init__(detail)
        self.id_text = id_text
        self.wire = WireError(INVALID_REQUEST, ErrorKind.INVALID_PARAMS, detail)


def clip(text: str) -> str:
    """Quote a client's text for a message: one line, not longer than a name needs."""
    return ascii(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def parse_request(value: object) -> Request:
    """Check one request object.

    Args:
        value: as `json_parser` gives it.

    Raises:
        InvalidRequestError: it is not a request; names the fault.
    """
    if not isinstance(value, JsonObject):
        raise InvalidRequestError("a request is an object")
    if value.duplicates:
        raise InvalidRequestError(f"member {clip(value.duplicates[0])} is repeated")
    for name in value:
        if name not in _MEMBERS:
            raise InvalidRequestError(f"unknown member {clip(name)}; a request has jsonrpc, method, params and id")
    if value.get("jsonrpc", "2.0") != "2.0":
        raise InvalidRequestError('jsonrpc must be "2.0"')
    method = value.get("method")
    if not isinstance(method, str):
        raise InvalidRequestError("method must be a string")
    id_text = _id_text(value.get("id"))
    params = value.get("params")
    if params is not None and not isinstance(params, JsonObject | list):
        raise InvalidRequestError("params must be an object, an array or null", id_text)
    return Request(method, params, id_text)


def _id_text(value: object) -> str:
    if value is None:
        return NULL_ID
    if isinstance(value, JsonNumber):
        return value.text
    if isinstance(value, str):
        return encode(value)
    raise InvalidRequestError("id must be a string, a number or null")
