"""SPDK's own clients of five releases, unmodified, from PyPI: each drives every method that it knows and we have.

The releases other than the locked one are installed once, checked by hash, under build/spdk-clients.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import Domain
from ubi_rpc.methods import METHODS
from ubi_rpc.rpc.method import State
from ubi_rpc.rpc.unix_server import UnixServer

pytestmark = pytest.mark.timeout(120)

CLIENTS = Path(__file__).resolve().parents[2] / "build/spdk-clients"
RELEASES = {
    "25.5": "73d249a205a1613e4c5b1bf65a1ed22aa62d8f2e4d29021236eab5d7087680fd",
    "25.9": "4b8c02225f70b2b4c370129bf85982dcbc9ffbf8094ed8636ba2eebdd704b316",
    "26.1": "b6ebd0721cf8c1bd3ae65be200e6be28894493a77225b0b7ae5c7f80fb02ac85",
    "26.5": "0a1151b904644c6b4a7e9dc2ee062c0c3074f484ae3fde2e55e3659075a4f0f8",
    "26.9": "",  # requirements-dev.lock has it
}

BEFORE = """\
spdk_get_version
rpc_get_methods -c
framework_set_scheduler static
framework_get_scheduler
scheduler_set_options -s 0
iobuf_set_options --small-pool-count 8192 --large-pool-count 1024
accel_set_options --task-count 2048
bdev_set_options -p 65535 -c 256
bdev_set_options {no_examine}
bdev_nvme_set_options -t 0 -r 3
bdev_raid_set_options -w 1024
bdev_iscsi_set_options -t 30
sock_set_default_impl -i posix
sock_get_default_impl
sock_impl_set_options -i posix -r 2097152
sock_impl_get_options -i posix
log_set_level NOTICE
log_get_level
log_set_print_level INFO
log_get_print_level
log_set_flag rpc
log_clear_flag rpc
log_get_flags
framework_start_init
framework_wait_init
"""
AFTER = """\
rpc_get_methods -i
log_enable_timestamps {timestamps}
framework_get_subsystems
framework_get_config bdev
framework_get_reactors
framework_get_governor
framework_monitor_context_switch {monitor}
framework_disable_cpumask_locks
framework_enable_cpumask_locks
thread_get_stats
thread_get_pollers
thread_get_io_channels
framework_get_pci_devices
iobuf_get_stats
notify_get_types
notify_get_notifications -i 0 -n 5
bdev_nvme_set_hotplug {hotplug} -r 100000
bdev_aio_create {folder}/a.raw a 512
bdev_malloc_create -b m 1 512
bdev_null_create n 1 512
bdev_null_resize n 2
bdev_aio_rescan a
bdev_wait_for_examine
bdev_examine -b n
bdev_get_bdevs
bdev_get_bdevs -b n -t 100
bdev_get_iostat
bdev_get_iostat -c {one}
bdev_reset_iostat -b n -m all
virtio_blk_get_transports
vhost_create_blk_controller vh n
vhost_get_controllers
vhost_controller_set_coalescing vh 0 1000
vhost_delete_controller vh
save_config
save_subsystem_config -n bdev
bdev_malloc_delete m
bdev_null_delete n
bdev_aio_delete a
spdk_kill_instance SIGUSR1
"""
OLD = {"no_examine": "-d", "timestamps": "-e", "monitor": "-e", "hotplug": "-e", "one": "-b n"}
NEW = {
    "no_examine": "--no-auto-examine",
    "timestamps": "--timestamps",
    "monitor": "--monitor",
    "hotplug": "--hotplug",
    "one": "--names n",
}
SPELLINGS = {"25.5": OLD, "25.9": OLD, "26.1": OLD, "26.5": NEW, "26.9": NEW}

CANNOT = {"25.9": "log_set_level"}
"""Commands with which a release's own client fails before it sends anything."""

NOT_SPDKS = {"rpc.discover", "persist_get_unrestored"}
"""Methods that SPDK does not have and whose names do not say so."""


