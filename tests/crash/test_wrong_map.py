"""A volatile map and a base that are not of one time: neither is believed, and the operator is told which is older."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.images import METADATA_BYTES, MIB, make_image, make_sparse
from tests.support.rpc_client import RpcError
from tests.support.seeds import rng
from ubi_rpc.tools.main import main
from ubi_rpc.tools.report import Exit

pytestmark = pytest.mark.timeout(120)

STRIPE = 65536
WRITTEN = b"w" * 4096
OLDER = "older than its volatile map"


class Volume:
    """A volume in a folder, with its daemon."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon = daemon
        self.image = folder / "image.raw"
        self.base = make_sparse(folder / "base.raw", METADATA_BYTES + MIB)
        self.saved = folder / "saved"
        make_image(self.image, 8 * STRIPE, rng("wrong map"))
        daemon.start().create_aio("base0", self.base)
        daemon.create_ubi("ubi0", "base0", self.image)

    def write(self, *stripes: int) -> None:
        """Write a piece of each stripe and flush."""
        with self.daemon.client("ubi0") as client:
            for stripe in stripes:
                client.write(stripe * STRIPE, WRITTEN)
            client.flush()

    def map_path(self) -> Path:
        return Path(self.daemon.status("ubi0")["map_path"])

    def after_a_kill(self) -> None:
        """Start the daemon again, with the base alone."""
        self.daemon.kill()
        self.daemon.start().create_aio("base0", self.base)

    def create(self, **more: Any) -> None:
        self.daemon.create_ubi("ubi0", "base0", self.image, **more)

    def refused(self, what: str) -> None:
        """The volume is refused with these words, and not written to."""
        before = self.base.read_bytes()
        with pytest.raises(RpcError) as refused:
            self.create()
        assert refused.value.code == -22
        assert what in str(refused.value)
        assert self.base.read_bytes() == before

    def read(self, stripe: int) -> bytes:
        """Read what `write` may have written."""
        with self.daemon.client("ubi0") as client:
            return bytes(client.read_range(stripe * STRIPE, stripe * STRIPE + len(WRITTEN)))

    def image_has(self, stripe: int) -> bytes:
        return self.image.read_bytes()[stripe * STRIPE :][: len(WRITTEN)]


@pytest.fixture
def volume(unstarted_daemon: Daemon, folder: Path) -> Volume:
    """An open volume whose first stripe is written and published."""
    volume = Volume(unstarted_daemon, folder)
    volume.write(0)
    return volume


def _problems(capsys: pytest.CaptureFixture[str], base: Path) -> tuple[int, list[str]]:
    capsys.readouterr()
    code = main(["check", "--json", str(base)])
    return code, [problem["name"] for problem in json.loads(capsys.readouterr().out)["problems"]]


@pytest.mark.parametrize("how", ["in place", "anew"])
def test_an_older_base_is_refused_beside_its_newer_map(volume: Volume, how: str) -> None:
    """A backup is put back after a kill: the same place, with `anew` often the same inode number as well."""
    shutil.copyfile(volume.base, volume.saved)
    volume.write(1)
    volume.daemon.kill()
    if how == "anew":
        volume.base.unlink()
    shutil.copyfile(volume.saved, volume.base)
    volume.after_a_kill()
    volume.refused(OLDER if how == "in place" else "volatile map")

    volume.create(recover="discard_unpublished")
    assert volume.read(0) == WRITTEN
    assert volume.read(1) == volume.image_has(1), "INV-2: never what the older base has there"
    volume.write(2)
    assert volume.read(2) == WRITTEN


def test_the_newer_base_put_back_has_everything(volume: Volume) -> None:
    shutil.copyfile(volume.base, volume.saved)
    volume.write(1)
    with volume.daemon.client("ubi0") as client:
        client.write(2 * STRIPE, WRITTEN)
    volume.daemon.kill()
    newer = volume.base.read_bytes()
    shutil.copyfile(volume.saved, volume.base)
    volume.after_a_kill()
    volume.refused(OLDER)
    volume.daemon.kill()
    volume.base.write_bytes(newer)
    volume.after_a_kill()
    volume.create()
    assert [volume.read(stripe) for stripe in (0, 1, 2)] == [WRITTEN] * 3


def test_an_older_base_is_named_by_check_and_given_up_by_repair(
    volume: Volume, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(volume.base, volume.saved)
    volume.write(1)
    volume.daemon.kill()
    shutil.copyfile(volume.saved, volume.base)
    assert _problems(capsys, volume.base) == (Exit.DAMAGED, ["base_older_than_map"])
    assert main(["repair", str(volume.base), "--keep", "--yes"]) == Exit.FAILED
    assert main(["repair", str(volume.base), "--yes"]) == Exit.OK
    assert "since this state of the base was saved is not on it" in capsys.readouterr().out
    assert _problems(capsys, volume.base) == (Exit.UNCLEAN, [])
    volume.after_a_kill()
    volume.create()
    assert (volume.read(0), volume.read(1)) == (WRITTEN, volume.image_has(1))


def test_an_older_map_is_refused_beside_its_newer_base(volume: Volume, capsys: pytest.CaptureFixture[str]) -> None:
    path = volume.map_path()
    saved = path.read_bytes()
    volume.write(1)
    with volume.daemon.client("ubi0") as client:
        client.write(2 * STRIPE, WRITTEN)
    volume.daemon.kill()
    newer = path.read_bytes()
    path.write_bytes(saved)
    assert _problems(capsys, volume.base) == (Exit.DAMAGED, ["map_older_than_base"])
    volume.after_a_kill()
    volume.refused("newer than its volatile map")
    path.write_bytes(newer)
    volume.create()
    assert [volume.read(stripe) for stripe in (0, 1, 2)] == [WRITTEN] * 3


def test_a_base_of_an_earlier_epoch_finds_no_map(volume: Volume) -> None:
    """Its superblock names the map of its own time, which a clean close has removed."""
    shutil.copyfile(volume.base, volume.saved)
    volume.daemon.call("nbd_delete_export", export_name="ubi0")
    volume.daemon.call("bdev_ubi_delete", name="ubi0")
    volume.create()
    volume.write(1)
    epoch = volume.daemon.status("ubi0")["epoch"]
    volume.daemon.kill()
    shutil.copyfile(volume.saved, volume.base)
    volume.after_a_kill()
    volume.refused("is not there")
    volume.create(recover="discard_unpublished")
    assert (volume.read(0), volume.read(1)) == (WRITTEN, volume.image_has(1))
    volume.write(1)
    assert volume.daemon.status("ubi0")["epoch"] == epoch + 1, "the map that is left has an epoch that was given up"
    assert volume.read(1) == WRITTEN


def test_a_map_of_an_earlier_layout_is_named(volume: Volume) -> None:
    path = volume.map_path()
    volume.daemon.kill()
    content = path.read_bytes()
    path.write_bytes(content[:8] + b"\1" + content[9:])
    volume.after_a_kill()
    volume.refused("is of layout 1")


def test_a_restored_state_of_a_takeover_is_refused(volume: Volume) -> None:
    """Headers that a new daemon finds are noted in the map that it continues."""
    with volume.daemon.client("ubi0") as client:
        client.write(STRIPE, WRITTEN)
    volume.after_a_kill()
    shutil.copyfile(volume.base, volume.saved)
    volume.create()
    volume.write(3)
    volume.daemon.kill()
    shutil.copyfile(volume.saved, volume.base)
    volume.after_a_kill()
    volume.refused(OLDER)
