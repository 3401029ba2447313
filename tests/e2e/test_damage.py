"""Damaged metadata under a daemon: refused with a name, by the daemon and by `ubi check` alike; the daemon goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import CHECKOUT, Daemon
from tests.support.images import MIB, make_image, make_sparse
from tests.support.rpc_client import RpcError
from tests.support.seeds import SEED, rng

pytestmark = pytest.mark.timeout(120)

CHANGES = 40
STRIPES = 300
IMAGE_BYTES = STRIPES * 65536
USED_BYTES = 1024
SLOTS_AT = (0x600000, 0x700000)


@pytest.fixture(autouse=True)
def _seed_of_a_failure() -> None:
    print(f"UBI_TEST_SEED={SEED}")


def _made(daemon: Daemon, folder: Path, *, closed: bool) -> tuple[Path, Path]:
    """Make a volume with stripes on its base, close it or kill its daemon, and start the daemon again."""
    image, base = folder / "image.raw", make_sparse(folder / "base.raw", 8 * MIB + IMAGE_BYTES)
    make_image(image, IMAGE_BYTES, rng("damage"), holes=True)
    daemon.start().create_aio("base0", base)
    daemon.create_ubi("ubi0", "base0", image)
    with daemon.client("ubi0") as client:
        for stripe in range(0, STRIPES, 7):
            client.write(stripe * 65536, bytes(4096))
        client.flush()
    if closed:
        assert daemon.end() == 0
    else:
        daemon.kill()
    daemon.start().create_aio("base0", base)
    return image, base


def _check(base: Path) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "ubi_rpc.tools.main", "check", "--json", str(base)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert isinstance(report, dict)
    return done.returncode, report


@pytest.mark.parametrize("closed", [True, False])
def test_a_daemon_refuses_damage_by_name_and_writes_nothing(
    unstarted_daemon: Daemon, folder: Path, closed: bool
) -> None:
    image, base = _made(unstarted_daemon, folder, closed=closed)
    chance = rng("damage", closed)
    whole = base.read_bytes()[: 8 * MIB]
    for number in range(CHANGES):
        at = chance.randrange(14, USED_BYTES)
        changed = bytes([whole[at] ^ 1 << chance.randrange(8)])
        _put(base, at, changed)
        with pytest.raises(RpcError, match=r"ubi repair|bdev_ubi") as caught:
            unstarted_daemon.create_ubi("ubi0", "base0", image)
        assert caught.value.code == -22, at
        assert base.read_bytes()[: 8 * MIB] == whole[:at] + changed + whole[at + 1 :]
        if number % 10 == 0:
            unstarted_daemon.call("bdev_aio_delete", name="base0")
            code, report = _check(base)
            assert code == 2
            assert report["problems"][0]["name"] in {"sector_damaged", "changed_since_close", "header_damaged"}
            unstarted_daemon.create_aio("base0", base)
        _put(base, at, whole[at : at + 1])
    unstarted_daemon.create_ubi("ubi0", "base0", image)
    with unstarted_daemon.client("ubi0") as client:
        assert client.read(7 * 65536, 4096) == bytes(4096)


def _put(base: Path, at: int, content: bytes) -> None:
    with base.open("r+b") as file:
        file.seek(at)
        file.write(content)


def test_a_lost_slot_is_survived_and_told_of(unstarted_daemon: Daemon, folder: Path) -> None:
    image, base = _made(unstarted_daemon, folder, closed=True)
    _put(base, SLOTS_AT[1] + 40, b"\xff")
    unstarted_daemon.create_ubi("ubi0", "base0", image)
    assert "superblock slot" in unstarted_daemon.log_text()
    with unstarted_daemon.client("ubi0") as client:
        client.write(65536, bytes(4096))
        assert client.read(7 * 65536, 4096) == bytes(4096)
    assert unstarted_daemon.end() == 0
    assert _check(base)[0] == 0


def test_both_slots_lost_is_refused(unstarted_daemon: Daemon, folder: Path) -> None:
    image, base = _made(unstarted_daemon, folder, closed=True)
    for slot in SLOTS_AT:
        _put(base, slot + 40, b"\xff")
    with pytest.raises(RpcError, match="no undamaged superblock; see ubi repair"):
        unstarted_daemon.create_ubi("ubi0", "base0", image)
