"""The `file` image: a raw disk image in a regular file or on a block device.

Looks at the image before an overlay is made from it; reading it is the engine's work.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.files import FileId, FoundFile, Lookup, OutsideError


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of an image without opening it.

    Args:
        size_bytes: None where only opening tells (block devices).
        id: which file it is, whatever its path.
        descriptor: stands for the file until the request is done.
    """

    size_bytes: int | None
    id: FileId
    descriptor: int


async def probe(files: Lookup, path: str) -> ImageFacts | UbiError:
    """Look at an image file; what makes it unusable comes back as the error to raise, EINVAL as in bdev_ubi.

    An image outside of the allowed directories, which bdev_ubi does not have, is EACCES.
    """
    return plan(await files.find(path), path)


def plan(found: FoundFile | OSError, path: str) -> ImageFacts | UbiError:
    """Decide whether what a path led to can be an image."""
    if isinstance(found, OutsideError):
        return UbiError(ErrorKind.PERMISSION, f"image {found.strerror}", errno=found.errno)
    if isinstance(found, OSError):
        return _unusable(f"image {path}: {os.strerror(found.errno or errno.EIO)}")
    if stat.S_ISBLK(found.stat.st_mode):
        return ImageFacts(size_bytes=None, id=found.id, descriptor=found.descriptor)
    if not stat.S_ISREG(found.stat.st_mode):
        return _unusable(f"image {path} is neither a regular file nor a block device")
    return ImageFacts(size_bytes=found.stat.st_size, id=found.id, descriptor=found.descriptor)


def _unusable(message: str) -> UbiError:
    return UbiError(ErrorKind.INVALID_PARAMS, message)
