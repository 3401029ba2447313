"""Methods for the reactors: where they run and how busy they are, as the kernel counts it.

A reactor here is one thread, so each has one SPDK thread on it, and it sleeps in the kernel when there is nothing to do
(`in_interrupt`). Ticks are nanoseconds. It has neither pollers nor I/O channels, and no device belongs to it.

Source: SPDK lib/event/app_rpc.c, rpc_framework_get_reactors, rpc_thread_get_stats.
"""

from __future__ import annotations

import asyncio
import os

from ubi_rpc import thread_usage
from ubi_rpc.methods.services import Services
from ubi_rpc.params import NoParams
from ubi_rpc.rpc.method import Method
from ubi_rpc.storage.stats import TICK_RATE
from ubi_rpc.thread_usage import CpuUsage, ThreadUsage


def _reactor(thread_id: int, thread: ThreadUsage, cpu: CpuUsage) -> dict[str, object]:
    return {
        "lcore": thread.cpu,
        "numa_id": thread_usage.numa_node(thread.cpu),
        "tid": thread.tid,
        "busy": thread.busy_ns,
        "idle": thread.idle_ns,
        "in_interrupt": True,
        "irq": cpu.irq_ns,
        "sys": cpu.sys_ns,
        "usr": cpu.usr_ns,
        "lw_threads": [
            {
                "name": thread.name,
                "id": thread_id,
                "cpumask": thread_usage.cpu_mask(thread.affinity),
                "elapsed": thread.elapsed_ns,
            }
        ],
    }


def _reactors() -> list[dict[str, object]]:
    cpus = thread_usage.cpus()
    return [
        _reactor(index, thread, cpus.get(thread.cpu, CpuUsage()))
        for index, thread in enumerate(thread_usage.reactors(), start=1)
    ]


async def framework_get_reactors(_services: Services, _params: NoParams) -> dict[str, object]:
    """Return the reactors: the CPU that each last ran on, its times, and that CPU's."""
    found = await asyncio.to_thread(_reactors)
    return {"tick_rate": TICK_RATE, "pid": os.getpid(), "reactors": found}


async def thread_get_stats(_services: Services, _params: NoParams) -> dict[str, object]:
    """Return the reactors' threads with the time that each was busy and idle; they have no pollers."""
    found = await asyncio.to_thread(thread_usage.reactors)
    threads = [
        {
            "name": thread.name,
            "id": index,
            "cpumask": thread_usage.cpu_mask(thread.affinity),
            "busy": thread.busy_ns,
            "idle": thread.idle_ns,
            "active_pollers_count": 0,
            "timed_pollers_count": 0,
            "paused_pollers_count": 0,
        }
        for index, thread in enumerate(found, start=1)
    ]
    return {"tick_rate": TICK_RATE, "threads": threads}


async def thread_get_pollers(_services: Services, _params: NoParams) -> dict[str, object]:
    """Return the reactors' threads with their pollers, of which there are none: they sleep until there is work."""
    found = await asyncio.to_thread(thread_usage.reactors)
    none: dict[str, object] = {"active_pollers": [], "timed_pollers": [], "paused_pollers": []}
    threads = [{"name": thread.name, "id": index, **none} for index, thread in enumerate(found, start=1)]
    return {"tick_rate": TICK_RATE, "threads": threads}


async def thread_get_io_channels(_services: Services, _params: NoParams) -> dict[str, object]:
    """Return the reactors' threads with their I/O channels, of which there are none: a request needs no channel."""
    found = await asyncio.to_thread(thread_usage.reactors)
    return {"tick_rate": TICK_RATE, "threads": [{"name": thread.name, "io_channels": []} for thread in found]}


async def framework_get_pci_devices(_services: Services, _params: NoParams) -> list[object]:
    """Return the PCI devices that the daemon drives itself: none, the kernel does."""
    return []


METHODS = (
    Method(
        name="framework_get_reactors",
        params=NoParams,
        handler=framework_get_reactors,
        decode_error=(-32602, "`framework_get_reactors` requires no arguments"),
    ),
    Method(
        name="thread_get_stats",
        params=NoParams,
        handler=thread_get_stats,
        decode_error=(-32602, "'thread_get_stats' requires no arguments"),
    ),
    Method(
        name="thread_get_pollers",
        params=NoParams,
        handler=thread_get_pollers,
        decode_error=(-32602, "'thread_get_pollers' requires no arguments"),
    ),
    Method(
        name="thread_get_io_channels",
        params=NoParams,
        handler=thread_get_io_channels,
        decode_error=(-32602, "'thread_get_io_channels' requires no arguments"),
    ),
    Method(
        name="framework_get_pci_devices",
        params=NoParams,
        handler=framework_get_pci_devices,
        decode_error=(-32602, "framework_get_pci_devices requires no parameters"),
    ),
)
