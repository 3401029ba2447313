"""The tables of the data path: what each measures, and what it has to reach.

Figures of one table come from one run, in which the servers took turns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from bench import servers
from bench.compare import Plan, Result, compare
from bench.load import Cell, Client, Clients, Pattern
from bench.report import number, table, verdict
from bench.servers import OURS, OURS_BARE, PEERS, Files

SMALL_BYTES = 4096
LARGE_BYTES = 128 << 10
CLIENTS: tuple[Client, ...] = ("nbd-load", "fio")
RANDOM: tuple[Pattern, ...] = ("randread", "randwrite")
SEQUENTIAL: tuple[Pattern, ...] = ("read", "write")
PEER_NAMES = tuple(peer.name for peer in PEERS)


@dataclass(frozen=True, slots=True)
class DataTable:
    """A table of the data path.

    Args:
        title: what it shows.
        cells: its rows.
        against: whom our volume is compared with.
        others: who is shown beside them.
        target: the ratio that a row has to reach; None: it is only shown.
        cost: it is CPU time for each request that counts, less being better, not the rate.
        parts: see `Plan`.
    """

    title: str
    cells: tuple[Cell, ...]
    against: tuple[str, ...]
    others: tuple[str, ...]
    target: Callable[[Cell], float | None]
    cost: bool = False
    parts: int = 1


def _small_target(cell: Cell) -> float:
    """P1: waking a CPU costs everybody the same, so qd1 on one core has a ratio of its own.

    It is the client that does least that measures it: fio's own work is half of that core.
    """
    if cell.queue_depth == 1:
        return 1.4 if cell.pinned and cell.client == "nbd-load" else 1.0
    if cell.client == "nbd-load":
        return 1.7
    return 1.15 if cell.writes else 1.3


def _large_target(cell: Cell) -> float:
    return 1.2 if cell.writes else 1.7


def _spread_target(cell: Cell) -> float | None:
    """P3: large writes of one file are one after another in the file system, whoever serves it."""
    if cell.block_bytes > SMALL_BYTES:
        return None if cell.writes else 1.5
    return 1.5 if cell.client == "fio" else 2.0


_DEEP = tuple(Cell(client, pattern, SMALL_BYTES, 32) for pattern in RANDOM for client in CLIENTS)
_SINGLE = tuple(
    Cell(client, pattern, SMALL_BYTES, 1, pinned)
    for pattern in RANDOM
    for pinned in (False, True)
    for client in CLIENTS
)
_LARGE = tuple(Cell(client, pattern, LARGE_BYTES, 8) for pattern in SEQUENTIAL for client in CLIENTS)
_SPREAD = tuple(replace(cell, connections=4) for cell in _DEEP + _LARGE)

DATA_TABLES = {
    "p1": DataTable(
        "P1: 4 KiB random, page-cached file, every stripe present (requests a second)",
        _SINGLE + _DEEP,
        PEER_NAMES,
        (OURS_BARE,),
        _small_target,
    ),
    "p2": DataTable(
        "P2: 128 KiB sequential, queue depth 8 (MiB a second)", _LARGE, PEER_NAMES, (OURS_BARE,), _large_target
    ),
    "p3": DataTable(
        "P3: four connections, each with so many requests in flight (4 KiB: requests a second, 128 KiB: MiB a second)",
        _SPREAD,
        PEER_NAMES,
        (OURS_BARE,),
        _spread_target,
    ),
    "p4": DataTable(
        "P4: the overlay against a bare bdev such as its base is",
        tuple(cell for cell in _SINGLE + _DEEP + _LARGE if cell.client == "nbd-load"),
        (OURS_BARE,),
        (),
        lambda _: 0.97,
        parts=2,
    ),
    "p6": DataTable(
        "P6: CPU time of the server for each request at queue depth 32 (µs, user and system)",
        _DEEP,
        PEER_NAMES,
        (OURS_BARE,),
        lambda _: 1.0,
        cost=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Setup:
    """What the tables of the data path are run with.

    Args:
        python: runs our daemon.
        nbd_load: the batching client.
        files: what is served, in an empty folder; its file system is measured with them.
        plan: how long and how often.
        only: part of a cell's name; the other cells are left out.
        servers: names; the other servers are left out. Empty: none is.
        pin_cpu: the CPU of pinned cells.
    """

    python: Path
    nbd_load: Path
    files: Files
    plan: Plan
    only: str
    servers: tuple[str, ...]
    pin_cpu: int


def run_data_table(spec: DataTable, setup: Setup) -> tuple[str, dict[str, Any]]:
    """Measure a table; return it for people and for programs."""
    cells = [cell for cell in spec.cells if setup.only in str(cell)]
    names = [name for name in (OURS, *spec.others, *spec.against) if not setup.servers or name in setup.servers]
    with servers.running(setup.python, setup.files, names) as targets:
        results = compare(Clients(setup.nbd_load, setup.pin_cpu), targets, cells, replace(setup.plan, parts=spec.parts))
        shown = [target.name for target in targets]
    text = [_main_table(spec, cells, shown, results)]
    if not spec.cost:
        text.append(_cost_table(cells, shown, results))
    record = {
        "plan": asdict(setup.plan),
        "size_bytes": setup.files.size_bytes,
        "results": [
            {"cell": str(one.cell), "server": one.target, "samples": [asdict(sample) for sample in one.samples]}
            for one in results
        ],
    }
    return "\n".join(text) + setup.plan.host.note(), record


def _figures(result: Result, *, cost: bool) -> list[float]:
    """What counts of each run, in order."""
    large = result.cell.block_bytes > SMALL_BYTES
    return [one.cpu_us if cost else one.mib_s if large else one.iops for one in result.samples]


def _main_table(spec: DataTable, cells: list[Cell], shown: list[str], results: list[Result]) -> str:
    figures = {(one.cell, one.target): _figures(one, cost=spec.cost) for one in results}
    rows = []
    for cell in cells:
        row = [str(cell), *(number(median(figures[cell, name])) for name in shown)]
        rivals = [figures[cell, name] for name in spec.against if name in shown]
        rows.append(row + _verdict(spec, cell, figures.get((cell, OURS)), rivals))
    return table(spec.title, ["load", *shown, "ratio, median of rounds", "target", "met"], rows)


def _verdict(spec: DataTable, cell: Cell, ours: list[float] | None, rivals: list[list[float]]) -> list[str]:
    """Ratio to the best of the others, the one to reach, and whether it is; empty where one side is missing.

    The best is who has the best median. The ratio is the median of those of the rounds: what disturbs the machine for
    a while disturbs both sides of a round.
    """
    if ours is None or not rivals:
        return ["", "", ""]
    best = min(rivals, key=median) if spec.cost else max(rivals, key=median)
    ratio, target = median(own / other for own, other in zip(ours, best, strict=True)), spec.target(cell)
    if target is None:
        return [f"{ratio:.2f}", "", ""]
    met = ratio <= target if spec.cost else ratio >= target
    return [f"{ratio:.2f}", f"{'≤' if spec.cost else '≥'} {target:.2f}", verdict(met)]


def _cost_table(cells: list[Cell], shown: list[str], results: list[Result]) -> str:
    figures = {(one.cell, one.target): one.median.cpu_us for one in results}
    rows = [[str(cell), *(number(figures[cell, name]) for name in shown)] for cell in cells]
    return table("CPU time of the server for each request in the same runs (µs)", ["load", *shown], rows)
