"""The daemon as a process: start, configuration, states, signals, exit codes, what is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.daemon.process import CHECKOUT, READY, Process

MALLOC = '{"method": "bdev_malloc_create", "params": {"name": "m", "num_blocks": 8, "block_size": 512}}'
EXPORT = '{"method": "nbd_create_export", "params": {"bdev_name": "m"}}'


def _config(folder: Path, bdev: str = MALLOC, nbd: str = EXPORT) -> str:
    path = folder / "conf.json"
    path.write_text(
        f'{{"subsystems": [\n{{"subsystem": "bdev", "config": [{bdev}]}},\n{{"subsystem": "nbd", "config": [{nbd}]}}]}}'
    )
    return str(path)


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    """Return a process that is not started yet."""
    made = Process(tmp_path)
    yield made
    made.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_closes_everything_and_leaves_nothing(process: Process, number: signal.Signals) -> None:
    await process.start("--json", _config(process.folder))
    ready = await process.until(READY)
    assert f"rpc={process.socket} reactors={min(4, len(os.sched_getaffinity(0)))} io_engine=threads" in ready
    assert f"config={process.folder}/conf.json" in ready
    assert await process.call("nbd_get_exports")
    assert await process.end(number) == 0
    assert sorted(path.name for path in process.folder.iterdir()) == ["conf.json", "state"]
    assert "exit_code=0" in process.log[-1]


async def test_sockets_are_there_while_it_runs(process: Process) -> None:
    await process.start("-S", str(process.folder / "sockets"), "--json", _config(process.folder, nbd=""))
    (process.folder / "sockets").mkdir()
    await process.until(READY)
    assert stat.S_ISSOCK(process.socket.stat().st_mode)
    assert (process.folder / "rpc.sock.lock").exists()
    assert (process.folder / "state").is_dir()
    created = await process.call("nbd_create_export", bdev_name="m")
    assert created["uri"].endswith("/sockets/nbd.sock")
    assert await process.end(signal.SIGTERM) == 0


async def test_kill_instance_is_answered_before_it_acts(process: Process) -> None:
    await process.start()
    await process.until(READY)
    assert await process.request("spdk_kill_instance", sig_name="SIGTERM") == {
        "jsonrpc": "2.0",
        "id": 1,
        "result": True,
    }
    assert await process.exit_code() == 0


async def test_kill_instance_with_sigkill_is_answered_too(process: Process) -> None:
    await process.start()
    await process.until(READY)
    assert await process.call("spdk_kill_instance", sig_name="SIGKILL") is True
    assert await process.exit_code() == -signal.SIGKILL
    again = Process(process.folder)
    await again.start()  # what a crash left is cleaned up
    await again.until(READY)
    assert await again.end(signal.SIGTERM) == 0


async def test_a_second_signal_ends_at_once(process: Process) -> None:
    await process.start(UBI_TEST_HOLD="close")
    await process.until(READY)
    await process.call("bdev_malloc_create", name="m", num_blocks=8, block_size=512)
    assert await process.end(signal.SIGTERM, signal.SIGINT) == 1


async def test_a_stop_that_storage_holds_up_ends_in_the_end(process: Process) -> None:
    await process.start(UBI_TEST_HOLD="close", UBI_TEST_STOP_TIMEOUT_S="0.2")
    await process.until(READY)
    await process.call("bdev_malloc_create", name="m", num_blocks=8, block_size=512)
    assert await process.end(signal.SIGTERM) == 1
    assert "did not stop in" in process.log[-1]


async def test_while_it_stops_nobody_is_served_and_its_socket_stays_taken(process: Process) -> None:
    await process.start(UBI_TEST_HOLD="close", UBI_TEST_LET_GO_ON="SIGUSR2")
    await process.until(READY)
    await process.call("bdev_malloc_create", name="m", num_blocks=8, block_size=512)
    reader, writer = await asyncio.open_unix_connection(str(process.socket))
    process.running.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        assert await reader.read() == b""
    writer.close()
    second = Process(process.folder)
    await second.start()
    assert await second.exit_code() == 234
    process.running.send_signal(signal.SIGUSR2)
    assert await process.exit_code() == 0
    assert not process.socket.exists()


async def test_a_signal_during_the_start_stops_cleanly(process: Process) -> None:
    await process.start("--json", _config(process.folder), UBI_TEST_HOLD="listen", UBI_TEST_LET_GO_ON="SIGUSR2")
    await process.until("event=bdev_register")
    process.running.send_signal(signal.SIGTERM)
    await process.until("signal=SIGTERM")
    process.running.send_signal(signal.SIGUSR2)
    assert await process.exit_code() == 0
    assert not process.socket.exists()
    assert not any(READY in line for line in process.log)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--bogus"], 2, "unrecognized arguments"),
        (["-m", "0"], 2, "not a CPU mask"),
        (["--json", "absent.json"], 1, "absent.json: No such file or directory"),
        (["--json", "."], 1, "Is a directory"),
        (["--json", "bad.json"], 234, "bad.json:2:1: "),
        (["--json", "refused.json"], 234, "refused.json:1:50: subsystem 'bdev', entry 0 (bdev_malloc_create): -32603"),
        (["--json", "refused.json"], 234, "num_blocks"),
        (["--json", "absent_bdev.json"], 234, "-19 No such device"),
        (["--json", "unknown.json"], 254, "method does not exist"),
        (["--json", "bad.json", "--json-ignore-init-errors"], 234, "bad.json:2:1: "),
        (["-r", "nowhere/rpc.sock"], 1, "nowhere/rpc.sock"),
    ],
)
async def test_what_it_cannot_start_with_has_its_exit_code(
    process: Process, arguments: list[str], code: int, message: str
) -> None:
    entry = '{"subsystems": [{"subsystem": "bdev", "config": [%s]}]}'
    (process.folder / "bad.json").write_text('{"subsystems":\n]}')
    (process.folder / "refused.json").write_text(
        entry % '{"method": "bdev_malloc_create", "params": {"block_size": 512}}'
    )
    (process.folder / "absent_bdev.json").write_text(entry % '{"method": "bdev_null_delete", "params": {"name": "x"}}')
    (process.folder / "unknown.json").write_text(entry % '{"method": "bdev_magic_create"}')
    await process.start(*arguments)
    assert await process.exit_code() == code
    assert message in "".join(process.log)
    assert not process.socket.exists()
    assert not (process.folder / "rpc.sock.lock").exists()


async def test_a_socket_in_use_is_refused_and_its_owner_unharmed(process: Process) -> None:
    await process.start()
    await process.until(READY)
    second = Process(process.folder)
    await second.start()
    assert await second.exit_code() == 234
    assert f"RPC Unix domain socket path {process.socket} in use. Specify another." in "".join(second.log)
    assert await process.call("spdk_get_version")
    assert await process.end(signal.SIGTERM) == 0


async def test_ignored_init_errors_are_logged_and_the_rest_is_made(process: Process) -> None:
    config = _config(process.folder, bdev=f'{{"method": "bdev_magic_create"}}, {MALLOC}, {MALLOC}')
    await process.start("--json", config, "--json-ignore-init-errors")
    await process.until(READY)
    assert [bdev["name"] for bdev in await process.call("bdev_get_bdevs")] == ["m"]
    assert await process.call("nbd_get_exports")
    assert "-17 File exists" in "".join(process.log)
    assert await process.end(signal.SIGTERM) == 0


async def test_wait_for_rpc_holds_the_configuration_back(process: Process) -> None:
    await process.start("--wait-for-rpc", "--json", _config(process.folder))
    assert "state=startup" in await process.until(READY)
    early = await process.request("bdev_get_bdevs")
    assert early["error"]["code"] == -1
    waiting = asyncio.create_task(process.call("framework_wait_init"))
    assert await process.call("framework_start_init") is True
    assert await waiting is True
    assert [bdev["name"] for bdev in await process.call("bdev_get_bdevs")] == ["m"]
    assert (await process.request("framework_start_init"))["error"]["code"] == -1
    assert await process.end(signal.SIGTERM) == 0


async def test_start_init_that_fails_is_answered_and_ends_the_daemon(process: Process) -> None:
    await process.start("--wait-for-rpc", "--json", _config(process.folder, bdev=f"{MALLOC}, {MALLOC}"))
    await process.until(READY)
    answer = await process.request("framework_start_init")
    assert answer["error"] == {"code": -32603, "message": "framework_initialization failed"}
    assert await process.exit_code() == 234
    assert not process.socket.exists()


async def test_rpcs_allowed_hides_the_others(process: Process) -> None:
    await process.start("--rpcs-allowed", "rpc_get_methods,bdev_get_bdevs")
    await process.until(READY)
    assert await process.call("rpc_get_methods") == ["rpc_get_methods", "bdev_get_bdevs"]
    assert (await process.request("spdk_get_version"))["error"]["code"] == -32601
    assert await process.end(signal.SIGTERM) == 0


async def test_requests_wait_while_the_configuration_is_applied(process: Process) -> None:
    await process.start("--json", _config(process.folder), UBI_TEST_HOLD="listen", UBI_TEST_LET_GO_ON="SIGUSR2")
    await process.until("event=bdev_register")
    early = asyncio.create_task(process.call("nbd_get_exports"))
    await asyncio.sleep(0)
    process.running.send_signal(signal.SIGUSR2)
    assert [export["export_name"] for export in await early] == ["m"]
    assert await process.end(signal.SIGTERM) == 0


async def test_version_and_help_are_printed_without_a_daemon(tmp_path: Path) -> None:
    for option, text in (("-v", "ubi_rpc v1.2.3-rc4"), ("-h", "usage: ubi_tgt"), ("--version", "ubi_rpc v")):
        process = await Process(tmp_path).start(option)
        out, _ = await process.running.communicate()
        assert process.running.returncode == 0
        assert text in out.decode()


async def test_a_state_directory_that_cannot_be_used_is_only_a_warning(process: Process) -> None:
    (process.folder / "file").touch()
    await process.start("--state-dir", str(process.folder / "file/state"))
    await process.until(READY)
    assert "cannot be used" in "".join(process.log)
    assert await process.end(signal.SIGTERM) == 0


async def test_the_example_configuration_is_accepted(process: Process) -> None:
    example = CHECKOUT / "examples/spdk_conf.json"
    with (process.folder / "aio0.raw").open("wb") as base:
        base.truncate(64 << 20)
    await process.start("--json", str(example))
    await process.until(READY)
    names = [bdev["name"] for bdev in await process.call("bdev_get_bdevs")]
    assert names == [
        entry["params"]["name"]
        for subsystem in json.loads(example.read_text())["subsystems"]
        for entry in subsystem["config"]
    ]
    assert await process.end(signal.SIGTERM) == 0


async def test_a_log_that_nobody_reads_holds_nothing_up(process: Process) -> None:
    await process.start()
    await process.until(READY)
    reader, writer = await asyncio.open_unix_connection(str(process.socket))
    requests = 5000  # each is logged as an error: far more than a pipe takes
    for number in range(requests):
        writer.write(b'{"id": %d, "method": "bdev_null_delete", "params": {"name": "absent"}}' % number)
    async with asyncio.timeout(60):
        for _ in range(requests):
            assert b"No such device" in await reader.readline()
    writer.close()
    process.running.send_signal(signal.SIGTERM)
    assert await process.exit_code() == 0


async def test_ubiclouds_command_line_starts_the_daemon(process: Process) -> None:
    config = process.folder / "spdk.json"
    config.write_text(
        json.dumps(
            {
                "subsystems": [
                    _one("iobuf", "iobuf_set_options", small_pool_count=38400, large_pool_count=4800),
                    _one("accel", "accel_set_options", task_count=4096),
                    _one("bdev", "bdev_set_options", bdev_io_pool_size=65536),
                ]
            }
        )
    )
    await process.start(
        *("-S", str(process.folder), "--huge-dir", "/mnt/huge", "--iova-mode", "va"),
        *("--cpumask", "[0]", "--disable-cpumask-locks", "--config", str(config)),
        *("-f", str(process.folder / "pid"), "-L", "nvmf"),
    )
    await process.until(READY)
    log = "".join(process.log)
    assert "options without effect here: --huge-dir --iova-mode --disable-cpumask-locks" in log
    assert "logflag=nvmf is no part" in log
    assert int((process.folder / "pid").read_text()) == process.running.pid
    saved = await process.call("framework_get_config", name="iobuf")
    assert saved[0]["params"]["small_pool_count"] == 38400
    assert await process.end(signal.SIGTERM) == 0
    assert not (process.folder / "pid").exists()


def _one(subsystem: str, method: str, **params: object) -> dict[str, object]:
    return {"subsystem": subsystem, "config": [{"method": method, "params": params}]}


async def test_no_rpc_server_applies_the_configuration_and_listens_nowhere(process: Process) -> None:
    await process.start("--no-rpc-server", "--json", _config(process.folder))
    await process.until(READY)
    assert "object=m event=nbd_export" in "".join(process.log)
    assert not process.socket.exists()
    assert await process.end(signal.SIGTERM) == 0


async def test_files_are_only_used_below_the_allowed_directories(process: Process) -> None:
    allowed = process.folder / "allowed"
    for path in (allowed / "inside", process.folder / "outside"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(4096))
    await process.start("--allowed-dir", str(allowed))
    await process.until(READY)
    create = {"name": "a", "block_size": 512}
    answer = await process.request("bdev_aio_create", **create, filename=str(process.folder / "outside"))
    assert answer["error"] == {"code": -13, "message": "Permission denied"}
    assert "not below a directory that --allowed-dir names" in await process.until("--allowed-dir")
    assert await process.call("bdev_aio_create", **create, filename=str(allowed / "inside")) == "a"
    assert await process.end(signal.SIGTERM) == 0


async def test_an_allowed_directory_that_is_not_there_ends_the_start(process: Process) -> None:
    await process.start("--allowed-dir", "nowhere")
    assert "allowed directory nowhere: No such file" in await process.until("failed")
    assert await process.exit_code() == 1
