"""The command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ubi_rpc.settings import default_state_dir, parse, parse_cpus

CPUS = sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0x3", (0, 1)),
        ("3", (0, 1)),
        ("F0", (4, 5, 6, 7)),
        ("[0]", (0,)),
        ("[2,0-1]", (0, 1, 2)),
        ("[ 1 , 3 ]", (1, 3)),
    ],
)
def test_cpus_are_read_from_masks_and_lists(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpus(text) == cpus


HUGE = ["[0-99999999999]", "[99999999999]", "[1024]", hex(1 << 1024), "f" * 260_000, "[" + "0," * 100_000 + "0]"]
"""Sets of more CPUs than a machine has: reading one takes neither time nor memory, whoever sends it."""


@pytest.mark.timeout(10)
@pytest.mark.parametrize("text", HUGE)
def test_a_set_of_more_cpus_than_spdk_knows_is_refused_at_once(text: str) -> None:
    with pytest.raises(ValueError, match="1024"):
        parse_cpus(text)


def test_the_last_cpu_that_spdk_knows_can_be_named() -> None:
    assert parse_cpus(hex(1 << 1023)) == parse_cpus("[1023]") == (1023,)


@pytest.mark.parametrize("text", ["", "0", "0x", "-1", "[]", "[a]", "[1-0]", "[0,]", "xyz", "[-1]"])
def test_what_is_no_cpu_set_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_cpus(text)


def test_defaults_are_spdks() -> None:
    settings = parse([])
    assert settings is not None
    assert settings.rpc_socket == Path("/var/tmp/spdk.sock")
    assert settings.socket_dir == Path.cwd()
    assert settings.cpus is None
    assert settings.reactors == min(4, len(CPUS))
    assert settings.config is None
    assert settings.rpcs_allowed is None
    assert settings.io_engine == "auto"
    assert not settings.wait_for_rpc
    assert not settings.ignore_init_errors


def test_every_option_is_taken() -> None:
    settings = parse(
        f"-r r.sock -S dir --state-dir st -m [{CPUS[0]}] --json c.json --json-ignore-init-errors --wait-for-rpc "
        "--io-engine threads --rpcs-allowed a,b".split()
    )
    assert settings is not None
    assert (settings.rpc_socket, settings.config) == (Path("r.sock"), Path("c.json"))
    assert (settings.socket_dir, settings.state_dir) == (Path.cwd() / "dir", Path("st"))
    assert (settings.cpus, settings.reactors) == ((CPUS[0],), 1)
    assert (settings.ignore_init_errors, settings.wait_for_rpc) == (True, True)
    assert (settings.io_engine, settings.rpcs_allowed) == ("threads", frozenset({"a", "b"}))


@pytest.mark.parametrize("option", ["-c", "--config", "--json"])
def test_the_configuration_has_spdks_three_names(option: str) -> None:
    settings = parse([option, "x"])
    assert settings is not None
    assert settings.config == Path("x")


@pytest.mark.parametrize(
    "arguments", [["--bogus"], ["-m", "zz"], ["-m", "[99999]"], ["--io-engine", "x"], ["extra"], ["--js", "x"], ["-r"]]
)
def test_a_bad_option_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
    assert "usage: ubi_tgt" in capsys.readouterr().err


def test_options_of_spdk_are_accepted_and_named() -> None:
    settings = parse(
        f"-S /var/storage/vhost --huge-dir /dev/hugepages --iova-mode va --rpc-socket r.sock --cpumask [{CPUS[0]}] "
        "--disable-cpumask-locks --config F -s 1024 -n 2 -i0 -p 0 -u -g -d -R -A 00:01.0 --pci-blacklist x "
        "--no-huge --interrupt-mode --max-delay 1 -e bdev -L rpc -L nvmf --base-virtaddr 0x2000 --lcores 0".split()
    )
    assert settings is not None
    assert settings.ignored[:3] == ("--huge-dir", "--iova-mode", "--disable-cpumask-locks")
    assert (settings.socket_dir, settings.config) == (Path("/var/storage/vhost"), Path("F"))
    assert settings.log_flags == ("rpc", "nvmf")
    plain = parse([])
    assert plain is not None
    assert (plain.ignored, plain.log_flags, plain.pid_file, plain.rpc_server) == ((), (), None, True)


def test_waiting_for_rpc_without_its_server_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--wait-for-rpc", "--no-rpc-server"])
    assert caught.value.code == 1
    assert "--wait-for-rpc needs the RPC server" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environ", "root", "expected"),
    [
        ({"STATE_DIRECTORY": "/run/a:/run/b"}, True, "/run/a"),
        ({"XDG_STATE_HOME": "/x"}, True, "/var/lib/ubi_rpc"),
        ({"XDG_STATE_HOME": "/x"}, False, "/x/ubi_rpc"),
        ({}, False, str(Path.home() / ".local/state/ubi_rpc")),
    ],
)
def test_the_state_directory_has_a_default(environ: dict[str, str], root: bool, expected: str) -> None:
    assert default_state_dir(environ, root=root) == Path(expected)


def test_the_group_of_the_socket_is_a_name_or_a_number() -> None:
    for text, number in (("root", 0), ("0", 0), ("4242", 4242)):
        settings = parse(["--rpc-group", text])
        assert settings is not None
        assert settings.rpc_group == number
    with pytest.raises(SystemExit):
        parse(["--rpc-group", "no-such-group"])


@pytest.mark.parametrize(
    ("argv", "mode", "group"),
    [
        ([], 0o600, None),
        (["--socket-group", "root"], 0o660, 0),
        (["--socket-group", "4242", "--socket-mode", "0666"], 0o666, 4242),
        (["--socket-mode", "755"], 0o755, None),
        (["--socket-mode", "0o600"], 0o600, None),
    ],
)
def test_the_frontends_sockets_have_a_mode_and_a_group(argv: list[str], mode: int, group: int | None) -> None:
    settings = parse(argv)
    assert settings is not None
    assert (settings.socket_mode, settings.socket_group) == (mode, group)
    assert settings.rpc_group is None, "the RPC socket is none of these"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--socket-mode", "rw"], "is not an octal mode"),
        (["--socket-mode", "0x1b0"], "is not an octal mode"),
        (["--socket-mode", "0888"], "is not an octal mode"),
        (["--socket-mode", "-1"], "from 0600 to 0777"),
        (["--socket-mode", "1660"], "from 0600 to 0777"),
        (["--socket-mode", "0060"], "from 0600 to 0777"),
        (["--socket-group", "no-such-group"], "there is no group 'no-such-group'"),
        (["--socket-group", "-5"], "there is no group"),
    ],
)
def test_a_mode_or_group_that_cannot_be_is_refused(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(argv)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
