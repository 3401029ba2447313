"""A load that knows what it was promised: which write of each block was acknowledged, and which came after it.

Each block belongs to one connection and has one request in flight at a time, so that the order of its writes is known;
the blocks of one stripe belong to different connections, so that fetches and writes race.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.support.nbd_client import Command, Flag, NbdClient
from tests.support.stamps import BLOCK, SECTOR, ZERO, stamp

CONNECTIONS = 4
DEPTH = 8


def content(block: int, generation: int) -> bytes:
    """Return what a block holds after a write of that generation; negative ones were zeroings."""
    return bytes(BLOCK) if generation <= ZERO else stamp(block, generation)


@dataclass(slots=True)
class Promise:
    """What one block may hold.

    Args:
        kept: its content when nothing newer was acknowledged.
        later: contents submitted since, acknowledged or not known.
    """

    kept: bytes
    later: list[bytes] = field(default_factory=list)

    def allows(self, found: bytes) -> bool:
        """Say whether every sector is the kept one or a later submitted one."""
        allowed = (self.kept, *self.later)
        starts = range(0, BLOCK, SECTOR)
        return all(any(found[at : at + SECTOR] == one[at : at + SECTOR] for one in allowed) for at in starts)


class Ledger:
    """Every block's promise.

    Args:
        initial: the volume's content before the first write.
    """

    def __init__(self, initial: bytes) -> None:
        assert len(initial) % BLOCK == 0
        self.promises = [Promise(initial[at : at + BLOCK]) for at in range(0, len(initial), BLOCK)]
        self.generation = 0
        self.acknowledged = 0
        self._lock = threading.Lock()

    def submit(self, block: int, zero: bool) -> bytes:
        """Note a write that is about to be sent and return what it leaves."""
        with self._lock:
            self.generation += 1
            left = content(block, ZERO if zero else self.generation)
        self.promises[block].later.append(left)
        return left

    def acknowledge(self, block: int, left: bytes) -> None:
        """Note that a write was answered with success."""
        self.promises[block] = Promise(left)
        with self._lock:
            self.acknowledged += 1

    def settle(self, blocks: range, found: bytes) -> list[int]:
        """Compare blocks with what is there; return those that break their promise, and take the others as they are."""
        broken = []
        for block in blocks:
            now = found[(block - blocks.start) * BLOCK :][:BLOCK]
            if self.promises[block].allows(now):
                self.promises[block] = Promise(now)
            else:
                broken.append(block)
        return broken


@dataclass(slots=True)
class _InFlight:
    command: int
    block: int
    left: bytes


class Worker(threading.Thread):
    """One connection under load until the daemon is gone, or until it is told to stop.

    Args:
        client: its connection.
        ledger: shared by all.
        blocks: those that are its own.
        rng: decides everything.
        acknowledged: called after each acknowledged write.
        stop: set to end the load by itself; what is in flight is waited for.
    """

    def __init__(
        self,
        client: NbdClient,
        ledger: Ledger,
        blocks: list[int],
        rng: random.Random,
        *,
        acknowledged: Callable[[], None],
        stop: threading.Event,
    ) -> None:
        super().__init__(daemon=True)
        self.failures: list[str] = []
        self._client = client
        self._ledger = ledger
        self._free = blocks
        self._rng = rng
        self._acknowledged = acknowledged
        self._stop_asked = stop
        self._in_flight: dict[int, _InFlight] = {}

    def run(self) -> None:
        """Keep DEPTH requests in flight."""
        try:
            while not self._stop_asked.is_set() or self._in_flight:
                while len(self._in_flight) < DEPTH and not self._stop_asked.is_set():
                    self._send()
                self._receive()
        except (ConnectionError, BrokenPipeError):
            return  # the daemon is gone
        finally:
            self._client.close()

    def _send(self) -> None:
        if self._rng.random() < 0.02:
            self._in_flight[self._client.send(Command.FLUSH)] = _InFlight(Command.FLUSH, -1, b"")
            return
        block = self._free.pop(self._rng.randrange(len(self._free)))
        offset, draw = block * BLOCK, self._rng.random()
        if draw < 0.25:
            sent = _InFlight(Command.READ, block, b"")
            cookie = self._client.send(Command.READ, offset, BLOCK)
        elif draw < 0.35:
            sent = _InFlight(Command.WRITE_ZEROES, block, self._ledger.submit(block, zero=True))
            cookie = self._client.send(Command.WRITE_ZEROES, offset, BLOCK)
        else:
            sent = _InFlight(Command.WRITE, block, self._ledger.submit(block, zero=False))
            flags = Flag.FUA if self._rng.random() < 0.1 else Flag.NONE
            cookie = self._client.send(Command.WRITE, offset, data=sent.left, flags=flags)
        self._in_flight[cookie] = sent

    def _receive(self) -> None:
        reply = self._client.receive()
        done = self._in_flight.pop(reply.cookie)
        if done.block >= 0:
            self._free.append(done.block)
        if reply.errno:
            self.failures.append(f"command {done.command} of block {done.block}: error {reply.errno}")
        elif done.command == Command.READ and not self._ledger.promises[done.block].allows(reply.data):
            self.failures.append(f"block {done.block} read wrongly")
        elif done.command in (Command.WRITE, Command.WRITE_ZEROES):
            self._ledger.acknowledge(done.block, done.left)
            self._acknowledged()


class Load:
    """CONNECTIONS workers on one export.

    Args:
        connect: makes a connection.
        ledger: what was promised.
        blocks: where to write.
        rng: decides everything.
        after: number of acknowledged writes after which `reached` is set.
    """

    def __init__(
        self, connect: Callable[[], NbdClient], ledger: Ledger, blocks: range, rng: random.Random, after: int
    ) -> None:
        self.reached = threading.Event()
        self.stop = threading.Event()
        self._left = after
        self._lock = threading.Lock()
        self._workers = [
            Worker(connect(), ledger, list(own), random.Random(rng.random()), acknowledged=self._count, stop=self.stop)
            for own in _shared_out(blocks)
        ]
        for worker in self._workers:
            worker.start()

    def _count(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self.reached.set()

    def wait(self, timeout_s: float = 20.0) -> None:
        """Return when all workers have ended.

        Raises:
            AssertionError: one is still there, or something was answered wrongly.
        """
        for worker in self._workers:
            worker.join(timeout_s)
            assert not worker.is_alive(), "a request was not answered"
        failures = [failure for worker in self._workers for failure in worker.failures]
        assert not failures, failures[:10]


def _shared_out(blocks: range) -> Iterator[range]:
    return (blocks[number::CONNECTIONS] for number in range(CONNECTIONS))
