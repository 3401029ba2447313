"""A real machine: a Debian kernel in QEMU boots from volumes over vhost-user-blk, and outlives the daemon."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support import guest as machines
from tests.support.daemon import Daemon
from tests.support.guest import Guest, make_root_image
from tests.support.images import METADATA_BYTES, MIB, make_sparse
from tests.support.seeds import SEED
from tests.support.slow_image import SlowImage
from tests.support.vhost_client import P_INFLIGHT
from tests.support.vhost_proxy import VhostProxy

pytestmark = [pytest.mark.timeout(150), pytest.mark.needs_guest]

ROOT_BYTES = 48 * MIB
LOAD_BYTES = 256 * MIB
LOAD_BETWEEN_KILLS_S = 1.0
LOAD_MAX_S = 120
END_OF_LOAD_S = 20.0
"""For what was written to be read again."""


@pytest.fixture(scope="module", autouse=True)
def _guest_parts() -> None:
    if (part := machines.missing()) is not None:
        pytest.skip(f"{part} is missing; scripts/setup.sh test installs it")


def make_root(daemon: Daemon, folder: Path, job: str) -> Path:
    """Make a controller `vh0` over a new volume of a root disk with a job; return its socket."""
    image = make_root_image(folder / "root.raw", job, ROOT_BYTES // MIB)
    daemon.create_aio("base0", make_sparse(folder / "base0.raw", METADATA_BYTES + ROOT_BYTES))
    daemon.call("bdev_ubi_create", name="root", base_bdev="base0", image_path=str(image), stripe_size_kb=64)
    return controller(daemon, "vh0", "root")


def controller(daemon: Daemon, name: str, bdev: str, **params: object) -> Path:
    """Make a controller; return its socket."""
    daemon.call("vhost_create_blk_controller", ctrlr=name, dev_name=bdev, **params)
    return daemon.folder / name


@pytest.mark.parametrize("queues", [1, 4])
def test_a_machine_boots_from_a_volume_and_writes_to_it(fresh_daemon: Daemon, folder: Path, queues: int) -> None:
    job = "cat /data/file* | md5sum; ls /sys/block/vda/mq | wc -l; echo kept > /data/new; sync; echo synced"
    root = make_root(fresh_daemon, folder, job)
    whole = hashlib.md5(b"".join(bytes([n]) * (300_000 + n) for n in range(8)), usedforsecurity=False).hexdigest()
    with Guest(folder, [root], queues=queues, cpus=queues) as guest:
        console = guest.wait_end()
    assert f"{whole}  -" in console
    assert "synced" in console
    assert f"\n{queues}\n" in console
    assert fresh_daemon.status("root")["stripes_present"] < fresh_daemon.status("root")["stripes_total"]
    uri = fresh_daemon.export("root")
    content = folder / "content.raw"
    client = fresh_daemon.client("root")
    with content.open("wb") as file:
        for offset in range(0, ROOT_BYTES, MIB):
            file.write(client.read(offset, MIB))
    client.close()
    assert uri
    assert b"kept" in _file_of(content, "/data/new")


def _file_of(image: Path, path: str) -> bytes:
    return subprocess.run(
        ["debugfs", "-R", f"cat {path}", str(image)], check=True, capture_output=True, timeout=30
    ).stdout


FEATURES = """
cat /sys/block/vdb/cache_type; echo "write through" > /sys/block/vdb/cache_type; cat /sys/block/vdb/cache_type
dd if=/dev/zero of=/dev/vdb bs=4k count=4 oflag=direct 2>/dev/null && echo written
/bin/blkdiscard -o 1048576 -l 1048576 /dev/vdb && echo discarded
/bin/blkdiscard -z -o 4194304 -l 1048576 /dev/vdb && echo zeroed
cat /sys/block/vdb/size
echo GUEST waits
while [ "$(cat /sys/block/vdb/size)" = 32768 ]; do sleep 0.1; done
cat /sys/block/vdb/size
cat /sys/block/vdc/ro
dd if=/dev/zero of=/dev/vdc bs=4k count=1 oflag=direct 2>/dev/null || echo refused
"""


def test_a_machine_sees_discard_zeroes_the_cache_mode_a_resize_and_read_only(
    fresh_daemon: Daemon, folder: Path
) -> None:
    root = make_root(fresh_daemon, folder, FEATURES)
    plain = folder / "plain.raw"
    plain.write_bytes(b"\x55" * (16 * MIB))
    fresh_daemon.create_aio("plain", plain)
    sockets = [root, controller(fresh_daemon, "vh1", "plain"), controller(fresh_daemon, "vh2", "plain", readonly=True)]
    with Guest(folder, sockets) as guest:
        guest.wait_line("GUEST waits")
        os.truncate(plain, 24 * MIB)
        fresh_daemon.call("bdev_aio_rescan", name="plain")
        console = guest.wait_end()
    lines = [line.strip() for line in console.splitlines()]
    tail = lines[lines.index("write back") :]
    expected = ["write back", "write through", "written", "discarded", "zeroed", "32768", "GUEST waits", "49152"]
    assert [line for line in tail if not line.startswith("[")][:10] == [*expected, "1", "refused"], console
    content = plain.read_bytes()
    assert content[: 4 * 4096] == bytes(4 * 4096)
    assert content[MIB : 2 * MIB] == content[4 * MIB : 5 * MIB] == bytes(MIB)
    assert content[2 * MIB : 4 * MIB] == b"\x55" * (2 * MIB)


VOLUME = """
dd if=/dev/zero of=/dev/vdb bs=4k count=1 seek=16 oflag=direct 2>/dev/null
echo GUEST wrote back
read go
echo "write through" > /sys/block/vdb/cache_type
dd if=/dev/zero of=/dev/vdb bs=4k count=1 seek=64 oflag=direct 2>/dev/null
echo GUEST wrote through
read go
cat /sys/block/vdb/size
echo GUEST waits
while [ "$(cat /sys/block/vdb/size)" = 32768 ]; do sleep 0.1; done
cat /sys/block/vdb/size
dd if=/dev/vdb bs=1M skip=16 count=4 iflag=direct 2>/dev/null | md5sum
dd if=/data/file7 of=/dev/vdb bs=4k count=1 seek=5119 oflag=direct 2>/dev/null && echo written at the end
"""


def test_a_machine_switches_the_cache_of_a_volume_and_sees_it_grow(fresh_daemon: Daemon, folder: Path) -> None:
    """In write back a write is not published with its stripe yet, in write through it is when it is answered."""
    root = make_root(fresh_daemon, folder, VOLUME)
    image, base = folder / "image.raw", make_sparse(folder / "base1.raw", METADATA_BYTES + 16 * MIB)
    image.write_bytes(b"\x33" * (8 * MIB))
    fresh_daemon.create_aio("base1", base)
    fresh_daemon.call(
        "bdev_ubi_create",
        name="vol",
        base_bdev="base1",
        image_path=str(image),
        stripe_size_kb=64,
        copy_on_read=False,
    )
    with Guest(folder, [root, controller(fresh_daemon, "vh1", "vol")]) as guest:
        guest.wait_line("GUEST wrote back")
        status = fresh_daemon.status("vol")
        assert (status["stripes_present"], status["stripes_published"]) == (1, 0)
        guest.type_line()
        guest.wait_line("GUEST wrote through")
        assert fresh_daemon.status("vol")["stripes_published"] == 2
        guest.type_line()
        guest.wait_line("GUEST waits")
        with base.open("ab") as file:
            file.write(b"\x5a" * (4 * MIB))
        fresh_daemon.call("bdev_aio_rescan", name="base1")
        console = guest.wait_end()
    zeros = hashlib.md5(bytes(4 * MIB), usedforsecurity=False).hexdigest()
    assert f"{zeros}  -" in console, console
    assert "\n40960\n" in console
    assert "written at the end" in console
    fresh_daemon.export("vol")
    client = fresh_daemon.client("vol")
    assert client.read(20 * MIB - 4096, 4096) == b"\x07" * 4096
    assert client.read(16 * 4096 - 4096, 8192) == b"\x33" * 4096 + bytes(4096)
    client.close()


@pytest.mark.needs_fuse
def test_a_machine_goes_on_when_the_daemon_is_killed_under_load(unstarted_daemon: Daemon, folder: Path) -> None:
    """No I/O error, no lost and no old block, whatever was in flight; reads overtake one another all the time."""
    console, resumed = run_killed(unstarted_daemon, folder, kills=10)
    assert re.search(r"GOOD \d{3,} reads \d{3,} writes", console), console
    assert "BAD" not in console
    assert "I/O error" not in console
    assert resumed > 0, "requests were in flight at some of the kills"


@pytest.mark.needs_fuse
def test_without_in_flight_recovery_the_same_load_fails(unstarted_daemon: Daemon, folder: Path) -> None:
    """What the test above shows is the recovery's doing: requests are lost without it."""
    with pytest.raises(AssertionError, match="no 'GOOD'"):
        run_killed(unstarted_daemon, folder, kills=6, hidden=P_INFLIGHT)


