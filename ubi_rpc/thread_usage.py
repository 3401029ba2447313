"""What the kernel says of this process's threads and CPUs: names, run time, where they last ran.

Reads /proc alone; owns nothing. Times are nanoseconds.

Source: proc_pid_stat(5), Documentation/scheduler/sched-stats.rst (schedstat: run time, wait time, slices).
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

_TASKS = Path("/proc/self/task")
_CPUS = Path("/sys/devices/system/cpu")
REACTOR = re.compile(r"reactor_(\d+)")
"""How the engine names the threads of its reactors."""


@dataclass(frozen=True, slots=True)
class ThreadUsage:
    """One thread.

    Args:
        name: as the kernel has it, 15 characters at most.
        tid: its number.
        cpu: where it last ran.
        busy_ns: time that it ran.
        elapsed_ns: time since it began.
        affinity: CPUs that it may run on.
    """

    name: str
    tid: int
    cpu: int
    busy_ns: int
    elapsed_ns: int
    affinity: frozenset[int]

    @property
    def idle_ns(self) -> int:
        """Time that it slept or waited for a CPU."""
        return max(self.elapsed_ns - self.busy_ns, 0)


@dataclass(frozen=True, slots=True)
class CpuUsage:
    """Time that a CPU spent for programs, for the kernel, and for interrupts, since it was started."""

    usr_ns: int = 0
    sys_ns: int = 0
    irq_ns: int = 0


def reactors() -> list[ThreadUsage]:
    """Return the engine's reactors in their order; blocks no longer than /proc does."""
    found = [thread for thread in threads() if REACTOR.fullmatch(thread.name)]
    return sorted(found, key=lambda thread: int(thread.name.removeprefix("reactor_")))


def threads() -> list[ThreadUsage]:
    """Return every thread of this process; one that ends meanwhile is left out."""
    found = []
    for task in sorted(_TASKS.iterdir(), key=lambda path: int(path.name)):
        try:
            found.append(_thread(task))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _thread(task: Path) -> ThreadUsage:
    tid = int(task.name)
    name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
    fields = rest.split()  # from field 3, the state, on
    ticks = os.sysconf("SC_CLK_TCK")
    began_ns = int(fields[19]) * 1_000_000_000 // ticks
    return ThreadUsage(
        name=name,
        tid=tid,
        cpu=int(fields[36]),
        busy_ns=_run_time_ns(task, fields, ticks),
        elapsed_ns=max(time.clock_gettime_ns(time.CLOCK_BOOTTIME) - began_ns, 0),
        affinity=frozenset(os.sched_getaffinity(tid)),
    )


def _run_time_ns(task: Path, fields: list[str], ticks: int) -> int:
    try:
        return int((task / "schedstat").read_text().split()[0])
    except (FileNotFoundError, IndexError):  # a kernel without scheduler statistics: in clock ticks
        return (int(fields[11]) + int(fields[12])) * 1_000_000_000 // ticks


def cpus() -> dict[int, CpuUsage]:
    """Return the CPUs by number."""
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    found = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *numbers = line.split()
        if re.fullmatch(r"cpu\d+", name):
            user, nice, system, _idle, _iowait, irq, softirq = (int(number) * tick_ns for number in numbers[:7])
            found[int(name[3:])] = CpuUsage(user + nice, system, irq + softirq)
    return found


def numa_node(cpu: int) -> int:
    """Return the memory node of a CPU, 0 where the machine has none."""
    nodes = sorted((_CPUS / f"cpu{cpu}").glob("node[0-9]*"))
    return int(nodes[0].name.removeprefix("node")) if nodes else 0


def cpu_mask(cpu_set: frozenset[int]) -> str:
    """Return a CPU set as SPDK writes it: hexadecimal without a prefix."""
    return f"{sum(1 << cpu for cpu in cpu_set):x}"
