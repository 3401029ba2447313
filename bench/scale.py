"""The tables of many volumes: C2, making and restarting a thousand of one image; C3, what they cost while idle."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from bench.daemon import BLOCK_BYTES, STRIPE_KIB, UBI_METADATA_BYTES, Daemon
from bench.files import write_image
from bench.process import BenchError, Process
from bench.report import number, table, verdict
from bench.rpc import RpcClient

IMAGE_BYTES = 64 << 20
VOLUMES_IN_FLIGHT = 16
CREATE_TARGET_S = 5.0
MEMORY_TARGET_KIB = 1024
RESTART_TARGET_S = 3.0
IDLE_TARGET = 0.005

Call = tuple[str, dict[str, object]]


def run_c2(python: Path, folder: Path, volumes: int) -> tuple[str, dict[str, Any]]:
    """Measure making volumes of one image with their exports, their memory, and a restart with all of them."""
    calls = _volumes(folder, volumes)
    with Daemon.running(python, folder) as daemon:
        before_kib = _rss_kib(daemon.process)
        began = time.perf_counter()
        with daemon.client() as client:
            _make(client, calls)
        create_s = time.perf_counter() - began
        each_kib = (_rss_kib(daemon.process) - before_kib) / volumes
    began = time.perf_counter()
    with Daemon.running(python, folder, _config(folder, calls)) as daemon:
        restart_s = time.perf_counter() - began
        with daemon.client() as client:
            _check_all(client, volumes)
    rows = [
        [
            "made, with base and export",
            f"{create_s:.2f} s",
            f"≤ {CREATE_TARGET_S:g} s",
            verdict(create_s <= CREATE_TARGET_S),
        ],
        [
            "memory of each, idle",
            f"{number(each_kib)} KiB",
            f"≤ {MEMORY_TARGET_KIB} KiB",
            verdict(each_kib <= MEMORY_TARGET_KIB),
        ],
        ["started with all", f"{restart_s:.2f} s", f"≤ {RESTART_TARGET_S:g} s", verdict(restart_s <= RESTART_TARGET_S)],
    ]
    record = {"volumes": volumes, "create_s": create_s, "each_kib": each_kib, "restart_s": restart_s}
    return table(f"C2: {volumes} volumes of one image", ["what", "measured", "target", "met"], rows), record


def run_c3(python: Path, folder: Path, volumes: int, seconds: float) -> tuple[str, dict[str, Any]]:
    """Measure the CPU time of a daemon with `volumes` exported volumes that nobody uses."""
    config = _config(folder, _volumes(folder, volumes))
    with Daemon.running(python, folder, config) as daemon:
        with daemon.client() as client:
            _check_all(client, volumes)
        time.sleep(2)  # what the start left to do is not idleness
        before_s, began = _run_time_s(daemon.process), time.perf_counter()
        time.sleep(seconds)
        share = (_run_time_s(daemon.process) - before_s) / (time.perf_counter() - began)
    row = [
        str(volumes),
        f"{seconds:g} s",
        f"{share * 100:.3f} %",
        f"≤ {IDLE_TARGET * 100:g} %",
        verdict(share <= IDLE_TARGET),
    ]
    header = ["exported volumes", "over", "CPU of one core", "target", "met"]
    return table("C3: an idle daemon", header, [row]), {"volumes": volumes, "seconds": seconds, "share": share}


def _volumes(folder: Path, volumes: int) -> list[list[Call]]:
    """Write the image, make the bases (sparse files); return the calls that make each volume."""
    image = folder / "image.raw"
    write_image(image, IMAGE_BYTES)
    calls: list[list[Call]] = []
    for index in range(volumes):
        base = folder / f"base{index}.raw"
        with base.open("wb") as file:
            file.truncate(IMAGE_BYTES + UBI_METADATA_BYTES)
        aio = {"name": f"aio{index}", "filename": str(base), "block_size": BLOCK_BYTES, "cache": "writeback"}
        ubi = {
            "name": f"ubi{index}",
            "base_bdev": f"aio{index}",
            "image_path": str(image),
            "stripe_size_kb": STRIPE_KIB,
        }
        export: dict[str, object] = {"bdev_name": f"ubi{index}", "socket": str(folder / "nbd.sock")}
        calls.append([("bdev_aio_create", aio), ("bdev_ubi_create", ubi), ("nbd_create_export", export)])
    return calls


def _make(client: RpcClient, calls: list[list[Call]]) -> None:
    """Make volumes, some at a time; the daemon keeps the calls of each in order."""
    for begin in range(0, len(calls), VOLUMES_IN_FLIGHT):
        batch = [call for volume in calls[begin : begin + VOLUMES_IN_FLIGHT] for call in volume]
        client.send(b"".join(client.encode(method, params) for method, params in batch))
        for _ in batch:
            answer = client.receive()
            if "result" not in answer:
                raise BenchError(f"a volume was not made: {answer}")


def _config(folder: Path, calls: list[list[Call]]) -> Path:
    entries = [[{"method": method, "params": params} for method, params in volume] for volume in calls]
    bdevs = [entry for volume in entries for entry in volume[:2]]
    exports = [volume[2] for volume in entries]
    subsystems = [{"subsystem": "bdev", "config": bdevs}, {"subsystem": "nbd", "config": exports}]
    path = folder / "config.json"
    path.write_text(json.dumps({"subsystems": subsystems}))
    return path


def _check_all(client: RpcClient, volumes: int) -> None:
    exports = client.call("nbd_get_exports")
    if len(exports) != volumes:
        raise BenchError(f"{len(exports)} of {volumes} volumes are exported")


def _rss_kib(process: Process) -> int:
    """Resident memory. Source: proc(5), /proc/PID/status, VmRSS."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def _run_time_s(process: Process) -> float:
    """CPU time to the nanosecond, of threads that have ended too. Source: clock_getcpuclockid(3)."""
    return time.clock_gettime((~process.pid << 3) | 2)
