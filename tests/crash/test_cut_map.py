"""A volatile map that is cut short or removed while the daemon runs: nothing ends, and nothing is promised by it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.images import METADATA_BYTES, MIB, make_image, make_sparse
from tests.support.rpc_client import RpcError
from tests.support.seeds import rng

pytestmark = pytest.mark.timeout(120)

STRIPE = 65536
WRITTEN = b"w" * 4096
BEFORE, AFTER, OTHER = 1, 2, 3
"""Stripes: written before the map was lost, and after, and of the image."""
PUBLISHED_AFTER_S = 5


def _create(daemon: Daemon, folder: Path, number: int) -> None:
    daemon.create_aio(f"base{number}", folder / f"base{number}.raw")
    daemon.create_ubi(f"ubi{number}", f"base{number}", folder / "image.raw")


def _write(daemon: Daemon, number: int, stripe: int) -> None:
    with daemon.client(f"ubi{number}") as client:
        client.write(stripe * STRIPE, WRITTEN)


def _has(daemon: Daemon, number: int, stripe: int) -> bool:
    with daemon.client(f"ubi{number}") as client:
        return bytes(client.read_range(stripe * STRIPE, stripe * STRIPE + 4096)) == WRITTEN


def _until_noticed(daemon: Daemon) -> None:
    """Wait for the line that says that nothing depends on the map any more."""
    deadline = time.monotonic() + PUBLISHED_AFTER_S + 10
    while "goes on without one" not in daemon.log_text():
        assert time.monotonic() < deadline, daemon.log_text()
        time.sleep(0.02)


@pytest.fixture
def volumes(unstarted_daemon: Daemon, folder: Path) -> Daemon:
    """Return a daemon with two volumes, a stripe of each written and not flushed."""
    make_image(folder / "image.raw", 8 * STRIPE, rng("cut map"))
    unstarted_daemon.start()
    for number in (0, 1):
        make_sparse(folder / f"base{number}.raw", METADATA_BYTES + MIB)
        _create(unstarted_daemon, folder, number)
        _write(unstarted_daemon, number, BEFORE)
    return unstarted_daemon


@pytest.mark.parametrize("how", ["to nothing", "inside a page", "removed"])
def test_a_map_that_is_lost_ends_nothing_and_what_is_acknowledged_stays(
    volumes: Daemon, folder: Path, how: str
) -> None:
    path = Path(volumes.status("ubi0")["map_path"])
    if how == "removed":
        path.unlink()
    else:
        os.truncate(path, 0 if how == "to nothing" else path.stat().st_size - 1)
    _write(volumes, 0, AFTER)
    if how != "to nothing":
        with volumes.client("ubi0") as client:
            client.flush()  # its round looks at the file, as the one after five seconds does
    _until_noticed(volumes)
    assert "was cut short or removed" in volumes.log_text()
    status = volumes.status("ubi0")
    assert (status["acknowledged_by"], status["map_path"], status["state"]) == ("header", "", "open")
    assert "was cut short or removed" in status["last_error"]
    assert volumes.status("ubi1")["acknowledged_by"] == "map"
    _write(volumes, 0, OTHER)
    assert volumes.status("ubi0")["stripes_published"] == 3
    volumes.kill()

    volumes.start()
    for number in (0, 1):
        _create(volumes, folder, number)
    assert [volumes.status(f"ubi{number}")["recovered"] for number in (0, 1)] == ["headers", "map"]
    assert all(_has(volumes, 0, stripe) for stripe in (BEFORE, AFTER, OTHER))
    assert _has(volumes, 1, BEFORE)


def test_a_kill_before_the_loss_is_noticed_is_refused_and_never_mixed(volumes: Daemon, folder: Path) -> None:
    os.truncate(volumes.status("ubi0")["map_path"], 0)
    volumes.kill()
    volumes.start().create_aio("base0", folder / "base0.raw")
    with pytest.raises(RpcError, match="volatile map"):
        volumes.create_ubi("ubi0", "base0", folder / "image.raw")
    volumes.call(
        "bdev_ubi_create",
        name="ubi0",
        base_bdev="base0",
        image_path=str(folder / "image.raw"),
        recover="discard_unpublished",
    )
    volumes.export("ubi0")
    with volumes.client("ubi0") as client:
        assert bytes(client.read_range(STRIPE, STRIPE + 4096)) == (folder / "image.raw").read_bytes()[STRIPE:][:4096]


def test_a_volume_whose_map_was_lost_closes_cleanly(volumes: Daemon, folder: Path) -> None:
    os.truncate(volumes.status("ubi0")["map_path"], 0)
    _write(volumes, 0, AFTER)
    assert volumes.end() == 0
    volumes.start()
    _create(volumes, folder, 0)
    assert volumes.status("ubi0")["state"] == "clean"
    assert all(_has(volumes, 0, stripe) for stripe in (BEFORE, AFTER))
    _write(volumes, 0, OTHER)
    assert volumes.status("ubi0")["acknowledged_by"] == "map", "the next epoch has a map again"
