"""A slow base: a file on a file system of our own, whose requests a test holds for as long as it likes.

A held write has left the daemon and has not reached the storage: when the daemon is killed meanwhile, it lands later,
as on a slow disk or an array behind a network.

Source: linux/include/uapi/linux/fuse.h, protocol 7.31.
"""

from __future__ import annotations

import errno
import struct

from typing_extensions import override

from tests.support.gated_image import GatedImage

WRITE, STATFS, FSYNC = 16, 17, 20
WRITE_HEAD_BYTES = 40


class GatedBase(GatedImage):
    """A mounted base; needs root and /dev/fuse.

    Every byte passes O_DIRECT and asynchronously: no thread of the writer waits for it in the kernel.
    """

    name = "base.raw"
    mode = 0o600

    @override
    def _take(self, opcode: int, unique: int, node: int, body: bytes) -> None:
        if opcode == WRITE:
            self._write(unique, body)
        elif opcode == FSYNC:
            self._answer(unique, b"")
        elif opcode == STATFS:
            self._answer(unique, struct.pack("<5Q4I24x", 1 << 20, 1 << 19, 1 << 19, 0, 0, 4096, 255, 4096, 0))
        else:
            super()._take(opcode, unique, node, body)

    def _write(self, unique: int, body: bytes) -> None:
        _, offset, size = struct.unpack_from("<QQI", body)
        payload = body[WRITE_HEAD_BYTES : WRITE_HEAD_BYTES + size]
        assert isinstance(self.data, bytearray)
        data = self.data

        def land(error: int) -> None:
            if not error:
                data[offset : offset + size] = payload
            self._answer(unique, error or struct.pack("<II", size, 0))

        if offset + size > len(data):
            self._answer(unique, errno.EFBIG)
        else:
            self._pass(offset, size, land)
