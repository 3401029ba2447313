"""rpc.py as a program: the same words and exit codes as SPDK's, and never a traceback."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts.conftest import RPC_PY, SPDK_RPC, run

pytestmark = pytest.mark.timeout(60)

SHARED_COMMANDS = [
    "spdk_get_version",
    "rpc_get_methods",
    "rpc_get_methods -c -i",
    "framework_wait_init",
    "framework_start_init",
    "spdk_kill_instance SIGTERM",
    "bdev_get_bdevs",
    "bdev_get_bdevs -b Null0 -t 500",
    "bdev_malloc_create 1.5 512",
    "bdev_malloc_create -b m0 8 4096 -u 7e5b8e4c-8ef7-4c0e-9a5c-000000000001 -n 0 -p 4096",
    "bdev_malloc_delete m0",
    "bdev_null_create n0 10 4096",
    "bdev_null_create n0 10 4096 -p 512 -a 1 -g 2 -s 3 -c 4 -r 5",
    "bdev_null_delete nope",
    "bdev_aio_create /x/y a0 512",
    "bdev_aio_create /x/y a0 -r --fallocate --no-wait -u 7e5b8e4c-8ef7-4c0e-9a5c-000000000001",
    "bdev_aio_delete a0",
    "bdev_aio_delete",
    "no_such_command",
    "bdev_malloc_create big 512",
    "spdk_kill_instance SIGFOO",
    "-t 0 spdk_get_version",
    "-t -1 spdk_get_version",
]


@pytest.mark.parametrize("command", SHARED_COMMANDS)
async def test_command_prints_and_exits_as_spdks(address: str, command: str) -> None:
    arguments = ["-s", address, *shlex.split(command)]
    theirs, ours = await run(SPDK_RPC, *arguments), await run(RPC_PY, *arguments)
    assert (ours.code, ours.out) == (theirs.code, theirs.out)


@pytest.mark.parametrize("command", SHARED_COMMANDS)
async def test_command_sends_the_same_request_as_spdks(address: str, command: str) -> None:
    arguments = ["-s", address, "--dry-run", *shlex.split(command)]
    theirs, ours = await run(SPDK_RPC, *arguments), await run(RPC_PY, *arguments)
    assert (ours.code, ours.out) == (theirs.code, theirs.out)


async def ask(socket_path: Path, program: Path, *arguments: str) -> list[bytes]:
    """Run a client against a listener that keeps what it receives and answers `true`."""
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readuntil(b"\n}"))
        writer.write(b'{"jsonrpc":"2.0","id":1,"result":true}\n')
        received.append(await reader.read())
        writer.close()

    async with await asyncio.start_unix_server(serve, socket_path):
        outcome = await run(program, "-s", str(socket_path), *arguments)
    assert outcome.code == 0
    return received


async def test_bytes_on_the_wire_are_spdks(tmp_path: Path) -> None:
    arguments = ("bdev_malloc_create", "-b", "é", "1", "512")
    theirs = await ask(tmp_path / "a.sock", SPDK_RPC, *arguments)
    ours = await ask(tmp_path / "b.sock", RPC_PY, *arguments)
    assert ours == theirs


@pytest.mark.parametrize(
    ("command", "params"),
    [
        ("bdev_ubi_create -n u0 -b a0 -i /i", {"name": "u0", "base_bdev": "a0", "image_path": "/i"}),
        (
            "bdev_ubi_create -n u0 -b a0 -i /i -s 64 --no-sync --no-copy-on-read --no-directio --uuid x",
            {
                "name": "u0",
                "base_bdev": "a0",
                "image_path": "/i",
                "stripe_size_kb": 64,
                "no_sync": True,
                "copy_on_read": False,
                "directio": False,
                "uuid": "x",
            },
        ),
        ("bdev_ubi_delete u0", {"name": "u0"}),
        ("bdev_ubi_delete -n u0", {"name": "u0"}),
        ("bdev_ubi_get_status u0", {"name": "u0"}),
        ("bdev_ubi_get_status --name u0", {"name": "u0"}),
        ("nbd_create_export u0", {"bdev_name": "u0"}),
        (
            "nbd_create_export u0 --export-name e --socket /s --readonly --default --max-connections 3 --description d",
            {
                "bdev_name": "u0",
                "export_name": "e",
                "socket": "/s",
                "readonly": True,
                "default": True,
                "max_connections": 3,
                "description": "d",
            },
        ),
        (
            "nbd_create_export u0 --address 0.0.0.0:10809 --allow-plaintext",
            {"bdev_name": "u0", "address": "0.0.0.0:10809", "allow_plaintext": True},
        ),
        ("nbd_delete_export e", {"export_name": "e"}),
        ("nbd_delete_export -n ''", {"export_name": ""}),
        (
            "bdev_aio_create /f a0 512 --cache writeback",
            {
                "filename": "/f",
                "name": "a0",
                "block_size": 512,
                "readonly": False,
                "fallocate": False,
                "nowait": False,
                "cache": "writeback",
            },
        ),
    ],
)
async def test_command_of_our_own_sends_its_parameters(command: str, params: dict[str, object]) -> None:
    outcome = await run(RPC_PY, "--dry-run", *shlex.split(command))
    assert outcome.code == 0
    sent = json.loads(outcome.out.removeprefix("Request:\n"))
    assert list(sent.items())[:3] == [("jsonrpc", "2.0"), ("method", command.split(maxsplit=1)[0]), ("id", 1)]
    assert sent["params"] == params


@pytest.mark.parametrize("command", ["bdev_ubi_get_status", "bdev_ubi_delete a -n b", "bdev_ubi_create -n x", ""])
async def test_command_line_at_fault_exits_2(command: str) -> None:
    if command:
        assert (await run(RPC_PY, "--dry-run", *shlex.split(command))).code == 2


async def test_misspelt_command_is_corrected() -> None:
    outcome = await run(RPC_PY, "bdev_get_bdev")
    assert outcome.code == 2
    assert "did you mean: bdev_get_bdevs?" in outcome.err


async def test_refusal_prints_spdks_block_and_our_reason(address: str) -> None:
    outcome = await run(RPC_PY, "-s", address, "bdev_null_delete", "n9")
    assert outcome.code == 1
    assert outcome.out == (
        'request:\n{\n  "name": "n9",\n  "method": "bdev_null_delete",\n  "req_id": 1\n}\n'
        'Got JSON-RPC error response\nresponse:\n{\n  "code": -19,\n  "message": "No such device"\n}\n'
    )
    assert outcome.err == "bdev n9 does not exist\n"


async def test_refusal_by_another_server_prints_spdks_block_alone(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await reader.readuntil(b"}")
            writer.write(b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"Method not found"}}\n')
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "s"):
        outcome = await run(RPC_PY, "-s", str(tmp_path / "s"), "spdk_get_version")
    assert outcome.code == 1
    assert '"code": -32601' in outcome.out
    assert outcome.err == ""


@pytest.mark.parametrize(
    ("answer", "out"),
    [
        (b"", "Connection closed with partial response:\n\n\n"),
        (
            b'{"jsonrpc":"2.0","id":1,"resu',
            'Connection closed with partial response:\n{"jsonrpc":"2.0","id":1,"resu\n\n',
        ),
        (b"5\n", "Not an answer to a request:\n5\n\n"),
        (b'{"id":1}\n', 'Not an answer to a request:\n{"id": 1}\n\n'),
        (b"\xff\n", "Connection closed with partial response:\n\ufffd\n\n\n"),
    ],
)
async def test_bad_answer_is_an_error_in_words(tmp_path: Path, answer: bytes, out: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "s"):
        outcome = await run(RPC_PY, "-s", str(tmp_path / "s"), "spdk_get_version")
        killed = await run(RPC_PY, "-s", str(tmp_path / "s"), "spdk_kill_instance", "SIGTERM")
    assert (outcome.code, outcome.out) == (1, out)
    if "closed" in out:
        assert (killed.code, killed.out) == (0, "")


async def test_answer_in_pieces_is_read_whole(tmp_path: Path) -> None:
    names = [f"bdev{i}é}}]" for i in range(20_000)]
    text = json.dumps({"jsonrpc": "2.0", "id": 1, "result": names}, ensure_ascii=False).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        for i in range(0, len(text), 1000):
            writer.write(text[i : i + 1000])
            await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "s"):
        outcome = await run(RPC_PY, "-s", str(tmp_path / "s"), "bdev_get_bdevs")
    assert json.loads(outcome.out) == names


async def test_server_that_does_not_answer_times_out(tmp_path: Path) -> None:
    done = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "s"):
        outcome = await run(RPC_PY, "-s", str(tmp_path / "s"), "-t", "0.05", "spdk_get_version")
        done.set()
    assert (outcome.code, outcome.out) == (1, "Timeout while waiting for response:\n\n\n")


@pytest.mark.parametrize("where", ["/nowhere/at/all", "127.0.0.1"])
async def test_no_server_prints_spdks_words(where: str) -> None:
    arguments = ["-s", where, "-p", "9", "spdk_get_version"]
    theirs, ours = await run(SPDK_RPC, *arguments), await run(RPC_PY, *arguments)
    assert (ours.code, ours.out) == (theirs.code, theirs.out)
    assert "Is SPDK application running?" in ours.out


async def test_retries_wait_for_the_server(tmp_path: Path) -> None:
    called = asyncio.create_task(run(RPC_PY, "-s", str(tmp_path / "s"), "-r", "100", "framework_wait_init"))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b'{"jsonrpc":"2.0","id":1,"result":true}\n')
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "s"):
        assert (await called).code == 0


async def test_tcp_address_is_connected_to() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b'{"jsonrpc":"2.0","id":1,"result":["over tcp"]}\n')
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        outcome = await run(RPC_PY, "-s", "127.0.0.1", "-p", str(port), "bdev_get_bdevs")
    assert json.loads(outcome.out) == ["over tcp"]


SCRIPT = "spdk_get_version\n\n# a comment\nbdev_malloc_create 1 512\n"


async def test_script_prints_and_exits_as_spdks(address: str) -> None:
    for script in (SCRIPT, SCRIPT + "bdev_null_delete x\nspdk_get_version\n"):
        theirs = await run(SPDK_RPC, "-s", address, stdin=script)
        ours = await run(RPC_PY, "-s", address, stdin=script)
        assert (ours.code, ours.out) == (theirs.code, theirs.out)


@pytest.mark.parametrize("line", ["'unbalanced", "-v"])
async def test_script_line_at_fault_is_named(address: str, line: str) -> None:
    outcome = await run(RPC_PY, "-s", address, stdin=f"spdk_get_version\n{line}\n")
    assert outcome.code == 1
    assert f"spdk_get_version\n{line} <<<\n" in outcome.out


async def test_batch_is_one_request_and_errors_go_to_stderr(address: str) -> None:
    outcome = await run(RPC_PY, "-s", address, "-b", stdin=SCRIPT + "bdev_null_delete x\n")
    assert outcome.code == 1
    assert '"version": "SPDK v26.09"' in outcome.out
    assert outcome.out.endswith('"Malloc0"\n')
    assert json.loads(outcome.err) == {"code": -19, "message": "No such device"}
    assert (await run(RPC_PY, "-s", address, "-b", stdin=SCRIPT)).code == 0
    assert (await run(RPC_PY, "-s", address, "-b", stdin="# nothing\n")).code == 0


async def test_server_mode_ends_each_answer_with_its_status(address: str) -> None:
    lines = f"-s {address} spdk_get_version\n-s {address} bdev_null_delete x\n-s /nowhere spdk_get_version\nnonsense\n"
    theirs, ours = await run(SPDK_RPC, "--server", stdin=lines), await run(RPC_PY, "--server", stdin=lines)
    assert (ours.code, ours.out) == (theirs.code, theirs.out)
    assert ours.out.count("**STATUS=0\n") == 1
    assert ours.out.count("**STATUS=1\n") == 3


async def test_plugin_adds_its_commands(address: str, tmp_path: Path) -> None:
    (tmp_path / "my_plugin.py").write_text(
        "def spdk_rpc_plugin_initialize(subparsers):\n"
        "    def status(args):\n"
        "        print(args.client.bdev_ubi_get_status(name=args.name, other=None))\n"
        "        print(args.client.call('bdev_ubi_get_status', {'name': 'n'}))\n"
        "    p = subparsers.add_parser('my_status')\n"
        "    p.add_argument('name')\n"
        "    p.set_defaults(func=status)\n"
    )
    env = {"PYTHONPATH": str(tmp_path)}
    outcome = await run(RPC_PY, "-s", address, "--plugin", "my_plugin", "my_status", "u0", env=env)
    assert outcome.out == "{'name': 'u0'}\n{'name': 'n'}\n"
    missing = await run(RPC_PY, "-s", address, "--plugin", "no_plugin", "spdk_get_version", env=env)
    assert missing.out.startswith("Module no_plugin not found\n")
    assert missing.code == 0


async def test_verbose_shows_request_and_response_on_stderr(address: str) -> None:
    outcome = await run(RPC_PY, "-s", address, "-v", "framework_wait_init")
    assert outcome.out == ""
    assert '"method": "framework_wait_init"' in outcome.err
    assert '"result": true' in outcome.err


@pytest.mark.parametrize("flags", [["-v"], ["--verbose", "INFO"], ["--verbose", "ERROR"]])
async def test_verbose_shows_what_spdks_client_shows(address: str, flags: list[str]) -> None:
    arguments = ["-s", address, *flags, "spdk_get_version"]
    theirs, ours = await run(SPDK_RPC, *arguments), await run(RPC_PY, *arguments)
    assert (ours.code, ours.out, ours.err) == (theirs.code, theirs.out, theirs.err)


async def test_debugging_shows_where_it_connects_and_what_it_calls(address: str) -> None:
    arguments = ["-s", address, "--verbose", "DEBUG", "bdev_get_bdevs", "-b", "n"]
    theirs, ours = await run(SPDK_RPC, *arguments), await run(RPC_PY, *arguments)
    for text in ("Log level set to 10\n", f"to UNIX socket: {address}\n", "call('bdev_get_bdevs')\n"):
        assert text in theirs.err
    their_lines, our_lines = theirs.err.splitlines(), ours.err.splitlines()
    assert [line for line in their_lines if line in our_lines] == our_lines


@pytest.mark.parametrize("flag", [[], ["--go-client"]])
async def test_the_choice_of_spdks_go_client_is_taken_and_changes_nothing(address: str, flag: list[str]) -> None:
    env = {} if flag else {"SPDK_JSONRPC_GO_CLIENT": "1"}
    outcome = await run(RPC_PY, "-s", address, *flag, "framework_wait_init", env=env)
    assert (outcome.code, outcome.out) == (0, "")


async def test_argument_that_is_not_utf8_is_refused_in_words(address: str) -> None:
    outcome = await run(RPC_PY, "-s", address, "bdev_malloc_delete", os.fsdecode(b"\xff"))
    assert outcome.code == 1
    assert "not UTF-8" in outcome.out


@pytest.mark.parametrize("size", ["nan", "inf", "1e400"])
async def test_size_that_is_no_number_of_blocks_is_refused_in_words(size: str) -> None:
    outcome = await run(RPC_PY, "--dry-run", "bdev_malloc_create", size, "512")
    assert outcome.code == 1
    assert "total_size" in outcome.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["-s", os.fsdecode(b"/\xff"), "spdk_get_version"],
        ["-s", "/tmp/" + "x" * 300, "spdk_get_version"],
        ["-s", "127.0.0.1", "-p", "99999999", "spdk_get_version"],
        ["-s", "::1", "-p", "1", "spdk_get_version"],
        ["-s", "", "spdk_get_version"],
        ["-s", "/", "spdk_get_version"],
        ["-t", "nan", "-s", "/dev/null", "spdk_get_version"],
    ],
)
async def test_odd_address_is_an_error_in_words(arguments: list[str]) -> None:
    outcome = await run(RPC_PY, *arguments)
    assert outcome.code == 1
    assert "Error while connecting to" in outcome.out


@pytest.mark.parametrize("seconds", ["inf", "1e30", "1e300"])
async def test_endless_timeout_is_accepted(address: str, seconds: str) -> None:
    assert (await run(RPC_PY, "-s", address, "-t", seconds, "framework_wait_init")).code == 0


async def test_timeout_that_is_no_number_is_refused_in_words(address: str) -> None:
    outcome = await run(RPC_PY, "-s", address, "-t", "nan", "framework_wait_init")
    assert (outcome.code, outcome.out) == (1, "Timeout value is invalid: nan\n\n")


async def test_closed_standard_streams_do_not_matter(address: str) -> None:
    command = f"exec {shlex.join([sys.executable, str(RPC_PY), '-s', address, 'bdev_get_bdevs'])}"
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        process = await asyncio.create_subprocess_shell(f"{command} {closed}")
        assert await process.wait() == 0


def test_reader_that_leaves_causes_no_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, str(RPC_PY), "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_a_full_disk_does_not_take_is_said_in_a_line(unbuffered: str) -> None:
    """Python's own end would be a traceback, or 120 where the text was still in a buffer."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, str(RPC_PY), "--dry-run", "bdev_get_bdevs"],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"rpc.py: [Errno 28] No space left on device\n")


def test_package_ships_the_same_file() -> None:
    packaged = RPC_PY.parents[1] / "ubi_rpc" / "cli_rpc.py"
    assert packaged.read_bytes() == RPC_PY.read_bytes()
    assert os.access(RPC_PY, os.X_OK)


async def test_help_lists_the_commands_a_line_each() -> None:
    outcome = await run(RPC_PY, "-h")
    assert outcome.code == 0
    for name in ("bdev_ubi_create", "nbd_create_export", "spdk_get_version"):
        assert f"\n    {name}" in outcome.out


def test_start_to_answer_takes_at_most_80_ms_of_cpu() -> None:
    def cpu_s() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    spent = []
    for _ in range(5):
        before = cpu_s()
        subprocess.run(
            [sys.executable, str(RPC_PY), "--dry-run", "bdev_get_bdevs"], check=True, stdout=subprocess.DEVNULL
        )
        spent.append(cpu_s() - before)
    assert min(spent) <= 0.080
