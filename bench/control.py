"""The tables of the control plane: C4, calls by JSON-RPC; C7, the daemon's start."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench.daemon import BLOCK_BYTES, STRIPE_KIB, UBI_METADATA_BYTES, Daemon, seconds_to_start
from bench.files import write_image
from bench.process import BenchError
from bench.report import number, table, verdict
from bench.rpc import RpcClient

PIPELINE_DEPTH = 64
WARM_UP_CALLS = 200
CALLS: tuple[tuple[str, dict[str, object]], ...] = (
    ("spdk_get_version", {}),
    ("bdev_get_bdevs", {"name": "malloc0"}),
)
LATENCY_TARGET_MS = 1.0
RATE_TARGET = 5000
START_TARGET_S = 1.0
IMAGE_BYTES = 64 << 20


def run_c4(python: Path, folder: Path, calls: int) -> tuple[str, dict[str, Any]]:
    """Measure `calls` calls of each method one after the other, then as many with many in flight."""
    rows, record = [], {}
    with Daemon.running(python, folder) as daemon, daemon.client() as client:
        client.call("bdev_malloc_create", name="malloc0", num_blocks=2048, block_size=512)
        for method, params in CALLS:
            sequential(client, method, params, WARM_UP_CALLS)
            latencies_ms = sequential(client, method, params, calls)
            rate = _pipelined(client, method, params, calls)
            p99 = quantiles(latencies_ms, n=100)[98]
            record[method] = {"latencies_ms": latencies_ms, "pipelined_per_s": rate}
            row = [method, number(median(latencies_ms)), number(p99), number(max(latencies_ms))]
            row += [verdict(p99 <= LATENCY_TARGET_MS), number(rate), verdict(rate >= RATE_TARGET)]
            rows.append(row)
    target_ms, target_rate = f"p99 ≤ {LATENCY_TARGET_MS:g}", f"≥ {RATE_TARGET}"
    header = ["method", "p50 ms", "p99 ms", "max ms", target_ms, f"calls/s, {PIPELINE_DEPTH} in flight", target_rate]
    return table("C4: JSON-RPC calls", header, rows), record


def sequential(client: RpcClient, method: str, params: dict[str, object], calls: int) -> list[float]:
    """Return the milliseconds of calls made one after the other."""
    latencies_ms = []
    for _ in range(calls):
        request = client.encode(method, params)
        began = time.perf_counter()
        client.send(request)
        answer = client.receive()
        latencies_ms.append((time.perf_counter() - began) * 1000)
        _check(method, answer)
    return latencies_ms


def _pipelined(client: RpcClient, method: str, params: dict[str, object], calls: int) -> float:
    """Calls a second while PIPELINE_DEPTH of them are in flight; half of those are sent at a time."""
    batch = PIPELINE_DEPTH // 2
    batches = [b"".join(client.encode(method, params) for _ in range(batch)) for _ in range(calls // batch)]
    began = time.perf_counter()
    client.send(batches[0])
    for data in [*batches[1:], b""]:
        client.send(data)
        for _ in range(batch):
            _check(method, client.receive())
    return len(batches) * batch / (time.perf_counter() - began)


def _check(method: str, answer: dict[str, Any]) -> None:
    if "result" not in answer:
        raise BenchError(f"{method}: {answer}")


def run_c7(python: Path, folder: Path, starts: int) -> tuple[str, dict[str, Any]]:
    """Measure starts without a configuration, and with one that has a volume and its export."""
    image, base = folder / "image.raw", folder / "base.raw"
    write_image(image, IMAGE_BYTES)
    with base.open("wb") as file:
        file.truncate(IMAGE_BYTES + UBI_METADATA_BYTES)
    config = folder / "config.json"
    config.write_text(json.dumps(_config(folder, image, base)))
    rows, record = [], {}
    for name, path in (("no configuration", None), ("a volume and its export", config)):
        seconds = [seconds_to_start(python, folder, path) for _ in range(starts)]
        record[name] = seconds
        rows.append([name, number(median(seconds)), number(max(seconds)), verdict(median(seconds) <= START_TARGET_S)])
    header = ["start with", "median s", "max s", f"median ≤ {START_TARGET_S:g}"]
    return table(f"C7: from exec to ready, {starts} starts each", header, rows), record


def _config(folder: Path, image: Path, base: Path) -> dict[str, Any]:
    aio = {"name": "aio0", "filename": str(base), "block_size": BLOCK_BYTES, "cache": "writeback"}
    ubi = {"name": "ubi0", "base_bdev": "aio0", "image_path": str(image), "stripe_size_kb": STRIPE_KIB}
    export = {"bdev_name": "ubi0", "socket": str(folder / "nbd.sock")}
    bdevs = [{"method": "bdev_aio_create", "params": aio}, {"method": "bdev_ubi_create", "params": ubi}]
    exports = [{"method": "nbd_create_export", "params": export}]
    return {"subsystems": [{"subsystem": "bdev", "config": bdevs}, {"subsystem": "nbd", "config": exports}]}
