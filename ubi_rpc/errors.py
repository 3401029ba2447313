"""The error tree: one exception, a closed list of kinds, and the errno of each.

Owns what an error *is*. How it looks on the wire is decided in `ubi_rpc.rpc.wire_errors` alone;
the native engine uses the same kinds (`native/engine/src/error.rs`), compared by a test.
"""

from __future__ import annotations

import errno as _errno
from enum import StrEnum


class ErrorKind(StrEnum):
    """Why a request failed, as few kinds as callers can act on differently."""

    INVALID_PARAMS = "invalid_params"
    INVALID_STATE = "invalid_state"
    NOT_FOUND = "not_found"
    ALREADY_EXISTS = "already_exists"
    BUSY = "busy"
    NO_SPACE = "no_space"
    PERMISSION = "permission"
    UNSUPPORTED = "unsupported"
    CORRUPT = "corrupt"
    IO = "io"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


DEFAULT_ERRNO: dict[ErrorKind, int] = {
    ErrorKind.INVALID_PARAMS: _errno.EINVAL,
    ErrorKind.INVALID_STATE: _errno.EPERM,
    ErrorKind.NOT_FOUND: _errno.ENODEV,
    ErrorKind.ALREADY_EXISTS: _errno.EEXIST,
    ErrorKind.BUSY: _errno.EBUSY,
    ErrorKind.NO_SPACE: _errno.ENOSPC,
    ErrorKind.PERMISSION: _errno.EPERM,
    ErrorKind.UNSUPPORTED: _errno.EOPNOTSUPP,
    ErrorKind.CORRUPT: _errno.EINVAL,
    ErrorKind.IO: _errno.EIO,
    ErrorKind.TIMEOUT: _errno.ETIMEDOUT,
    ErrorKind.CANCELLED: _errno.ECANCELED,
    ErrorKind.INTERNAL: _errno.EIO,
}


class UbiError(Exception):
    """A request that failed for a reason that its caller can be told.

    Args:
        kind: what sort of failure, see `ErrorKind`.
        message: one sentence that names the object and, where there is one, the next step.
        errno: the positive errno to report; the kind's default when omitted.
        context: facts for logs and for the opt-in `data` member (names, paths, limits); never secrets.
    """

    def __init__(self, kind: ErrorKind, message: str, *, errno: int | None = None, **context: object) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.errno = DEFAULT_ERRNO[kind] if errno is None else errno
        self.context = context
