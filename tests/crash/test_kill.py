"""SIGKILL at any moment: every acknowledged write is there afterwards, flushed or not, and nothing else is changed."""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path

import pytest

from tests.crash.load import Ledger, Load
from tests.support.daemon import Daemon, write_config
from tests.support.images import METADATA_BYTES, MIB, make_image, make_sparse
from tests.support.rpc_client import RpcError
from tests.support.seeds import rng
from tests.support.stamps import BLOCK

pytestmark = pytest.mark.timeout(120)

KILLS = 10
OTHER_KILLS = 6
IMAGE_BYTES = 10 * MIB + 512
DISK_BYTES = 12 * MIB
BLOCKS = DISK_BYTES // BLOCK
STRIPE_SIZE_KB = 64


class Machine:
    """A daemon whose base is in its configuration, and the volume that is made again after each start.

    Args:
        daemon: not started yet.
        folder: where image and base are.
        params: further parameters of bdev_ubi_create.
    """

    def __init__(self, daemon: Daemon, folder: Path, cache: str, **params: object) -> None:
        self.daemon = daemon
        self.image = folder / "image.raw"
        self.base = make_sparse(folder / "base.raw", METADATA_BYTES + DISK_BYTES)
        data = make_image(self.image, IMAGE_BYTES, rng("crash"), holes=True)
        self.ledger = Ledger(data + bytes(DISK_BYTES - IMAGE_BYTES))
        self._params = params
        base = {"name": "base0", "filename": str(self.base), "block_size": 512, "fallocate": True, "cache": cache}
        self._config = write_config(folder / "conf.json", ("bdev_aio_create", base))

    def boot(self) -> None:
        """Start the daemon."""
        self.daemon.start("--json", self._config)

    def create(self) -> None:
        """Make the volume, or open it."""
        self.daemon.create_ubi("ubi0", "base0", self.image, stripe_size_kb=STRIPE_SIZE_KB, **self._params)

    def load(self, blocks: range, random_source: random.Random, after: int) -> Load:
        """Start a load."""
        return Load(lambda: self.daemon.client("ubi0"), self.ledger, blocks, random_source, after)

    def kill(self) -> None:
        """End the daemon as a crash would."""
        assert self.daemon.end(signal.SIGKILL) == -signal.SIGKILL

    def check(self, blocks: range) -> None:
        """Read blocks and hold them against the ledger."""
        with self.daemon.client("ubi0") as client:
            found = client.read_range(blocks.start * BLOCK, blocks.stop * BLOCK)
        broken = self.ledger.settle(blocks, found)
        assert not broken, f"{len(broken)} blocks lost an acknowledged write or hold what nobody wrote: {broken[:20]}"


def _window(turn: int) -> range:
    """Return the blocks of one turn: a tenth of the volume that is new, and as much that is not."""
    step = BLOCKS // KILLS
    return range(max(0, turn - 1) * step, max(0, turn + 1) * step)


@pytest.mark.parametrize(("cache", "copy_on_read"), [("none", True), ("writeback", False)])
def test_every_acknowledged_write_outlives_ten_kills(
    unstarted_daemon: Daemon, folder: Path, cache: str, copy_on_read: bool
) -> None:
    machine = Machine(unstarted_daemon, folder, cache, copy_on_read=copy_on_read)
    chance = rng("kills", cache)
    for turn in range(KILLS):
        machine.boot()
        machine.create()
        machine.check(_window(turn - 1))  # no more than that: the rest is to be fetched under load
        load = machine.load(_window(turn), chance, after=chance.randrange(1, 400))
        assert load.reached.wait(30), machine.daemon.log_text()
        machine.kill()
        load.wait()
    machine.boot()
    machine.create()
    machine.check(range(BLOCKS))
    assert machine.image.read_bytes() == make_image(folder / "again.raw", IMAGE_BYTES, rng("crash"), holes=True)


def test_kills_during_create_leave_a_volume_that_opens(unstarted_daemon: Daemon, folder: Path) -> None:
    machine = Machine(unstarted_daemon, folder, "none")
    chance = rng("kills during create")
    for turn in range(OTHER_KILLS):
        make_sparse(machine.base, machine.base.stat().st_size)
        machine.boot()
        params = {"name": "ubi0", "base_bdev": "base0", "image_path": str(machine.image), "stripe_size_kb": 64}
        machine.daemon.rpc.send("bdev_ubi_create", **params)
        threading.Event().wait(chance.uniform(0, 0.02))  # a moment that no event marks is what is wanted
        machine.kill()
        machine.boot()
        machine.create()
        machine.check(range(BLOCKS) if turn == OTHER_KILLS - 1 else range(16))
        machine.kill()


def test_kills_during_close_lose_nothing(unstarted_daemon: Daemon, folder: Path) -> None:
    machine = Machine(unstarted_daemon, folder, "none")
    chance = rng("kills during close")
    for turn in range(OTHER_KILLS):
        machine.boot()
        machine.create()
        load = machine.load(_window(turn), chance, after=100)
        assert load.reached.wait(30), machine.daemon.log_text()
        if turn % 2:
            machine.daemon.process.send_signal(signal.SIGTERM)
        else:
            machine.daemon.rpc.send("bdev_ubi_delete", name="ubi0")
        threading.Event().wait(chance.uniform(0, 0.03))
        machine.daemon.end(signal.SIGKILL)  # it may have ended by itself
        load.wait()
    machine.boot()
    machine.create()
    machine.check(range(BLOCKS))


def test_a_killed_daemons_locks_and_sockets_are_no_obstacle(unstarted_daemon: Daemon, folder: Path) -> None:
    machine = Machine(unstarted_daemon, folder, "none")
    machine.boot()
    machine.create()
    machine.kill()
    assert machine.daemon.rpc_socket.exists()
    assert machine.daemon.nbd_socket.exists()
    machine.boot()
    machine.create()
    with pytest.raises(RpcError) as caught:
        machine.create()
    assert caught.value.code == -17  # the volume is there already
    machine.check(range(BLOCKS))
    assert machine.daemon.end() == 0
    assert sorted(one.name for one in folder.iterdir()) == ["base.raw", "conf.json", "image.raw", "state"]


def test_without_sync_nothing_is_lost_to_a_kill_either(unstarted_daemon: Daemon, folder: Path) -> None:
    machine = Machine(unstarted_daemon, folder, "none", no_sync=True)
    machine.boot()
    machine.create()
    load = machine.load(range(BLOCKS), rng("no_sync"), after=500)
    assert load.reached.wait(30), machine.daemon.log_text()
    machine.kill()
    load.wait()
    machine.boot()
    machine.create()
    machine.check(range(BLOCKS))
