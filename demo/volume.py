"""A volume seen through real NBD clients: qemu-img reads, qemu-io writes and checks."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from demo.daemon import Daemon
from demo.image import IMAGE_BYTES, MIB, extents
from demo.steps import DemoError, run, say


def patched(data: bytes, pieces: Iterable[tuple[int, int]], pattern: int) -> bytes:
    """Return `data` with `pattern` at each (offset, length)."""
    result = bytearray(data)
    for offset, length in pieces:
        result[offset : offset + length] = bytes([pattern]) * length
    return bytes(result)


@dataclass(frozen=True, slots=True)
class Volume:
    """Bdev ubi0, exported over NBD.

    Args:
        daemon: whose it is.
        image: what it was made from; only used to find out where a file lies.
        uri: where NBD clients find it.
        create_s: how long bdev_ubi_create took, with the start of rpc.py.
    """

    daemon: Daemon
    image: Path
    uri: str
    create_s: float

    @classmethod
    def create(cls, daemon: Daemon, image: Path) -> Volume:
        """Create ubi0 on aio0, or open what is on it, and export it.

        Raises:
            DemoError: the daemon refuses either call.
        """
        began = time.monotonic()
        daemon.rpc("bdev_ubi_create", "-n", "ubi0", "-b", "aio0", "-i", image.name)
        took = time.monotonic() - began
        export = daemon.rpc("nbd_create_export", "ubi0")
        return cls(daemon, image, str(export["uri"]), took)

    def read_file(self, name: str) -> bytes:
        """Return a file's bytes as the volume has them; only its own blocks are asked for."""
        return b"".join(self._read(extent.offset, extent.length) for extent in extents(self.image, name))

    def _read(self, offset: int, length: int) -> bytes:
        with tempfile.TemporaryDirectory(dir=self.daemon.folder) as folder:
            part = Path(folder) / "part"
            run(["qemu-img", "convert", "-O", "raw", self._window(offset, length), str(part)])
            return part.read_bytes()

    def _window(self, offset: int, length: int) -> str:
        """Return qemu's name for a part of the volume."""
        place = urlsplit(self.uri)
        server = {"type": "unix", "path": parse_qs(place.query)["socket"][0]}
        export = {"driver": "nbd", "server": server, "export": unquote(place.path.removeprefix("/"))}
        return "json:" + json.dumps({"driver": "raw", "offset": offset, "size": length, "file": export})

    def offset_of(self, name: str, offset: int) -> int:
        """Return where byte `offset` of a file lies in the volume.

        Raises:
            DemoError: the file is shorter.
        """
        for extent in extents(self.image, name):
            if offset < extent.length:
                return extent.offset + offset
            offset -= extent.length
        raise DemoError(f"/{name} has no byte {offset}")

    def write(self, offset: int, length: int, pattern: int) -> None:
        """Write `pattern` with no flush behind it (-t unsafe keeps qemu-io from sending one)."""
        self._qemu_io("unsafe", f"write -P {pattern:#x} {offset} {length}")

    def check(self, offset: int, length: int, pattern: int) -> None:
        """See that `pattern` is there.

        Raises:
            DemoError: another byte is there (qemu-io ends with an error then).
        """
        self._qemu_io("writeback", f"read -P {pattern:#x} {offset} {length}")

    def _qemu_io(self, cache: str, command: str) -> str:
        return run(["qemu-io", "-f", "raw", "-t", cache, "-c", command, self.uri])

    def print_progress(self) -> None:
        """Print how much of the image has been copied so far."""
        status = self.daemon.rpc("bdev_ubi_get_status", "-n", "ubi0")
        present, total = status["stripes_present"], status["stripes_total"]
        stripe = status["stripe_size_kb"] * 1024
        say(f"on the base: {present} of {total} stripes, {present * stripe // MIB} of {IMAGE_BYTES // MIB} MiB")
        say(f"still only in the image: {total - present} stripes")
        say(f"copied from it since the daemon started: {status['fetched_bytes'] // MIB} MiB")
