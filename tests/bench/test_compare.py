"""Who runs when, and what a sample is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

from bench.compare import WARM_UP_S, Plan, compare
from bench.host import Host
from bench.load import Cell, Clients, Sample
from bench.process import Process
from bench.servers import Target

T = TypeVar("T")

CELL = Cell("nbd-load", "randread", 4096, 32)


@dataclass
class CountingClients:
    """Clients whose n-th run does n requests a second."""

    runs: list[tuple[str, float]] = field(default_factory=list)

    def run(self, target: Target, cell: Cell, seconds: float) -> Sample:
        assert cell == CELL
        self.runs.append((target.name, seconds))
        return Sample(len(self.runs), 0, 0, 0, 0)


class QuietHost(Host):
    """A host that leaves everybody alone."""

    def undisturbed(self, run: Callable[[], T], stat: Path = Path()) -> T:  # noqa: ARG002 - as its base has it
        return run()


def compared(folder: Path, plan: Plan) -> tuple[list[tuple[str, float]], dict[str, list[float]]]:
    """The runs of two servers, and what each sample came to."""
    file = folder / "file"
    file.write_bytes(bytes(4096))
    targets = [Target(name, cast(Process, None), file, name, file) for name in ("a", "b")]
    clients = CountingClients()
    results = compare(cast(Clients, clients), targets, [CELL], plan)
    return clients.runs, {one.target: [sample.iops for sample in one.samples] for one in results}


def test_the_order_is_reversed_from_round_to_round(tmp_path: Path) -> None:
    runs, samples = compared(tmp_path, Plan(0.5, 3, host=QuietHost()))
    assert [name for name, _ in runs] == list("aabb" + "bbaa" + "aabb")
    assert [seconds for _, seconds in runs[:2]] == [WARM_UP_S, 0.5]
    assert samples == {"a": [2, 8, 10], "b": [4, 6, 12]}


def test_a_sample_is_the_mean_of_its_parts(tmp_path: Path) -> None:
    runs, samples = compared(tmp_path, Plan(0.5, 1, parts=2, host=QuietHost()))
    assert runs == [("a", WARM_UP_S), ("a", 0.25), ("a", 0.25), ("b", WARM_UP_S), ("b", 0.25), ("b", 0.25)]
    assert samples == {"a": [2.5], "b": [5.5]}


def test_a_short_run_has_a_short_warm_up(tmp_path: Path) -> None:
    runs, _ = compared(tmp_path, Plan(0.1, 1, host=QuietHost()))
    assert {seconds for _, seconds in runs} == {0.1}
