"""The table of restarts: how long a virtual machine's disk stands still when the daemon is killed and started again.

A driver with in-flight recovery (native/bench, vhost-load) keeps the queues of a lazy volume full and checks every byte
that it reads; a restart that loses a write, or answers a request with an error, fails the measurement.

What a restart costs *beyond the start of a process* is the pause without the time from making the process until it
listens for calls: there it has made nothing of its configuration, and an empty one would be answered a little later
(the last row, measured without load). The end of the killed process is part of the pause, and of what is left of it.
"""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench.compare import progress
from bench.daemon import UBI_METADATA_BYTES, Daemon, seconds_to_start
from bench.files import write_image
from bench.process import READY_TIMEOUT_S, BenchError, listens
from bench.report import number, table, verdict
from bench.vhost import VhostSetup
from bench.vhost_servers import add_controller

TARGET_MS = 30.0
QUEUES = 2
DEPTH = 32
LOAD_S = (0.2, 0.6)
"""Between a restart and the next kill: at random, so that kills meet every state of the queues."""


@dataclass(frozen=True, slots=True)
class Restart:
    """One kill and what followed, by CLOCK_MONOTONIC in nanoseconds.

    Args:
        killed: SIGKILL is about to be sent.
        spawned: the old process is gone, the next one about to be made.
        started: it listens on its JSON-RPC socket: interpreter and modules are there, no object is.
    """

    killed: int
    spawned: int
    started: int

    @property
    def end_ns(self) -> int:
        """From the signal to the end of the process."""
        return self.spawned - self.killed

    @property
    def start_ns(self) -> int:
        """From making the next process until it listens."""
        return self.started - self.spawned


def run_pause(setup: VhostSetup, restarts: int) -> tuple[str, dict[str, Any]]:
    """Kill and start the daemon under load, again and again."""
    empty_ms = [seconds_to_start(setup.python, setup.folder) * 1000 for _ in range(restarts // 2)]
    options = ("--persist", str(setup.folder / "kept.json"))
    daemon = Daemon(setup.python, setup.folder, options=options)
    try:
        daemon.wait_until_ready()
        socket = _make_disk(daemon, setup)
        events: list[Restart] = []
        with _load(setup, socket) as driver:
            for turn in range(restarts):
                progress(f"restart {turn + 1} of {restarts}")
                time.sleep(random.uniform(*LOAD_S))
                daemon, event = _restart(daemon, setup, options)
                events.append(event)
            time.sleep(LOAD_S[1])
            progress("")
            figures = _end(driver)
    finally:
        daemon.process.stop()
    gaps = [(begin, end) for begin, end in figures["gaps_ns"]]
    rows = _rows([(event, _gap(gaps, event)) for event in events], empty_ms)
    title = f"Restart under load: {restarts} kills, {figures['checked']} reads checked, {figures['wrong']} wrong (ms)"
    record = {"events": [asdict(event) for event in events], "driver": figures, "empty_ms": empty_ms}
    return table(title, ["what", "p50", "p99", "max", "target", "met"], rows), record


def _rows(restarts: list[tuple[Restart, tuple[int, int]]], empty_ms: list[float]) -> list[list[str]]:
    """Return the table's rows for restarts, each with the time without a completion that it is in."""
    whole_ms = [(end - begin) / 1e6 for _, (begin, end) in restarts]
    start_ms = [event.start_ns / 1e6 for event, _ in restarts]
    return [
        _row("whole pause", whole_ms, None),
        _row("of it, start of the process until it listens", start_ms, None),
        _row("beyond that start", [whole - start for whole, start in zip(whole_ms, start_ms, strict=True)], TARGET_MS),
        _row("of that, end of the killed process", [event.end_ns / 1e6 for event, _ in restarts], None),
        _row("beside it: start of an empty daemon until it answers", empty_ms, None),
    ]


def _make_disk(daemon: Daemon, setup: VhostSetup) -> Path:
    image, base = setup.folder / "image.raw", setup.folder / "base.raw"
    write_image(image, setup.size_bytes)
    with base.open("wb") as file:
        file.truncate(setup.size_bytes + UBI_METADATA_BYTES)
    daemon.create_aio("base", base)
    daemon.create_ubi("disk", "base", image)
    return add_controller(daemon, setup.folder, "disk")


@contextmanager
def _load(setup: VhostSetup, socket: Path) -> Iterator[subprocess.Popen[str]]:
    argv = [str(setup.vhost_load), "--socket", str(socket), "--rw", "randrw", "--size", str(setup.size_bytes)]
    argv += ["--qd", str(DEPTH), "--queues", str(QUEUES), "--verify", "--reconnect", "--until-eof"]
    pipe = subprocess.PIPE
    driver = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    try:
        yield driver
    finally:
        driver.kill()
        driver.wait()


def _restart(daemon: Daemon, setup: VhostSetup, options: tuple[str, ...]) -> tuple[Daemon, Restart]:
    killed = time.monotonic_ns()
    daemon.process.kill()
    spawned = time.monotonic_ns()
    following = Daemon(setup.python, setup.folder, options=options)
    while not listens(following.rpc_socket):
        following.process.check_alive()
        if time.monotonic_ns() - spawned > READY_TIMEOUT_S * 1e9:
            raise BenchError(f"the daemon does not answer; see {following.process.log}")
        time.sleep(0.0005)
    started = time.monotonic_ns()
    following.wait_until_ready()
    return following, Restart(killed, spawned, started)


def _end(driver: subprocess.Popen[str]) -> dict[str, Any]:
    """Let the driver finish and check once more all that it has written.

    Raises:
        BenchError: it failed, or a request did, or a byte was lost.
    """
    output, errors = driver.communicate(timeout=READY_TIMEOUT_S)
    if driver.returncode:
        raise BenchError(f"vhost-load: {errors}")
    figures: dict[str, Any] = json.loads(output)
    if figures["errors"] or figures["wrong"]:
        raise BenchError(
            f"{figures['errors']} requests failed, {figures['wrong']} of {figures['checked']} reads are wrong"
        )
    return figures


def _gap(gaps: list[tuple[int, int]], event: Restart) -> tuple[int, int]:
    """Return the longest time without a completion, of any queue, that the restart is in."""
    of_event = [(begin, end) for begin, end in gaps if begin < event.started and end > event.spawned]
    if not of_event:
        raise BenchError("the driver has not noticed a restart")
    return max(of_event, key=lambda gap: gap[1] - gap[0])


def _row(what: str, times_ms: list[float], target_ms: float | None) -> list[str]:
    p99 = quantiles(times_ms, n=100, method="inclusive")[98]
    shown = [what, number(median(times_ms)), number(p99), number(max(times_ms))]
    return [*shown, "", ""] if target_ms is None else [*shown, f"p99 ≤ {target_ms:g}", verdict(p99 <= target_ms)]
