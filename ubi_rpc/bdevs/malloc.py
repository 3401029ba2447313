"""The `malloc` kind: a bdev in the daemon's memory, gone with it.

Source: SPDK module/bdev/malloc (parameters, order of checks, product name, default name).
"""

from __future__ import annotations

import errno
import os

from typing_extensions import override

from ubi_rpc.bdevs.kind import BdevKind, BdevParams, invalid
from ubi_rpc.engine import Bdev, BdevInfo, Engine
from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.files import FileId, Lookup
from ubi_rpc.params import Int32, UInt32, UInt64

SECTOR = 512


class MemoryDiskParams(BdevParams):
    """Parameters that bdev_malloc_create and bdev_null_create share.

    Args:
        num_blocks: size in blocks, at least 1.
        block_size: bytes, a multiple of 512.
        physical_block_size: bytes, a multiple of 512; 0 is block_size. A hint that nothing here acts on.
        md_size: bytes of metadata a block; only 0 is supported.
        dif_type: T10 protection type; needs metadata, so only 0 is supported.
        dif_is_head_of_md: meaningless without metadata.
        dif_pi_format: meaningless without metadata.
    """

    num_blocks: UInt64
    block_size: UInt32
    physical_block_size: UInt32 = 0
    md_size: UInt32 = 0
    dif_type: Int32 = 0
    dif_is_head_of_md: bool = False
    dif_pi_format: UInt32 = 0


class MallocParams(MemoryDiskParams):
    """Parameters of bdev_malloc_create; see `MemoryDiskParams` for the rest.

    Args:
        name: the bdev's name; Malloc0, Malloc1, … when left out.
        optimal_io_boundary: blocks; a hint that nothing here acts on.
        md_interleave: meaningless without metadata.
        numa_id: node to take the memory from, -1 for any. Accepted; the kernel places the pages.
    """

    optimal_io_boundary: UInt32 = 0
    md_interleave: bool = False
    numa_id: Int32 = -1


class MallocKind(BdevKind[MallocParams, None]):
    """See the module."""

    name = "malloc"
    product_name = "Malloc disk"
    default_prefix = "Malloc"
    numa_id = -1
    params = MallocParams

    @override
    async def probe(self, files: Lookup, params: MallocParams) -> None:
        """Nothing outside the parameters matters."""

    @override
    def plan(self, params: MallocParams, facts: None, base: BdevInfo | None) -> None:
        """Check in SPDK's order. More than the machine's memory is refused: it could only end in an OOM kill."""
        if params.num_blocks == 0:
            raise invalid("num_blocks 0: a disk has at least one block")
        plan_block_size(params)
        refuse_metadata(params)
        size_bytes = params.num_blocks * params.block_size
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if params.block_size == 0 or size_bytes > memory_bytes:
            raise UbiError(
                ErrorKind.NO_SPACE,
                f"{size_bytes} bytes cannot be had: the machine has {memory_bytes} bytes of memory",
                errno=errno.ENOMEM,
            )

    @override
    def files(self, params: MallocParams, facts: None) -> dict[FileId, bool]:
        """Return none."""
        return {}

    @override
    async def open(self, engine: Engine, name: str, params: MallocParams, facts: None, base: Bdev | None) -> Bdev:
        """Take the memory."""
        return await engine.create_malloc(name=name, num_blocks=params.num_blocks, block_size=params.block_size)

    @override
    def io_types(self, params: MallocParams, info: BdevInfo) -> frozenset[str]:
        """Return what the engine serves; SPDK's malloc has zcopy, compare, abort and copy as well."""
        return frozenset({"read", "write", "unmap", "flush", "reset", "write_zeroes"})

    @override
    async def driver_specific(self, params: MallocParams, bdev: Bdev) -> dict[str, object]:
        """Return nothing, as SPDK does."""
        return {}


def plan_block_size(params: MemoryDiskParams) -> None:
    """Refuse block sizes that are not multiples of 512; 0 passes, as it does in SPDK."""
    if params.block_size % SECTOR:
        raise invalid(f"block_size {params.block_size} is not a multiple of {SECTOR}")
    if params.physical_block_size % SECTOR:
        raise invalid(f"physical_block_size {params.physical_block_size} is not a multiple of {SECTOR}")


def refuse_metadata(params: MemoryDiskParams) -> None:
    """Refuse block metadata, which no frontend here could carry."""
    if params.md_size:
        raise UbiError(ErrorKind.UNSUPPORTED, f"md_size {params.md_size}: block metadata is not supported, leave it 0")
    if params.dif_type:
        raise invalid(f"dif_type {params.dif_type}: protection information needs md_size")
