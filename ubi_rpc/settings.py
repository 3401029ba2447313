"""The command line and the daemon's limits, each with its unit and its reason.

Reads nothing but argv and the environment; opens no file. `daemon` acts on what is decided here.
"""

from __future__ import annotations

import argparse
import grp
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ubi_rpc import spdk_options
from ubi_rpc.log_control import FLAGS

DEFAULT_RPC_SOCKET = "/var/tmp/spdk.sock"  # noqa: S108  SPDK's own default: clients look there
"""Source: SPDK include/spdk/rpc.h, SPDK_DEFAULT_RPC_ADDR."""

MAX_CPUS = 1024
"""CPUs that a set can name. Source: SPDK include/spdk/cpuset.h, SPDK_CPUSET_SIZE."""

MAX_UNPINNED_REACTORS = 4
"""Without -m: more reactors than this only pay off when queues are spread by hand."""

BLOCKING_CALLS = 32
"""Threads for native calls that wait (opens, closes, drains). Each may wait 30 s for a file lock, so there are more
than the daemon has CPUs; they cost nothing until used."""

MEMORY_BUDGET_BYTES = 256 << 20
"""Request payloads of all connections together; over it sockets are not read. Four 64 MiB requests."""

STOP_TIMEOUT_S = 60.0
"""A clean stop that storage holds up for longer than this ends at once instead; the crash promises then hold."""

PRIVATE_SOCKET, GROUP_SOCKET = 0o600, 0o660
"""Modes of the frontends' sockets when nothing else is said: their user's alone, and with a group that group's too."""

IoEngine = Literal["auto", "io_uring", "threads"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line asked for.

    Args:
        rpc_socket: path of the JSON-RPC socket.
        socket_dir: where frontends put their sockets when a call names none (-S).
        state_dir: where volatile maps live.
        cpus: one reactor is pinned to each; None leaves `reactors` of them unpinned.
        reactors: how many reactors run.
        config: SPDK JSON configuration to apply at start.
        ignore_init_errors: a failing entry of the configuration is logged and skipped.
        wait_for_rpc: stay in the STARTUP state until framework_start_init is called.
        rpcs_allowed: the only methods that may be called; None allows all.
        io_engine: how the engine does I/O.
        persist: file that the running configuration is kept in, and read from at the next start.
        check_config: only check this configuration and exit.
        rpc_server: listen for clients.
        rpc_group: number of the group whose members may use the JSON-RPC socket; None for the user alone.
        socket_mode: permission bits of the frontends' Unix sockets.
        socket_group: number of the group that they belong to; None for the one that the system gives them.
        pid_file: where the process's number is written.
        log_flags: parts of the program that tell their details from the start.
        ignored: options of SPDK that were given and have no effect.
        allowed_dirs: directories below which images and bases may be; empty allows every place.
    """

    rpc_socket: Path
    socket_dir: Path
    state_dir: Path
    cpus: tuple[int, ...] | None
    reactors: int
    config: Path | None
    ignore_init_errors: bool
    wait_for_rpc: bool
    rpcs_allowed: frozenset[str] | None
    io_engine: IoEngine
    check_config: Path | None = None
    persist: Path | None = None
    rpc_server: bool = True
    rpc_group: int | None = None
    socket_mode: int = PRIVATE_SOCKET
    socket_group: int | None = None
    pid_file: Path | None = None
    log_flags: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    allowed_dirs: tuple[Path, ...] = ()


def parse_cpus(text: str) -> tuple[int, ...]:
    """Read a CPU set: a hexadecimal mask (`0x3`, `3`) or a list (`[0,2-4]`).

    Source: SPDK lib/env_dpdk, -m: "core mask (like 0xF) or core list of '[]' embraced".

    Raises:
        ValueError: it is neither, it names no CPU, or one from `MAX_CPUS` up.
    """
    text = text.strip()
    if len(text) > MAX_CPUS * 8:
        raise ValueError(f"longer than a set of {MAX_CPUS} CPUs is")
    cpus: set[int] = set()
    if text.startswith("[") and text.endswith("]"):
        for part in text[1:-1].split(","):
            first, _, last = part.partition("-")
            _refuse_beyond(int(first), int(last or first))
            cpus.update(range(int(first), int(last or first) + 1))
    else:
        mask = int(text, 16)
        if mask < 0:
            raise ValueError("a mask is not negative")
        _refuse_beyond(mask.bit_length() - 1)
        cpus.update(cpu for cpu in range(mask.bit_length()) if mask >> cpu & 1)
    if not cpus:
        raise ValueError("no CPU in it")
    return tuple(sorted(cpus))


def _refuse_beyond(*cpus: int) -> None:
    if max(cpus) >= MAX_CPUS:
        raise ValueError(f"CPUs are numbered below {MAX_CPUS}")


def default_state_dir(environ: dict[str, str], *, root: bool) -> Path:
    """Where volatile maps live: systemd's STATE_DIRECTORY, else /var/lib/ubi_rpc as root, else the XDG state folder."""
    if given := environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    if root:
        return Path("/var/lib/ubi_rpc")
    home = environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return Path(home) / "ubi_rpc"


def _cpu_set(text: str) -> tuple[int, ...]:
    try:
        cpus = parse_cpus(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a CPU mask like 0x3 or a list like [0,1]: {error}"
        ) from error
    if missing := set(cpus) - os.sched_getaffinity(0):
        names = ", ".join(str(cpu) for cpu in sorted(missing)[:8])
        raise argparse.ArgumentTypeError(f"{text!r}: this process may not run on CPU {names}")
    return cpus


def _group(text: str) -> int:
    try:
        return int(text) if text.isdigit() else grp.getgrnam(text).gr_gid
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"there is no group {text!r}") from error


