"""The flaws that other vhost backends had, each with its case here: floods, memory that goes, ranges over gaps, time.

Sources: CVE-2018-1059 (a range that leaves its region), CVE-2019-14818, CVE-2020-10726 (descriptors and memory that a
flood leaves), CVE-2020-10722 (the log), CVE-2021-3839 and libvhost-user 3974 (sizes of in-flight state); the rest is in
tests/e2e/test_vhost_hostile.py: CVE-2019-9547 (loops), CVE-2020-10723 (indices), CVE-2022-2132 (headers in pieces),
CVE-2016-6490 (empty descriptors), CVE-2011-1750 (odd lengths), CVE-2023-50711 (lengths that are believed), and in
native/engine/tests/vhost_races.rs: what is read twice.
"""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import vhost_client as vhost
from tests.support.daemon import Daemon
from tests.support.images import MIB
from tests.support.vhost_client import (
    DATA,
    GUEST_BASE,
    MEMORY_BYTES,
    NEXT,
    USER_BASE,
    WRITE,
    Queue,
    RefusedError,
    VhostClient,
)
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(60)

DISK_BYTES = 8 * MIB


@pytest.fixture
def living(daemon: Daemon) -> Iterator[Path]:
    """Return a controller's socket; afterwards bystanders there and on another controller must be served."""
    daemon.call("bdev_malloc_create", name="m0", num_blocks=DISK_BYTES // 512, block_size=512)
    machines = []
    for name in ("vh0", "vh1"):
        daemon.call("vhost_create_blk_controller", ctrlr=name, dev_name="m0")
        machines.append(VhostClient.ready(daemon.folder / name))
    yield daemon.folder / "vh0"
    for client, queue in machines:
        with client:
            assert queue.run(vhost.IN, 0, read_bytes=512) == vhost.OK
    assert daemon.process.poll() is None


def shares(client: VhostClient, *regions: tuple[int, int, int]) -> None:
    """Share memory as regions (offset from the guest's base, length, offset in the file)."""
    payload = struct.pack("<II", len(regions), 0)
    for guest, size, offset in regions:
        payload += struct.pack("<QQQQ", GUEST_BASE + guest, size, USER_BASE + guest, offset)
    client.set(vhost.SET_MEM_TABLE, payload, [client.memory] * len(regions))


def chain(queue: Queue, kind: int, data: tuple[int, int, int]) -> None:
    """Offer a request for sector 0 whose data are at (guest address, length, flags)."""
    queue.client.write(DATA, struct.pack("<IIQ", kind, 0, 0) + b"\xff")
    address, length, flags = data
    queue.describe(0, GUEST_BASE + DATA, 16, NEXT, 1)
    queue.describe(1, address, length, flags | NEXT, 2)
    queue.describe(2, GUEST_BASE + DATA + 16, 1, WRITE)
    queue.offer(0)


GAP = MEMORY_BYTES // 2
"""Where a region ends."""


@pytest.mark.parametrize("length", [4096, 1, 1 << 20])
def test_a_range_that_runs_into_a_gap_between_regions_stops_its_ring(living: Path, length: int) -> None:
    """CVE-2018-1059: the second half of the memory is one page further on than it would have to be."""
    with VhostClient(living) as client:
        client.negotiate()
        shares(client, (0, GAP, 0), (GAP + 4096, GAP - 4096, GAP + 4096))
        queue = client.start_queue()
        chain(queue, vhost.IN, (GUEST_BASE + GAP - length + 1, length, WRITE))
        assert queue.failed()


def test_a_range_over_two_regions_goes_where_each_of_them_is(living: Path) -> None:
    """Two regions that follow each other in the guest and lie the other way round in the file."""
    with VhostClient(living) as client:
        client.negotiate()
        quarter = MEMORY_BYTES // 4
        shares(client, (0, 2 * quarter, 0), (2 * quarter, quarter, 3 * quarter), (3 * quarter, quarter, 2 * quarter))
        queue = client.start_queue()
        assert queue.run(vhost.OUT, 0, bytes(range(256)) * 32) == vhost.OK
        chain(queue, vhost.IN, (GUEST_BASE + 3 * quarter - 4096, 8192, WRITE))
        queue.wait(1)
        assert client.read(DATA + 16, 1) == b"\0"
        assert client.read(4 * quarter - 4096, 4096) == bytes(range(256)) * 16
        assert client.read(2 * quarter, 4096) == bytes(range(256)) * 16


Flood = Callable[[VhostClient], None]


def _flood_inflight(client: VhostClient) -> None:
    file, description = client.get_inflight(128, 1024)
    client.set(vhost.SET_INFLIGHT_FD, description, [file])
    os.close(file)


def _flood_events(client: VhostClient) -> None:
    for request in (vhost.SET_VRING_CALL, vhost.SET_VRING_ERR, vhost.SET_VRING_KICK):
        for index in range(8):
            client.set(request, struct.pack("<Q", index + 1), [client.queues[0].call])


def _flood_rude(client: VhostClient) -> None:
    for request, fds in ((vhost.SET_OWNER, 4), (vhost.SET_FEATURES, 2), (vhost.SET_VRING_CALL, 3), (77, 5)):
        client.refused(request, bytes(8) if request != vhost.SET_OWNER else b"", [client.memory] * fds)


def _flood_slots(client: VhostClient) -> None:
    region = struct.pack("<QQQQQ", 0, 1 << 40, 4096, 1 << 50, 0)
    client.set(vhost.ADD_MEM_REG, region, [client.memory])
    client.set(vhost.REM_MEM_REG, region)


def _flood_logs(client: VhostClient) -> None:
    for _ in range(8):
        client.ask(vhost.SET_LOG_BASE, struct.pack("<QQ", 1 << 20, 0), [client.memory])


FLOODS: dict[str, Flood] = {
    "in-flight state": _flood_inflight,
    "memory tables": lambda client: client.share_memory(8),
    "slots": _flood_slots,
    "events": _flood_events,
    "logs": _flood_logs,
    "channels": lambda client: client.set(vhost.SET_BACKEND_REQ_FD, b"", [client.socket.fileno()]),
    "descriptors that nobody wants": _flood_rude,
    "resets": lambda client: client.set(vhost.RESET_DEVICE),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_leaves_neither_descriptors_nor_memory(daemon: Daemon, living: Path, name: str) -> None:
    """CVE-2019-14818, CVE-2020-10726: hundreds of messages, each of which replaces what the one before brought."""
    client, _ = VhostClient.ready(living)
    with client:
        for _ in range(20):
            FLOODS[name](client)
        descriptors, mappings, resident = len(daemon.descriptors()), _mappings(daemon), _resident_kib(daemon)
        for _ in range(300):
            FLOODS[name](client)
        assert len(daemon.descriptors()) <= descriptors + 2
        assert _mappings(daemon) <= mappings + 4
        assert _resident_kib(daemon) < resident + 16 * 1024
        with suppress(RefusedError):
            assert client.ask_u64(vhost.GET_QUEUE_NUM) >= 128


def _mappings(daemon: Daemon) -> int:
    lines = Path(f"/proc/{daemon.pid}/maps").read_text().splitlines()
    return sum("memfd" in line for line in lines)


def _resident_kib(daemon: Daemon) -> int:
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def test_a_slot_too_many_is_refused_and_takes_nothing_away(living: Path) -> None:
    client, queue = VhostClient.ready(living)
    with client:
        slots = client.ask_u64(vhost.GET_MAX_MEM_SLOTS)
        assert slots >= 32

        def add(number: int) -> bool:
            region = struct.pack("<QQQQQ", 0, (number + 1) << 40, 4096, (number + 1) << 50, 0)
            return not client.refused(vhost.ADD_MEM_REG, region, [client.memory])

        assert all(add(number) for number in range(1, slots))
        assert not add(slots)
        assert queue.run(vhost.IN, 0, read_bytes=512) == vhost.OK


def test_a_message_that_does_not_end_ends_its_session(living: Path) -> None:
    """Half a message: nobody waits for the rest for ever, and its descriptor is not kept."""
    with VhostClient(living) as client:
        client.send_raw(struct.pack("<III", vhost.SET_MEM_TABLE, vhost.VERSION, 40) + b"half", [client.memory])
        ready, _, _ = select.select([client.socket], [], [], 20)
        assert ready, "it is still waited for"
        assert client.socket.recv(1) == b""


@pytest.mark.parametrize("what", ["memory", "in-flight state", "log"])
def test_what_is_shrunk_under_a_ring_harms_its_session_alone(living: Path, what: str) -> None:
    """SIGBUS for whoever touches it: the file of the memory, of in-flight state that we did not make, of the log."""
    client, queue = VhostClient.ready(living)
    with client:
        files = {name: os.memfd_create(name) for name in ("in-flight state", "log")}
        for file in files.values():
            os.truncate(file, 1 << 20)
        description = struct.pack("<QQHH", 1 << 20, 0, 1, 64) + bytes(4)
        client.set(vhost.SET_INFLIGHT_FD, description, [files["in-flight state"]])
        client.ask(vhost.SET_LOG_BASE, struct.pack("<QQ", 1 << 20, 0), [files["log"]])
        client.set(vhost.SET_FEATURES, struct.pack("<Q", client.ask_u64(vhost.GET_FEATURES) | vhost.LOG_ALL))
        assert queue.run(vhost.IN, 0, read_bytes=512) == vhost.OK
        os.truncate(client.memory if what == "memory" else files[what], DATA + 4096 if what == "memory" else 0)
        queue.request(vhost.IN, 0, read_bytes=65536)
        if what == "log":
            queue.wait(1)
        else:
            ready, _, _ = select.select([client.socket], [], [], 10)
            assert ready
            assert client.socket.recv(1) == b""
        for file in files.values():
            os.close(file)


def test_in_flight_state_is_out_of_step_with_a_ring_that_is_made_larger(living: Path) -> None:
    """CVE-2021-3839, libvhost-user 3974: there is room for 64 entries, and the ring has 256 by and by."""
    client, queue = VhostClient.ready(living)
    with client:
        file, description = client.get_inflight(1, 64)
        client.set(vhost.SET_INFLIGHT_FD, description, [file])
        assert queue.run(vhost.IN, 0, read_bytes=512) == vhost.OK
        assert client.refused(vhost.SET_VRING_NUM, struct.pack("<II", 0, 256))
        client.stop_queue(queue)
        client.restart_queue(queue, 1)
        assert queue.run(vhost.IN, 0, read_bytes=512) == vhost.OK
        os.close(file)


def test_a_machines_memory_is_in_no_core_dump(daemon: Daemon, living: Path) -> None:
    client, queue = VhostClient.ready(living)
    with client:
        assert queue.run(vhost.IN, 0, read_bytes=512) == vhost.OK
        sections = Path(f"/proc/{daemon.pid}/smaps").read_text().split("memfd:guest")[1:]
        assert len(sections) >= 3
        for section in sections:
            flags = next(line for line in section.splitlines() if line.startswith("VmFlags:"))
            assert "dd" in flags.split(), "MADV_DONTDUMP"


def _come_as_far_as(client: VhostClient, stage: int) -> None:
    """Do so much of what a machine does: nothing, half a header, and so on to a request in flight."""
    if stage == 1:
        client.send_raw(b"\1\0")
    if stage >= 2:
        client.negotiate()
    if stage >= 3:
        client.share_memory()
    if stage >= 4:
        queue = client.start_queue()
        if stage >= 5:
            queue.request(vhost.IN, 0, read_bytes=65536)


def test_sessions_that_come_and_go_in_every_stage_leave_nothing(daemon: Daemon, living: Path) -> None:
    def seen() -> tuple[int, int]:
        (shown,) = daemon.call("vhost_get_controllers", name="vh0")
        return len(shown["sessions"]), _mappings(daemon)

    before, descriptors = seen(), len(daemon.descriptors())
    for turn in range(60):
        with VhostClient(living) as client:
            _come_as_far_as(client, turn % 6)
    until(lambda: seen() == before, "all sessions have ended")
    assert len(daemon.descriptors()) <= descriptors + 2
