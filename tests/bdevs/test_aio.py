"""What the aio kind decides about block devices, which not every test machine has."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from ubi_rpc.bdevs.aio import AioKind, AioParams
from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.files import FoundFile

KIND = AioKind()


def _found(mode: int, *, inode: int = 7, rdev: int = 0) -> FoundFile:
    found = os.stat_result((mode | 0o600, inode, 3, 1, 0, 0, 0, 0, 0, 0), {"st_rdev": rdev})
    return FoundFile("/dev/x", -1, found)


def _params(**changes: object) -> AioParams:
    return AioParams.model_validate({"name": "a", "filename": "/dev/x", **changes})


@pytest.mark.parametrize("changes", [{}, {"nowait": True}, {"block_size": 4096}, {"block_size": 0}])
def test_a_block_device_may_leave_the_block_size_out_and_has_nowait(changes: dict[str, object]) -> None:
    KIND.plan(_params(**changes), _found(stat.S_IFBLK), None)


def test_a_block_device_has_the_same_limits_on_block_sizes() -> None:
    with pytest.raises(UbiError, match="power of two"):
        KIND.plan(_params(block_size=1000), _found(stat.S_IFBLK), None)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOENT, ErrorKind.NOT_FOUND),
        (errno.EACCES, ErrorKind.PERMISSION),
        (errno.ELOOP, ErrorKind.INVALID_PARAMS),
        (errno.ENAMETOOLONG, ErrorKind.INVALID_PARAMS),
    ],
)
def test_what_the_system_says_of_a_file_is_passed_on(code: int, kind: ErrorKind) -> None:
    with pytest.raises(UbiError, match=os.strerror(code)) as caught:
        KIND.plan(_params(), OSError(code, "no"), None)
    assert (caught.value.kind, caught.value.errno) == (kind, code)


def test_nodes_of_one_block_device_are_one_file() -> None:
    nodes = [_found(stat.S_IFBLK, inode=inode, rdev=0x0800) for inode in (1, 2)]
    assert nodes[0].id == nodes[1].id == ("device", 0x0800, 0)
    assert _found(stat.S_IFREG, inode=1).id != _found(stat.S_IFREG, inode=2).id
