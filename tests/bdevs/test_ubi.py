"""What the ubi kind decides about sizes that no test file has."""

from __future__ import annotations

import pytest

from ubi_rpc.bdevs.ubi import MAX_STRIPES, METADATA_BYTES, UbiKind, UbiParams
from ubi_rpc.engine import BdevInfo
from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.images.file import ImageFacts

KIND = UbiKind()
GIB = 1 << 30


def _base(size_bytes: int, block_size: int = 512, *, readonly: bool = False, remote: bool = False) -> BdevInfo:
    return BdevInfo(
        block_size=block_size,
        num_blocks=size_bytes // block_size,
        write_cache=True,
        readonly=readonly,
        unmap=True,
        write_zeroes=True,
        flush=True,
        unmap_reads_zero=True,
        survives="power",
        remote=remote,
        uuid=None,
    )


def _params(stripe_size_kb: int = 64) -> UbiParams:
    return UbiParams(name="u", base_bdev="b", image_path="i", stripe_size_kb=stripe_size_kb)


def _image(size_bytes: int | None) -> ImageFacts:
    return ImageFacts(size_bytes=size_bytes, id=("file", 1, 1), descriptor=-1)


def test_an_image_has_as_many_stripes_as_there_are_headers() -> None:
    largest = MAX_STRIPES * 64 * 1024
    KIND.plan(_params(), _image(largest), _base(largest + METADATA_BYTES))
    with pytest.raises(UbiError, match="more than 2097152 stripes"):
        KIND.plan(_params(), _image(largest + 1), _base(largest + GIB))
    KIND.plan(_params(128), _image(largest + 1), _base(largest + GIB))


def test_image_and_metadata_fit_on_the_base_to_the_byte() -> None:
    KIND.plan(_params(), _image(GIB), _base(GIB + METADATA_BYTES))
    with pytest.raises(UbiError, match=f"needs {GIB + 1 + METADATA_BYTES}"):
        KIND.plan(_params(), _image(GIB + 1), _base(GIB + METADATA_BYTES))


def test_an_image_on_a_block_device_is_measured_when_it_is_opened() -> None:
    KIND.plan(_params(), _image(None), _base(GIB))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (_base(GIB, 65536 * 2), "blocks of 131072 bytes"),
        (_base(GIB, readonly=True), "read-only"),
        (_base(METADATA_BYTES), "the metadata alone"),
    ],
)
def test_a_base_that_cannot_hold_an_overlay_is_refused(base: BdevInfo, message: str) -> None:
    with pytest.raises(UbiError, match=message):
        KIND.plan(_params(), _image(0), base)


def test_the_stripe_size_is_1_mib_unless_it_is_given() -> None:
    params = {"name": "u", "base_bdev": "b", "image_path": "i"}
    assert UbiParams.model_validate(params).stripe_kb == 1024
    assert UbiParams.model_validate({**params, "stripe_size_mb": 1}).stripe_kb == 1024
    assert UbiParams.model_validate({**params, "stripe_size_kb": 256}).stripe_kb == 256


def test_a_remote_base_is_taken_only_when_asked_for() -> None:
    base = _base(GIB, remote=True)
    with pytest.raises(UbiError, match=r"NFS, CIFS or FUSE.*set allow_remote") as caught:
        KIND.plan(_params(), _image(GIB // 2), base)
    assert caught.value.kind is ErrorKind.PERMISSION
    asked = _params().model_copy(update={"allow_remote": True})
    KIND.plan(asked, _image(GIB // 2), base)
    assert KIND.saved(asked)["allow_remote"] is True
    assert "allow_remote" not in KIND.saved(_params())  # what bdev_ubi itself takes, wherever that is enough
