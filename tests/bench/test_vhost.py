"""The table of virtual machines' disks: which ratio counts, what it has to reach, and what a load is called."""

from __future__ import annotations

import pytest

from bench.load import Sample
from bench.vhost import CELLS, VhostCell, _tables

SERVERS = ["ubi_rpc", "one", "other"]
READS = VhostCell("tmpfs", "randread", 4096, 32, 1, polling=True)


def table_of(cell: VhostCell, iops: tuple[float, float, float], cpu_us: tuple[float, float, float]) -> list[list[str]]:
    """The rows of both tables, without the load's name."""
    figures = zip(SERVERS, iops, cpu_us, strict=True)
    samples = {(cell, name): [Sample(rate, rate / 256, 10.0, 20.0, cost)] for name, rate, cost in figures}
    lines = [line for line in _tables(SERVERS, samples).splitlines() if line.startswith(f"| {cell}")]
    return [[part.strip() for part in line.split("|")[2:-1]] for line in lines]


def test_ratio_is_to_the_better_peer_in_rate_and_in_cost() -> None:
    rate, cost = table_of(READS, (900.0, 300.0, 450.0), (1.0, 4.0, 2.5))
    assert rate == ["900", "300", "450", "2.00", "≥ 2.00", "yes"]
    assert cost == ["1.00", "4.00", "2.50", "0.40", "≤ 0.50", "yes"]


def test_ratio_below_its_target_is_said() -> None:
    rate, cost = table_of(READS, (899.0, 300.0, 450.0), (1.5, 4.0, 2.5))
    assert (rate[-1], cost[-1]) == ("NO", "NO")


@pytest.mark.parametrize(
    ("cell", "target"),
    [
        (VhostCell("malloc", "randwrite", 4096, 1, 2, polling=False), 1.3),
        (VhostCell("direct", "randread", 4096, 1, 1, polling=True), 1.3),
        (VhostCell("direct", "randwrite", 4096, 32, 1, polling=True), 1.0),
        (VhostCell("cached", "randwrite", 4096, 32, 1, polling=True), None),
        (VhostCell("cached", "read", 131072, 32, 1, polling=True), 1.0),
    ],
)
def test_target_depends_on_base_and_load(cell: VhostCell, target: float | None) -> None:
    assert cell.target == target
    rate, cost = table_of(cell, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    assert rate[-2] == ("" if target is None else f"≥ {target:.2f}")
    assert cost[-2] == ""


def test_every_load_has_a_name_of_its_own() -> None:
    assert len({str(cell) for cell in CELLS}) == len(CELLS) == 96
