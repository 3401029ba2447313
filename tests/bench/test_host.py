"""Runs that the host of a virtual machine disturbs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.host import ATTEMPTS, Host


def scripted(stat: Path, stolen: list[int]) -> Callable[[], int]:
    """Return a run of 1,000 ticks, of which the host takes so many each time; it returns how often it was made."""
    made, taken = 0, 0

    def write() -> None:
        stat.write_text(f"cpu  {1000 * made - taken} 0 0 0 0 0 0 {taken} 0 0\ncpu0 9 9 9 9 9 9 9 9 0 0\n")

    def run() -> int:
        nonlocal made, taken
        taken += stolen[made]
        made += 1
        write()
        return made

    write()
    return run


@pytest.mark.parametrize(("stolen", "counted"), [([0], 1), ([30], 1), ([31, 900, 0], 3)])
def test_the_first_run_that_was_left_alone_counts(tmp_path: Path, stolen: list[int], counted: int) -> None:
    host = Host()
    assert host.undisturbed(scripted(tmp_path / "stat", stolen), tmp_path / "stat") == counted
    assert (host.repeated, host.kept) == (counted - 1, 0)


def test_a_host_that_never_rests_is_told_of(tmp_path: Path) -> None:
    host = Host()
    assert host.undisturbed(scripted(tmp_path / "stat", [500] * ATTEMPTS), tmp_path / "stat") == ATTEMPTS
    assert host.kept == 1
    assert f"{ATTEMPTS - 1} runs were made again" in host.note()
    assert "1 counted all the same" in host.note()


def test_nothing_is_said_of_a_quiet_host() -> None:
    assert Host().note() == ""
