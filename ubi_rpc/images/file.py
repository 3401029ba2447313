"""The `file` image: a raw disk image in a regular file or on a block device.

Looks at the image before an overlay is made from it; reading it is the engine's work.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from ubi_rpc.engine import Engine
from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.file_identity import FileId, file_id, stat_path


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of an image without opening it.

    Args:
        size_bytes: None where only opening tells (block devices).
        id: which file it is, whatever its path.
    """

    size_bytes: int | None
    id: FileId


async def probe(engine: Engine, path: str) -> ImageFacts | UbiError:
    """Look at an image file; what makes it unusable comes back as the error to raise, EINVAL as in bdev_ubi."""
    return await engine.call(_probe, path)


def _probe(path: str) -> ImageFacts | UbiError:
    found = stat_path(path)
    if isinstance(found, OSError):
        return _unusable(f"image {path}: {os.strerror(found.errno or errno.EIO)}")
    if stat.S_ISBLK(found.st_mode):
        return ImageFacts(size_bytes=None, id=file_id(found))
    if not stat.S_ISREG(found.st_mode):
        return _unusable(f"image {path} is neither a regular file nor a block device")
    return ImageFacts(size_bytes=found.st_size, id=file_id(found))


def _unusable(message: str) -> UbiError:
    return UbiError(ErrorKind.INVALID_PARAMS, message)
