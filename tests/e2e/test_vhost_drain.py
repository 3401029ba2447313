"""Whatever stops a ring finishes first what the ring has taken: here it waits for an image that a test holds."""

from __future__ import annotations

import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import vhost_client as vhost
from tests.support.daemon import Daemon
from tests.support.gated_image import Gate, GatedImage
from tests.support.images import METADATA_BYTES, MIB, make_sparse
from tests.support.seeds import rng
from tests.support.vhost_client import Queue, VhostClient
from tests.support.waiting import until

pytestmark = [pytest.mark.timeout(60), pytest.mark.needs_fuse]

IMAGE_BYTES = 4 * MIB
SPARE = struct.pack("<QQQQQ", 0, 1 << 34, 4096, 1 << 51, 0)
"""A slot of memory that no request uses."""


@dataclass(slots=True)
class Held:
    """A machine with a request that waits for the image, and the gate that holds it."""

    daemon: Daemon
    image: GatedImage
    gate: Gate
    client: VhostClient
    queue: Queue

    def is_held_up(self, act: Callable[[], object]) -> threading.Thread:
        """Begin an act that must wait for the request; return its thread."""
        thread = threading.Thread(target=act)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive(), "it did not wait for what was in flight"
        return thread

    def release(self, thread: threading.Thread) -> None:
        """Let the request end, and with it the act."""
        self.image.release(self.gate)
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def held(fresh_daemon: Daemon, folder: Path) -> Iterator[Held]:
    """Start a machine whose read of the first sectors is in flight until it is released."""
    mount = folder / "image"
    mount.mkdir()
    data = rng("drain").randbytes(IMAGE_BYTES)
    with GatedImage(mount, data) as image:
        fresh_daemon.create_aio("base0", make_sparse(folder / "base.raw", METADATA_BYTES + IMAGE_BYTES))
        params = {"image_path": str(image.path), "stripe_size_kb": 64, "directio": False}
        fresh_daemon.call("bdev_ubi_create", name="ubi0", base_bdev="base0", **params)
        fresh_daemon.call("vhost_create_blk_controller", ctrlr="vh0", dev_name="ubi0")
        gate = image.hold(0, 65536)
        client, queue = VhostClient.ready(folder / "vh0")
        with client:
            client.set(vhost.ADD_MEM_REG, SPARE, [client.memory])
            queue.request(vhost.IN, 0, read_bytes=4096)
            gate.wait_reached()
            yield Held(fresh_daemon, image, gate, client, queue)


def test_a_request_that_waits_holds_up_no_other(held: Held) -> None:
    held.queue.request(vhost.IN, 1024, read_bytes=4096, slot=1)
    (done,) = held.queue.wait(1)
    assert done.head == 4
    (session,) = held.daemon.call("vhost_get_controllers")[0]["sessions"]
    assert session["inflight_task_cnt"] == 1
    held.image.release(held.gate)
    held.queue.wait(1)
    assert held.queue.data(4096) == held.image.data[:4096]


def test_get_vring_base_waits(held: Held) -> None:
    places: list[int] = []
    thread = held.is_held_up(lambda: places.append(held.client.stop_queue(held.queue)))
    held.release(thread)
    assert places == [1]
    assert len(held.queue.take()) == 1
    assert held.queue.status() == vhost.OK


@pytest.mark.parametrize(
    "how",
    [
        *("table", "slot", "slot-gone", "features", "in-flight"),
        *("num", "base", "addresses", "kick", "disable", "reset", "status"),
    ],
)
def test_what_changes_under_a_ring_waits(held: Held, how: str) -> None:
    client = held.client
    inflight, description = client.get_inflight(1, 64)
    acts: dict[str, Callable[[], object]] = {
        "table": lambda: client.share_memory(2),
        "slot": lambda: client.set(
            vhost.ADD_MEM_REG, struct.pack("<QQQQQ", 0, 1 << 33, 4096, 1 << 50, 0), [client.memory]
        ),
        "slot-gone": lambda: client.set(vhost.REM_MEM_REG, SPARE),
        "features": lambda: client.set(
            vhost.SET_FEATURES,
            struct.pack("<Q", client.ask_u64(vhost.GET_FEATURES) & ~vhost.LOG_ALL & ~vhost.INDIRECT),
        ),
        "num": lambda: client.set(vhost.SET_VRING_NUM, struct.pack("<II", 0, 64)),
        "base": lambda: client.set(vhost.SET_VRING_BASE, struct.pack("<II", 0, 1)),
        "addresses": lambda: client.set(vhost.SET_VRING_ADDR, client.addresses(held.queue)),
        "kick": lambda: client.set(vhost.SET_VRING_KICK, struct.pack("<Q", 0), [held.queue.kick]),
        "in-flight": lambda: client.set(vhost.SET_INFLIGHT_FD, description, [inflight]),
        "disable": lambda: client.set(vhost.SET_VRING_ENABLE, struct.pack("<II", 0, 0)),
        "reset": lambda: client.set(vhost.RESET_DEVICE),
        "status": lambda: client.set(vhost.SET_STATUS, struct.pack("<Q", 0)),
    }
    held.release(held.is_held_up(acts[how]))
    assert held.queue.status() == vhost.OK
    assert held.queue.data(4096) == held.image.data[:4096]
    os.close(inflight)


def test_deleting_the_controller_waits(held: Held) -> None:
    held.release(held.is_held_up(lambda: held.daemon.call("vhost_delete_controller", ctrlr="vh0")))
    assert len(held.queue.take()) == 1
    assert held.queue.status() == vhost.OK


def test_the_daemons_stop_waits(held: Held) -> None:
    codes: list[int] = []
    held.release(held.is_held_up(lambda: codes.append(held.daemon.end(signal.SIGTERM))))
    assert codes == [0]
    assert held.queue.status() == vhost.OK


def test_a_vanished_machines_memory_is_kept_until_its_requests_end(held: Held) -> None:
    kept = VhostClient(held.daemon.folder / "vh0")  # another machine, to see that the daemon serves
    with kept:
        held.client.socket.close()
        until(lambda: held.daemon.call("spdk_get_version"), "an answer")
        (one, _) = held.daemon.call("vhost_get_controllers")[0]["sessions"]
        assert one["inflight_task_cnt"] == 1
        assert any("memfd:guest" in path for path in _mappings(held.daemon))
        held.image.release(held.gate)
        until(lambda: len(held.daemon.call("vhost_get_controllers")[0]["sessions"]) == 1, "the session has ended")
        assert not any("memfd:guest" in path for path in _mappings(held.daemon))
    assert held.queue.status() == vhost.OK


def _mappings(daemon: Daemon) -> list[str]:
    return Path(f"/proc/{daemon.pid}/maps").read_text().splitlines()
