"""The tables of the overlay: C1, creating; L5, L6, what metadata costs; map, a stripe's first write; open, 100 GiB."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench.daemon import BLOCK_BYTES, UBI_METADATA_BYTES, Daemon
from bench.files import write_image
from bench.process import BenchError, run
from bench.report import number, table, verdict
from bench.rpc import RpcClient

MIB = 1 << 20
GIB = 1 << 30
SMALL_STRIPE_KIB = 64
LARGE_STRIPE_KIB = 1024
PAGE_BYTES = 4096

CREATE_TARGET_MS = 5.0
SYNCS_TARGET = 0.05
OPEN_BYTES = 100 * GIB
FIRST_WRITE_BYTES = 8 * GIB


@dataclass(frozen=True, slots=True)
class Volume:
    """Files of one volume.

    Args:
        image: what it is made from.
        base: what keeps it.
        stripe_kib: size of its stripes.
    """

    image: Path
    base: Path
    stripe_kib: int

    @classmethod
    def sparse(cls, folder: Path, size_bytes: int, stripe_kib: int) -> Volume:
        """An image that is one hole, and a base for it."""
        image, base = folder / "sparse.raw", folder / "sparse.base"
        _truncate(image, size_bytes)
        base.unlink(missing_ok=True)
        _truncate(base, size_bytes + UBI_METADATA_BYTES)
        return cls(image, base, stripe_kib)

    def create_base(self, client: RpcClient, name: str = "ubi0") -> None:
        """Make the bdev of the base of volume `name`."""
        client.call(
            "bdev_aio_create",
            name=f"aio-{name}",
            filename=str(self.base),
            block_size=BLOCK_BYTES,
            cache="writeback",
        )

    def create(self, client: RpcClient, name: str = "ubi0") -> None:
        """Make the volume over its base's bdev."""
        client.call(
            "bdev_ubi_create",
            name=name,
            base_bdev=f"aio-{name}",
            image_path=str(self.image),
            stripe_size_kb=self.stripe_kib,
        )

    def create_all(self, client: RpcClient, name: str = "ubi0") -> None:
        """Make both."""
        self.create_base(client, name)
        self.create(client, name)


def run_c1(python: Path, folder: Path, volumes: int) -> tuple[str, dict[str, Any]]:
    """Measure base, overlay and export of new volumes, from the first request to the last answer."""
    image = folder / "image.raw"
    write_image(image, 64 * MIB)
    bases = [folder / f"base{index}.raw" for index in range(volumes)]
    for base in bases:
        _truncate(base, 64 * MIB + UBI_METADATA_BYTES)
    with Daemon.running(python, folder) as daemon, daemon.client() as client:
        took_ms = []
        for index, base in enumerate(bases):
            began = time.perf_counter()
            Volume(image, base, LARGE_STRIPE_KIB).create_all(client, f"ubi{index}")
            client.call("nbd_create_export", bdev_name=f"ubi{index}", socket=str(daemon.nbd_socket))
            took_ms.append((time.perf_counter() - began) * 1000)
    p99 = quantiles(took_ms, n=100)[98]
    row = ["base, overlay, export", number(median(took_ms)), number(p99), number(max(took_ms))]
    row.append(verdict(p99 <= CREATE_TARGET_MS))
    header = ["create", "p50 ms", "p99 ms", "max ms", f"p99 ≤ {CREATE_TARGET_MS:g}"]
    return table(f"C1: {volumes} volumes of one image, three calls each", header, [row]), {"took_ms": took_ms}


def run_l5(python: Path, folder: Path, size_mib: int) -> tuple[str, dict[str, Any]]:
    """Measure syncs for each MiB that reads bring to the base, the clean close included."""
    volume = Volume(folder / "image.raw", folder / "base.raw", LARGE_STRIPE_KIB)
    write_image(volume.image, size_mib * MIB)
    _truncate(volume.base, size_mib * MIB + UBI_METADATA_BYTES)
    with Daemon.running(python, folder) as daemon, daemon.client() as client:
        volume.create_all(client)
        client.call("nbd_create_export", bdev_name="ubi0", socket=str(daemon.nbd_socket))
        before = _status(client)
        run(["nbdcopy", daemon.uri("ubi0"), "null:"])
        run(["qemu-io", "-f", "raw", "-c", "flush", daemon.uri("ubi0")])
        after = _status(client)
    fetched_mib = (after["fetched_bytes"] - before["fetched_bytes"]) / MIB
    syncs = after["syncs"] - before["syncs"]
    row = ["read all, flush", number(fetched_mib), str(syncs), f"{syncs / fetched_mib:.4f}"]
    row.append(verdict(syncs / fetched_mib <= SYNCS_TARGET))
    header = ["hydration by reads", "MiB fetched", "syncs", "syncs / MiB", f"≤ {SYNCS_TARGET:g}"]
    return table("L5: syncs for metadata", header, [row]), {"before": before, "after": after}


