"""SIGKILL at any moment: every acknowledged write is there afterwards, flushed or not, and nothing else is changed.

`UBI_SOAK_SECONDS` lets each load go on for as long.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.machine import BLOCKS, IMAGE_BYTES, MOMENTS, Machine
from tests.support.daemon import Daemon
from tests.support.images import METADATA_BYTES, make_image
from tests.support.rpc_client import RpcError
from tests.support.seeds import rng
from tests.support.stamps import BLOCK, MAGIC, SECTOR, stamp

SOAK_S = float(os.environ.get("UBI_SOAK_SECONDS") or 0)
ROUNDS = 18
"""Of each test on each I/O engine: 72 in all, three for each moment of MOMENTS."""

RENEWED_EVERY = 3

pytestmark = pytest.mark.timeout(180 + SOAK_S)


def _rounds() -> Iterator[int]:
    """Count the rounds: ROUNDS of them, or until the time is over."""
    ends, number = time.monotonic() + SOAK_S, 0
    while number < ROUNDS or time.monotonic() < ends:
        yield number
        number += 1
    print(f"{number} rounds")


@pytest.mark.parametrize(("cache", "copy_on_read"), [("none", True), ("writeback", False)])
def test_every_acknowledged_write_outlives_kills_at_any_moment(
    unstarted_daemon: Daemon, folder: Path, cache: str, copy_on_read: bool
) -> None:
    machine = Machine(unstarted_daemon, folder, cache, copy_on_read=copy_on_read)
    chance = rng("kills", cache)
    for number in _rounds():
        machine.boot()
        machine.check()
        if number % RENEWED_EVERY == 0:
            machine.renew()
        moment = MOMENTS[number % len(MOMENTS)]
        print(f"round {number}: {moment.__name__}")
        moment(machine, chance)
    machine.boot()
    machine.check()
    assert machine.image.read_bytes() == make_image(folder / "again.raw", IMAGE_BYTES, rng("crash"), holes=True)


def test_the_daemon_that_is_killed_has_several_reactors(unstarted_daemon: Daemon) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs")
    found = re.search(r"reactors=(\d+)", unstarted_daemon.start().log_text())
    assert found is not None
    assert int(found[1]) >= 2


def test_a_killed_daemons_locks_and_sockets_are_no_obstacle(unstarted_daemon: Daemon, folder: Path) -> None:
    machine = Machine(unstarted_daemon, folder, "none")
    machine.boot()
    machine.kill()
    assert machine.daemon.rpc_socket.exists()
    assert machine.daemon.nbd_socket.exists()
    machine.boot()
    with pytest.raises(RpcError) as caught:
        machine.daemon.call("bdev_ubi_create", **machine.volume())
    assert caught.value.code == -17  # the volume is there already
    machine.check()
    assert machine.daemon.end() == 0
    left = sorted(one.name for one in folder.iterdir())
    assert left == ["base.raw", "image.raw", "kept.json", "kept.json.lock", "state"]


def test_without_sync_nothing_is_lost_to_a_kill_either(unstarted_daemon: Daemon, folder: Path) -> None:
    machine = Machine(unstarted_daemon, folder, "none", no_sync=True)
    machine.boot()
    load = machine.load(range(BLOCKS), rng("no_sync"), after=500)
    assert load.reached.wait(30), machine.daemon.log_text()
    machine.kill()
    load.wait()
    machine.boot()
    machine.check()


def test_a_lost_write_would_be_seen(unstarted_daemon: Daemon, folder: Path) -> None:
    """The check itself: one sector of one acknowledged block put back to what it was."""
    machine = Machine(unstarted_daemon, folder, "none")
    machine.boot()
    load = machine.load(range(BLOCKS), rng("seen"), after=500)
    assert load.reached.wait(30), machine.daemon.log_text()
    load.stop.set()
    load.wait()
    machine.check()
    machine.kill()
    written = next(block for block, promise in enumerate(machine.ledger.promises) if promise.kept.startswith(MAGIC))
    with machine.base.open("r+b") as base:
        base.seek(METADATA_BYTES + written * BLOCK + SECTOR)
        base.write(stamp(written, 0)[:SECTOR])
    machine.boot()
    with pytest.raises(AssertionError, match="1 blocks lost"):
        machine.check()
