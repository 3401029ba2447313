"""The table of O_DIRECT: P7, what is left of a file's own rate when it is served by NBD.

All use the same blocks, those where our volume keeps its data: fio with io_uring on the bare file, qemu-nbd, and ours.
"""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from bench.compare import Plan, progress
from bench.daemon import UBI_METADATA_BYTES, Daemon
from bench.load import Cell, Client, Clients, Pattern, run_fio
from bench.report import number, table, verdict
from bench.servers import OURS, QEMU_DIRECT, Files, Ours, Target, start_peer

BLOCK_BYTES = 4096
FILE_DEPTH = 32
OUR_DEPTHS = (64, 128)
OF_FILE_TARGET = 0.9
OF_PEER_TARGET = 1.4
FILE = "bare file"
PATTERNS: tuple[Pattern, ...] = ("randread", "randwrite")
CLIENTS: tuple[Client, ...] = ("nbd-load", "fio")
CELLS = tuple(
    Cell(client, pattern, BLOCK_BYTES, depth) for depth in OUR_DEPTHS for pattern in PATTERNS for client in CLIENTS
)

Rates: TypeAlias = dict[str, list[float]]


def run_p7(python: Path, clients: Clients, files: Files, plan: Plan, only: str) -> tuple[str, dict[str, Any]]:
    """Measure the bare file and its servers in turn, round by round."""
    files.write()
    cells = [cell for cell in CELLS if only in str(cell)]
    with ExitStack() as stack:
        targets = _start(python, files, stack)
        _leave_cache(files)
        rates = {cell: _measure(clients, targets, files.base, cell, plan) for cell in cells}
    names = [FILE, *(target.name for target in targets)]
    rows = [row_of(cell, names, rates[cell]) for cell in cells]
    header = ["load", f"{FILE} qd{FILE_DEPTH}", *names[1:]]
    header += [f"of the file, ≥ {OF_FILE_TARGET}", "met", f"of qemu-nbd, ≥ {OF_PEER_TARGET}", "met"]
    record = {"plan": asdict(plan), "size_bytes": files.size_bytes, "iops": {str(cell): rates[cell] for cell in cells}}
    return table("P7: O_DIRECT, 4 KiB random (requests a second)", header, rows) + plan.host.note(), record


def _start(python: Path, files: Files, stack: ExitStack) -> list[Target]:
    """Our volume, and qemu-nbd on its base."""
    ours = Ours(stack.enter_context(Daemon.running(python, files.folder)), files)
    return [ours.volume, start_peer(QEMU_DIRECT, files, stack, files.base)]


def _leave_cache(files: Files) -> None:
    """What lies in the page cache would be written back, or dropped, under the load."""
    for path in (files.base, files.image):
        subprocess.run(["sync", "-d", str(path)], check=True)


def _measure(clients: Clients, targets: list[Target], file: Path, cell: Cell, plan: Plan) -> Rates:
    rates: Rates = {FILE: [], **{target.name: [] for target in targets}}
    engine = ["--ioengine=io_uring", "--direct=1", f"--filename={file}", f"--offset={UBI_METADATA_BYTES}"]
    bare = replace(cell, client="fio", queue_depth=FILE_DEPTH)
    for turn in range(plan.rounds):
        progress(f"{cell}: round {turn + 1} of {plan.rounds}")
        run_fio([], engine, FILE, bare, plan.warm_up_s)
        rates[FILE].append(plan.host.undisturbed(partial(run_fio, [], engine, FILE, bare, plan.seconds)).iops)
        for target in targets:
            clients.run(target, cell, plan.warm_up_s)
            sample = plan.host.undisturbed(partial(clients.run, target, cell, plan.seconds))
            rates[target.name].append(sample.iops)
    progress("")
    return rates


def row_of(cell: Cell, names: list[str], rates: Rates) -> list[str]:
    """A load's rates by name, and what our volume's is of the file's and of the peer's, each median by itself."""
    shown = [str(cell), *(number(median(rates[name])) for name in names)]
    for rival, target in ((FILE, OF_FILE_TARGET), (QEMU_DIRECT.name, OF_PEER_TARGET)):
        ratio = median(own / other for own, other in zip(rates[OURS], rates[rival], strict=True))
        shown += [f"{ratio:.2f}", verdict(ratio >= target)]
    return shown
