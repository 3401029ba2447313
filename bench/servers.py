"""The servers that are compared: peers as their users start them, and ours.

All that serve a file itself serve the same file: one page cache, one layout on disk. Locks are off where a server
would refuse that; only one server is under load at a time. Our volume has its own base, of the same size, and an image
of its own, which it keeps others from changing; our bare bdev has a file of its own with the same content. Two files
that came into the page cache in turns (`bench.files`) are served alike: two bare bdevs were within one per cent of each
other in 80 pairs of runs, where a volume and its own base, opened in turns, differ by ten from pair to pair.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.daemon import UBI_METADATA_BYTES, Daemon, nbd_uri
from bench.files import cache_in_small_pages, write_image
from bench.process import BenchError, Process, run

OURS = "ubi_rpc ubi"
OURS_BARE = "ubi_rpc aio"
_VOLUME = "ubi0"
_BASE = "ubi0_base"
_BARE = "bare0"


@dataclass(frozen=True, slots=True)
class Target:
    """One export of a running server.

    Args:
        name: as the tables show it.
        process: the server.
        socket: where it listens.
        export: its name there.
        file: what it serves from: to be in the page cache, and written back between runs.
    """

    name: str
    process: Process
    socket: Path
    export: str
    file: Path

    @property
    def uri(self) -> str:
        """The export as NBD clients name it."""
        return nbd_uri(self.socket, self.export)


@dataclass(frozen=True, slots=True)
class Peer:
    """How a peer is started.

    Args:
        name: as the tables show it.
        argv: its command, in which {image} and {socket} stand for paths.
        export: the export's name.
        fill: write all of it once first: what it allocates at a first write is not what is compared.
    """

    name: str
    argv: tuple[str, ...]
    export: str = ""
    fill: bool = False


def _qemu_nbd(aio: str, cache: str = "writeback", offset: int = 0) -> Peer:
    image = f"driver=raw,offset={offset},file.driver=file,file.filename={{image}},file.locking=off"
    options = ("-t", "-e", "16", f"--cache={cache}", f"--aio={aio}", "-k", "{socket}", "--image-opts", image)
    return Peer(f"qemu-nbd {aio}" if cache == "writeback" else f"qemu-nbd cache={cache}", ("qemu-nbd", *options))


PEERS = (
    _qemu_nbd("io_uring"),
    _qemu_nbd("threads"),
    Peer(
        "qemu-storage-daemon",
        (
            "qemu-storage-daemon",
            "--blockdev",
            "driver=file,node-name=file,filename={image},aio=io_uring,locking=off,cache.direct=off",
            "--blockdev",
            "driver=raw,node-name=raw,file=file",
            "--nbd-server",
            "addr.type=unix,addr.path={socket}",
            "--export",
            "type=nbd,id=export,node-name=raw,name=disk,writable=on",
        ),
        export="disk",
    ),
    Peer("nbdkit file", ("nbdkit", "-f", "-U", "{socket}", "file", "{image}")),
    Peer("nbdkit cow", ("nbdkit", "-f", "-U", "{socket}", "--filter=cow", "file", "{image}"), fill=True),
)

# Serves what our volume keeps in its base, leaving out the metadata.
QEMU_DIRECT = _qemu_nbd("io_uring", "none", UBI_METADATA_BYTES)


@dataclass(frozen=True, slots=True)
class Files:
    """What is served, in a folder of its own.

    Args:
        folder: also for sockets, logs and what servers write.
        size_bytes: of the files.
        cache: how our bases are opened.
    """

    folder: Path
    size_bytes: int
    cache: str = "writeback"

    @property
    def shared(self) -> Path:
        """What everybody serves who serves a file as it is."""
        return self.folder / "shared.raw"

    @property
    def image(self) -> Path:
        """What our volume is made from."""
        return self.folder / "image.raw"

    @property
    def base(self) -> Path:
        """What our volume is kept in."""
        return self.folder / "base.raw"

    @property
    def bare(self) -> Path:
        """What our bare bdev serves."""
        return self.folder / "bare.raw"

    def write(self) -> None:
        """Make them, with the same content."""
        write_image(self.shared, self.size_bytes)
        write_image(self.image, self.size_bytes)
        with self.base.open("wb") as file:
            file.truncate(self.size_bytes + UBI_METADATA_BYTES)


def start_peer(peer: Peer, files: Files, stack: ExitStack, file: Path) -> Target:
    """Start a peer on a file."""
    slug = peer.name.replace(" ", "-")
    socket = files.folder / f"{slug}.sock"
    argv = [word.format(image=file, socket=socket) for word in peer.argv]
    process = Process(slug, argv, files.folder, {"TMPDIR": str(files.folder)})
    stack.callback(process.stop)
    process.wait_for_socket(socket)
    target = Target(peer.name, process, socket, peer.export, file)
    if not peer.fill:
        return target
    run(["nbdcopy", "--allocated", str(file), target.uri])
    return replace(target, file=_overlay(process))


def _overlay(process: Process) -> Path:
    """The unlinked file that a server keeps its writes in, by a name that opens it all the same."""
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        if str(descriptor.readlink()).endswith(" (deleted)"):
            return descriptor
    raise BenchError(f"{process.name} has no unlinked file open; its cache cannot be put into the same state")


class Ours:
    """A volume whose every stripe is present, in a daemon of its own."""

    def __init__(self, daemon: Daemon, files: Files) -> None:
        """Make the volume and write all of it."""
        self._daemon, self._files = daemon, files
        daemon.create_aio(_BASE, files.base, files.cache)
        daemon.create_ubi(_VOLUME, _BASE, files.image)
        daemon.export(_VOLUME)
        run(["nbdcopy", "--allocated", str(files.image), self.volume.uri])
        daemon.check_all_present(_VOLUME)

    @property
    def volume(self) -> Target:
        """The volume."""
        return self._target(OURS, _VOLUME, self._files.base)

    def start_bare(self) -> Target:
        """Export a bare bdev such as the volume's base is, with the same content."""
        write_image(self._files.bare, self._files.size_bytes)
        self._daemon.create_aio(_BARE, self._files.bare, self._files.cache)
        self._daemon.export(_BARE)
        return self._target(OURS_BARE, _BARE, self._files.bare)

    def _target(self, name: str, export: str, file: Path) -> Target:
        return Target(name, self._daemon.process, self._daemon.nbd_socket, export, file)


def _start_ours(python: Path, files: Files, names: list[str], stack: ExitStack) -> list[Target]:
    if not {OURS, OURS_BARE} & set(names):
        return []
    ours = Ours(stack.enter_context(Daemon.running(python, files.folder)), files)
    targets = [ours.volume] if OURS in names else []
    if OURS_BARE in names:
        targets.append(ours.start_bare())
    return targets


@contextmanager
def running(python: Path, files: Files, names: list[str]) -> Iterator[list[Target]]:
    """Start the named servers on fresh files, ready to be measured; end them afterwards.

    Servers that are not installed are left out, with a word.
    """
    files.write()
    with ExitStack() as stack:
        targets = _start_ours(python, files, names, stack)
        for peer in PEERS:
            if peer.name not in names:
                continue
            if shutil.which(peer.argv[0]) is None:
                print(f"{peer.argv[0]} is not installed: no {peer.name}")
                continue
            targets.append(start_peer(peer, files, stack, files.shared))
        if not targets:
            raise BenchError(f"no server to measure among {names}")
        cache_in_small_pages(*{target.file for target in targets})
        yield targets
