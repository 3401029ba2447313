"""The tables of who is served how: C5, calls while data are moved; C6, rpc.py; and calls in a crowd of clients."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench.control import CALLS, sequential
from bench.daemon import CHECKOUT, Daemon
from bench.process import BenchError
from bench.report import number, table, verdict
from bench.rpc import RpcClient

LOADED_TARGET_MS = 20.0
START_TARGET_MS = 80.0
CROWD_TARGET_MS = 50.0
CROWD, SLOW = 5000, 200
SLOW_PAUSE_S = 0.01
ENDLESS = b'{"id":1,"method":"'


def run_c5(python: Path, folder: Path, nbd_load: Path, calls: int) -> tuple[str, dict[str, Any]]:
    """Measure calls one after the other while as many clients as there are CPUs keep an export busy."""
    rows, record = [], {}
    with Daemon.running(python, folder) as daemon, daemon.client() as client:
        client.call("bdev_malloc_create", name="malloc0", num_blocks=131072, block_size=512)
        client.call("nbd_create_export", bdev_name="malloc0", socket=str(daemon.nbd_socket))
        for pattern in ("randread", "randwrite"):
            with _load(nbd_load, daemon, pattern):
                for method, params in CALLS:
                    latencies_ms = sequential(client, method, params, calls)
                    record[f"{pattern} {method}"] = latencies_ms
                    rows.append([f"4k {pattern} qd32", method, *_figures(latencies_ms, LOADED_TARGET_MS)])
    header = ["load", "method", "p50 ms", "p99 ms", "max ms", f"p99 ≤ {LOADED_TARGET_MS:g}"]
    return table("C5: calls while the data path is saturated", header, rows), record


@contextlib.contextmanager
def _load(nbd_load: Path, daemon: Daemon, pattern: str) -> Iterator[None]:
    uri = daemon.uri("malloc0")
    argv = [str(nbd_load), "--uri", uri, "--rw", pattern, "--bs", "4096", "--qd", "32", "--seconds", "600"]
    clients = [subprocess.Popen(argv, stdout=subprocess.DEVNULL) for _ in os.sched_getaffinity(0)]
    try:
        time.sleep(0.5)
        yield
        if any(client.poll() is not None for client in clients):
            raise BenchError("a client ended before the measurement did")
    finally:
        for client in clients:
            client.kill()
            client.wait()


def run_c6(python: Path, folder: Path, starts: int) -> tuple[str, dict[str, Any]]:
    """Measure CPU and time of `rpc.py spdk_get_version`, from exec to its end."""
    cpu_ms, wall_ms = [], []
    with Daemon.running(python, folder) as daemon:
        argv = [str(python), str(CHECKOUT / "scripts/rpc.py"), "-s", str(daemon.rpc_socket), "spdk_get_version"]
        for _ in range(starts):
            began = time.perf_counter()
            process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
            _pid, status, usage = os.wait4(process.pid, 0)
            wall_ms.append((time.perf_counter() - began) * 1000)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise BenchError(f"rpc.py ended with {process.returncode}")
            cpu_ms.append((usage.ru_utime + usage.ru_stime) * 1000)
    met = verdict(median(cpu_ms) <= START_TARGET_MS)
    row = [number(median(cpu_ms)), number(max(cpu_ms)), number(median(wall_ms)), met]
    header = ["median ms of CPU", "max", "median ms", f"median ≤ {START_TARGET_MS:g}"]
    return table(f"C6: rpc.py, {starts} calls", header, [row]), {"cpu_ms": cpu_ms, "wall_ms": wall_ms}


def run_crowd(python: Path, folder: Path, calls: int) -> tuple[str, dict[str, Any]]:
    """Measure a client's calls while 5,000 others connect, stay, and 200 of them write a byte now and then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    record: dict[str, Any] = {}
    try:
        with Daemon.running(python, folder) as daemon, contextlib.ExitStack() as crowd, daemon.client() as client:
            record["alone"] = sequential(client, *CALLS[0], calls)
            clients, record["while they connect"] = _connect(daemon, crowd, client)
            record["while they are there"] = sequential(client, *CALLS[0], calls)
            record["while 200 write slowly"] = _among_slow_ones(clients[:SLOW], client, calls)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    rows = [[name, str(len(latencies)), *_figures(latencies, CROWD_TARGET_MS)] for name, latencies in record.items()]
    header = ["when", "calls", "p50 ms", "p99 ms", "max ms", f"p99 ≤ {CROWD_TARGET_MS:g}"]
    return table(f"Crowd: a client's calls among {CROWD} others", header, rows), record


def _connect(daemon: Daemon, crowd: contextlib.ExitStack, client: RpcClient) -> tuple[list[socket.socket], list[float]]:
    clients: list[socket.socket] = []
    latencies_ms: list[float] = []
    while len(clients) < CROWD:
        one = crowd.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        while one.connect_ex(str(daemon.rpc_socket)):
            latencies_ms += sequential(client, *CALLS[0], 1)  # the backlog is full: be served while it is worked off
        clients.append(one)
        if len(clients) % 10 == 0:
            latencies_ms += sequential(client, *CALLS[0], 1)
    return clients, latencies_ms


def _among_slow_ones(slow: list[socket.socket], client: RpcClient, calls: int) -> list[float]:
    latencies_ms: list[float] = []
    sent, due = 0, time.perf_counter()
    while len(latencies_ms) < calls:
        if time.perf_counter() >= due:
            due += SLOW_PAUSE_S
            for one in slow:
                one.send(ENDLESS[sent : sent + 1] or b"x")
            sent += 1
        latencies_ms += sequential(client, *CALLS[0], 1)
    return latencies_ms


def _figures(latencies_ms: list[float], target_ms: float) -> list[str]:
    p99 = quantiles(latencies_ms, n=100)[98]
    met = verdict(p99 <= target_ms)
    return [number(median(latencies_ms)), number(p99), number(max(latencies_ms)), met]
