"""INV-8: delete and stop always end, and afterwards no descriptor, thread, socket or lock is left."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import make_volume
from tests.support.daemon import Daemon
from tests.support.images import MIB, make_sparse
from tests.support.nbd_client import Command, NbdClient
from tests.support.rpc_client import RpcError
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(90)

STOP_BOUND_S = 20.0
"""Longest clean stop with clients that answer nothing: the drain's ten seconds, and as much for a busy machine."""


def _work(daemon: Daemon, folder: Path) -> None:
    """Create, use, delete, fail: everything that opens something."""
    volume = make_volume(daemon, folder, "leaks")
    clients = [daemon.client("ubi0") for _ in range(10)]
    for number, client in enumerate(clients):
        client.write(number * MIB // 2, b"\x21" * 4096)
        client.read(number * MIB // 2, 65536)
        client.flush()
    for client in clients[::2]:
        client.disconnect()
    clients[1].send_raw(b"garbage" * 8)
    for name in ("again", "ubi0"):
        with suppress(RpcError):
            daemon.call("bdev_ubi_create", name=name, base_bdev="base0", image_path=str(volume.image))
    with suppress(RpcError):
        daemon.call("bdev_aio_create", name="x", filename=str(folder / "absent"), block_size=512)
    daemon.call("bdev_malloc_create", name="m", num_blocks=128, block_size=512)
    daemon.export("m", address="127.0.0.1:0")
    daemon.delete_all()
    for client in clients:
        client.close()


def test_nothing_accumulates_over_rounds_of_work(fresh_daemon: Daemon, folder: Path) -> None:
    _work(fresh_daemon, folder)
    descriptors, threads = fresh_daemon.descriptors(), fresh_daemon.threads()
    for _ in range(5):
        _work(fresh_daemon, folder)
    until(lambda: len(fresh_daemon.descriptors()) <= len(descriptors), f"no more than {descriptors}")
    assert fresh_daemon.descriptors() == descriptors
    # Kernel and storage workers come and go within their pools; ours do not multiply.
    assert len(fresh_daemon.threads()) <= len(threads) + 4, (threads, fresh_daemon.threads())
    assert fresh_daemon.end() == 0


def test_a_stop_with_clients_connected_is_clean_and_bounded(unstarted_daemon: Daemon, folder: Path) -> None:
    daemon = unstarted_daemon.start()
    volume = make_volume(daemon, folder, "stop")
    idle = daemon.client("ubi0")
    half_open = NbdClient(str(daemon.nbd_socket), go=False)
    busy = daemon.client("ubi0")
    written = {busy.send(Command.WRITE, at * 65536, data=b"\x99" * 4096): at for at in range(64)}
    stuck = daemon.client("ubi0")
    for at in range(64):
        stuck.send(Command.READ, at * 65536, 65536)
    partial = daemon.client("ubi0")
    partial.send_raw(b"\x25\x60")
    acknowledged = [written[busy.receive().cookie]]
    began = time.monotonic()
    daemon.process.send_signal(signal.SIGTERM)
    with suppress(ConnectionError):
        while True:
            reply = busy.receive()
            assert reply.errno == 0
            acknowledged.append(written[reply.cookie])
    assert daemon.wait(STOP_BOUND_S) == 0, daemon.log_text()
    assert time.monotonic() - began < STOP_BOUND_S
    assert idle.is_closed()
    for client in (idle, half_open, busy, stuck, partial):
        client.close()
    assert sorted(one.name for one in folder.iterdir()) == ["base.raw", "image.raw", "state"]
    with volume.base.open("r+b") as base:  # raises if the lock is still held
        fcntl.flock(base, fcntl.LOCK_EX | fcntl.LOCK_NB)
    daemon.start()
    daemon.create_aio("base0", volume.base)
    daemon.create_ubi("ubi0", "base0", volume.image)
    with daemon.client("ubi0") as client:
        for at in acknowledged:
            assert client.read(at * 65536, 4096) == b"\x99" * 4096
    assert daemon.end() == 0


def test_a_base_is_locked_while_it_is_in_use(daemon: Daemon, folder: Path) -> None:
    path = make_sparse(folder / "base.raw", MIB)
    daemon.create_aio("base0", path)
    with path.open("r+b") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        daemon.call("bdev_aio_delete", name="base0")
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_deleted_volume_lets_go_of_image_and_base(daemon: Daemon, folder: Path) -> None:
    volume = make_volume(daemon, folder, "let go")
    with daemon.client("ubi0") as client:
        client.write(0, b"\x01" * 512)
        daemon.call("bdev_ubi_delete", name="ubi0")
        assert client.is_closed()
    assert not any(str(volume.image) in one for one in daemon.descriptors())
    assert not daemon.bdevs()[0]["claimed"]
    daemon.call("bdev_aio_delete", name="base0")
    assert not any(str(folder) in one for one in daemon.descriptors())


def test_an_idle_daemon_uses_no_processor_time(fresh_daemon: Daemon, folder: Path) -> None:
    make_volume(fresh_daemon, folder, "idle")
    with fresh_daemon.client("ubi0") as client:
        client.write(0, b"\x01" * 4096)
        client.flush()
        used = _cpu_ticks(fresh_daemon.pid)
        assert not client.is_answer_there(timeout_s=1.0)  # a second in which nothing happens
        assert _cpu_ticks(fresh_daemon.pid) - used <= os.sysconf("SC_CLK_TCK") // 20


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
