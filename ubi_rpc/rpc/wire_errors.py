"""Every code and text that an error has on the wire.

Owns the translation of `UbiError` into SPDK's numbers. What clients match on is SPDK's and never
changes; what SPDK leaves unsaid is the `detail`, for the log and for the opt-in `data` member.

Source: SPDK include/spdk/jsonrpc.h (codes), lib/jsonrpc/jsonrpc_server_tcp.c (texts), lib/rpc/rpc.c
(wrong state).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from ubi_rpc.errors import ErrorKind, UbiError

INVALID_REQUEST = (-32600, "Invalid request")
METHOD_NOT_FOUND = (-32601, "Method not found")
INTERNAL_ERROR = (-32603, "Internal error")
TOO_EARLY = (-1, "Method may only be called after framework is initialized using framework_start_init RPC.")
TOO_LATE = (
    -1,
    (
        "Method may only be called before framework is initialized. Use --wait-for-rpc command line parameter"
        " and then issue this RPC before the framework_start_init RPC."
    ),
)


class WireError(Exception):
    """A failed call with the code and text that go out.

    A handler raises it only where SPDK answers with something else than a negative errno and its
    strerror text; otherwise it raises `UbiError`.

    Args:
        wire: (code, message), exactly as sent.
        kind: what sort of failure, for `data`.
        detail: one sentence that names the object and what to do, for the log and `data`.
        context: facts for `data`; never secrets.
    """

    def __init__(
        self, wire: tuple[int, str], kind: ErrorKind, detail: str, context: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(detail)
        self.code, self.message = wire
        self.kind = kind
        self.detail = detail
        self.context = dict(context or {})

    @property
    def data(self) -> dict[str, object]:
        """The opt-in `data` member of the error object; what has no JSON form in `context` is there as text."""
        context = {key: value if _has_json_form(value) else str(value) for key, value in self.context.items()}
        return {"kind": self.kind.value, "message": self.detail, "context": context}


def _has_json_form(value: object) -> bool:
    return value is None or isinstance(value, str | int)


def from_ubi_error(error: UbiError, failure_code: int | None = None) -> WireError:
    """Translate a failed call: the negative errno (or the method's own code) and strerror's text."""
    code = -error.errno if failure_code is None else failure_code
    return WireError((code, os.strerror(error.errno)), error.kind, error.message, error.context)
