"""Our methods as commands of SPDK's own rpc.py.

    PYTHONPATH=scripts rpc.py --plugin ubi_rpc_plugin bdev_ubi_create -n ubi0 -b aio0 -i image.raw

The commands, their flags and their output are those of our rpc.py, which has to be beside this file.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

PARTS = ("UBI", "NBD", "OURS")


def spdk_rpc_plugin_initialize(subparsers: Any) -> None:
    """Add the commands of methods that SPDK does not have; called by SPDK's rpc.py."""
    ours = _load(Path(__file__).resolve().with_name("rpc.py"))
    for part in PARTS:
        for command in getattr(ours, part):
            _add(subparsers, command)


def _add(subparsers: Any, command: Any) -> None:
    parser = subparsers.add_parser(command.name, help=command.help, description=command.help)
    keys = [parser.add_argument(*a.flags, **a.options).dest for a in command.arguments]
    if command.one_of:
        group = parser.add_mutually_exclusive_group(required=True)
        keys += [group.add_argument(*a.flags, **a.options).dest for a in command.one_of]

    def run(args: argparse.Namespace) -> None:
        params = {key: getattr(args, key, None) for key in dict.fromkeys(keys)}
        answer = args.client.call(command.name, {key: value for key, value in params.items() if value is not None})
        if answer is not None:  # SPDK's clients give None where they only print or collect the request
            command.show(answer)

    parser.set_defaults(func=run)


def _load(path: Path) -> ModuleType:
    """Import our rpc.py by its path: SPDK's program has the same name."""
    spec = importlib.util.spec_from_file_location("ubi_rpc_commands", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
