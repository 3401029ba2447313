"""The command line of the comparison."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.compare import Plan
from bench.control import run_c4, run_c7
from bench.daemon import CHECKOUT
from bench.direct import run_p7
from bench.load import Clients, build_client, build_nbd_load
from bench.machine import describe, warn_if_busy
from bench.overlay import run_c1, run_l5, run_l6, run_map, run_open
from bench.pause import run_pause
from bench.process import BenchError
from bench.report import save
from bench.scale import run_c2, run_c3
from bench.servers import OURS, OURS_BARE, Files
from bench.service import run_c5, run_c6, run_crowd
from bench.tables import DATA_TABLES, PEER_NAMES, Setup, run_data_table
from bench.vhost import VhostSetup, run_p5

SERVERS = (OURS, OURS_BARE, *PEER_NAMES)
OVERLAY_TABLES = ("c1", "l5", "l6", "map", "open")
SCALE_TABLES = ("c2", "c3", "c5", "c6", "crowd")
VHOST_TABLES = ("p5", "pause")
TABLES = (*DATA_TABLES, "p7", *OVERLAY_TABLES, "c4", "c7", *SCALE_TABLES, *VHOST_TABLES)
FULL = Plan(seconds=2.0, rounds=5)
QUICK = Plan(seconds=0.5, rounds=3)
MIB = 1 << 20


def main() -> int:
    """Measure the tables that are asked for, one after the other."""
    args = _parse()
    names = TABLES if "all" in args.tables else tuple(dict.fromkeys(args.tables))
    os.nice(args.nice)
    warn_if_busy()
    args.work.mkdir(parents=True, exist_ok=True)
    try:
        for name in names:
            with tempfile.TemporaryDirectory(dir=args.work, prefix=f"{name}-") as folder:
                machine = describe(Path(folder))
                text, record = _run(name, args, Path(folder))
            print(text)
            print(", ".join(f"{key}: {value}" for key, value in machine.items()))
            path = save(args.results, name, {"machine": machine, "command": sys.argv, **record})
            print(f"appended to {path}", flush=True)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _run(name: str, args: argparse.Namespace, folder: Path) -> tuple[str, dict[str, Any]]:
    if name == "c4":
        return run_c4(args.python, folder, 640 if args.quick else 6400)
    if name in SCALE_TABLES:
        return _run_scale(name, args, folder)
    if name == "c7":
        return run_c7(args.python, folder, 5 if args.quick else 20)
    if name in OVERLAY_TABLES:
        return _run_overlay(name, args, folder)
    if name in VHOST_TABLES:
        return _run_vhost(name, args, folder)
    return _run_data(name, args, folder)


def _run_data(name: str, args: argparse.Namespace, folder: Path) -> tuple[str, dict[str, Any]]:
    standard = QUICK if args.quick else FULL
    plan = Plan(args.seconds or standard.seconds, args.rounds or standard.rounds)
    size_mib = args.size_mib or (256 if args.quick else 1024)
    args.nbd_load = args.nbd_load or build_nbd_load()
    cpu = max(os.sched_getaffinity(0))
    files = Files(folder, size_mib * MIB)
    if name == "p7":
        direct = replace(files, cache="none")
        return run_p7(args.python, Clients(args.nbd_load, cpu), direct, plan, args.only)
    servers = tuple(filter(None, args.servers.split(",")))
    if unknown := set(servers) - set(SERVERS):
        raise BenchError(f"no such server: {', '.join(sorted(unknown))}")
    setup = Setup(args.python, args.nbd_load, files, plan, args.only, servers, cpu)
    return run_data_table(DATA_TABLES[name], setup)


def _run_vhost(name: str, args: argparse.Namespace, folder: Path) -> tuple[str, dict[str, Any]]:
    args.vhost_load = args.vhost_load or build_client("vhost-load")
    size_mib = args.size_mib or (256 if args.quick or name == "pause" else 1024)
    setup = VhostSetup(args.python, args.vhost_load, folder, size_mib * MIB)
    if name == "pause":
        return run_pause(setup, args.rounds or (5 if args.quick else 40))
    standard = QUICK if args.quick else FULL
    return run_p5(setup, Plan(args.seconds or standard.seconds, args.rounds or standard.rounds), args.only)


def _run_scale(name: str, args: argparse.Namespace, folder: Path) -> tuple[str, dict[str, Any]]:
    volumes = 100 if args.quick else 1000
    match name:
        case "c2":
            return run_c2(args.python, folder, volumes)
        case "c3":
            return run_c3(args.python, folder, volumes, args.seconds or (5.0 if args.quick else 30.0))
        case "c5":
            args.nbd_load = args.nbd_load or build_nbd_load()
            return run_c5(args.python, folder, args.nbd_load, 200 if args.quick else 2000)
        case "c6":
            return run_c6(args.python, folder, 5 if args.quick else 50)
        case _:
            return run_crowd(args.python, folder, 200 if args.quick else 2000)


def _run_overlay(name: str, args: argparse.Namespace, folder: Path) -> tuple[str, dict[str, Any]]:
    match name:
        case "c1":
            return run_c1(args.python, folder, 30 if args.quick else 300)
        case "l5":
            return run_l5(args.python, folder, args.size_mib or (256 if args.quick else 1024))
        case "l6":
            return run_l6(args.python, folder, 20 if args.quick else 100)
        case "map":
            args.nbd_load = args.nbd_load or build_nbd_load()
            rounds = args.rounds or (2 if args.quick else 5)
            return run_map(args.python, folder, args.nbd_load, rounds, args.seconds or 1.0)
        case _:
            return run_open(args.python, folder, args.rounds or (1 if args.quick else 5))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/run.py", description="Measure ubi_rpc beside other NBD servers on this machine."
    )
    parser.add_argument(
        "tables", nargs="+", choices=[*TABLES, "all"], metavar="TABLE", help=", ".join([*TABLES, "all"])
    )
    parser.add_argument("--quick", action="store_true", help="short runs on a small file: to see that it works")
    parser.add_argument("--seconds", type=float, help=f"of each run ({FULL.seconds})")
    parser.add_argument("--rounds", type=int, help=f"runs of each server in each cell ({FULL.rounds})")
    parser.add_argument("--size-mib", type=int, help="of the file that is served (1024)")
    parser.add_argument("--only", default="", help="leave out the loads whose name has not this in it: 'qd32 nbd-load'")
    parser.add_argument("--servers", default="", help=f"only these, with commas between: {', '.join(SERVERS)}")
    parser.add_argument(
        "--nice", type=int, default=0, help="of servers and clients: -15 on a machine with other work (0)"
    )
    parser.add_argument("--work", type=Path, default=CHECKOUT / "build/bench/work", help="folder for the files")
    parser.add_argument("--results", type=Path, default=CHECKOUT / "build/bench/results", help="folder for results")
    parser.add_argument("--python", type=Path, default=_default_python(), help="interpreter that runs our daemon")
    parser.add_argument("--nbd-load", type=Path, help="the client, if it is built already")
    parser.add_argument("--vhost-load", type=Path, help="the driver of virtual machines' disks, likewise")
    return parser.parse_args()


def _default_python() -> Path:
    own = CHECKOUT / ".venv/bin/python"
    return own if own.exists() else Path(sys.executable)


if __name__ == "__main__":
    sys.exit(main())
