"""Bdevs that grow under machines that are connected: what is new is there, and reads as zeros on a volume."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest

from tests.e2e.conftest import DISK_BYTES, IMAGE_BYTES, Volume
from tests.support import vhost_client as vhost
from tests.support.daemon import Daemon
from tests.support.images import MIB
from tests.support.rpc_client import RpcError
from tests.support.vhost_client import VhostClient

pytestmark = pytest.mark.timeout(60)

MORE = 3 * MIB
CONFIG_CHANGE = (2, 1, 0)
"""VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, version 1, no payload."""


def sectors(client: VhostClient) -> int:
    """Return the capacity that a machine reads."""
    return int(struct.unpack("<Q", client.config(0, 8))[0])


def grow(path: Path) -> None:
    """Let a file grow by what an earlier volume may have left there."""
    with path.open("ab") as file:
        file.write(b"\x5a" * MORE)


def test_a_volume_grows_with_its_base_under_a_machine(daemon: Daemon, volume: Volume) -> None:
    daemon.call("vhost_create_blk_controller", ctrlr="vh0", dev_name="ubi0")
    mine, theirs = socket.socketpair()
    client, queue = VhostClient.ready(daemon.folder / "vh0")
    with client, mine, theirs:
        client.set(vhost.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
        mine.settimeout(10)
        had = DISK_BYTES // 512
        assert sectors(client) == had
        assert queue.run(vhost.IN, had, read_bytes=512) == vhost.IOERR
        assert queue.run(vhost.OUT, had - 8, b"e" * 4096) == vhost.OK
        grow(volume.base)
        assert daemon.call("bdev_aio_rescan", name="base0") is True
        assert struct.unpack("<III", mine.recv(64)) == CONFIG_CHANGE
        has = (DISK_BYTES + MORE) // 512
        assert sectors(client) == has
        for sector in (had, had + 1000, has - 8):
            assert queue.run(vhost.IN, sector, read_bytes=4096) == vhost.OK
            assert queue.data(4096) == bytes(4096), "bytes of an earlier volume"
        assert queue.run(vhost.OUT, has - 8, b"n" * 4096) == vhost.OK
        assert queue.run(vhost.T_FLUSH) == vhost.OK
        assert queue.run(vhost.IN, has, read_bytes=512) == vhost.IOERR
        assert queue.run(vhost.IN, had - 8, read_bytes=4096) == vhost.OK
        assert queue.data(4096) == b"e" * 4096
        assert queue.run(vhost.IN, 0, read_bytes=4096) == vhost.OK
        assert queue.data(4096) == volume.content[:4096]
    (shown,) = daemon.call("bdev_get_bdevs", name="ubi0")
    assert shown["num_blocks"] == has
    nbd = daemon.client("ubi0")
    assert nbd.read(DISK_BYTES, MORE) == bytes(MORE - 4096) + b"n" * 4096
    nbd.close()
    daemon.call("bdev_ubi_delete", name="ubi0")
    daemon.create_ubi("ubi0", "base0", volume.image)
    again = daemon.client("ubi0")
    content = again.read(0, DISK_BYTES + MORE)
    again.close()
    assert content[:IMAGE_BYTES] == volume.content[:IMAGE_BYTES]
    assert content[DISK_BYTES - 4096 :] == b"e" * 4096 + bytes(MORE - 4096) + b"n" * 4096


def test_a_rescan_of_a_base_that_has_not_grown_changes_nothing(daemon: Daemon, volume: Volume) -> None:
    before = daemon.call("bdev_get_bdevs")
    assert daemon.call("bdev_aio_rescan", name="base0") is True
    assert daemon.call("bdev_get_bdevs") == before
    assert volume.base.stat().st_size == 8 * MIB + DISK_BYTES


def test_a_malloc_bdev_keeps_its_size(daemon: Daemon) -> None:
    """SPDK has no method for it: neither of the two takes it."""
    daemon.call("bdev_malloc_create", name="m0", num_blocks=2048, block_size=512)
    for method, params in (("bdev_aio_rescan", {"name": "m0"}), ("bdev_null_resize", {"name": "m0", "new_size": 2})):
        with pytest.raises(RpcError) as refused:
            daemon.call(method, **params)
        assert refused.value.code in {-19, -22}


def test_a_null_bdev_grows_under_a_machine(daemon: Daemon) -> None:
    daemon.call("bdev_null_create", name="n0", num_blocks=2048, block_size=512)
    daemon.call("vhost_create_blk_controller", ctrlr="vh0", dev_name="n0")
    mine, theirs = socket.socketpair()
    with VhostClient(daemon.folder / "vh0") as client, mine, theirs:
        client.negotiate()
        client.set(vhost.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
        mine.settimeout(10)
        daemon.call("bdev_null_resize", name="n0", new_size=5)
        assert struct.unpack("<III", mine.recv(64)) == CONFIG_CHANGE
        assert sectors(client) == 5 * 2048


def test_a_machine_that_listens_to_nothing_or_is_gone_holds_up_no_growth(daemon: Daemon, volume: Volume) -> None:
    daemon.call("vhost_create_blk_controller", ctrlr="vh0", dev_name="ubi0")
    mine, theirs = socket.socketpair()
    deaf, gone, quiet = (VhostClient(daemon.folder / "vh0") for _ in range(3))
    with deaf, gone, quiet, mine, theirs:
        for client in (deaf, gone, quiet):
            client.negotiate()
        deaf.set(vhost.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
        theirs.setblocking(False)
        try:
            while True:
                theirs.send(bytes(4096))
        except BlockingIOError:
            pass
        other = socket.socketpair()
        gone.set(vhost.SET_BACKEND_REQ_FD, b"", [other[1].fileno()])
        for end in other:
            end.close()
        for turn in range(1, 4):
            os.truncate(volume.base, 8 * MIB + DISK_BYTES + turn * MIB)
            assert daemon.call("bdev_aio_rescan", name="base0") is True
            assert sectors(quiet) == (DISK_BYTES + turn * MIB) // 512
