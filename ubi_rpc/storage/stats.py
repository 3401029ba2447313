"""I/O statistics of bdevs as bdev_get_iostat shows them: the engine's counters less what a reset has set aside.

The engine counts for ever and never goes back; a reset moves the zero point kept here. Only the longest and the
shortest times are forgotten by the engine itself. Nothing is ever copied inside a bdev, so those members are 0.

Source: SPDK lib/bdev/bdev.c, spdk_bdev_dump_io_stat_json (members and their order), spdk_bdev_reset_io_stat.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal

TICK_RATE = 1_000_000_000
"""Ticks a second, in which every time of the statistics is given: nanoseconds."""

ResetMode = Literal["all", "maxmin", "error", "none"]

COUNTERS = (
    "bytes_read",
    "num_read_ops",
    "bytes_written",
    "num_write_ops",
    "bytes_unmapped",
    "num_unmap_ops",
    "bytes_copied",
    "num_copy_ops",
)
OPERATIONS = ("read", "write", "unmap", "copy")
LATENCIES = tuple(f"{bound}{operation}_latency_ticks" for operation in OPERATIONS for bound in ("", "max_", "min_"))
ERRORS = "num_errors"


def ticks() -> int:
    """Return the clock of the statistics."""
    return time.monotonic_ns()


class Baseline:
    """The zero point of one bdev's statistics."""

    __slots__ = ("_zero",)

    def __init__(self) -> None:
        self._zero: dict[str, int] = {}

    def reset(self, counters: Mapping[str, int], mode: ResetMode) -> None:
        """Set sums back to 0: all of them, the errors alone, or none (extremes are the engine's to forget)."""
        if mode == "all":
            sums = (*COUNTERS, ERRORS, *(f"{operation}_latency_ns" for operation in OPERATIONS))
            self._zero = {name: counters.get(name, 0) for name in sums}
        elif mode == "error":
            self._zero[ERRORS] = counters.get(ERRORS, 0)

    def show(self, counters: Mapping[str, int]) -> dict[str, object]:
        """Return the members of a bdev's statistics."""
        since = {name: self._since(counters, name) for name in (*COUNTERS, ERRORS)}
        failed = since.pop(ERRORS)
        times = {name: self._since(counters, name.replace("_ticks", "_ns")) for name in LATENCIES}
        return {**since, **times, "io_error": {"failed": failed} if failed else {}}

    def _since(self, counters: Mapping[str, int], name: str) -> int:
        return counters.get(name, 0) - self._zero.get(name, 0)
