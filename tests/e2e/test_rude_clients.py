"""NBD clients that do not behave: the right error, a closed connection, and a daemon that serves the others."""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.support.daemon import Daemon
from tests.support.images import MIB
from tests.support.nbd_client import (
    IHAVEOPT,
    NO_ZEROES,
    OPT_EXPORT_NAME,
    OPT_GO,
    OPT_LIST,
    Command,
    Flag,
    NbdClient,
    NbdError,
    RefusedError,
)
from tests.support.seeds import rng
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(60)

DISK_BYTES = 8 * MIB


@pytest.fixture
def server(daemon: Daemon) -> Iterator[Daemon]:
    """Return the daemon with a malloc bdev `m` exported; afterwards it must still serve."""
    daemon.call("bdev_malloc_create", name="m", num_blocks=DISK_BYTES // 512, block_size=512)
    daemon.export("m")
    yield daemon
    with daemon.client("m") as client:
        client.write(0, b"\x42" * 512)
        assert client.read(0, 512) == b"\x42" * 512


def _gone(server: Daemon) -> None:
    until(lambda: server.connections("m") == 0, "no client is left")


def raw(server: Daemon) -> socket.socket:
    """Connect and say nothing."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(15)
    client.connect(str(server.nbd_socket))
    return client


def ends(client: socket.socket) -> bool:
    """Read to the end; False when it does not come in time."""
    try:
        while client.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


# After the greeting: what is no handshake.
NONSENSE = {
    "zeros": bytes(64),
    "text": b"GET / HTTP/1.1\r\n\r\n" * 4,
    "unknown client flags": struct.pack(">I", 0xFFFFFFFF),
    "wrong option magic": struct.pack(">I", 3) + struct.pack(">QII", 1, OPT_LIST, 0),
    "huge option": struct.pack(">I", 3) + struct.pack(">QII", IHAVEOPT, 99, 0xFFFFFFFF),
    "huge export name": struct.pack(">I", 3) + struct.pack(">QII", IHAVEOPT, OPT_EXPORT_NAME, 1 << 20),
    "unknown export name": struct.pack(">I", 3) + struct.pack(">QII", IHAVEOPT, OPT_EXPORT_NAME, 6) + b"absent",
}


@pytest.mark.parametrize("case", NONSENSE)
def test_nonsense_for_a_handshake_ends_the_connection(server: Daemon, case: str) -> None:
    with raw(server) as client:
        client.sendall(NONSENSE[case])
        assert ends(client)


def test_random_bytes_at_any_stage_harm_nobody(server: Daemon) -> None:
    chance = rng("garbage")
    with server.client("m") as witness:
        for turn in range(60):
            with raw(server) as client:
                good = struct.pack(">I", 3) + struct.pack(">QII", IHAVEOPT, OPT_GO, 7)
                good += struct.pack(">I1sH", 1, b"m", 0)
                client.sendall(good[: chance.randrange(len(good) + 1)] + chance.randbytes(chance.randrange(400)))
                client.shutdown(socket.SHUT_WR)
                assert ends(client)
            witness.write(turn * 512, bytes([turn]) * 512)
            assert witness.read(turn * 512, 512) == bytes([turn]) * 512


def test_a_client_that_leaves_right_after_naming_its_export(server: Daemon) -> None:
    for _ in range(50):
        client = raw(server)
        client.sendall(struct.pack(">I", 3) + struct.pack(">QII", IHAVEOPT, OPT_EXPORT_NAME, 1) + b"m")
        client.close()
    _gone(server)


def test_a_handshake_byte_by_byte_succeeds(server: Daemon) -> None:
    with raw(server) as client:
        greeting = b""
        while len(greeting) < 18:
            greeting += client.recv(18 - len(greeting))
        text = struct.pack(">I", NO_ZEROES | 1) + struct.pack(">QII", IHAVEOPT, OPT_EXPORT_NAME, 1) + b"m"
        text += struct.pack(">IHHQQI", 0x25609513, 0, Command.READ, 7, 0, 512)
        for at in range(len(text)):
            client.sendall(text[at : at + 1])
        answer = b""
        while len(answer) < 10 + 16 + 512:
            answer += client.recv(65536)
        assert struct.unpack_from(">QH", answer)[0] == DISK_BYTES
        assert struct.unpack_from(">IIQ", answer, 10) == (0x67446698, 0, 7)


def test_a_refused_option_leaves_the_handshake_going(server: Daemon) -> None:
    with NbdClient(str(server.nbd_socket), go=False) as client:
        for option, data in ((99, b"x" * 1000), (5, b""), (OPT_LIST, b"surplus"), (OPT_GO, b"\xff" * 10)):
            with pytest.raises(RefusedError):
                client.option(option, data)
        with pytest.raises(RefusedError) as caught:
            client.option(OPT_GO, struct.pack(">I6sH", 6, b"absent", 0))
        assert caught.value.reply == 6
        assert client.option(OPT_GO, struct.pack(">I1sH", 1, b"m", 0))


def test_a_client_that_dies_in_mid_write_writes_nothing_of_it(server: Daemon) -> None:
    with server.client("m") as before:
        before.write(0, b"\x11" * 65536)
    for cut in (0, 1, 511, 512, 60000):
        with server.client("m") as client:
            client.send_raw(struct.pack(">IHHQQI", 0x25609513, 0, Command.WRITE, 1, 0, 65536) + b"\x22" * cut)
    _gone(server)
    with server.client("m") as after:
        assert after.read(0, 65536) == b"\x11" * 65536


def test_a_client_that_dies_without_reading_its_answers(server: Daemon) -> None:
    for _ in range(20):
        with server.client("m") as client:
            for at in range(64):
                client.send(Command.READ, at * 65536, 65536)
    _gone(server)


def test_two_hundred_clients_at_once_are_served(server: Daemon) -> None:
    clients = [server.client("m") for _ in range(200)]
    assert server.connections("m") == 200
    for number, client in enumerate(clients):
        client.send(Command.WRITE, number * 512, data=bytes([number]) * 512)
    assert all(client.receive().errno == 0 for client in clients)
    for number, client in enumerate(reversed(clients)):
        assert client.read(number * 512, 512) == bytes([number]) * 512
    for client in clients:
        client.close()
    _gone(server)


# Command, offset, length, payload, flags, and the error that the protocol has for it.
MISTAKES = {
    "read past the end": (Command.READ, DISK_BYTES - 512, 1024, b"", 0, errno.EINVAL),
    "read far past the end": (Command.READ, 2**64 - 512, 512, b"", 0, errno.EINVAL),
    "write past the end": (Command.WRITE, DISK_BYTES - 512, 0, bytes(1024), 0, errno.ENOSPC),
    "write at a wrapping offset": (Command.WRITE, 2**64 - 512, 0, bytes(1024), 0, errno.ENOSPC),
    "zeroes past the end": (Command.WRITE_ZEROES, DISK_BYTES, 512, b"", 0, errno.ENOSPC),
    "trim past the end": (Command.TRIM, DISK_BYTES, 512, b"", 0, errno.EINVAL),
    "cache past the end": (Command.CACHE, DISK_BYTES, 512, b"", 0, errno.EINVAL),
    "unaligned read": (Command.READ, 1, 512, b"", 0, errno.EINVAL),
    "unaligned length": (Command.READ, 0, 511, b"", 0, errno.EINVAL),
    "unaligned write": (Command.WRITE, 100, 0, bytes(512), 0, errno.EINVAL),
    "unaligned trim": (Command.TRIM, 0, 100, b"", 0, errno.EINVAL),
    "oversize read": (Command.READ, 0, 64 * MIB + 512, b"", 0, errno.EINVAL),
    "unknown command": (77, 0, 512, b"", 0, errno.EINVAL),
    "unknown flag": (Command.READ, 0, 512, b"", 1 << 9, errno.EINVAL),
    "a flag of another command": (Command.WRITE, 0, 0, bytes(512), Flag.NO_HOLE, errno.EINVAL),
    "block status without a context": (Command.BLOCK_STATUS, 0, 512, b"", 0, errno.EINVAL),
    "a flag that was not agreed on": (Command.WRITE_ZEROES, 0, 512, b"", 1 << 5, errno.EINVAL),
}


@pytest.mark.parametrize("structured", [True, False], ids=["structured", "simple"])
@pytest.mark.parametrize("case", MISTAKES)
def test_a_wrong_request_gets_its_error_and_the_connection_goes_on(server: Daemon, case: str, structured: bool) -> None:
    command, offset, length, data, flags, error = MISTAKES[case]
    with server.client("m", structured=structured) as client:
        with pytest.raises(NbdError) as caught:
            client.call(command, offset, length, data, flags)
        assert caught.value.errno == error
        client.write(512, b"\x33" * 512)
        assert client.read(512, 512) == b"\x33" * 512


def test_a_write_beyond_every_limit_ends_the_connection_after_its_error(server: Daemon) -> None:
    with server.client("m") as client:
        client.send(Command.WRITE, 0, 64 * MIB + 512)
        assert client.receive().errno == errno.EINVAL
        assert client.is_closed()


def test_a_wrong_request_magic_ends_the_connection(server: Daemon) -> None:
    with server.client("m") as client:
        client.send(Command.READ, 0, 512, magic=0xDEADBEEF)
        assert client.is_closed()


def test_a_readonly_export_refuses_what_writes(server: Daemon) -> None:
    server.export("m", export_name="ro", readonly=True)
    with server.client("ro") as client:
        for command, data in ((Command.WRITE, bytes(512)), (Command.WRITE_ZEROES, b""), (Command.TRIM, b"")):
            with pytest.raises(NbdError) as caught:
                client.call(command, 0, 512, data)
            assert caught.value.errno == errno.EPERM
        client.flush()
        assert client.read(0, 512) == bytes(512)


def test_disconnect_finishes_what_came_before_it(server: Daemon) -> None:
    with server.client("m") as client:
        cookies = {client.send(Command.WRITE, at * 4096, data=bytes([at]) * 4096) for at in range(100)}
        client.send(Command.DISC)
        assert {client.receive().cookie for _ in range(100)} == cookies
        assert client.is_closed()


def test_deleting_an_export_drains_its_clients_then_parts_with_them(server: Daemon) -> None:
    clients = [server.client("m") for _ in range(8)]
    for number, client in enumerate(clients):
        for at in range(16):
            client.send(Command.WRITE, (number * 16 + at) * 4096, data=bytes([number + 1]) * 4096)
    assert server.call("nbd_delete_export", export_name="m") is True
    answered: list[set[int]] = [set() for _ in clients]
    for client, mine in zip(clients, answered, strict=True):
        try:
            while True:
                reply = client.receive()
                assert reply.errno == 0
                mine.add(reply.cookie)
        except ConnectionError:
            client.close()
    server.export("m")
    with server.client("m") as client:
        for number, mine in enumerate(answered):
            for cookie in mine:
                at = (number * 16 + cookie - 1) * 4096
                assert client.read(at, 4096) == bytes([number + 1]) * 4096


def test_an_export_is_deleted_under_idle_half_open_and_stuck_clients(server: Daemon) -> None:
    idle, half = server.client("m"), raw(server)
    stuck = server.client("m")
    for at in range(64):
        stuck.send(Command.READ, at * 65536, 65536)  # it never reads the answers
    part = server.client("m")
    part.send_raw(struct.pack(">IHHQQI", 0x25609513, 0, Command.WRITE, 1, 0, 65536) + bytes(100))
    assert server.call("nbd_delete_export", export_name="m") is True
    assert idle.is_closed()
    assert ends(part.socket)
    for client in (idle, half, stuck, part):
        client.close()
    server.export("m")


def test_no_more_clients_than_allowed(server: Daemon) -> None:
    server.export("m", export_name="two", max_connections=2)
    with server.client("two"), server.client("two") as second:
        with pytest.raises(RefusedError, match="2 connections already"):
            server.client("two")
        with server.client("m") as other:  # the limit is that export's alone
            assert other.read(0, 512) == bytes(512)
        second.disconnect()
        until(lambda: server.connections("two") == 1, "one has left")
        with server.client("two") as third:
            assert third.read(0, 512) == bytes(512)


def _push(client: NbdClient, data: memoryview) -> int:
    """Send until the server takes no more; return the bytes that it took."""
    client.socket.setblocking(False)
    sent = 0
    while sent < len(data):
        try:
            sent += client.socket.send(data[sent:])
        except BlockingIOError:
            if not _writable(client.socket):
                break
    client.socket.settimeout(20)
    return sent


def _writable(client: socket.socket) -> bool:
    return bool(select.select([], [client], [], 0.2)[1])


def test_memory_stays_bounded_under_large_reads_that_nobody_takes(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    daemon.call("bdev_null_create", name="n", num_blocks=1 << 20, block_size=512)
    daemon.export("n")
    before = daemon.memory_bytes()
    # Simple replies have no holes: every zero of the null bdev is sent.
    clients = [daemon.client("n", structured=False) for _ in range(8)]
    for client in clients:
        for _ in range(32):  # 2 GiB asked for by each
            client.send(Command.READ, 0, 64 * MIB)
    with daemon.client("n") as other:  # who asks for little is served all the same
        for _ in range(50):
            assert other.read(0, 65536) == bytes(65536)
    assert daemon.memory_bytes() - before < 700 * MIB
    for client in clients:
        client.close()
    until(lambda: daemon.connections("n") == 0, "all have left")


def test_memory_stays_bounded_under_large_writes_whose_answers_nobody_reads(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    daemon.call("bdev_null_create", name="n", num_blocks=1 << 20, block_size=512)
    daemon.export("n")
    before = daemon.memory_bytes()
    payload = bytes(64 * MIB)
    clients = [daemon.client("n") for _ in range(4)]
    for turn in range(4):
        for client in clients:
            client.send(Command.WRITE, 0, data=payload)
        assert daemon.memory_bytes() - before < 500 * MIB, turn
    for client in clients:
        assert [client.receive().errno for _ in range(4)] == [0] * 4
        client.close()


def test_half_sent_large_writes_of_many_clients_leave_room_for_others(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    daemon.call("bdev_malloc_create", name="m", num_blocks=(64 * MIB) // 512, block_size=512)
    daemon.export("m")
    before = daemon.memory_bytes()
    greedy = [daemon.client("m") for _ in range(12)]
    for client in greedy:
        header = struct.pack(">IHHQQI", 0x25609513, 0, Command.WRITE, 1, 0, 64 * MIB)
        _push(client, memoryview(header + bytes(8 * MIB)))
    assert daemon.memory_bytes() - before < 500 * MIB
    with daemon.client("m") as modest:
        modest.write(0, b"\x55" * MIB)
        assert modest.read(0, MIB) == b"\x55" * MIB
    for client in greedy:
        client.close()
    until(lambda: daemon.connections("m") == 0, "all have left")
