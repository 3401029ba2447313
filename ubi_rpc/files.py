"""Files that requests name: found below the allowed directories, and held by descriptor from then on.

Owns which file a path means. The engine opens what was found by its descriptor, so neither a symbolic link nor a rename
in between can put another file in its place. What may be done with a file is the bdev kinds' business.

Source: openat2(2) (RESOLVE_*), open(2) (O_PATH), proc_pid_fd(5).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ubi_rpc.errors import ErrorKind, UbiError

FileId = tuple[str, int, int]
"""("file", st_dev, st_ino), or ("device", st_rdev, 0) for any node of a block device."""

_OPENAT2: Final = 437
"""The system call's number, the same on every architecture. Source: linux/asm-generic/unistd.h."""

_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_STRICTLY: Final = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS

_CHANGED: Final = frozenset({errno.ELOOP, errno.EXDEV, errno.EAGAIN})
"""What openat2 says of a path that was changed after its symbolic links were resolved."""
_ATTEMPTS: Final = 8


class OutsideError(PermissionError):
    """The path does not lead into an allowed directory."""

    def __init__(self, path: str, allowed: Sequence[Path]) -> None:
        names = ", ".join(str(one) for one in allowed)
        super().__init__(errno.EACCES, f"{path} is not below a directory that --allowed-dir names: {names}")


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file as it was found.

    Args:
        path: as the request has it, for messages.
        descriptor: O_PATH: stands for this file, whatever becomes of its name.
        stat: what fstat said of it.
    """

    path: str
    descriptor: int
    stat: os.stat_result

    @property
    def id(self) -> FileId:
        """Which file or block device it is."""
        if stat.S_ISBLK(self.stat.st_mode):
            return ("device", self.stat.st_rdev, 0)
        return ("file", self.stat.st_dev, self.stat.st_ino)


class Files:
    """Where files of requests may be.

    Args:
        allowed: directories; what is below them may be used. Empty: everything may.

    Raises:
        UbiError: one is not there, or the kernel cannot keep a path below it.
    """

    def __init__(self, allowed: Sequence[Path] = ()) -> None:
        self._allowed = allowed
        self._roots: list[tuple[str, int]] = []
        for path in allowed:
            real = os.path.realpath(path)
            try:
                root = os.open(real, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                self._roots.append((real, root))
                os.close(_open_beneath(root, "."))
            except OSError as error:
                self.close()
                reason = os.strerror(error.errno or errno.EIO)
                if error.errno in {errno.ENOSYS, errno.EPERM}:
                    reason = f"openat2 (Linux 5.6), which keeps paths below it, is not to be had: {reason}"
                raise UbiError(ErrorKind.INVALID_PARAMS, f"allowed directory {path}: {reason}") from error

    def close(self) -> None:
        """Let go of the allowed directories; nothing is found afterwards. Idempotent."""
        while self._roots:
            _, root = self._roots.pop()
            os.close(root)

    def find(self, path: str) -> FoundFile:
        """Find a file and hold it; blocks as long as its file system does. The caller closes the descriptor.

        Symbolic links are followed as long as what they lead to is below an allowed directory. They are followed by
        name first; what that gives is opened strictly, so that it counts alone, whoever changes links meanwhile.

        Raises:
            OutsideError: it is not below an allowed directory.
            OSError: it is not there, or may not be looked at.
        """
        descriptor = self._open(path) if self._allowed else os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            return FoundFile(path, descriptor, os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise

    def _open(self, path: str) -> int:
        for _ in range(_ATTEMPTS):
            real = os.path.realpath(path)
            root, rest = self._below(real)
            if root is None:
                break
            try:
                return _open_beneath(root, rest)
            except OSError as error:
                if error.errno not in _CHANGED:
                    raise OSError(error.errno, os.strerror(error.errno or errno.EIO), path) from None
        raise OutsideError(path, self._allowed)

    def _below(self, real: str) -> tuple[int | None, str]:
        """Return the allowed directory that a resolved path is below, and what is left of the path there."""
        for name, root in self._roots:
            if real == name:
                return root, "."
            prefix = name.rstrip("/") + "/"
            if real.startswith(prefix):
                return root, real[len(prefix) :]
        return None, real


def _open_beneath(root: int, rest: str) -> int:
    """Open a path below a directory, by no symbolic link, as O_PATH."""
    import ctypes  # takes a while, and only a daemon with allowed directories needs it

    how = (ctypes.c_uint64 * 3)(os.O_PATH | os.O_CLOEXEC, 0, _STRICTLY)
    libc = ctypes.CDLL(None, use_errno=True)
    number, path = ctypes.c_long(_OPENAT2), ctypes.c_char_p(os.fsencode(rest))
    found: int = libc.syscall(number, ctypes.c_int(root), path, ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)))
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found


class Lookup:
    """The files of one request: found off the event loop, held until the request is done.

    Args:
        files: where they may be.
        run: makes a blocking call elsewhere.
    """

    def __init__(self, files: Files, run: Callable[[Callable[[], FoundFile | OSError]], Awaitable[object]]) -> None:
        self._files = files
        self._run = run
        self._held = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._held.close()

    async def find(self, path: str) -> FoundFile | OSError:
        """Find a file; why it cannot be used is an answer too, since other checks may come before."""

        def find() -> FoundFile | OSError:
            try:
                return self._files.find(path)
            except OSError as error:
                return error

        found = await self._run(find)
        if isinstance(found, FoundFile):
            self._held.callback(os.close, found.descriptor)
            return found
        if not isinstance(found, OSError):
            raise TypeError("a lookup gives a file or why there is none")
        return found
