"""The bdev kinds: one file each and one line here. Each gives bdev_<name>_create and bdev_<name>_delete."""

from typing import Any

from ubi_rpc.bdevs.aio import AioKind
from ubi_rpc.bdevs.kind import BdevKind
from ubi_rpc.bdevs.malloc import MallocKind
from ubi_rpc.bdevs.null import NullKind
from ubi_rpc.bdevs.ubi import UbiKind

KINDS: tuple[BdevKind[Any, Any], ...] = (
    AioKind(),
    MallocKind(),
    NullKind(),
    UbiKind(),
)
