"""The reactors and their threads, as the kernel counts them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from tests.conftest import Domain
from ubi_rpc import thread_usage


@pytest.fixture
def reactors() -> Iterator[list[int]]:
    """Run two threads that the kernel knows as reactors; one of them works for a while first."""
    ready, end = threading.Barrier(3), threading.Event()
    tids: list[int] = []

    def react(index: int) -> None:
        with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as comm:  # noqa: PTH123
            comm.write(f"reactor_{index}")
        tids.append(threading.get_native_id())
        sum(range(2_000_000 * index))
        ready.wait()
        end.wait(60)

    running = [threading.Thread(target=react, args=(index,)) for index in (1, 0)]
    for thread in running:
        thread.start()
    ready.wait()
    yield tids
    end.set()
    for thread in running:
        thread.join()


async def test_reactors_have_true_figures(domain: Domain, reactors: list[int]) -> None:
    found = await domain.call("framework_get_reactors")
    assert list(found) == ["tick_rate", "pid", "reactors"]
    assert found["pid"] == os.getpid()
    idle, busy = found["reactors"]
    assert list(idle) == ["lcore", "numa_id", "tid", "busy", "idle", "in_interrupt", "irq", "sys", "usr", "lw_threads"]
    assert {idle["tid"], busy["tid"]} == set(reactors)
    assert idle["busy"] < busy["busy"]
    assert busy["lcore"] in os.sched_getaffinity(0)
    (thread,) = busy["lw_threads"]
    assert (thread["name"], thread["id"]) == ("reactor_1", 2)
    assert int(thread["cpumask"], 16) == sum(1 << cpu for cpu in os.sched_getaffinity(0))
    assert thread["elapsed"] >= busy["busy"]


async def test_threads_have_true_figures(domain: Domain, reactors: list[int]) -> None:
    found = await domain.call("thread_get_stats")
    idle, busy = found["threads"]
    assert list(idle) == (
        ["name", "id", "cpumask", "busy", "idle", "active_pollers_count", "timed_pollers_count", "paused_pollers_count"]
    )
    assert (idle["name"], busy["name"]) == ("reactor_0", "reactor_1")
    assert 0 < busy["busy"] < 60 * found["tick_rate"]
    again = (await domain.call("thread_get_stats"))["threads"][1]
    assert busy["busy"] <= again["busy"] < 60 * found["tick_rate"]
    assert again["idle"] >= busy["idle"]


async def test_wrong_params_get_spdks_answer(domain: Domain) -> None:
    assert await domain.error("framework_get_reactors", x=1) == (
        -32602,
        "`framework_get_reactors` requires no arguments",
    )
    assert await domain.error("thread_get_stats", x=1) == (-32602, "'thread_get_stats' requires no arguments")
    assert await domain.error("thread_get_pollers", x=1) == (-32602, "'thread_get_pollers' requires no arguments")


async def test_reactors_have_neither_pollers_nor_channels(domain: Domain, reactors: list[int]) -> None:
    pollers = await domain.call("thread_get_pollers")
    none: dict[str, object] = {"active_pollers": [], "timed_pollers": [], "paused_pollers": []}
    names = [f"reactor_{index}" for index in range(len(reactors))]
    assert pollers["threads"] == [{"name": name, "id": index, **none} for index, name in enumerate(names, start=1)]
    channels = await domain.call("thread_get_io_channels")
    assert channels["threads"] == [{"name": name, "io_channels": []} for name in names]
    assert pollers["tick_rate"] == channels["tick_rate"] == 1_000_000_000
    assert await domain.call("framework_get_pci_devices") == []


def test_cpus_have_their_times() -> None:
    cpus = thread_usage.cpus()
    assert os.sched_getaffinity(0) <= set(cpus)
    assert any(cpu.usr_ns and cpu.sys_ns for cpu in cpus.values())
    assert all(thread_usage.numa_node(cpu) >= 0 for cpu in cpus)


def test_masks_are_hexadecimal_without_a_prefix() -> None:
    assert thread_usage.cpu_mask(frozenset({0, 1, 4})) == "13"