def run_l6(python: Path, folder: Path, flushes: int) -> tuple[str, dict[str, Any]]:
    """Measure metadata bytes a flush: each follows a first write to a stripe, and to one in each of four pages."""
    rows, record = [], {}
    stripe, page = SMALL_STRIPE_KIB << 10, PAGE_BYTES // 2 * (SMALL_STRIPE_KIB << 10)
    for pages in (1, 4):
        volume = Volume.sparse(folder, 4 * page + flushes * stripe, SMALL_STRIPE_KIB)
        commands = []
        for index in range(flushes):
            writes = [f"write -q {at * page + (index + 1) * stripe} 64k" for at in range(pages)]
            commands += [*writes, "flush"]
        with Daemon.running(python, folder) as daemon, daemon.client() as client:
            volume.create_all(client)
            client.call("nbd_create_export", bdev_name="ubi0", socket=str(daemon.nbd_socket))
            run(["qemu-io", "-f", "raw", *_each("-c", ["write -q 0 64k", "flush"]), daemon.uri("ubi0")])
            before = _status(client)
            run(["qemu-io", "-f", "raw", *_each("-c", commands), daemon.uri("ubi0")])
            after = _status(client)
        per_flush = (after["metadata_bytes_written"] - before["metadata_bytes_written"]) / flushes
        record[str(pages)] = {"before": before, "after": after}
        limit = PAGE_BYTES * pages
        rows.append([str(pages), f"{per_flush:.0f}", str(limit), verdict(per_flush <= limit)])
    header = ["pages changed", "bytes a flush", "4 KiB a page", "met"]
    return table(f"L6: metadata bytes, {flushes} flushes", header, rows), record


def run_map(python: Path, folder: Path, nbd_load: Path, rounds: int, seconds: float) -> tuple[str, dict[str, Any]]:
    """Measure first writes of whole stripes: acknowledged by the volatile map, and without one by the header."""
    record: dict[str, list[dict[str, Any]]] = {"volatile map": [], "no map: header first": []}
    for _ in range(rounds):
        for name, samples in record.items():
            volume = Volume.sparse(folder, FIRST_WRITE_BYTES, SMALL_STRIPE_KIB)
            with _daemon(python, folder, has_map=name == "volatile map") as daemon, daemon.client() as client:
                volume.create_all(client)
                client.call("nbd_create_export", bdev_name="ubi0", socket=str(daemon.nbd_socket))
                argv = [str(nbd_load), "--uri", daemon.uri("ubi0"), "--rw", "write", "--bs", "64K", "--qd", "1"]
                sample = json.loads(run([*argv, "--seconds", str(seconds)]))
                sample["present"] = _status(client)["stripes_present"]
            if sample["total"] > FIRST_WRITE_BYTES // (SMALL_STRIPE_KIB << 10):
                raise BenchError("stripes were written twice: give a shorter --seconds")
            samples.append(sample)
    rows = [
        [name, *(number(median(sample[key] for sample in samples)) for key in ("p50_us", "p99_us", "iops"))]
        for name, samples in record.items()
    ]
    header = ["acknowledged by", "p50 µs", "p99 µs", "writes/s"]
    return table("Map: the first write to a 64 KiB stripe, whole, one at a time", header, rows), record


def run_open(python: Path, folder: Path, rounds: int) -> tuple[str, dict[str, Any]]:
    """Measure bdev_ubi_create of a volume of 100 GiB: new, closed, and left open by a daemon that was killed."""
    rows, record = [], {}
    for stripe_kib in (LARGE_STRIPE_KIB, SMALL_STRIPE_KIB):
        took: dict[str, list[float]] = {"new": [], "clean": [], "unclean": []}
        for _ in range(rounds):
            volume = Volume.sparse(folder, OPEN_BYTES, stripe_kib)
            with Daemon.running(python, folder) as daemon:
                took["new"].append(_time_create(daemon, volume))
            with Daemon.running(python, folder) as daemon, daemon.client() as client:
                took["clean"].append(_time_create(daemon, volume))
                client.call("nbd_create_export", bdev_name="ubi0", socket=str(daemon.nbd_socket))
                run(["qemu-io", "-f", "raw", "-c", "write -q 0 1M", "-c", "write -q 50G 1M", daemon.uri("ubi0")])
                daemon.process.kill()
            with Daemon.running(python, folder) as daemon:
                took["unclean"].append(_time_create(daemon, volume))
        record[str(stripe_kib)] = took
        rows.append([f"{stripe_kib} KiB", *(number(median(times)) for times in took.values())])
    header = ["stripes of", "new, ms", "clean, ms", "unclean, ms"]
    return table("Open: bdev_ubi_create of 100 GiB", header, rows), record


def _time_create(daemon: Daemon, volume: Volume) -> float:
    """Milliseconds of bdev_ubi_create alone."""
    with daemon.client() as client:
        volume.create_base(client)
        began = time.perf_counter()
        volume.create(client)
        return (time.perf_counter() - began) * 1000


@contextmanager
def _daemon(python: Path, folder: Path, has_map: bool) -> Iterator[Daemon]:
    """A daemon whose state folder can hold maps, or cannot."""
    state = folder / "state"
    shutil.rmtree(state, ignore_errors=True)
    state.unlink(missing_ok=True) if state.is_file() else None
    with Daemon.running(python, folder) as daemon:
        if not has_map:
            # A file in the folder's place, also for root: no map can be made there.
            shutil.rmtree(state, ignore_errors=True)
            state.write_bytes(b"")
        yield daemon
    state.unlink() if state.is_file() else None


def _status(client: RpcClient) -> dict[str, Any]:
    answer = client.call("bdev_ubi_get_status", name="ubi0")
    status: dict[str, Any] = answer[0] if isinstance(answer, list) else answer
    return status


def _each(option: str, values: list[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _truncate(path: Path, size_bytes: int) -> None:
    with path.open("ab") as file:
        file.truncate(size_bytes)
