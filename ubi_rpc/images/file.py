"""The `file` image: a raw disk image in a regular file or on a block device.

Looks at the image before an overlay is made from it; reading it is the engine's work.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ubi_rpc.engine import Engine
from ubi_rpc.errors import ErrorKind, UbiError


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of an image without opening it.

    Args:
        size_bytes: None where only opening tells (block devices).
    """

    size_bytes: int | None


async def probe(engine: Engine, path: str) -> ImageFacts | UbiError:
    """Look at an image file; what makes it unusable comes back as the error to raise, EINVAL as in bdev_ubi."""
    return await engine.call(_probe, path)


def _probe(path: str) -> ImageFacts | UbiError:
    try:
        found = Path(path).stat()
    except OSError as error:
        return _unusable(f"image {path}: {os.strerror(error.errno or 0)}")
    if stat.S_ISBLK(found.st_mode):
        return ImageFacts(size_bytes=None)
    if not stat.S_ISREG(found.st_mode):
        return _unusable(f"image {path} is neither a regular file nor a block device")
    return ImageFacts(size_bytes=found.st_size)


def _unusable(message: str) -> UbiError:
    return UbiError(ErrorKind.INVALID_PARAMS, message)
