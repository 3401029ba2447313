"""The table of virtual machines' disks: P5, and with it the part of P6 that is about them.

A driver without a machine (native/bench, vhost-load) keeps the queues of each backend full, in turns. It looks at its
rings all the time (polling), or sleeps until it is notified (sleeping), as a guest's kernel does.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeAlias

from bench.compare import WARM_UP_S, Plan, progress
from bench.files import settle, warm
from bench.load import Sample
from bench.process import BenchError, run
from bench.report import number, table, verdict
from bench.vhost_servers import KINDS, OURS, Backend, Kind, running

SMALL_BYTES = 4096
LARGE_BYTES = 128 << 10
CPU_TARGET = 0.5
TMPFS = Path("/dev/shm")

Pattern = Literal["randread", "randwrite", "read"]


@dataclass(frozen=True, slots=True)
class VhostCell:
    """One kind of load.

    Args:
        kind: of the base.
        pattern: as fio names it.
        block_bytes: bytes a request.
        queue_depth: requests in flight on each queue.
        queues: each with a thread of the driver.
        polling: the driver looks at its rings all the time.
    """

    kind: Kind
    pattern: Pattern
    block_bytes: int
    queue_depth: int
    queues: int
    polling: bool

    @property
    def writes(self) -> bool:
        """Whether it writes."""
        return self.pattern == "randwrite"

    @property
    def target(self) -> float | None:
        """The ratio to the better peer that P5 asks for; None: none."""
        if self.block_bytes == LARGE_BYTES:
            return None if self.kind == "malloc" else 1.0  # the device that stores nothing moves nothing either
        match self.kind:
            case "malloc":
                return 1.3
            case "direct":
                return 1.3 if self.queue_depth == 1 else 1.0
            case _:
                return None if self.writes else 2.0

    @property
    def cpu_target(self) -> float | None:
        """The ratio of CPU time for each request; None: none."""
        return CPU_TARGET if self.target == 2.0 else None

    def __str__(self) -> str:
        driver = "polling" if self.polling else "sleeping"
        return f"{self.kind} {self.pattern} {self.block_bytes >> 10}k qd{self.queue_depth} q{self.queues} {driver}"


_SHAPES: tuple[tuple[Pattern, int], ...] = (
    ("randread", SMALL_BYTES),
    ("randwrite", SMALL_BYTES),
    ("read", LARGE_BYTES),
)
CELLS = tuple(
    VhostCell(kind, pattern, size, depth, queues, polling)
    for kind in KINDS
    for pattern, size in _SHAPES
    for depth in (1, 32)
    for queues in (1, 2)
    for polling in (True, False)
)

Samples: TypeAlias = dict[tuple[VhostCell, str], list[Sample]]


@dataclass(frozen=True, slots=True)
class VhostSetup:
    """What the table is run with.

    Args:
        python: runs our daemon.
        vhost_load: the driver.
        folder: empty; its file system is measured with the bases.
        size_bytes: of each base.
    """

    python: Path
    vhost_load: Path
    folder: Path
    size_bytes: int


def run_p5(setup: VhostSetup, plan: Plan, only: str) -> tuple[str, dict[str, Any]]:
    """Measure every kind of base, cell by cell, the backends taking turns; `only` is part of a cell's name."""
    samples: Samples = {}
    names: list[str] = []
    for kind in KINDS:
        cells = [cell for cell in CELLS if cell.kind == kind and only in str(cell)]
        if not cells:
            continue
        with (
            tempfile.TemporaryDirectory(dir=TMPFS if kind == "tmpfs" else setup.folder) as place,
            running(setup.python, kind, Path(place), setup.size_bytes) as backends,
        ):
            names = [backend.name for backend in backends]
            for cell in cells:
                samples |= _measure(setup.vhost_load, backends, cell, plan)
    if not names:
        raise BenchError(f"no load is called {only!r}")
    results = [
        {"cell": str(cell), "server": name, "samples": [asdict(sample) for sample in runs]}
        for (cell, name), runs in samples.items()
    ]
    return _tables(names, samples) + plan.host.note(), {
        "plan": asdict(plan),
        "size_bytes": setup.size_bytes,
        "results": results,
    }


def _measure(vhost_load: Path, backends: list[Backend], cell: VhostCell, plan: Plan) -> Samples:
    samples: Samples = {(cell, backend.name): [] for backend in backends}
    if cell.kind == "cached":
        warm(*{backend.file for backend in backends if backend.file})
    for turn in range(plan.rounds):
        for backend in backends:
            progress(f"{cell}: round {turn + 1} of {plan.rounds}, {backend.name}")
            one = plan.host.undisturbed(partial(_load, vhost_load, backend, cell, plan.seconds))
            samples[cell, backend.name].append(one)
    progress("")
    return samples


def _load(vhost_load: Path, backend: Backend, cell: VhostCell, seconds: float) -> Sample:
    argv = [str(vhost_load), "--socket", str(backend.socket), "--rw", cell.pattern, "--bs", str(cell.block_bytes)]
    argv += ["--qd", str(cell.queue_depth), "--queues", str(cell.queues)]
    argv += ["--seconds", str(seconds), "--ramp", str(WARM_UP_S)] + (["--busy-poll"] if cell.polling else [])
    before = backend.process.cpu_s()
    figures = json.loads(run(argv))
    cpu_s = backend.process.cpu_s() - before
    if cell.writes and backend.file and cell.kind != "tmpfs":
        settle(backend.file)
    if figures["errors"]:
        raise BenchError(f"{backend.name}: {figures['errors']} requests failed")
    rates = {field.name: figures[field.name] for field in fields(Sample) if field.name != "cpu_us"}
    return Sample(**rates, cpu_us=cpu_s * 1e6 / figures["total"])


def _tables(names: list[str], samples: Samples) -> str:
    cells = list(dict.fromkeys(cell for cell, _ in samples))
    header = [*names, "ratio, median of rounds", "target", "met"]
    rates, costs = [], []
    for cell in cells:
        unit = "iops" if cell.block_bytes == SMALL_BYTES else "mib_s"
        rates.append([str(cell), *_row(samples, cell, names, unit)])
        costs.append([str(cell), *_row(samples, cell, names, "cpu_us")])
    title = "P5: vhost-user-blk (4 KiB: requests a second, 128 KiB: MiB a second)"
    cost_title = "P6: CPU time of the server for each request in the same runs (µs)"
    return table(title, ["load", *header], rates) + "\n" + table(cost_title, ["load", *header], costs)


def _row(samples: Samples, cell: VhostCell, names: list[str], figure: str) -> list[str]:
    """Medians, the ratio to the better of the others, the one to reach, and whether it is."""
    cost = figure == "cpu_us"
    runs = {name: [float(getattr(one, figure)) for one in samples[cell, name]] for name in names}
    shown = [number(median(runs[name])) for name in names]
    best = _best((runs[name] for name in names if name != OURS), cost=cost)
    ratio = median(own / max(other, 1e-9) for own, other in zip(runs[OURS], best, strict=True))
    target = cell.cpu_target if cost else cell.target
    if target is None:
        return [*shown, f"{ratio:.2f}", "", ""]
    met = ratio <= target if cost else ratio >= target
    return [*shown, f"{ratio:.2f}", f"{'≤' if cost else '≥'} {target:.2f}", verdict(met)]


def _best(rivals: Iterable[list[float]], *, cost: bool) -> list[float]:
    return min(rivals, key=median) if cost else max(rivals, key=median)
