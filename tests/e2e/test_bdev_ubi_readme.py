"""What bdev_ubi's README tells its users to do, done with this daemon: its files, its configuration, its request.

Source: bdev_ubi README.md, "Introduction" and "Usage"; examples/spdk_conf.json. Names and values are theirs.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.images import MIB, make_image
from tests.support.seeds import rng

pytestmark = pytest.mark.timeout(60)

IMAGE_BYTES = 3 * MIB + 512
CONFIG = {
    "subsystems": [
        {
            "subsystem": "bdev",
            "config": [
                {
                    "method": "bdev_aio_create",
                    "params": {"name": "aio0", "block_size": 512, "filename": "write-space", "readonly": False},
                },
                {
                    "method": "bdev_ubi_create",
                    "params": {
                        "name": "ubi0",
                        "base_bdev": "aio0",
                        "image_path": "jammy.raw",
                        "stripe_size_kb": 1024,
                        "copy_on_read": False,
                        "directio": True,
                    },
                },
            ],
        },
        {
            "subsystem": "vhost_blk",
            "config": [
                {
                    "method": "vhost_create_blk_controller",
                    "params": {
                        "ctrlr": "vhost.0",
                        "dev_name": "ubi0",
                        "cpumask": "1",
                        "readonly": False,
                        "transport": "vhost_user_blk",
                    },
                }
            ],
        },
    ]
}


def _prepare(folder: Path) -> bytes:
    """Run the README's commands for the writable layer; the image is a smaller one."""
    for command in ("touch write-space", "truncate -s 5G write-space"):
        subprocess.run(command.split(), cwd=folder, check=True)
    return make_image(folder / "jammy.raw", IMAGE_BYTES, rng("readme"), holes=True)


def _read_by_nbd(daemon: Daemon, size_bytes: int) -> bytes:
    daemon.export("ubi0")
    with daemon.client("ubi0") as client:
        return client.read_range(0, size_bytes)


def test_the_daemon_starts_with_the_readmes_command_and_configuration(unstarted_daemon: Daemon, folder: Path) -> None:
    """`--json examples/spdk_conf.json -S /var/tmp`, with another folder for the socket of the VM's disk."""
    content = _prepare(folder)
    (folder / "examples").mkdir()
    (folder / "examples/spdk_conf.json").write_text(json.dumps(CONFIG, indent=2))
    unstarted_daemon.start("--json", "examples/spdk_conf.json", "-S", str(folder))
    bdevs = {bdev["name"]: bdev for bdev in unstarted_daemon.bdevs()}
    assert list(bdevs) == ["aio0", "ubi0"]
    assert bdevs["aio0"]["claimed"]
    assert bdevs["ubi0"]["block_size"] * bdevs["ubi0"]["num_blocks"] == (5 << 30) - (8 << 20)
    assert (folder / "vhost.0").is_socket()
    (controller,) = unstarted_daemon.call("vhost_get_controllers")
    assert (controller["ctrlr"], controller["backend_specific"]["block"]["bdev"]) == ("vhost.0", "ubi0")
    assert _read_by_nbd(unstarted_daemon, len(content)) == content
    assert unstarted_daemon.end() == 0


def test_the_readmes_request_makes_a_volume(fresh_daemon: Daemon, folder: Path) -> None:
    """It says stripe_size_mb, which bdev_ubi itself refuses."""
    content = _prepare(folder)
    fresh_daemon.call("bdev_aio_create", name="aio0", filename=str(folder / "write-space"), block_size=512)
    params: dict[str, Any] = {"name": "ubi0", "base_bdev": "aio0", "stripe_size_mb": 1}
    assert fresh_daemon.call("bdev_ubi_create", image_path=str(folder / "jammy.raw"), **params) == "ubi0"
    assert fresh_daemon.status("ubi0")["stripe_size_kb"] == 1024
    assert _read_by_nbd(fresh_daemon, len(content)) == content
    assert fresh_daemon.call("bdev_ubi_delete", name="ubi0") is True