def _socket_mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not an octal mode like 0660") from error
    if not 0 <= mode <= 0o777 or mode & PRIVATE_SOCKET != PRIVATE_SOCKET:
        raise argparse.ArgumentTypeError(f"{text!r}: a socket's mode is from 0600 to 0777, with its user's rw in it")
    return mode


def parser() -> argparse.ArgumentParser:
    """Return the parser of ubi_tgt's command line; SPDK's spellings where SPDK has the option."""
    options = argparse.ArgumentParser(
        prog="ubi_tgt",
        description="Writable block devices from images at once, driven by SPDK's JSON-RPC.",
        allow_abbrev=False,
    )
    add = options.add_argument
    add("-r", "--rpc-socket", metavar="SOCK", type=Path, default=Path(DEFAULT_RPC_SOCKET),
        help="JSON-RPC Unix socket (default: %(default)s)")  # fmt: skip
    add("-S", dest="socket_dir", metavar="DIR", type=Path, default=Path(),
        help="directory of the frontends' sockets, nbd.sock among them (default: the current one)")  # fmt: skip
    add("--state-dir", metavar="DIR", type=Path, default=None,
        help="directory of what must survive the daemon but not the kernel (default: $STATE_DIRECTORY, "
             "/var/lib/ubi_rpc as root, else the XDG state folder)")  # fmt: skip
    add("-m", "--cpumask", metavar="MASK|[LIST]", type=_cpu_set, default=None,
        help="one pinned reactor a CPU (default: min(4, CPUs) reactors, unpinned)")  # fmt: skip
    add("-c", "--json", "--config", dest="config", metavar="FILE", type=Path, default=None,
        help="SPDK JSON configuration to apply at start")  # fmt: skip
    add("--json-ignore-init-errors", dest="ignore_init_errors", action="store_true",
        help="log a failing entry of the configuration and go on")  # fmt: skip
    add("--persist", metavar="FILE", type=Path, default=None,
        help="keep the running configuration in FILE: written before a create or delete is answered, applied at the "
             "next start instead of --json")  # fmt: skip
    add("--wait-for-rpc", action="store_true", help="wait for framework_start_init before the objects are made")
    add("--rpcs-allowed", metavar="NAME,...", default=None, help="the only methods that may be called")
    add("--allowed-dir", dest="allowed_dirs", metavar="DIR", type=Path, action="append", default=[],
        help="images and bases may only be below this directory; may be given again (default: anywhere)")  # fmt: skip
    add("--io-engine", choices=("auto", "io_uring", "threads"), default="auto",
        help="io_uring, a pool of threads where it is not allowed, or whichever works (default)")  # fmt: skip
    add("--check-config", metavar="FILE", type=Path, default=None,
        help="check a configuration without applying it, and exit with the code that a daemon would")  # fmt: skip
    add("--no-rpc-server", dest="rpc_server", action="store_false", help="do not listen for clients")
    add("--rpc-group", metavar="GROUP", type=_group, default=None,
        help="members of this group may use the JSON-RPC socket as well (default: this user alone)")  # fmt: skip
    add("--socket-mode", metavar="MODE", type=_socket_mode, default=None,
        help="octal mode of the frontends' Unix sockets, NBD and vhost-user (default: 0600, with --socket-group 0660)"
        )  # fmt: skip
    add("--socket-group", metavar="GROUP", type=_group, default=None,
        help="group of the frontends' Unix sockets, by name or number, say kvm (default: this user's)")  # fmt: skip
    add("-f", dest="pid_file", metavar="FILE", type=Path, default=None, help="write the process's number there")
    add("-L", "--logflag", dest="log_flags", metavar="FLAG", action="append", default=[],
        help=f"log the details of a part of the program: {', '.join(FLAGS)}, or all")  # fmt: skip
    add("-v", "--version", action="store_true", help="print the version and exit")
    spdk_options.add_to(options)
    return options


def parse(argv: list[str]) -> Settings | None:
    """Turn a command line into settings; None when -v asked for the version alone.

    Raises:
        SystemExit: 2 for a bad option, 0 after -h, as argparse does and as SPDK does; 1 for options that exclude
            each other.
    """
    options = parser()
    args = options.parse_args(argv)
    if args.version:
        return None
    if args.wait_for_rpc and not args.rpc_server:
        options.exit(1, "ubi_tgt: --wait-for-rpc needs the RPC server\n")
    cpus: tuple[int, ...] | None = args.cpumask
    allowed: str | None = args.rpcs_allowed
    state_dir: Path | None = args.state_dir
    mode: int | None = args.socket_mode
    usual_mode = PRIVATE_SOCKET if args.socket_group is None else GROUP_SOCKET
    return Settings(
        rpc_socket=args.rpc_socket,
        socket_dir=args.socket_dir.absolute(),
        state_dir=state_dir or default_state_dir(dict(os.environ), root=os.geteuid() == 0),
        cpus=cpus,
        reactors=len(cpus) if cpus else min(MAX_UNPINNED_REACTORS, len(os.sched_getaffinity(0))),
        config=args.config,
        ignore_init_errors=args.ignore_init_errors,
        wait_for_rpc=args.wait_for_rpc,
        rpcs_allowed=None if allowed is None else frozenset(name.strip() for name in allowed.split(",")),
        io_engine=args.io_engine,
        check_config=args.check_config,
        persist=args.persist,
        rpc_server=args.rpc_server,
        rpc_group=args.rpc_group,
        socket_mode=usual_mode if mode is None else mode,
        socket_group=args.socket_group,
        pid_file=args.pid_file,
        log_flags=tuple(args.log_flags),
        ignored=tuple(args.ignored),
        allowed_dirs=tuple(args.allowed_dirs),
    )
