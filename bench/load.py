"""The two clients: nbd-load, which batches, and fio, which is what users see."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.daemon import CHECKOUT
from bench.process import BenchError, run
from bench.servers import Target

Client = Literal["nbd-load", "fio"]
Pattern = Literal["randread", "randwrite", "read", "write"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of load.

    Args:
        client: who makes it.
        pattern: as fio names it.
        block_bytes: bytes a request.
        queue_depth: requests in flight on each connection.
        pinned: client and server share one CPU: what is measured is code, not the waking of an idle CPU.
        connections: each with a thread or process of its own; in sequential loads each has its own stretch.
    """

    client: Client
    pattern: Pattern
    block_bytes: int
    queue_depth: int
    pinned: bool = False
    connections: int = 1

    @property
    def writes(self) -> bool:
        """Whether it writes."""
        return "write" in self.pattern

    def __str__(self) -> str:
        pinned = " one core" if self.pinned else ""
        depth = f"{self.connections}x" if self.connections > 1 else ""
        return f"{self.pattern} {self.block_bytes >> 10}k qd{depth}{self.queue_depth}{pinned} {self.client}"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run came to.

    Args:
        iops: requests a second.
        mib_s: MiB a second.
        p50_us: median latency.
        p99_us: latency that one of a hundred exceeds.
        cpu_us: CPU time of the server for each request.
    """

    iops: float
    mib_s: float
    p50_us: float
    p99_us: float
    cpu_us: float


@dataclass(frozen=True, slots=True)
class Counts:
    """What a client says of its run: as `Sample`, and how many requests there were with those of the warm-up."""

    iops: float
    p50_us: float
    p99_us: float
    requests: int


def build_nbd_load() -> Path:
    """Build nbd-load and return its path."""
    return build_client("nbd-load")


def build_client(name: str) -> Path:
    """Build one of the load generators and return its path."""
    if shutil.which("cargo") is None:
        raise BenchError(f"cargo is not on the PATH; build {name} elsewhere and name it with --{name}")
    manifest = str(CHECKOUT / "native/Cargo.toml")
    command = ["cargo", "build", "--release", "--locked", "--manifest-path", manifest, "-p", "ubi-bench"]
    lines = run([*command, "--message-format", "json"]).splitlines()
    artifacts = (json.loads(line) for line in lines)
    built = (Path(item["executable"]) for item in artifacts if item.get("executable"))
    return next(path for path in built if path.name == name)


class Clients:
    """Runs a load on a target.

    Args:
        nbd_load: the program.
        pin_cpu: the CPU of pinned cells.
    """

    def __init__(self, nbd_load: Path, pin_cpu: int) -> None:
        self._nbd_load = nbd_load
        self._pin_cpu = pin_cpu

    def run(self, target: Target, cell: Cell, seconds: float) -> Sample:
        """Load a target and return what it did.

        Raises:
            BenchError: a request failed, or the client did.
        """
        prefix = ["taskset", "-c", str(self._pin_cpu)] if cell.pinned else []
        measure = self._run_fio if cell.client == "fio" else self._run_nbd_load
        with target.process.on_cpus({self._pin_cpu}) if cell.pinned else nullcontext():
            before = target.process.cpu_s()
            counts = measure(prefix, target, cell, seconds)
            cpu_s = target.process.cpu_s() - before
        return Sample(
            iops=counts.iops,
            mib_s=counts.iops * cell.block_bytes / (1 << 20),
            p50_us=counts.p50_us,
            p99_us=counts.p99_us,
            cpu_us=cpu_s * 1e6 / counts.requests,
        )

    def _run_nbd_load(self, prefix: list[str], target: Target, cell: Cell, seconds: float) -> Counts:
        argv = [str(self._nbd_load), "--uri", target.uri, "--rw", cell.pattern, "--bs", str(cell.block_bytes)]
        argv += ["--qd", str(cell.queue_depth), "--connections", str(cell.connections), "--seconds", str(seconds)]
        figures = json.loads(run([*prefix, *argv]))
        if figures["errors"]:
            raise BenchError(f"{target.name}: {figures['errors']} requests failed")
        return Counts(figures["iops"], figures["p50_us"], figures["p99_us"], figures["total"])

    def _run_fio(self, prefix: list[str], target: Target, cell: Cell, seconds: float) -> Counts:
        return run_fio(prefix, ["--ioengine=nbd", f"--uri={target.uri}"], target.name, cell, seconds)


def run_fio(prefix: list[str], engine: list[str], name: str, cell: Cell, seconds: float) -> Counts:
    """Let fio make the load of a cell with the engine that is given; `name` says of what.

    Raises:
        BenchError: a request failed, or fio did.
    """
    with tempfile.NamedTemporaryFile(suffix=".json") as output:
        argv = ["fio", "--name=load", *engine, f"--rw={cell.pattern}", f"--bs={cell.block_bytes}"]
        argv += [f"--iodepth={cell.queue_depth}", "--size=100%", "--time_based", f"--runtime={int(seconds * 1000)}ms"]
        argv += ["--norandommap", "--randrepeat=0", "--output-format=json", f"--output={output.name}"]
        if cell.connections > 1:
            argv += [f"--numjobs={cell.connections}", "--group_reporting"]
            argv += [] if cell.pattern.startswith("rand") else [f"--offset_increment={100 // cell.connections}%"]
        run([*prefix, *argv])  # the engine prints on stdout too, so the figures go to a file
        job = json.loads(Path(output.name).read_text())["jobs"][0]
    if job["error"]:
        raise BenchError(f"{name}: fio stopped with error {job['error']}")
    side = job["write" if cell.writes else "read"]
    percentiles = side["clat_ns"]["percentile"]
    p50, p99 = percentiles["50.000000"] / 1000, percentiles["99.000000"] / 1000
    return Counts(side["iops"], p50, p99, side["total_ios"])
