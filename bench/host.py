"""What the host of a virtual machine takes from it: a run during which others had the CPUs says nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

STOLEN_MAX = 0.03
ATTEMPTS = 6
STAT = Path("/proc/stat")

T = TypeVar("T")


@dataclass(slots=True)
class Host:
    """Runs something again when it was disturbed.

    Args:
        repeated: runs that were made again.
        kept: runs that were counted although they were disturbed, after as many attempts as are allowed.
    """

    repeated: int = 0
    kept: int = 0

    def undisturbed(self, run: Callable[[], T], stat: Path = STAT) -> T:
        """Return the result of the first run in which the host took at most 3 % of the CPUs' time, or of the sixth."""
        for _ in range(ATTEMPTS - 1):
            result, stolen = _watch(run, stat)
            if stolen <= STOLEN_MAX:
                return result
            self.repeated += 1
        result, stolen = _watch(run, stat)
        self.kept += stolen > STOLEN_MAX
        return result

    def note(self) -> str:
        """Say what was done about it; nothing when there was nothing to do."""
        if not self.repeated:
            return ""
        kept = f", {self.kept} counted all the same" if self.kept else ""
        return f"\n\n{self.repeated} runs were made again: the host took over {STOLEN_MAX:.0%} of the CPUs' time{kept}"


def _watch(run: Callable[[], T], stat: Path) -> tuple[T, float]:
    stolen, total = _ticks(stat)
    result = run()
    stolen_after, total_after = _ticks(stat)
    return result, (stolen_after - stolen) / max(total_after - total, 1)


def _ticks(stat: Path) -> tuple[int, int]:
    """Stolen and all ticks of all CPUs since the start (proc_stat(5): steal is the eighth, guests are in user)."""
    ticks = [int(count) for count in stat.read_text().splitlines()[0].split()[1:9]]
    return ticks[7], sum(ticks)
