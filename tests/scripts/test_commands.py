"""rpc.py's commands for every method, and its configuration commands, beside SPDK's own client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Domain
from tests.scripts.conftest import RPC_PY, SPDK_RPC, run
from ubi_rpc.methods import METHODS
from ubi_rpc.rpc.method import State
from ubi_rpc.rpc.unix_server import UnixServer

pytestmark = pytest.mark.timeout(60)

SHARED_COMMANDS = """\
framework_get_subsystems
framework_get_config bdev
framework_get_config bdev --with-batches
framework_set_scheduler dynamic -p 5 --load-limit 1 --core-limit 2 --core-busy 3
framework_set_scheduler static --mappings a:1
framework_get_scheduler
framework_get_governor
scheduler_set_options -i 0x2 -s 1
framework_monitor_context_switch
framework_monitor_context_switch --monitor
framework_monitor_context_switch --no-monitor
framework_disable_cpumask_locks
framework_enable_cpumask_locks
framework_get_reactors
thread_get_stats
thread_get_pollers
thread_get_io_channels
framework_get_pci_devices
log_set_flag all
log_clear_flag rpc
log_get_flags
log_set_level INFO
log_get_level
log_set_print_level DEBUG
log_get_print_level
log_enable_timestamps --timestamps
log_enable_timestamps --no-timestamps
notify_get_types
notify_get_notifications -i 3 -n 4
iobuf_set_options --small-pool-count 1 --large-pool-count 2 --small-bufsize 3 --large-bufsize 4 --enable-numa
iobuf_set_options
iobuf_get_stats
accel_set_options --small-cache-size 1 --large-cache-size 2 --task-count 3 --sequence-count 4 --buf-count 5
sock_set_default_impl -i posix
sock_get_default_impl
sock_impl_get_options -i ssl
sock_impl_set_options -i ssl -r 1 -s 2 -p 3 --recv-pipe --no-quickack --zerocopy-send-server
sock_impl_set_options -i ssl --no-zerocopy-send-client --zerocopy-threshold 4 --tls-version 13 --ktls
bdev_set_options -p 1 -c 2 --auto-examine --iobuf-small-cache-size 3 --iobuf-large-cache-size 4
bdev_set_options --no-auto-examine
bdev_raid_set_options -w 1 -b 2
bdev_iscsi_set_options -t 5
bdev_nvme_set_options
bdev_nvme_set_options -a none -t 1 -k 2 -r -1 --policy active_active --dhchap-digests a,b -d --rdma-umr-per-io
bdev_nvme_set_hotplug --hotplug -r 5
bdev_nvme_set_hotplug --no-hotplug
bdev_examine -b n
bdev_wait_for_examine
bdev_get_iostat
bdev_get_iostat --names a,b -c --reset-mode all
bdev_reset_iostat
bdev_reset_iostat -b n -m maxmin
bdev_aio_rescan a
bdev_null_resize n 20
"""
UUID = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"


@pytest.fixture
async def server(domain: Domain) -> AsyncIterator[str]:
    """Serve the domain; return the socket."""
    served = UnixServer(domain.dir / "rpc.sock", domain.dispatcher)
    await served.start()
    yield str(domain.dir / "rpc.sock")
    await served.stop()


async def _graph(domain: Domain) -> None:
    await domain.aio("a", uuid=UUID, fallocate=True)
    await domain.ubi("u", "a", stripe_size_kb=64)
    await domain.call("bdev_null_create", name="n", num_blocks=8, block_size=512)
    await domain.call("nbd_create_export", bdev_name="u", export_name="e", readonly=True)


async def test_commands_send_what_spdks_client_sends() -> None:
    theirs, ours = [await run(program, "--dry-run", stdin=SHARED_COMMANDS) for program in (SPDK_RPC, RPC_PY)]
    assert (ours.code, ours.out) == (theirs.code, theirs.out)


OLD_SPELLINGS = {
    "bdev_get_iostat -b n": {"per_channel": False, "name": "n"},
    "bdev_set_options -e": {"bdev_auto_examine": True},
    "bdev_set_options -d": {"bdev_auto_examine": False},
    "log_enable_timestamps -d": {"enabled": False},
    "bdev_nvme_set_hotplug -e": {"enable": True},
    "framework_monitor_context_switch -e": {"enabled": True},
}


async def test_spellings_of_older_clients_are_understood() -> None:
    shown = await run(RPC_PY, "--dry-run", stdin="\n".join(OLD_SPELLINGS))
    requests = [json.loads(text) for text in shown.out.split("Request:\n")[1:]]
    assert [request["params"] for request in requests] == list(OLD_SPELLINGS.values())


async def test_every_method_has_a_command() -> None:
    shown = await run(RPC_PY, "-h")
    commands = {line.split()[0] for line in shown.out.splitlines() if line.startswith("    ") and line.split()}
    assert {method.name for method in METHODS} <= commands


async def _save(program: Path, server: str, *arguments: str) -> Any:
    shown = await run(program, "-s", server, *arguments)
    assert shown.code == 0, shown
    return shown.out


async def test_save_config_prints_what_spdks_client_prints(domain: Domain, server: str) -> None:
    await _graph(domain)
    for arguments in (["save_config"], ["save_config", "-i", "-1"], ["save_subsystem_config", "-n", "nbd"]):
        assert await _save(RPC_PY, server, *arguments) == await _save(SPDK_RPC, server, *arguments)
    for arguments in (["save_config", "-s", "accel"], ["save_config", "--with-batches"], ["save_config", "-s", "nbd"]):
        assert await _save(RPC_PY, server, *arguments) == await _save(SPDK_RPC, server, *arguments)
    only = json.loads(await _save(RPC_PY, server, "save_config", "-s", "accel"))
    assert [subsystem["subsystem"] for subsystem in only["subsystems"]] == ["iobuf", "accel"]


@pytest.mark.parametrize("program", [RPC_PY, SPDK_RPC], ids=["ours", "spdks"])
async def test_load_config_makes_what_save_config_saved(domain: Domain, server: str, program: Path) -> None:
    await _graph(domain)
    before = await domain.call("bdev_get_bdevs")
    saved = await _save(program, server, "save_config")
    await domain.call("bdev_null_delete", name="n")
    await domain.call("bdev_aio_delete", name="a")
    assert await domain.names() == []
    domain.startup.state = State.STARTUP
    loaded = await run(program, "-s", server, "load_config", stdin=saved)
    assert (loaded.code, loaded.out) == (0, "")
    assert domain.startup.state is State.RUNTIME
    assert await domain.call("bdev_get_bdevs") == before
    assert await _save(program, server, "save_config") == saved


async def test_load_config_into_a_running_daemon_tells_what_it_skipped(domain: Domain, server: str) -> None:
    await _graph(domain)
    saved = await _save(RPC_PY, server, "save_config")
    file = domain.dir / "saved.json"
    file.write_text(saved)
    await domain.call("bdev_null_delete", name="n")
    await domain.call("bdev_aio_delete", name="a")
    loaded = await run(RPC_PY, "-s", server, "load_config", "-j", str(file))
    assert loaded.code == 0
    assert loaded.out == "Some configs were skipped because the RPC state that can call them passed over.\n"
    assert await _save(RPC_PY, server, "save_config") == saved


async def test_load_subsystem_config_makes_its_objects(domain: Domain, server: str) -> None:
    await domain.call("bdev_null_create", name="n", num_blocks=8, block_size=512)
    saved = await _save(RPC_PY, server, "save_subsystem_config", "-n", "bdev")
    await domain.call("bdev_null_delete", name="n")
    loaded = await run(RPC_PY, "-s", server, "load_subsystem_config", "-j", saved)
    assert loaded.out == "Some configs were skipped because they cannot be called in the current RPC state.\n"
    assert await domain.names() == ["n"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "The configuration cannot be read: "),
        ("[]", "no list 'subsystems'"),
        ('{"subsystems": [1]}', "is not {subsystem, config"),
        ('{"subsystems": [{"subsystem": "bdev", "config": [1]}]}', "is not {subsystem, config"),
        ('{"subsystems": [{"config": [[{"method": 1}]]}]}', "is not {subsystem, config"),
        (
            '{"subsystems": [{"config": [{"method": "bdev_null_delete", "params": {"name": "n"}}, {"method": "x"}]}]}',
            "Unknown method was included in the config file: x",
        ),
    ],
)
async def test_a_bad_configuration_is_refused_in_words_before_anything_runs(
    domain: Domain, server: str, config: str, message: str
) -> None:
    await domain.call("bdev_null_create", name="n", num_blocks=8, block_size=512)
    loaded = await run(RPC_PY, "-s", server, "load_config", stdin=config)
    assert loaded.code == 1
    assert message in loaded.out
    assert await domain.names() == ["n"]


async def test_a_mistyped_configuration_file_is_named(server: str) -> None:
    loaded = await run(RPC_PY, "-s", server, "load_config", "-j", "/no/such.json")
    assert loaded.code == 1
    assert "'/no/such.json' is no file that is there, and not JSON" in loaded.out


async def test_commands_that_need_answers_say_so_without_a_server() -> None:
    shown = await run(RPC_PY, "--dry-run", "save_config")
    assert (shown.code, shown.out) == (1, "save_config needs the answers of a server\n")


async def test_an_unknown_subsystem_is_refused_in_words(server: str) -> None:
    shown = await run(RPC_PY, "-s", server, "save_config", "-s", "nvmf")
    assert shown.code == 1
    assert shown.out.startswith("No subsystem is called nvmf; there are scheduler, ")


async def test_the_plugin_gives_spdks_rpc_py_our_commands(domain: Domain, server: str) -> None:
    env = {"PYTHONPATH": str(RPC_PY.parent)}
    await domain.aio("a")
    image = domain.file("image.raw", 4 << 20)
    for command, shown in (
        (["bdev_ubi_create", "-n", "u", "-b", "a", "-i", image, "-s", "64", "--no-copy-on-read"], "u\n"),
        (["nbd_create_export", "u", "-n", "e", "-r"], None),
        (["nbd_delete_export", "e"], ""),
        (["bdev_ubi_get_status", "u"], None),
        (["bdev_ubi_delete", "-n", "u"], ""),
    ):
        theirs = await run(SPDK_RPC, "-s", server, "--plugin", "ubi_rpc_plugin", *command, env=env)
        assert theirs.code == 0, theirs
        if shown is None:
            json.loads(theirs.out)
        else:
            assert theirs.out == shown
    refused = await run(SPDK_RPC, "-s", server, "--plugin", "ubi_rpc_plugin", "bdev_ubi_delete", "u", env=env)
    assert refused.code == 1
    assert '"code": -19' in refused.out
    dry = await run(SPDK_RPC, "--dry-run", "--plugin", "ubi_rpc_plugin", "bdev_ubi_delete", "u", env=env)
    assert json.loads(dry.out.partition("\n")[2])["params"] == {"name": "u"}


@pytest.mark.parametrize("arguments", [["-h", "bdev_get_bdevs"], ["--help"]])
async def test_help_has_every_command_whatever_follows(arguments: list[str]) -> None:
    assert (await run(RPC_PY, *arguments)).out == (await run(RPC_PY, "-h")).out
