"""vhost-user-blk under a driver of our own: requests, features, the config space, stops and starts, two daemons."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support import vhost_client as vhost
from tests.support.daemon import Daemon
from tests.support.images import METADATA_BYTES, MIB
from tests.support.vhost_client import GUEST_BASE, NEXT, VhostClient
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(60)

BYTES = 8 * MIB
SECTORS = BYTES // 512


@pytest.fixture
def disk(daemon: Daemon, folder: Path) -> Path:
    """Return the socket of a controller over an aio bdev of 8 MiB that can unmap."""
    base = folder / "disk.raw"
    base.write_bytes(os.urandom(BYTES))
    daemon.create_aio("disk", base)
    return controller(daemon, "disk")


def controller(daemon: Daemon, bdev: str, name: str = "vh0", **params: object) -> Path:
    """Make a controller and return its socket."""
    assert daemon.call("vhost_create_blk_controller", ctrlr=name, dev_name=bdev, **params) is True
    return daemon.folder / name


def test_the_socket_is_private_and_reported(daemon: Daemon, disk: Path) -> None:
    assert disk.stat().st_mode & 0o777 == 0o600
    client, _ = VhostClient.ready(disk)
    with client:
        (shown,) = daemon.call("vhost_get_controllers")
        (session,) = shown["sessions"]
        assert session["started"] is True
        assert session["name"] == f"vh0s{session['vid']}"
        assert shown["socket"] == str(disk)


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("regions", [1, 8])
def test_what_is_written_is_read_and_on_the_base(folder: Path, disk: Path, indirect: bool, regions: int) -> None:
    with VhostClient(disk) as client:
        client.negotiate()
        client.share_memory(regions)
        queue = client.start_queue()
        for sector, length in ((0, 512), (7, 4096), (100, 130048), (SECTORS - 8, 4096)):
            data = os.urandom(length)
            assert queue.run(vhost.OUT, sector, data, indirect=indirect) == vhost.OK
            queue.request(vhost.IN, sector, read_bytes=length, indirect=indirect)
            (done,) = queue.wait(1)
            assert (queue.status(), done.written) == (vhost.OK, length + 1)
            assert queue.data(length) == data
        assert queue.run(vhost.T_FLUSH) == vhost.OK
        final = queue.data(4096)
    assert (folder / "disk.raw").read_bytes()[-4096:] == final


def test_many_requests_in_flight_complete_once_each(disk: Path) -> None:
    client, queue = VhostClient.ready(disk)
    with client:
        for _ in range(50):
            heads = [
                queue.request(vhost.IN, slot * 8, read_bytes=4096, slot=slot, kick=slot == 15) for slot in range(16)
            ]
            done = queue.wait(16)
            assert sorted(one.head for one in done) == heads
            assert all(queue.status(slot) == vhost.OK for slot in range(16))


def test_the_index_wraps(disk: Path) -> None:
    with VhostClient(disk) as client:
        client.negotiate()
        client.share_memory()
        queue = client.start_queue(num=16, base=65530)
        assert client.stop_queue(queue) == 65530
        client.restart_queue(queue, 65530)
        for turn in range(20):
            assert queue.run(vhost.IN, turn, read_bytes=512) == vhost.OK
        assert client.stop_queue(queue) == 14


def test_queues_work_side_by_side(disk: Path) -> None:
    with VhostClient(disk) as client:
        client.negotiate()
        client.share_memory()
        assert client.ask_u64(vhost.GET_QUEUE_NUM) >= 128
        queues = [client.start_queue(index) for index in range(4)]
        for turn in range(10):
            for queue in queues:
                queue.request(vhost.IN, turn, read_bytes=512, slot=queue.index)
            for queue in queues:
                queue.wait(1)
                assert queue.status(queue.index) == vhost.OK


def test_ranges_are_discarded_and_zeroed(folder: Path, disk: Path) -> None:
    client, queue = VhostClient.ready(disk)
    with client:
        ranges = struct.pack("<QII", 8, 8, 0) + struct.pack("<QII", 64, 16, 0)
        assert queue.run(vhost.T_WRITE_ZEROES, 0, ranges) == vhost.OK
        assert queue.run(vhost.T_WRITE_ZEROES, 0, struct.pack("<QII", 128, 8, 1)) == vhost.OK
        assert queue.run(vhost.T_DISCARD, 0, struct.pack("<QII", 1024, 2048, 0)) == vhost.OK
        for wrong in (
            struct.pack("<QII", SECTORS, 1, 0),
            struct.pack("<QII", 0, 0, 0),
            struct.pack("<QII", 2**63, 8, 0),
            struct.pack("<QII", 0, 2**32 - 1, 0),
            b"x" * 15,
            struct.pack("<QII", 0, 1, 0) * 33,
            struct.pack("<QII", 0, 1, 0) + struct.pack("<QII", SECTORS, 1, 0),
        ):
            assert queue.run(vhost.T_WRITE_ZEROES, 0, wrong) == vhost.IOERR
            assert queue.run(vhost.T_DISCARD, 0, wrong) == vhost.IOERR
        assert queue.run(vhost.T_DISCARD, 0, struct.pack("<QII", 0, 1, 1)) == vhost.UNSUPP
        assert queue.run(vhost.T_WRITE_ZEROES, 0, struct.pack("<QII", 0, 1, 2)) == vhost.UNSUPP
    content = (folder / "disk.raw").read_bytes()
    for start, count in ((8, 8), (64, 16), (128, 8), (1024, 2048)):
        assert not any(content[start * 512 : (start + count) * 512])
    assert any(content[:512])
    assert any(content[16 * 512 : 17 * 512])


def test_the_name_is_told_and_the_unknown_is_unsupported(disk: Path) -> None:
    client, queue = VhostClient.ready(disk)
    with client:
        queue.request(vhost.GET_ID, read_bytes=20)
        (done,) = queue.wait(1)
        assert (queue.status(), done.written, queue.data(20)) == (vhost.OK, 21, b"disk".ljust(20, b"\0"))
        for kind in (2, 3, 9, 14, 99, 2**32 - 1):
            assert queue.run(kind, 0, b"x" * 512) == vhost.UNSUPP
        assert queue.run(vhost.GET_ID, read_bytes=19) == vhost.IOERR


@pytest.mark.parametrize(
    ("sector", "length"), [(SECTORS, 512), (SECTORS - 1, 1024), (2**63, 512), (2**64 - 1, 512), (0, 100), (0, 513)]
)
def test_what_is_outside_or_not_in_sectors_is_an_error(disk: Path, sector: int, length: int) -> None:
    client, queue = VhostClient.ready(disk)
    with client:
        assert queue.run(vhost.IN, sector, read_bytes=length) == vhost.IOERR
        assert queue.run(vhost.OUT, sector, b"x" * length) == vhost.IOERR
        assert queue.run(vhost.IN, 0, read_bytes=512) == vhost.OK


def test_headers_and_statuses_may_be_cut_anywhere(disk: Path) -> None:
    client, queue = VhostClient.ready(disk)
    with client:
        place = vhost.DATA
        client.write(place, struct.pack("<IIQ", vhost.IN, 0, 0))
        pieces = [(place, 3, 0), (place + 3, 5, 0), (place + 8, 8, 0)]
        pieces += [(place + 0x1000, 100, vhost.WRITE), (place + 0x1000 + 100, 413, vhost.WRITE)]
        for number, (address, length, flags) in enumerate(pieces):
            last = number == len(pieces) - 1
            queue.describe(number, GUEST_BASE + address, length, flags | (0 if last else NEXT), number + 1)
        queue.offer(0)
        (done,) = queue.wait(1)
        assert done.written == 513
        assert client.read(place + 0x1000 + 512, 1) == b"\0"


def test_a_readonly_disk_says_so_and_takes_no_writes(daemon: Daemon, disk: Path) -> None:
    path = controller(daemon, "disk", "vh1", readonly=True)
    client, queue = VhostClient.ready(path)
    with client:
        assert client.ask_u64(vhost.GET_FEATURES) & vhost.RO
        assert queue.run(vhost.OUT, 0, b"x" * 512) == vhost.IOERR
        assert queue.run(vhost.T_WRITE_ZEROES, 0, struct.pack("<QII", 0, 1, 0)) == vhost.IOERR
        assert queue.run(vhost.T_DISCARD, 0, struct.pack("<QII", 0, 1, 0)) == vhost.IOERR
        assert queue.run(vhost.IN, 0, read_bytes=512) == vhost.OK


def test_the_config_space_is_read_the_way_each_frontend_does(disk: Path) -> None:
    with VhostClient(disk) as client:
        client.negotiate()
        whole = client.config(0, 256)
        assert struct.unpack_from("<Q", whole)[0] == SECTORS
        assert struct.unpack_from("<II", whole, 8) == (128 << 10, 126)
        assert struct.unpack_from("<I", whole, 20)[0] == 512
        assert (whole[32], struct.unpack_from("<H", whole, 34)[0]) == (1, 128)
        for offset, size in ((0, 8), (0, 60), (20, 4), (32, 1), (0x100, 60), (0x114, 4)):
            assert client.config(offset, size) == whole[offset % 0x100 : offset % 0x100 + size]
        for offset, size in ((0, 257), (250, 10), (0xFFFFFFFF, 1), (0, 0)):
            assert client.config(offset, size) == b""


READS = {
    "QEMU, a driver without discard": (0, 36, 0),
    "QEMU": (0, 60, 0),
    "QEMU that knows zones": (0, 96, 0),
    "Cloud Hypervisor": (0, 60, 1),
    "Cloud Hypervisor before 2021": (0x100, 60, 1),
    "Firecracker": (0, 60, 1),
    "SPDK's initiator": (0, 256, 0),
    "SeaBIOS, by way of QEMU: the capacity": (0, 8, 0),
    "SeaBIOS, the longest segment": (8, 4, 0),
    "SeaBIOS, the block size": (20, 4, 0),
}


@pytest.mark.parametrize("name", READS)
def test_the_config_space_is_read_as_by(disk: Path, name: str) -> None:
    """Offset, size and flags come back as they were sent, whether the frontend sends room for the answer or not."""
    offset, size, flags = READS[name]
    with VhostClient(disk) as client:
        client.negotiate(protocol=vhost.P_CONFIG)
        whole = client.config(0, 256)
        for room in (bytes(size), b"", b"\xff" * size):
            answer = client.ask(vhost.GET_CONFIG, struct.pack("<III", offset, size, flags) + room)
            assert struct.unpack_from("<III", answer) == (offset, size, flags)
            assert answer[12:] == whole[offset % 0x100 :][:size]


class QuietClient(VhostClient):
    """A frontend that asks for no acknowledgements, as Firecracker, which agrees on CONFIG alone."""

    def set(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        self.send(request, payload, fds)


def test_a_frontend_of_few_features_gets_its_disk(disk: Path) -> None:
    """Firecracker: one ring of 256, VERSION_1, EVENT_IDX and FLUSH, no acknowledgements, the config read twice."""
    with QuietClient(disk) as client:
        features = vhost.VERSION_1 | vhost.EVENT_IDX | vhost.FLUSH | vhost.PROTOCOL_FEATURES
        client.negotiate(features, vhost.P_CONFIG)
        assert struct.unpack_from("<Q", client.config(0, 60))[0] == SECTORS
        client.share_memory()
        queue = client.start_queue(num=256)
        assert queue.run(vhost.OUT, 5, b"f" * 512) == vhost.OK
        assert queue.run(vhost.T_FLUSH) == vhost.OK
        assert queue.run(vhost.IN, 5, read_bytes=512) == vhost.OK
        assert queue.data(512) == b"f" * 512
        assert struct.unpack_from("<Q", client.config(0, 60))[0] == SECTORS
        assert client.stop_queue(queue) == 3


def test_the_cache_mode_is_written_as_spdks_initiator_does(disk: Path) -> None:
    """It sends the whole space and says how much of it is meant."""
    with VhostClient(disk) as client:
        client.negotiate()
        client.set(vhost.SET_CONFIG, struct.pack("<III", 32, 1, 0) + bytes(256))
        assert client.config(32, 1) == b"\0"


def test_the_cache_mode_switches(disk: Path) -> None:
    client, queue = VhostClient.ready(disk)
    with client:
        client.set(vhost.SET_CONFIG, struct.pack("<III", 32, 1, 0) + b"\0")
        assert client.config(32, 1) == b"\0"
        assert queue.run(vhost.OUT, 0, b"y" * 512) == vhost.OK
        for wrong in (b"\2", b"", b"\1\1"):
            assert client.refused(vhost.SET_CONFIG, struct.pack("<III", 32, len(wrong), 0) + wrong)
        assert client.refused(vhost.SET_CONFIG, struct.pack("<III", 0, 1, 0) + b"\1")
        client.set(vhost.SET_CONFIG, struct.pack("<III", 0x120, 1, 0) + b"\1")
        assert client.config(32, 1) == b"\1"


def test_a_bdev_that_grows_is_announced(daemon: Daemon, folder: Path, disk: Path) -> None:
    mine, theirs = socket.socketpair()
    with VhostClient(disk) as client, mine, theirs:
        client.negotiate()
        client.set(vhost.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
        os.truncate(folder / "disk.raw", BYTES * 2)
        daemon.call("bdev_aio_rescan", name="disk")
        mine.settimeout(10)
        assert struct.unpack("<III", mine.recv(64)) == (2, 1, 0)
        assert struct.unpack("<Q", client.config(0, 8))[0] == SECTORS * 2


@pytest.mark.parametrize("feature", [vhost.ACCESS_PLATFORM, vhost.PACKED, vhost.IN_ORDER, vhost.RING_RESET, 1 << 63])
def test_features_that_are_not_offered_are_refused_and_the_session_goes_on(disk: Path, feature: int) -> None:
    with VhostClient(disk) as client:
        offered = client.negotiate()
        assert not offered & feature
        assert client.refused(vhost.SET_FEATURES, struct.pack("<Q", offered | feature))
        client.share_memory()
        assert client.start_queue().run(vhost.IN, 0, read_bytes=512) == vhost.OK


def test_without_event_idx_and_indirect_and_without_protocol_features(disk: Path) -> None:
    with VhostClient(disk) as client:
        client.ask_u64(vhost.GET_FEATURES)
        client.send(vhost.SET_PROTOCOL_FEATURES, struct.pack("<Q", vhost.P_REPLY_ACK))
        client.send(vhost.SET_FEATURES, struct.pack("<Q", vhost.VERSION_1))
        client.share_memory()
        queue = client.start_queue(enable=False)
        for turn in range(5):
            assert queue.run(vhost.IN, turn, read_bytes=512) == vhost.OK


def test_a_ring_waits_for_its_enabling_and_looks_without_a_kick(disk: Path) -> None:
    with VhostClient(disk) as client:
        client.negotiate()
        client.share_memory()
        queue = client.start_queue(enable=False)
        queue.request(vhost.IN, 0, read_bytes=512, kick=False)
        time.sleep(0.2)
        assert queue.take() == []
        client.set(vhost.SET_VRING_ENABLE, struct.pack("<II", 0, 1))
        assert len(queue.wait(1)) == 1
        client.set(vhost.SET_VRING_ENABLE, struct.pack("<II", 0, 0))
        queue.request(vhost.IN, 0, read_bytes=512)
        time.sleep(0.2)
        assert queue.take() == []


def test_a_stopped_ring_tells_its_place_and_starts_again_there(disk: Path) -> None:
    client, queue = VhostClient.ready(disk)
    with client:
        for turn in range(1, 5):
            assert queue.run(vhost.IN, 0, read_bytes=512) == vhost.OK
            assert client.stop_queue(queue) == turn
            client.restart_queue(queue, turn)


def test_memory_may_change_while_rings_run(disk: Path) -> None:
    client, queue = VhostClient.ready(disk)
    with client:
        assert client.ask_u64(vhost.GET_MAX_MEM_SLOTS) >= 32
        region = b""
        for number in range(1, 6):
            region = struct.pack("<QQQQQ", 0, (number + 1) << 32, 4096, number << 20, 4096)
            client.set(vhost.ADD_MEM_REG, region, [client.memory])
            assert queue.run(vhost.IN, 0, read_bytes=512) == vhost.OK
        assert client.refused(vhost.ADD_MEM_REG, region, [client.memory])
        client.set(vhost.REM_MEM_REG, region)
        assert client.refused(vhost.REM_MEM_REG, region)
        client.share_memory(4)
        assert queue.run(vhost.IN, 0, read_bytes=512) == vhost.OK


def test_a_reset_device_can_be_used_again(disk: Path) -> None:
    client, queue = VhostClient.ready(disk)
    with client:
        assert client.ask_u64(vhost.GET_STATUS) == 0
        client.set(vhost.SET_STATUS, struct.pack("<Q", 15))
        assert client.ask_u64(vhost.GET_STATUS) == 15
        assert queue.run(vhost.IN, 0, read_bytes=512) == vhost.OK
        client.set(vhost.SET_STATUS, struct.pack("<Q", 0))
        client.set(vhost.RESET_DEVICE)
        client.write(queue.available + 2, bytes(2))
        client.write(queue.used + 2, bytes(2))
        queue.next_available = queue.seen = 0
        client.restart_queue(queue, 0)
        assert queue.run(vhost.IN, 0, read_bytes=512) == vhost.OK


def test_pages_that_the_device_writes_are_logged(disk: Path) -> None:
    client, queue = VhostClient.ready(disk)
    with client:
        log = os.memfd_create("log")
        os.truncate(log, 4096)
        client.send(vhost.SET_LOG_BASE, struct.pack("<QQ", 4096, 0), [log])
        client.receive()
        features = client.ask_u64(vhost.GET_FEATURES)
        client.set(vhost.SET_FEATURES, struct.pack("<Q", features | vhost.LOG_ALL))
        client.set(vhost.SET_VRING_ADDR, client.addresses(queue, flags=1, log=GUEST_BASE + queue.used))
        assert queue.run(vhost.IN, 0, read_bytes=8192) == vhost.OK
        data = (GUEST_BASE + vhost.DATA) >> 12
        dirty = os.pread(log, 4096, 0)
        pages = {page for page in range(8 * 4096) if dirty[page // 8] >> page % 8 & 1}
        assert pages == {data, data + 1, data + 2, (GUEST_BASE + queue.used) >> 12}
        client.set(vhost.SET_FEATURES, struct.pack("<Q", features & ~vhost.LOG_ALL))
        os.pwrite(log, bytes(4096), 0)
        assert queue.run(vhost.IN, 0, read_bytes=8192) == vhost.OK
        assert not any(os.pread(log, 4096, 0))
        os.close(log)


def test_a_silent_connection_holds_up_nobody(disk: Path) -> None:
    silent = [VhostClient(disk) for _ in range(5)]
    client, queue = VhostClient.ready(disk)
    with client:
        assert queue.run(vhost.IN, 0, read_bytes=512) == vhost.OK
    for one in silent:
        one.close()


def test_a_controller_outlives_its_machines(daemon: Daemon, disk: Path) -> None:
    for _ in range(5):
        client, queue = VhostClient.ready(disk)
        with client:
            assert queue.run(vhost.IN, 0, read_bytes=512) == vhost.OK
    until(lambda: daemon.call("vhost_get_controllers")[0]["sessions"] == [], "the last session has ended")


def test_deleting_a_controller_parts_with_its_machine(daemon: Daemon, disk: Path) -> None:
    client, queue = VhostClient.ready(disk)
    with client:
        assert queue.run(vhost.IN, 0, read_bytes=512) == vhost.OK
        assert daemon.call("vhost_delete_controller", ctrlr="vh0") is True
        assert client.socket.recv(1) == b""
    assert not disk.exists()


BASES = ["direct", "cached", "memory", "volume"]


def disk_of(daemon: Daemon, folder: Path, kind: str) -> Path:
    """Return the socket of a controller over one kind of bdev."""
    base = folder / "disk.raw"
    base.write_bytes(bytes(METADATA_BYTES + BYTES if kind == "volume" else BYTES))
    if kind == "memory":
        daemon.call("bdev_malloc_create", name="disk", num_blocks=SECTORS, block_size=512)
        return controller(daemon, "disk")
    name = "base" if kind == "volume" else "disk"
    cache = "none" if kind == "direct" else "writeback"
    daemon.call("bdev_aio_create", name=name, filename=str(base), block_size=512, cache=cache)
    if kind == "volume":
        image = folder / "image.raw"
        image.write_bytes(os.urandom(MIB))
        daemon.call("bdev_ubi_create", name="disk", base_bdev="base", image_path=str(image), stripe_size_kb=64)
    return controller(daemon, "disk")


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("kind", BASES)
def test_a_machine_that_shrinks_its_memory_loses_its_session_alone(
    daemon: Daemon, folder: Path, kind: str, write: bool
) -> None:
    """Whoever meets the missing pages, we or the kernel: the request fails, its session ends, and nobody else's."""
    disk = disk_of(daemon, folder, kind)
    other, other_queue = VhostClient.ready(disk)
    client, queue = VhostClient.ready(disk)
    with other, client:
        assert queue.run(vhost.OUT, 0, b"x" * 65536) == vhost.OK
        queue.describe(0, GUEST_BASE + vhost.DATA, 16, NEXT, 1)
        queue.describe(1, GUEST_BASE + vhost.DATA + 0x1000, 65536, NEXT | (0 if write else vhost.WRITE), 2)
        queue.describe(2, GUEST_BASE + vhost.DATA + 16, 1, vhost.WRITE)
        client.write(vhost.DATA, struct.pack("<IIQB", vhost.OUT if write else vhost.IN, 0, 0, 0xFF))
        os.ftruncate(client.memory, vhost.DATA + 0x1000)
        queue.offer(0)
        ready, _, _ = select.select([client.socket], [], [], 10)
        assert ready
        assert client.socket.recv(1) == b""
        # Who copies meets the missing pages itself, and has other memory in their place from then on.
        assert queue.status() == (0xFF if kind == "memory" else vhost.IOERR)
        assert other_queue.run(vhost.IN, 0, read_bytes=512) == vhost.OK
        if kind != "memory":
            assert other_queue.data(512) == b"x" * 512
    until(lambda: "shrunk its memory" in daemon.log_text(), "the reason in the log")


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("shift", [0, 512, 1, 2047])
def test_data_lie_anywhere_in_memory_and_in_any_pieces(daemon: Daemon, folder: Path, kind: str, shift: int) -> None:
    """Read and written in place where the storage can do that, by way of a buffer where it cannot."""
    client, queue = VhostClient.ready(disk_of(daemon, folder, kind))
    pieces = [512, 4096, 1536, 8192, 100, 1948]
    content = os.urandom(sum(pieces))
    places = [(vhost.DATA + 0x1000 + number * 0x10000 + shift, length) for number, length in enumerate(pieces)]
    with client:
        for turn in range(2):  # of a volume: missing stripes first, then present ones
            for request, flags in ((vhost.OUT, 0), (vhost.IN, vhost.WRITE)):
                chain = [(vhost.DATA, 16, 0), *((at, length, flags) for at, length in places), (vhost.DATA + 16, 1, 2)]
                for index, (at, length, direction) in enumerate(chain):
                    following = 0 if index == len(chain) - 1 else NEXT
                    queue.describe(index, GUEST_BASE + at, length, direction | following, index + 1)
                rest = content
                for at, length in places:
                    client.write(at, bytes(length) if flags else rest[:length])
                    rest = rest[length:]
                client.write(vhost.DATA, struct.pack("<IIQB", request, 0, 8 + 200 * turn, 0xFF))
                queue.offer(0)
                (done,) = queue.wait(1)
                assert queue.status() == vhost.OK
                assert done.written == 1 + (len(content) if flags else 0)
            assert b"".join(client.read(at, length) for at, length in places) == content


