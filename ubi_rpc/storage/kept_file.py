"""The file of `--persist`: replaced as a whole and durably, locked against other daemons, set aside.

Knows bytes, not what they say.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path

from ubi_rpc.errors import ErrorKind, UbiError

_KINDS = {
    errno.ENOSPC: ErrorKind.NO_SPACE,
    errno.EDQUOT: ErrorKind.NO_SPACE,
    errno.EACCES: ErrorKind.PERMISSION,
    errno.EPERM: ErrorKind.PERMISSION,
    errno.EROFS: ErrorKind.PERMISSION,
}

_log = logging.getLogger(__name__)


class KeptFile:
    """The file on disk: replaced as a whole, so that a crash at any moment leaves the old one or the new one.

    Args:
        path: where it is; a link is followed once, at the start.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._new = self.path.with_name(f".{self.path.name}.new")
        self._lock: int | None = None

    def lock(self) -> None:
        """Keep other daemons off the file for as long as this process lives; `<file>.lock` stays behind.

        A folder in which no lock can be made is no reason not to serve what the file says: that is only logged.

        Raises:
            UbiError: busy, another daemon has it.
        """
        path = self.path.with_name(self.path.name + ".lock")
        try:
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.unlock()
            message = f"persist file {self.path} is another daemon's; give each daemon a file of its own"
            raise UbiError(ErrorKind.BUSY, message) from error
        except OSError as error:
            _log.warning("persist=%s cannot be locked: %s", self.path, os.strerror(error.errno or errno.EIO))

    def unlock(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def prepare(self, content: bytes) -> None:
        """Make the new content durable beside the file."""
        descriptor = os.open(self._new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                self._new.unlink()
            raise

    def put_in_place(self) -> None:
        """Replace the file by what was prepared, durably."""
        self._new.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def set_aside(self) -> Path:
        """Keep the file under another name; return that name."""
        aside = self.path.with_name(self.path.name + ".before")
        aside.unlink(missing_ok=True)
        aside.hardlink_to(self.path)
        return aside

    def failed(self, error: OSError) -> UbiError:
        """Return the error of a change that could not be written."""
        code = error.errno or errno.EIO
        message = f"persist file {self.path} cannot be written: {os.strerror(code)}; nothing was changed"
        return UbiError(_KINDS.get(code, ErrorKind.IO), message, errno=code)