def run_killed(daemon: Daemon, folder: Path, kills: int, hidden: int = 0) -> tuple[str, int]:
    """Run the verifying load on a lazy volume of a slow image while the daemon is killed.

    Args:
        daemon: to be killed.
        folder: of its files.
        kills: how often.
        hidden: protocol features that the machine is not told of.

    Returns:
        The machine's console, and how many requests later daemons took over.
    """
    kept = ["--persist", str(folder / "kept.json")]
    daemon.start(*kept)
    (folder / "image").mkdir()
    resumed = 0
    with SlowImage(folder / "image", SEED, LOAD_BYTES, delay_s=0.03) as image:
        root = make_root(daemon, folder, f"guest_load /dev/vdb {LOAD_MAX_S} 12 {SEED}")
        daemon.create_aio("base1", make_sparse(folder / "base1.raw", METADATA_BYTES + LOAD_BYTES))
        params = {"image_path": str(image.path), "stripe_size_kb": 64, "copy_on_read": False, "directio": False}
        daemon.call("bdev_ubi_create", name="load", base_bdev="base1", **params)
        load = controller(daemon, "vh1", "load")
        proxy = VhostProxy(folder / "proxy", load, hidden)
        disks = [root, folder / "proxy" if hidden else load]
        with Guest(folder, disks, queues=2, cpus=2, reconnect_ms=50) as guest:
            guest.wait_line("GUEST up")
            for _ in range(kills):
                time.sleep(LOAD_BETWEEN_KILLS_S)
                assert "GUEST job ends" not in guest.console, guest.console
                daemon.end(signal.SIGKILL)
                resumed += requests_taken_over(daemon)
                daemon.start(*kept)
            time.sleep(LOAD_BETWEEN_KILLS_S)
            resumed += requests_taken_over(daemon)
            guest.type_line()
            try:
                guest.wait_line("GOOD", END_OF_LOAD_S)
                console = guest.wait_end()
            finally:
                proxy.close()
        assert daemon.end() == 0
    return console, resumed


def requests_taken_over(daemon: Daemon) -> int:
    """Return how many requests a daemon has taken over from the one before it, by its log."""
    return sum(int(count) for count in re.findall(r"queue \d+ goes on with (\d+) requests", daemon.log_text()))