def test_the_next_daemon_goes_on_with_what_was_in_flight(unstarted_daemon: Daemon, folder: Path) -> None:
    """A kill with requests taken and not answered: the next daemon answers them, and no kick is needed."""
    daemon = unstarted_daemon
    kept = str(folder / "kept.json")
    daemon.start("--persist", kept)
    base = folder / "disk.raw"
    base.write_bytes(bytes(BYTES))
    daemon.create_aio("disk", base)
    path = controller(daemon, "disk")
    client = VhostClient(path)
    client.negotiate()
    client.share_memory()
    inflight, description = client.get_inflight(1, 64)
    client.set(vhost.SET_INFLIGHT_FD, description, [inflight])
    queue = client.start_queue()
    assert queue.run(vhost.OUT, 0, b"1" * 512) == vhost.OK
    daemon.end(signal.SIGKILL)
    # As if these had been taken by the dead daemon: heads 4 and 8, in the other order.
    for slot, sector in ((1, 8), (2, 16)):
        queue.request(vhost.OUT, sector, bytes([48 + slot]) * 512, slot=slot, kick=False)
    for counter, head in ((7, 8), (8, 4)):
        os.pwrite(inflight, struct.pack("<B5xHQ", 1, 0, counter), 16 + head * 16)
    daemon.start("--persist", kept)
    following = VhostClient(path, memory=os.dup(client.memory))
    following.negotiate()
    following.share_memory()
    following.set(vhost.SET_INFLIGHT_FD, description, [inflight])
    queue.client = following
    following.queues, client.queues = client.queues, []
    following.restart_queue(queue, queue.used_idx)
    done = queue.wait(2)
    assert sorted(one.head for one in done) == [4, 8]
    assert (queue.status(1), queue.status(2)) == (vhost.OK, vhost.OK)
    assert queue.run(vhost.IN, 16, read_bytes=512) == vhost.OK
    assert queue.data(512) == b"2" * 512
    assert os.pread(inflight, 1, 16 + 4 * 16) == b"\0"
    following.close()
    client.close()
    os.close(inflight)
