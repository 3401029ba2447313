"""Interleaved runs of the same load on several servers, and their medians."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from statistics import mean, median

from bench.files import settle, warm
from bench.host import Host
from bench.load import Cell, Clients, Sample
from bench.servers import Target

WARM_UP_S = 0.3


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often.

    Args:
        seconds: of each sample.
        rounds: samples of each server in each cell; the servers take turns.
        parts: runs that make a sample, in shares of its time. Our daemon gives each connection to another reactor, and
            neither reactors nor CPUs are alike: what compares it with itself has, as a rule, a part for each.
        host: keeps disturbed runs out.
    """

    seconds: float
    rounds: int
    parts: int = 1
    host: Host = field(default_factory=Host)

    @property
    def warm_up_s(self) -> float:
        """How long a server is under load before it is measured."""
        return min(WARM_UP_S, self.seconds)


@dataclass(frozen=True, slots=True)
class Result:
    """One server in one cell: every run, in order."""

    cell: Cell
    target: str
    samples: tuple[Sample, ...]

    @property
    def median(self) -> Sample:
        """The median of each figure."""
        return _together(median, self.samples)


def _together(how: Callable[[Iterable[float]], float], samples: Sequence[Sample]) -> Sample:
    """One figure for those of several samples, of each kind."""
    return Sample(**{one.name: how(getattr(sample, one.name) for sample in samples) for one in fields(Sample)})


def compare(clients: Clients, targets: list[Target], cells: list[Cell], plan: Plan) -> list[Result]:
    """Measure every cell on every target: A B C, C B A, and so on."""
    return [result for cell in cells for result in _compare_cell(clients, targets, cell, plan)]


def _compare_cell(clients: Clients, targets: list[Target], cell: Cell, plan: Plan) -> list[Result]:
    samples: dict[str, list[Sample]] = {target.name: [] for target in targets}
    warm(*{target.file for target in targets})
    for turn in range(plan.rounds):
        for target in targets if turn % 2 == 0 else reversed(targets):
            progress(f"{cell}: round {turn + 1} of {plan.rounds}, {target.name}")
            clients.run(target, cell, plan.warm_up_s)
            run = partial(_run, clients, target, cell, plan.seconds / plan.parts)
            parts = [plan.host.undisturbed(run) for _ in range(plan.parts)]
            samples[target.name].append(_together(mean, parts))
    progress("")
    return [Result(cell, name, tuple(runs)) for name, runs in samples.items()]


def _run(clients: Clients, target: Target, cell: Cell, seconds: float) -> Sample:
    sample = clients.run(target, cell, seconds)
    if cell.writes:
        settle(target.file)
    return sample


def progress(text: str) -> None:
    """Show what is going on, on a terminal's last line."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
