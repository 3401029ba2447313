"""The `ubi` kind: a copy-on-access overlay of an image on a base bdev, in bdev_ubi's on-disk format.

Source: bdev_ubi's RPC contract (parameters, order of checks, product name); `uuid`, `stripe_size_mb`,
`allow_remote` and the default of `stripe_size_kb` are ours.
"""

from __future__ import annotations

from typing import Literal

from typing_extensions import override

from ubi_rpc.bdevs.kind import NULL_UUID, BdevKind, BdevParams, invalid, is_power_of_two
from ubi_rpc.engine import Bdev, BdevInfo, Engine
from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.files import FileId, Lookup
from ubi_rpc.images import file
from ubi_rpc.params import Text, UInt32

METADATA_BYTES = 8 << 20
MAX_STRIPES = 2_097_152
DEFAULT_STRIPE_SIZE_KB = 1024
STRIPE_SIZES_KB = (64, 1024)


class UbiParams(BdevParams):
    """Parameters of bdev_ubi_create.

    Args:
        name: the bdev's name.
        base_bdev: name or uuid of the bdev that holds the overlay; claimed exclusively.
        image_path: raw image, a file or a block device.
        stripe_size_kb: KiB copied at a time, a power of two from 64 to 1024; left out, the volume's own, and 1024 for a
            new one.
        stripe_size_mb: the same in MiB, as bdev_ubi's README has it; not together with stripe_size_kb.
        no_sync: a flush is answered without making anything durable.
        copy_on_read: a read of a missing stripe copies it; otherwise only writes do.
        directio: read the image with O_DIRECT.
        allow_remote: stand on a base on NFS, CIFS or FUSE, whose promises are not this kernel's.
        uuid: the uuid that a new volume gets, and that the one on the base must have; left out, random for a new one.
        wipe: format a base whose first sector has been zeroed although a superblock is left of an earlier volume.
        adopt: take over what bdev_ubi has written to the volume since it was closed here.
        recover: after a crash whose volatile map is lost: give up what only the map knew, as a power cut would.
    """

    name: Text
    base_bdev: Text
    image_path: Text
    stripe_size_kb: UInt32 | None = None
    stripe_size_mb: UInt32 | None = None
    no_sync: bool = False
    copy_on_read: bool = True
    directio: bool = True
    allow_remote: bool = False
    wipe: bool = False
    adopt: bool = False
    recover: Literal["discard_unpublished"] | None = None

    @property
    def base(self) -> str:
        """The bdev that holds the overlay."""
        return self.base_bdev

    @property
    def stripe_kb(self) -> int:
        """The stripe size in KiB, whichever way it was given."""
        return DEFAULT_STRIPE_SIZE_KB if self.asked_stripe_kb is None else self.asked_stripe_kb

    @property
    def asked_stripe_kb(self) -> int | None:
        """The same, None when it was not given."""
        if self.stripe_size_kb is not None:
            return self.stripe_size_kb
        return None if self.stripe_size_mb is None else self.stripe_size_mb * 1024


