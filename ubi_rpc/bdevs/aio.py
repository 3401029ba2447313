"""The `aio` kind: a regular file or a block device as a bdev.

Source: SPDK module/bdev/aio (parameters, order of checks, product name).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Literal

from typing_extensions import override

from ubi_rpc.bdevs.kind import BdevKind, BdevParams, invalid, is_power_of_two
from ubi_rpc.engine import Bdev, BdevInfo, Engine
from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.files import FileId, FoundFile, Lookup, OutsideError
from ubi_rpc.params import Text, UInt32

MIN_BLOCK_SIZE = 512


class AioParams(BdevParams):
    """Parameters of bdev_aio_create.

    Args:
        name: the bdev's name.
        filename: path of the file or block device.
        block_size: bytes; 0 or left out asks the device, which only block devices can answer.
        readonly: open for reading alone.
        fallocate: offer unmap (and write zeroes without data) by fallocate.
        uuid: the bdev's uuid; random when left out.
        nowait: refuse where RWF_NOWAIT cannot be promised. Regular files cannot.
        cache: "none" for O_DIRECT, "writeback" to go through the page cache.
    """

    name: Text
    filename: Text
    block_size: UInt32 = 0
    readonly: bool = False
    fallocate: bool = False
    nowait: bool = False
    cache: Literal["none", "writeback"] = "none"


class AioKind(BdevKind[AioParams, FoundFile | OSError]):
    """See the module."""

    name = "aio"
    product_name = "AIO disk"
    default_prefix = None
    numa_id = None
    params = AioParams

    @override
    async def probe(self, files: Lookup, params: AioParams) -> FoundFile | OSError:
        """Return the file, or why there is none."""
        return await files.find(params.filename)

    @override
    def plan(self, params: AioParams, facts: FoundFile | OSError, base: BdevInfo | None) -> None:
        """Check in SPDK's order: the file, nowait, the block size, the size."""
        if isinstance(facts, OSError):
            raise file_error(params.filename, facts)
        if stat.S_ISDIR(facts.stat.st_mode):
            raise UbiError(
                ErrorKind.INVALID_PARAMS,
                f"{params.filename} is a directory; name a file or a block device",
                errno=errno.EISDIR,
            )
        is_file = stat.S_ISREG(facts.stat.st_mode)
        if not is_file and not stat.S_ISBLK(facts.stat.st_mode):
            raise invalid(f"{params.filename} is neither a regular file nor a block device")
        if params.nowait and is_file:
            raise UbiError(ErrorKind.UNSUPPORTED, f"{params.filename} is a plain file: nowait needs a block device")
        if params.block_size == 0:
            if is_file:
                raise invalid(f"{params.filename} is a plain file: its block size cannot be detected, give block_size")
            return
        if params.block_size < MIN_BLOCK_SIZE or not is_power_of_two(params.block_size):
            raise invalid(f"block_size {params.block_size} is not a power of two from {MIN_BLOCK_SIZE} bytes up")
        if is_file and facts.stat.st_size % params.block_size:
            raise invalid(
                f"the size of {params.filename}, {facts.stat.st_size} bytes, is not a multiple of {params.block_size}"
            )

    @override
    def files(self, params: AioParams, facts: FoundFile | OSError) -> dict[FileId, bool]:
        """Return the file."""
        return {} if isinstance(facts, OSError) else {facts.id: not params.readonly}

    @override
    async def open(
        self, engine: Engine, name: str, params: AioParams, facts: FoundFile | OSError, base: Bdev | None
    ) -> Bdev:
        """Open and lock the file that was found."""
        if isinstance(facts, OSError):
            raise AssertionError("a file that was not found is not opened")
        return await engine.create_aio(
            name=name,
            path=params.filename,
            descriptor=facts.descriptor,
            block_size=params.block_size or None,
            readonly=params.readonly,
            cache=params.cache,
            fallocate=params.fallocate,
        )

    @override
    def io_types(self, params: AioParams, info: BdevInfo) -> frozenset[str]:
        """Return SPDK's list: unmap with fallocate only, write_zeroes by writing where there is nothing better."""
        types = {"read", "write", "flush", "reset", "write_zeroes"}
        return frozenset(types | {"unmap"} if info.unmap else types)

    @override
    def saved(self, params: AioParams) -> dict[str, object]:
        """Return SPDK's members in its order; the cache mode, which SPDK refuses, only where it was asked for.

        Source: SPDK module/bdev/aio/bdev_aio.c, bdev_aio_write_json_config.
        """
        return {
            **({"block_size": params.block_size} if params.block_size else {}),
            "filename": params.filename,
            "readonly": params.readonly,
            "fallocate": params.fallocate,
            "nowait": params.nowait,
            **({} if params.cache == "none" else {"cache": params.cache}),
        }

    @override
    async def driver_specific(self, params: AioParams, bdev: Bdev) -> dict[str, object]:
        """Return SPDK's member `aio`, with the cache mode and what the bdev survives."""
        return {
            "aio": {
                "filename": params.filename,
                "block_size_override": params.block_size != 0,
                "readonly": params.readonly,
                "fallocate": params.fallocate,
                "nowait": params.nowait,
                "cache": params.cache,
                "survives": bdev.info.survives,
            }
        }


def file_error(path: str, error: OSError) -> UbiError:
    """Return the error of a file that cannot be looked at, with the system's errno."""
    if isinstance(error, OutsideError):
        return UbiError(ErrorKind.PERMISSION, str(error.strerror), errno=error.errno)
    code = error.errno or errno.EIO
    kind = {errno.ENOENT: ErrorKind.NOT_FOUND, errno.EACCES: ErrorKind.PERMISSION}.get(code, ErrorKind.INVALID_PARAMS)
    return UbiError(kind, f"{path}: {os.strerror(code)}", errno=code)
