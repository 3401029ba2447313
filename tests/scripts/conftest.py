"""A daemon's worth of SPDK's methods, without a daemon, and programs to call them with."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import ConfigDict

from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.methods.rpc import METHODS as CONNECTION_METHODS
from ubi_rpc.params import NoParams, Params
from ubi_rpc.rpc.dispatch import Dispatcher
from ubi_rpc.rpc.method import ANY_STATE, Method, State
from ubi_rpc.rpc.unix_server import UnixServer

RPC_PY = Path(__file__).parents[2] / "scripts" / "rpc.py"
SPDK_RPC = Path(sys.executable).with_name("spdk-rpc")


class AnyParams(Params):
    """Takes everything, so that a test sees what the client sends."""

    model_config = ConfigDict(extra="allow")


class NameParams(Params):
    name: str


class StrictAioParams(Params):
    filename: str
    name: str


async def give_name(_services: object, params: AnyParams) -> object:
    return params.model_dump().get("name", "Malloc0")


async def give_params(_services: object, params: AnyParams) -> object:
    return params.model_dump()


async def give_list(_services: object, params: AnyParams) -> object:
    return [{"name": "Null0", "aliases": ["é"], "claimed": False, "asked": params.model_dump()}]


async def give_true(_services: object, _params: Params) -> object:
    return True


async def give_version(_services: object, _params: NoParams) -> object:
    return {"version": "SPDK v26.09", "fields": {"major": 26, "minor": 9, "patch": 0, "suffix": ""}}


async def give_names(_services: object, _params: AnyParams) -> object:
    return ["bdev_get_bdevs", "spdk_get_version"]


async def refuse(_services: object, params: NameParams) -> object:
    raise UbiError(ErrorKind.NOT_FOUND, f"bdev {params.name} does not exist")


METHODS = (
    Method("spdk_get_version", NoParams, give_version, ANY_STATE),
    Method("rpc_get_methods", AnyParams, give_names, ANY_STATE),
    Method("framework_start_init", NoParams, give_true, State.STARTUP),
    Method("framework_wait_init", NoParams, give_true, ANY_STATE),
    Method("spdk_kill_instance", AnyParams, give_true),
    Method("bdev_get_bdevs", AnyParams, give_list),
    Method("bdev_malloc_create", AnyParams, give_name),
    Method("bdev_malloc_delete", AnyParams, give_true),
    Method("bdev_null_create", AnyParams, give_name),
    Method("bdev_null_delete", NameParams, refuse),
    Method("bdev_aio_create", StrictAioParams, give_name),
    Method("bdev_aio_delete", AnyParams, give_true),
    Method("bdev_ubi_create", AnyParams, give_name),
    Method("bdev_ubi_delete", AnyParams, give_true),
    Method("bdev_ubi_get_status", AnyParams, give_params),
    Method("nbd_create_export", AnyParams, give_params),
    Method("nbd_delete_export", AnyParams, give_true),
    Method("nbd_get_exports", NoParams, give_names),
    *CONNECTION_METHODS,
)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


async def run(program: Path, *arguments: str, stdin: str | None = None, env: dict[str, str] | None = None) -> Outcome:
    """Run rpc.py or SPDK's spdk-rpc to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(program),
        *arguments,
        stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    out, err = await process.communicate(None if stdin is None else stdin.encode())
    assert process.returncode is not None
    assert b"Traceback" not in out + err or program == SPDK_RPC
    return Outcome(process.returncode, out.decode(), err.decode())


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    """Give the socket of a server that has METHODS."""
    server = UnixServer(tmp_path / "rpc.sock", Dispatcher(METHODS, None, state=lambda: State.RUNTIME))
    await server.start()
    yield str(tmp_path / "rpc.sock")
    await server.stop()
