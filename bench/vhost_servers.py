"""The vhost-user-blk backends that are compared, over each kind of base.

Ours is a volume whose every stripe is present, except in memory: there it is the bare bdev against a device that stores
nothing. The peer is qemu-storage-daemon, with its export on a thread of its own, which polls, and without. All of them
serve the same bytes of the same file: two files lie differently in memory or on a disk, and copying out of pages that
are scattered takes up to twice as long.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.daemon import UBI_METADATA_BYTES, Daemon
from bench.files import cache_in_small_pages, write_image
from bench.process import READY_TIMEOUT_S, BenchError, Process, run

Kind = Literal["tmpfs", "cached", "direct", "malloc"]
KINDS: tuple[Kind, ...] = ("tmpfs", "cached", "direct", "malloc")
OURS = "ubi_rpc"
PEER = "qemu-storage-daemon"
PEER_THREAD = "qemu-storage-daemon iothread"
QUEUES_MAX = 2
BLOCK_BYTES = 512


@dataclass(frozen=True, slots=True)
class Backend:
    """One device of a running server.

    Args:
        name: as the tables show it.
        process: the server.
        socket: where a monitor connects.
        file: what it serves from, to be in the page cache and written back between runs; None: memory.
    """

    name: str
    process: Process
    socket: Path
    file: Path | None


def _device(kind: Kind, file: Path, size_bytes: int) -> list[str]:
    """The peer's device: what the volume has behind its metadata, which every stripe's place follows in order."""
    if kind == "malloc":
        return ["--blockdev", f"driver=null-co,node-name=disk,size={size_bytes}"]
    direct = "on" if kind == "direct" else "off"
    options = f"driver=file,node-name=file,filename={file},aio=io_uring,locking=off,cache.direct={direct},discard=unmap"
    part = f"driver=raw,node-name=disk,file=file,offset={UBI_METADATA_BYTES},size={size_bytes}"
    return ["--blockdev", options, "--blockdev", part]


def _start_peer(name: str, kind: Kind, file: Path, size_bytes: int, stack: ExitStack) -> Backend:
    slug = name.replace(" ", "-")
    socket = file.parent / f"{slug}.sock"
    export = f"type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={socket},writable=on"
    argv = [PEER, *_device(kind, file, size_bytes)]
    if name == PEER_THREAD:
        argv += ["--object", "iothread,id=thread"]
        export += ",iothread=thread"
    process = Process(slug, [*argv, "--export", f"{export},num-queues={QUEUES_MAX}"], file.parent)
    stack.callback(process.stop)
    _wait_for_node(process, socket)
    return Backend(name, process, socket, None if kind == "malloc" else file)


def _wait_for_node(process: Process, socket: Path) -> None:
    """Wait for the socket without connecting: a connection would be the one monitor that is served."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not socket.is_socket():
        process.check_alive()
        if time.monotonic() > deadline:
            raise BenchError(f"{process.name} has no {socket}; see {process.log}")
        time.sleep(0.001)


def _start_ours(python: Path, kind: Kind, folder: Path, size_bytes: int, stack: ExitStack) -> Backend:
    daemon = stack.enter_context(Daemon.running(python, folder))
    image, base = folder / "image.raw", folder / "base.raw"
    write_image(image, size_bytes)
    if kind == "malloc":
        with daemon.client() as client:
            client.call("bdev_malloc_create", name="disk", num_blocks=size_bytes // BLOCK_BYTES, block_size=BLOCK_BYTES)
        _copy(daemon, image)  # memory that nobody has written is one page of zeros
        image.unlink()
        return Backend(OURS, daemon.process, add_controller(daemon, folder, "disk"), None)
    with base.open("wb") as file:
        file.truncate(size_bytes + UBI_METADATA_BYTES)
    cache = "none" if kind == "direct" else "writeback"
    daemon.create_aio("base", base, cache)
    daemon.create_ubi("disk", "base", image)
    _copy(daemon, image)
    daemon.check_all_present("disk")
    image.unlink()  # every stripe is present: nobody reads it any more
    return Backend(OURS, daemon.process, add_controller(daemon, folder, "disk"), base)


def _copy(daemon: Daemon, image: Path) -> None:
    run(["nbdcopy", "--allocated", str(image), daemon.uri(daemon.export("disk"))])


def add_controller(daemon: Daemon, folder: Path, bdev: str) -> Path:
    """Offer a bdev to monitors and return the socket."""
    with daemon.client() as client:
        client.call("vhost_create_blk_controller", ctrlr="vm0", dev_name=bdev)
    return folder / "vm0"


@contextmanager
def running(python: Path, kind: Kind, folder: Path, size_bytes: int) -> Iterator[list[Backend]]:
    """Start ours and the peers over one kind of base, ready to be measured; end them afterwards."""
    with ExitStack() as stack:
        backends = [_start_ours(python, kind, folder, size_bytes, stack)]
        base = folder / "base.raw"
        backends += [_start_peer(name, kind, base, size_bytes, stack) for name in (PEER, PEER_THREAD)]
        if kind == "cached":
            cache_in_small_pages(*{backend.file for backend in backends if backend.file})
        yield backends
