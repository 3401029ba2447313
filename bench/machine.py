"""Where it was measured."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

from bench.daemon import CHECKOUT
from bench.process import BenchError, run

VERSIONS = {
    "qemu-nbd": ["qemu-nbd", "--version"],
    "qemu-storage-daemon": ["qemu-storage-daemon", "--version"],
    "nbdkit": ["nbdkit", "--version"],
    "fio": ["fio", "--version"],
}


def describe(folder: Path) -> dict[str, str]:
    """Return what a figure depends on: the machine, the file system of `folder`, versions, the load by others."""
    facts = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "cpu": _cpu_model(),
        "cpus": str(len(os.sched_getaffinity(0))),
        "memory_mib": str(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20),
        "kernel": platform.release(),
        "file_system": run(["stat", "-f", "-c", "%T", str(folder)]).strip(),
        "load_average": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "ubi_rpc": _revision(),
    }
    for name, command in VERSIONS.items():
        if shutil.which(command[0]):
            facts[name] = run(command).splitlines()[0]
    return facts


def warn_if_busy() -> None:
    """Say so when others use the machine: figures then vary by a multiple."""
    load, cpus = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load > cpus / 4:
        print(
            f"note: other work keeps this machine busy (load average {load:.1f} on {cpus} CPUs); see --nice, --rounds"
        )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _revision() -> str:
    try:
        revision = run(["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty"])
    except (BenchError, subprocess.SubprocessError):
        return "unknown"
    return revision.strip()
