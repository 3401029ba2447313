"""What a JSON-RPC method is: its name, models, states and SPDK's way of refusing it.

Owns the declaration only. Calling is `dispatch`'s, the handlers live in `ubi_rpc.methods`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any

from ubi_rpc.params import NoParams, Params

__all__ = [
    "ANY_STATE",
    "DECODE_FAILED",
    "INVALID_PARAMETERS",
    "Method",
    "NoParams",
    "Params",
    "State",
]


class State(Flag):
    """When a method may be called, as SPDK's SPDK_RPC_STARTUP and SPDK_RPC_RUNTIME."""

    STARTUP = auto()
    RUNTIME = auto()


_READS = re.compile(r"(^|_)get_|_wait_|^rpc\.discover$")

ANY_STATE = State.STARTUP | State.RUNTIME


DECODE_FAILED = (-32603, "spdk_json_decode_object failed")
"""SPDK's usual answer to params that a bdev method cannot decode."""

INVALID_PARAMETERS = (-32602, "Invalid parameters")


@dataclass(frozen=True, slots=True)
class Method:
    """One JSON-RPC method.

    Args:
        name: as on the wire.
        params: the frozen model that the handler takes.
        handler: `async (services, params) -> JSON value`; `services` is the daemon's service container.
        states: when it may be called.
        decode_error: (code, message) when `params` do not fit the model.
        failure_code: the wire code of every failure of the handler, its text staying strerror's;
            None (the usual case) sends the negative errno.
    """

    name: str
    params: type[Params]
    handler: Callable[[Any, Any], Awaitable[object]]
    states: State = State.RUNTIME
    decode_error: tuple[int, str] = DECODE_FAILED
    failure_code: int | None = None

    @property
    def changes(self) -> bool:
        """Whether it changes anything, which its name says: all but those that get, wait or describe."""
        return not _READS.search(self.name)