@pytest.fixture(scope="session")
def install() -> dict[str, Path | None]:
    """Install the releases that are not there yet; return their folders."""
    folders: dict[str, Path | None] = {}
    for version, digest in RELEASES.items():
        if not digest:
            folders[version] = None
            continue
        folder = folders[version] = CLIENTS / version
        if (folder / "spdk").is_dir():
            continue
        CLIENTS.mkdir(parents=True, exist_ok=True)
        locked = CLIENTS / f"{version}.txt"
        locked.write_text(f"spdk=={version} --hash=sha256:{digest}\n")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        pip += ["--root-user-action=ignore", "--require-hashes", "--target", str(folder), "-r", str(locked)]
        subprocess.run(pip, check=True, timeout=100)
    return folders


@pytest.fixture
async def server(domain: Domain) -> AsyncIterator[str]:
    """Serve the domain; return the socket."""
    served = UnixServer(domain.dir / "rpc.sock", domain.dispatcher)
    await served.start()
    yield str(domain.dir / "rpc.sock")
    await served.stop()


async def _run(folder: Path | None, *arguments: str, stdin: str = "") -> tuple[int, str]:
    """Run a release's rpc.py; return its exit code and all that it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from spdk.spdk_rpc import main; main()", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ if folder is None else {**os.environ, "PYTHONPATH": str(folder)},
    )
    out, _ = await process.communicate(stdin.encode())
    assert process.returncode is not None
    return process.returncode, out.decode()


def _methods(script: str) -> set[str]:
    return {line.split()[0] for line in script.splitlines()}


def test_the_scripts_have_every_method_of_spdk() -> None:
    ours = {method.name for method in METHODS if "ubi" not in method.name and "export" not in method.name} - NOT_SPDKS
    assert ours <= _methods(BEFORE) | _methods(AFTER)


@pytest.mark.parametrize("version", RELEASES)
async def test_every_method_answers_a_client_of_this_release(
    domain: Domain, server: str, install: dict[str, Path | None], version: str
) -> None:
    domain.file("a.raw")
    words = {**SPELLINGS[version], "folder": str(domain.dir)}
    domain.startup.state = State.STARTUP
    for script in (BEFORE, AFTER):
        lines = [line for line in script.format(**words).splitlines() if line.split()[0] != CANNOT.get(version)]
        code, out = await _run(install[version], "-s", server, stdin="\n".join(lines))
        assert (code, "Exception" in out, "JSON-RPC error" in out) == (0, False, False), out[-2000:]
    assert domain.killed
    assert [event.type for event in domain.lifecycle.events.history].count("bdev_unregister") == 3


@pytest.mark.parametrize("version", RELEASES)
async def test_a_configuration_is_saved_and_loaded_by_a_client_of_this_release(
    domain: Domain, server: str, install: dict[str, Path | None], version: str
) -> None:
    await domain.aio("a", fallocate=True)
    await domain.ubi("u", "a")
    await domain.call("nbd_create_export", bdev_name="u")
    before = await domain.call("bdev_get_bdevs")
    code, saved = await _run(install[version], "-s", server, "save_config")
    assert code == 0, saved
    await domain.call("bdev_aio_delete", name="a")
    domain.startup.state = State.STARTUP
    code, out = await _run(install[version], "-s", server, "load_config", stdin=saved)
    assert code == 0, out
    assert await domain.call("bdev_get_bdevs") == before
    code, again = await _run(install[version], "-s", server, "save_config")
    assert json.loads(again) == json.loads(saved)


@pytest.mark.parametrize("version", RELEASES)
async def test_a_refusal_is_printed_by_a_client_of_this_release(
    server: str, install: dict[str, Path | None], version: str
) -> None:
    code, out = await _run(install[version], "-s", server, "bdev_null_delete", "nope")
    assert code == 1
    assert '"code": -19' in out
    assert '"message": "No such device"' in out
