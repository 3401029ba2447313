"""The `null` kind: drops writes, reads as zeros.

Source: SPDK module/bdev/null (parameters, order of checks, product name).
"""

from __future__ import annotations

from typing_extensions import override

from ubi_rpc.bdevs.kind import BdevKind, invalid
from ubi_rpc.bdevs.malloc import MemoryDiskParams, plan_block_size, refuse_metadata
from ubi_rpc.engine import Bdev, BdevInfo, Engine
from ubi_rpc.files import FileId, Lookup
from ubi_rpc.params import Text, UInt32

MAX_SIZE_BYTES = 2**63 - 1
"""Offsets are signed 64-bit numbers everywhere in the kernel and in NBD clients."""


class NullParams(MemoryDiskParams):
    """Parameters of bdev_null_create; see `MemoryDiskParams` for the rest.

    Args:
        name: the bdev's name.
        preferred_write_alignment: blocks, as the other four; shown by bdev_get_bdevs and not acted on.
        preferred_write_granularity: see there.
        optimal_write_size: see there.
        preferred_unmap_alignment: see there.
        preferred_unmap_granularity: see there.
    """

    name: Text
    preferred_write_alignment: UInt32 = 0
    preferred_write_granularity: UInt32 = 0
    optimal_write_size: UInt32 = 0
    preferred_unmap_alignment: UInt32 = 0
    preferred_unmap_granularity: UInt32 = 0


class NullKind(BdevKind[NullParams, None]):
    """See the module."""

    name = "null"
    product_name = "Null disk"
    default_prefix = None
    numa_id = None
    params = NullParams

    @override
    async def probe(self, files: Lookup, params: NullParams) -> None:
        """Nothing outside the parameters matters."""

    @override
    def plan(self, params: NullParams, facts: None, base: BdevInfo | None) -> None:
        """Check in SPDK's order."""
        refuse_metadata(params)
        plan_block_size(params)
        if params.num_blocks == 0:
            raise invalid("num_blocks 0: a disk has at least one block")
        if params.block_size == 0:
            raise invalid("block_size 0: a block has at least 512 bytes")
        if params.num_blocks * params.block_size > MAX_SIZE_BYTES:
            raise invalid(f"{params.num_blocks} blocks of {params.block_size} bytes: more than 2^63 - 1 bytes")

    @override
    def files(self, params: NullParams, facts: None) -> dict[FileId, bool]:
        """Return none."""
        return {}

    @override
    async def open(self, engine: Engine, name: str, params: NullParams, facts: None, base: Bdev | None) -> Bdev:
        """Make it."""
        return await engine.create_null(name=name, num_blocks=params.num_blocks, block_size=params.block_size)

    @override
    def io_types(self, params: NullParams, info: BdevInfo) -> frozenset[str]:
        """Return what SPDK's null bdev has, abort excepted."""
        return frozenset({"read", "write", "write_zeroes", "reset"})

    @override
    async def driver_specific(self, params: NullParams, bdev: Bdev) -> dict[str, object]:
        """Return nothing, as SPDK does."""
        return {}
