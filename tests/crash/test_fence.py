"""Writes of a dead daemon that land late: the next daemon gets the base's lock only when the last of them has landed.

The base is on a file system of the test's own, which holds one write of the daemon that is then killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.daemon import CHECKOUT, Daemon
from tests.support.gated_base import GatedBase
from tests.support.gated_image import DEVICE, Gate
from tests.support.images import METADATA_BYTES, MIB, make_image
from tests.support.nbd_client import Command, NbdClient
from tests.support.rpc_client import RpcClient, RpcError
from tests.support.seeds import rng
from tests.support.stamps import BLOCK, stamp

pytestmark = [pytest.mark.timeout(300), pytest.mark.needs_fuse]

IMAGE_BYTES = MIB
DISK_BYTES = 2 * MIB
WAITS_S = 1.5
"""How long the next daemon is watched while a dead one's write is held."""


@pytest.fixture
def base(folder: Path) -> Iterator[GatedBase]:
    """Return a mounted base."""
    if os.geteuid() or not os.access(DEVICE, os.W_OK):
        pytest.skip("needs root and /dev/fuse")
    (folder / "mount").mkdir()
    with GatedBase(folder / "mount", bytearray(METADATA_BYTES + DISK_BYTES)) as base:
        yield base


@dataclass(slots=True)
class Takeover:
    """How a daemon took over from one that was killed with a write under way.

    Args:
        waited: it had the base only once the write had landed.
        first: the block as it found it.
        last: the block after its own acknowledged write, when everything has landed.
    """

    waited: bool
    first: bytes
    last: bytes


class Pair:
    """Two daemons, one after the other, on one base.

    Args:
        folder: where they are.
        base: held and let go by the test.
        daemons: not started yet.
    """

    def __init__(self, folder: Path, base: GatedBase, *daemons: Daemon) -> None:
        self._base = base
        self._image = folder / "image.raw"
        make_image(self._image, IMAGE_BYTES, rng("fence"))
        self._old, self._new = daemons

    def take_over(self, block: int) -> Takeover:
        """Kill the old daemon while its second write of `block` is held; let the new one write a third."""
        with self._serve_old() as client:
            client.write(block * BLOCK, stamp(block, 1))
            gate = self._base.hold(METADATA_BYTES + block * BLOCK, BLOCK)
            client.send(Command.WRITE, block * BLOCK, data=stamp(block, 2))
            gate.wait_reached()
            self._base.let_others_pass(gate)
            self._old.process.send_signal(signal.SIGKILL)
        return self._serve_new(block, gate)

    def _serve_old(self) -> NbdClient:
        self._old.start()
        self._old.create_aio("base0", self._base.path, fallocate=False)
        self._old.create_ubi("ubi0", "base0", self._image, allow_remote=True)
        return self._old.client("ubi0")

    def _serve_new(self, block: int, gate: Gate) -> Takeover:
        self._new.start()
        with RpcClient(self._new.rpc_socket) as asking:
            asking.send("bdev_aio_create", name="base0", filename=str(self._base.path), block_size=512)
            asking.socket.settimeout(WAITS_S)
            try:
                assert "result" in asking.receive()
                waited = False
            except TimeoutError:
                waited = True
        if waited:
            self._base.release(gate)
            self._old.wait()
            self._new.rpc.call("bdev_get_bdevs", name="base0", timeout=20_000)
        self._new.create_ubi("ubi0", "base0", self._image, allow_remote=True)
        with self._new.client("ubi0") as client:
            first = client.read(block * BLOCK, BLOCK)
            client.write(block * BLOCK, stamp(block, 3))
            if not waited:
                self._base.release(gate)
                self._old.wait()
            return Takeover(waited, first, client.read(block * BLOCK, BLOCK))


@pytest.fixture
def take_over(folder: Path, base: GatedBase) -> Iterator[Callable[..., Takeover]]:
    """Return what takes a block over between two daemons, made with an I/O engine, a package and an environment."""
    with ExitStack() as ending:

        def act(block: int, io_engine: str, package: Path = CHECKOUT, **environ: str) -> Takeover:
            daemons = []
            for name in ("old", "new"):
                (folder / name).mkdir()
                daemons.append(Daemon(folder / name, io_engine, package, **environ))
                ending.callback(daemons[-1].kill)
            ending.callback(base.release_all)
            return Pair(folder, base, *daemons).take_over(block)

        yield act


def test_the_next_daemon_waits_until_a_dead_ones_writes_have_landed(
    take_over: Callable[..., Takeover], io_engine: str
) -> None:
    block = rng("fence block").randrange(IMAGE_BYTES // BLOCK)
    outcome = take_over(block, io_engine)
    assert outcome.waited
    assert outcome.first == stamp(block, 2)  # it had been submitted, and it landed
    assert outcome.last == stamp(block, 3)


def test_a_remote_base_has_to_be_asked_for(folder: Path, base: GatedBase, unstarted_daemon: Daemon) -> None:
    make_image(folder / "image.raw", IMAGE_BYTES, rng("fence"))
    unstarted_daemon.start().create_aio("base0", base.path, fallocate=False)
    with pytest.raises(RpcError, match="is on NFS, CIFS or FUSE") as caught:
        unstarted_daemon.create_ubi("ubi0", "base0", folder / "image.raw")
    assert caught.value.code == -1
    assert bytes(base.data) == bytes(len(base.data))
    unstarted_daemon.create_ubi("ubi0", "base0", folder / "image.raw", allow_remote=True)


@pytest.fixture(scope="session")
def broken_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the package over an engine that has faults to be switched on by UBI_FAULT."""
    manifest = str(CHECKOUT / "native/Cargo.toml")
    arguments = ["--locked", "-p", "ubi-python", "--features", "broken-variants", "--message-format", "short"]
    subprocess.run(["cargo", "build", "--manifest-path", manifest, *arguments], check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR") or CHECKOUT / "native/target")
    package = tmp_path_factory.mktemp("broken") / "ubi_rpc"
    shutil.copytree(CHECKOUT / "ubi_rpc", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(target / "debug/lib_native.so", package / "_native.abi3.so")
    return package.parent


def test_without_the_fence_an_acknowledged_write_is_lost(
    take_over: Callable[..., Takeover], broken_package: Path, io_engine: str
) -> None:
    """The same check on a daemon whose I/O goes past the locked description: what the fence is there for."""
    block = rng("fence block").randrange(IMAGE_BYTES // BLOCK)
    outcome = take_over(block, io_engine, broken_package, UBI_FAULT="UnlockedDescriptor")
    if io_engine == "threads":  # a thread that waits in the kernel keeps every descriptor of its process open
        assert outcome.waited
        return
    assert not outcome.waited
    assert outcome.first == stamp(block, 1)
    assert outcome.last == stamp(block, 2)  # the dead daemon's write, over the acknowledged third
