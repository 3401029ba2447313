"""The table of restarts: which time without a completion belongs to a kill, and what is said of it."""

from __future__ import annotations

import pytest

from bench.pause import Restart, _gap, _row, _rows
from bench.process import BenchError

EVENT = Restart(killed=1000, spawned=1010, started=1400)


def test_gap_is_the_longest_of_any_queue_that_the_restart_is_in() -> None:
    before, after, first, second = (900, 1005), (1500, 9000), (1001, 1450), (1003, 1470)
    assert _gap([before, first, after, second], EVENT) == second


def test_gap_that_nobody_has_seen_is_an_error() -> None:
    with pytest.raises(BenchError):
        _gap([(900, 1005), (1500, 9000)], EVENT)


def test_the_target_is_for_all_of_the_pause_but_the_start() -> None:
    event = Restart(killed=0, spawned=5_000_000, started=305_000_000)
    rows = _rows([(event, (-1_000_000, 320_000_000))] * 2, [310.0, 310.0])
    assert [row[1] for row in rows] == ["321", "300", "21.00", "5.00", "310"]
    assert [row[-1] for row in rows] == ["", "", "yes", "", ""]


@pytest.mark.parametrize(("worst", "met"), [(30.0, "yes"), (40.0, "NO")])
def test_verdict_is_about_the_99th_of_a_hundred(worst: float, met: str) -> None:
    assert _row("beyond it", [5.0] * 3 + [worst] * 3, 30.0)[-2:] == ["p99 ≤ 30", met]
    assert _row("whole pause", [5.0, 6.0], None)[-2:] == ["", ""]
