"""save → load → save is a fixed point, whatever the objects are, and a failed create is not saved."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import engine_double
from tests.conftest import MIB, Domain, running_domain
from ubi_rpc.config_source import ConfigSource
from ubi_rpc.rpc.method import State
from ubi_rpc.rpc.wire_errors import WireError
from ubi_rpc.storage.config_file import ConfigReader

NAMES = st.sampled_from(["a", "b", "c", "d", "é x"])
UUIDS = st.uuids().map(str)


def _call(method: str, required: dict[str, st.SearchStrategy[Any]], **optional: st.SearchStrategy[Any]) -> Any:
    return st.tuples(st.just(method), st.fixed_dictionaries(required, optional=optional))


BLOCKS = {"num_blocks": st.sampled_from([0, 8, 65536]), "block_size": st.sampled_from([512, 4096, 500])}
HINTS = {"physical_block_size": st.sampled_from([512, 4096]), "dif_pi_format": st.integers(0, 2)}
OBJECTS = st.one_of(
    _call(
        "bdev_aio_create",
        {"name": NAMES, "filename": st.sampled_from(["1.raw", "2.raw", "3.raw"]), "block_size": st.just(512)},
        uuid=UUIDS,
        readonly=st.booleans(),
        fallocate=st.booleans(),
        nowait=st.just(False),
        cache=st.sampled_from(["none", "writeback"]),
    ),
    _call("bdev_malloc_create", BLOCKS, name=NAMES, uuid=UUIDS, optimal_io_boundary=st.just(8), **HINTS),
    _call("bdev_null_create", {"name": NAMES, **BLOCKS}, uuid=UUIDS, optimal_write_size=st.integers(0, 9), **HINTS),
    _call(
        "bdev_ubi_create",
        {"name": NAMES, "base_bdev": NAMES, "image_path": st.just("image")},
        uuid=UUIDS,
        no_sync=st.booleans(),
        copy_on_read=st.booleans(),
        directio=st.booleans(),
        stripe_size_kb=st.sampled_from([64, 100, 1024]),
    ),
    _call(
        "nbd_create_export",
        {"bdev_name": NAMES},
        export_name=NAMES,
        readonly=st.booleans(),
        default=st.booleans(),
        max_connections=st.integers(0, 3),
        description=st.text(max_size=5),
        socket=st.sampled_from(["nbd.sock", "other.sock"]),
    ),
    _call("nbd_create_export", {"bdev_name": NAMES, "address": st.just("127.0.0.1:0")}, readonly=st.booleans()),
    _call("nbd_delete_export", {"export_name": NAMES}),
    _call(
        "vhost_create_blk_controller",
        {"ctrlr": NAMES, "dev_name": NAMES},
        readonly=st.booleans(),
        cpumask=st.sampled_from(["0x1", "[0]", "1"]),
        packed_ring=st.just(False),
    ),
    _call(
        "vhost_controller_set_coalescing",
        {"ctrlr": NAMES, "delay_base_us": st.integers(0, 9), "iops_threshold": st.integers(99, 108)},
    ),
    _call("vhost_delete_controller", {"ctrlr": NAMES}),
    *(_call(f"bdev_{kind}_delete", {"name": NAMES}) for kind in ("aio", "malloc", "null", "ubi")),
    _call("framework_set_scheduler", {"name": st.sampled_from(["static", "dynamic"])}, period=st.integers(0, 99)),
    _call("bdev_nvme_set_options", {}, bdev_retry_count=st.integers(-1, 3), io_path_stat=st.booleans()),
)
OPTIONS = st.one_of(
    _call("bdev_set_options", {}, bdev_io_pool_size=st.integers(0, 9999), bdev_auto_examine=st.booleans()),
    _call("iobuf_set_options", {}, small_pool_count=st.integers(0, 99), enable_numa=st.booleans()),
    _call("accel_set_options", {}, task_count=st.integers(0, 99)),
    _call("sock_impl_set_options", {"impl_name": st.sampled_from(["posix", "ssl"])}, send_buf_size=st.integers(0, 9)),
    _call("sock_set_default_impl", {"impl_name": st.sampled_from(["posix", "uring"])}),
    _call("scheduler_set_options", {}, scheduling_core=st.integers(0, 3)),
)
Calls = list[tuple[str, dict[str, Any]]]


async def save(domain: Domain) -> dict[str, Any]:
    """Return the configuration as save_config writes it."""
    subsystems = [
        {"subsystem": name, "config": await domain.call("framework_get_config", name=name)}
        for name in [one["subsystem"] for one in await domain.call("framework_get_subsystems")]
    ]
    return {"subsystems": subsystems}


async def make(domain: Domain, options: Calls, objects: Calls) -> None:
    """Make the calls; many are refused, as they come."""
    for state, calls in ((State.STARTUP, options), (State.RUNTIME, objects)):
        domain.startup.state = state
        for method, params in calls:
            files: dict[str, Any] = {
                key: str(domain.dir / params[key]) for key in ("filename", "image_path") if key in params
            }
            try:
                await domain.call(method, **(params | files))
            except WireError:
                continue


async def load(domain: Domain, config: dict[str, Any]) -> None:
    """Start a domain with a configuration, as the daemon does."""
    domain.startup.state = State.STARTUP
    path = domain.dir / "saved.json"
    path.write_text(json.dumps(config))
    methods = {name: State.STARTUP in method.states for name, method in domain.dispatcher.methods.items()}
    domain.startup.steps = ConfigReader(ConfigSource(path), methods, ignore_errors=False).steps()
    await domain.startup.run_startup_pass()
    await domain.startup.start_init()


def _in_domain(folder: Path, act: Callable[[Domain], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        world = engine_double.World()
        with pytest.MonkeyPatch.context() as patch:
            engine_double.install(patch, world)
            async with running_domain(world, folder) as domain:
                return await act(domain)

    return asyncio.run(run())


@settings(max_examples=60, deadline=None)
@given(options=st.lists(OPTIONS, max_size=4), objects=st.lists(OBJECTS, max_size=16))
def test_save_load_save_is_a_fixed_point(options: Calls, objects: Calls) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, size in (("1.raw", 16), ("2.raw", 16), ("3.raw", 1), ("image", 4)):
            (folder / file).write_bytes(b"")
            with (folder / file).open("r+b") as opened:
                opened.truncate(size * MIB)

        async def first(domain: Domain) -> Any:
            await make(domain, options, objects)
            return await save(domain), await domain.call("bdev_get_bdevs")

        async def second(domain: Domain) -> Any:
            await load(domain, saved)
            return await save(domain), await domain.call("bdev_get_bdevs")

        saved, bdevs = _in_domain(folder, first)
        again, bdevs_again = _in_domain(folder, second)
        assert again == saved
        assert bdevs_again == bdevs
