"""A daemon that is killed again and again, its volume, and what the volume was promised to keep."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from tests.crash.load import Ledger, Load
from tests.support.daemon import Daemon
from tests.support.images import METADATA_BYTES, MIB, make_image, make_sparse
from tests.support.seeds import rng
from tests.support.stamps import BLOCK

IMAGE_BYTES = 6 * MIB + 512
DISK_BYTES = 8 * MIB
BLOCKS = DISK_BYTES // BLOCK
STRIPE_SIZE_KB = 64


class Machine:
    """The daemon keeps its objects (`--persist`); a volume that is missing after a start is opened again.

    Args:
        daemon: not started yet.
        folder: where image and base are.
        cache: of the base, see bdev_aio_create.
        params: further parameters of bdev_ubi_create.
    """

    def __init__(self, daemon: Daemon, folder: Path, cache: str, **params: object) -> None:
        self.daemon = daemon
        self.image = folder / "image.raw"
        self.base = folder / "base.raw"
        self._kept = folder / "kept.json"
        self._cache = cache
        self._params = params
        self._data = make_image(self.image, IMAGE_BYTES, rng("crash"), holes=True) + bytes(DISK_BYTES - IMAGE_BYTES)
        self._blank()

    def _blank(self) -> None:
        make_sparse(self.base, METADATA_BYTES + DISK_BYTES)
        self.ledger = Ledger(self._data)

    def launch(self) -> None:
        """Start the daemon and return at once."""
        self.daemon.launch("--persist", str(self._kept))

    def boot(self) -> None:
        """Start the daemon and return when the volume is served."""
        self.daemon.start("--persist", str(self._kept))
        self.open()

    def open(self) -> None:
        """Make what is missing of base, volume and export."""
        there = {bdev["name"] for bdev in self.daemon.bdevs()}
        if "base0" not in there:
            self.daemon.create_aio("base0", self.base, cache=self._cache)
        if "ubi0" not in there:
            self.daemon.call("bdev_ubi_create", **self.volume())
        if not self.daemon.call("nbd_get_exports"):
            self.daemon.export("ubi0")

    def volume(self) -> dict[str, object]:
        """Return the parameters of the volume."""
        named = {"name": "ubi0", "base_bdev": "base0", "image_path": str(self.image)}
        return {**named, "stripe_size_kb": STRIPE_SIZE_KB, **self._params}

    def renew(self) -> None:
        """Go on with a blank base, so that there are stripes to fetch again."""
        self.daemon.call("bdev_aio_delete", name="base0")
        self._blank()
        self.open()

    def load(self, blocks: range, chance: random.Random, after: int) -> Load:
        """Start a load."""
        return Load(lambda: self.daemon.client("ubi0"), self.ledger, blocks, chance, after)

    def kill(self) -> None:
        """End the daemon as a crash would, if it has not ended by itself."""
        self.daemon.end(signal.SIGKILL)

    def check(self) -> None:
        """Read every byte and hold it against the ledger."""
        with self.daemon.client("ubi0") as client:
            found = client.read_range(0, DISK_BYTES)
        broken = self.ledger.settle(range(BLOCKS), found)
        assert not broken, f"{len(broken)} blocks lost an acknowledged write or hold what nobody wrote: {broken[:20]}"


Moment = Callable[[Machine, random.Random], None]


def _pause(chance: random.Random, longest_s: float) -> None:
    threading.Event().wait(chance.uniform(0, longest_s))  # a moment that no event marks is what is wanted


def _blocks(chance: random.Random) -> range:
    """Return a third of the volume."""
    first = chance.randrange(BLOCKS * 2 // 3)
    return range(first, first + BLOCKS // 3)


def under_load(machine: Machine, chance: random.Random) -> None:
    """Kill while every connection writes."""
    load = machine.load(_blocks(chance), chance, after=chance.randrange(1, 1500))
    assert load.reached.wait(30), machine.daemon.log_text()
    machine.kill()
    load.wait()


def at_the_start(machine: Machine, chance: random.Random) -> None:
    """Kill under load, and again while the next daemon starts and opens what the first one left."""
    under_load(machine, chance)
    machine.launch()
    _pause(chance, 0.9)
    machine.kill()


def in_a_create(machine: Machine, chance: random.Random) -> None:
    """Kill while the volume is opened, or formatted for the first time."""
    if chance.random() < 0.5:
        machine.renew()
    machine.daemon.call("bdev_ubi_delete", name="ubi0")
    machine.daemon.rpc.send("bdev_ubi_create", **machine.volume())
    _pause(chance, 0.03)
    machine.kill()


def in_a_delete(machine: Machine, chance: random.Random) -> None:
    """Kill while the volume is closed under load."""
    load = machine.load(_blocks(chance), chance, after=chance.randrange(1, 400))
    assert load.reached.wait(30), machine.daemon.log_text()
    machine.daemon.rpc.send("bdev_ubi_delete", name="ubi0")
    _pause(chance, 0.04)
    machine.kill()
    load.wait()


def in_a_close(machine: Machine, chance: random.Random) -> None:
    """Kill while the daemon stops under load."""
    load = machine.load(_blocks(chance), chance, after=chance.randrange(1, 400))
    assert load.reached.wait(30), machine.daemon.log_text()
    machine.daemon.process.send_signal(signal.SIGTERM)
    _pause(chance, 0.04)
    machine.kill()
    load.wait()


MOMENTS: tuple[Moment, ...] = (under_load, in_a_close, at_the_start, in_a_delete, under_load, in_a_create)