class UbiKind(BdevKind[UbiParams, file.ImageFacts | UbiError]):
    """See the module."""

    name = "ubi"
    product_name = "Ubi disk"
    default_prefix = None
    numa_id = None
    params = UbiParams

    @override
    async def probe(self, files: Lookup, params: UbiParams) -> file.ImageFacts | UbiError:
        """Look at the image."""
        return await file.probe(files, params.image_path)

    @override
    def plan(self, params: UbiParams, facts: file.ImageFacts | UbiError, base: BdevInfo | None) -> None:
        """Check the image, then its fit on the base, then the stripe size; every fault is EINVAL."""
        if base is None:
            raise AssertionError("a ubi bdev always has a base")
        if isinstance(facts, UbiError):
            raise facts
        plan_stripe_size(params)
        plan_base(params, base)
        if facts.size_bytes is not None:
            plan_image_size(params, facts.size_bytes, base)

    @override
    def files(self, params: UbiParams, facts: file.ImageFacts | UbiError) -> dict[FileId, bool]:
        """Return the image, which is only read."""
        return {} if isinstance(facts, UbiError) else {facts.id: False}

    @override
    async def open(
        self, engine: Engine, name: str, params: UbiParams, facts: file.ImageFacts | UbiError, base: Bdev | None
    ) -> Bdev:
        """Format the base if it is new, else open what is on it."""
        if base is None or isinstance(facts, UbiError):
            raise AssertionError("a ubi bdev always has a base and an image")
        return await engine.create_ubi(
            name=name,
            base=base,
            image_path=params.image_path,
            image_descriptor=facts.descriptor,
            stripe_size_kb=params.asked_stripe_kb,
            no_sync=params.no_sync,
            copy_on_read=params.copy_on_read,
            directio=params.directio,
            uuid=None if params.uuid == NULL_UUID else params.uuid,
            wipe=params.wipe,
            adopt=params.adopt,
            recover=params.recover,
        )

    @override
    async def settled(self, params: UbiParams, bdev: Bdev) -> UbiParams:
        """Fill in the volume's stripe size, and forget what was asked for once."""
        stripe_size_kb = (await bdev.ubi_status())["stripe_size_kb"]
        once = {"wipe": False, "adopt": False, "recover": None}
        return params.model_copy(update={"stripe_size_kb": stripe_size_kb, "stripe_size_mb": None, **once})

    @override
    def io_types(self, params: UbiParams, info: BdevInfo) -> frozenset[str]:
        """Return bdev_ubi's list, and unmap where the base has it."""
        types = {"read", "write", "flush", "write_zeroes"}
        return frozenset(types | {"unmap"} if info.unmap else types)

    @override
    async def driver_specific(self, params: UbiParams, bdev: Bdev) -> dict[str, object]:
        """Return the overlay's parameters and progress; bdev_ubi shows nothing."""
        return {"ubi": {"base_bdev": params.base_bdev, **await bdev.ubi_status(), "survives": bdev.info.survives}}

    @override
    def saved(self, params: UbiParams) -> dict[str, object]:
        """Return bdev_ubi's members in its order. Source: bdev_ubi src/bdev_ubi.c, write_config."""
        return {
            "base_bdev": params.base_bdev,
            "image_path": params.image_path,
            "stripe_size_kb": params.stripe_kb,
            "copy_on_read": params.copy_on_read,
            "directio": params.directio,
            "no_sync": params.no_sync,
            **({"allow_remote": True} if params.allow_remote else {}),
        }


def plan_stripe_size(params: UbiParams) -> None:
    """Refuse stripe sizes that the format does not know."""
    if params.stripe_size_kb is not None and params.stripe_size_mb is not None:
        raise invalid("give stripe_size_kb or stripe_size_mb, not both")
    smallest, largest = STRIPE_SIZES_KB
    if not smallest <= params.stripe_kb <= largest or not is_power_of_two(params.stripe_kb):
        raise invalid(f"stripe size {params.stripe_kb} KiB is not a power of two from {smallest} to {largest}")


def plan_base(params: UbiParams, base: BdevInfo) -> None:
    """Refuse a base that cannot hold an overlay, or that could not keep its promise unless that was asked for."""
    if base.block_size > params.stripe_kb * 1024 or METADATA_BYTES % base.block_size:
        raise invalid(f"a base with blocks of {base.block_size} bytes cannot hold an overlay")
    if base.readonly:
        raise invalid(f"base {params.base_bdev} is read-only and cannot hold an overlay")
    if base.size_bytes <= METADATA_BYTES:
        raise invalid(f"base {params.base_bdev} has {base.size_bytes} bytes; the metadata alone takes 8 MiB")
    if base.remote and not params.allow_remote:
        raise UbiError(
            ErrorKind.PERMISSION,
            f"base {params.base_bdev} is on NFS, CIFS or FUSE: another machine may use it unseen, and what it keeps "
            "after a crash is not this kernel's to promise; use local storage or set allow_remote",
        )


def plan_image_size(params: UbiParams, image_bytes: int, base: BdevInfo) -> None:
    """Refuse an image that the base or the format has no room for.

    Source: bdev_ubi on-disk format: the image and 8 MiB of metadata fit on the base, 2,097,152 stripe headers.
    """
    if base.size_bytes < image_bytes + METADATA_BYTES:
        raise invalid(
            f"base {params.base_bdev} has {base.size_bytes} bytes, image {params.image_path} needs "
            f"{image_bytes + METADATA_BYTES}: its {image_bytes} and 8 MiB of metadata"
        )
    if -(-image_bytes // (params.stripe_kb * 1024)) > MAX_STRIPES:
        raise invalid(f"image {params.image_path} has more than {MAX_STRIPES} stripes of {params.stripe_kb} KiB")
