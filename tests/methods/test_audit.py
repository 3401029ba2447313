"""Every change is logged with the client that asked for it."""

from __future__ import annotations

import asyncio
import json
import logging
import os

import pytest

from tests.conftest import Domain
from ubi_rpc.methods import METHODS
from ubi_rpc.rpc.unix_server import UnixServer

READS = [method.name for method in METHODS if not method.changes]


def test_methods_that_change_nothing_are_those_that_get_wait_or_describe() -> None:
    assert {"bdev_get_bdevs", "spdk_get_version", "rpc.discover", "framework_wait_init", "nbd_get_exports"} < set(READS)
    assert not [name for name in READS if any(verb in name for verb in ("create", "delete", "_set_", "resize", "kill"))]
    changes = {method.name for method in METHODS} - set(READS)
    assert {"bdev_aio_create", "nbd_delete_export", "framework_start_init", "bdev_null_resize"} < changes


async def test_changes_are_logged_with_the_clients_user_and_process(
    domain: Domain, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ubi_rpc.rpc")
    server = UnixServer(domain.dir / "rpc.sock", domain.dispatcher)
    await server.start()
    reader, writer = await asyncio.open_unix_connection(str(domain.dir / "rpc.sock"))
    for method, params in (
        ("bdev_null_create", {"name": "n\n", "num_blocks": 8, "block_size": 512}),
        ("bdev_get_bdevs", {}),
        ("bdev_null_delete", {"name": "x"}),
    ):
        writer.write(json.dumps({"id": 1, "method": method, "params": params}).encode())
        await reader.readline()
    writer.close()
    await server.stop()
    peer = f"peer_uid={os.getuid()} peer_pid={os.getpid()}"
    lines = [record.getMessage() for record in caplog.records if "method=" in record.getMessage()]
    assert lines[0] == f"{peer} method=bdev_null_create object='n\\n' done"
    assert lines[1].startswith(f"{peer} method='bdev_null_delete' code=-19")
    assert len(lines) == 2


async def test_changes_of_the_configuration_are_logged_as_its(domain: Domain, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ubi_rpc.rpc")
    await domain.call("bdev_malloc_create", num_blocks=8, block_size=512)
    assert "peer=config method=bdev_malloc_create object=- done" in caplog.text
