"""The volatile map is lost while the kernel lives: nothing is guessed; what only it knew is given up when asked."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.images import METADATA_BYTES, MIB, make_image, make_sparse
from tests.support.rpc_client import RpcError
from tests.support.seeds import rng

pytestmark = pytest.mark.timeout(120)

STRIPE = 65536
IMAGE_BYTES = 8 * STRIPE
FLUSHED = b"f" * 4096
WRITTEN = b"w" * 4096


def _killed(daemon: Daemon, folder: Path) -> tuple[Path, Path]:
    """A volume with a flushed stripe and one that only the map knows, and its daemon killed; a new one runs."""
    image, base = folder / "image.raw", make_sparse(folder / "base.raw", METADATA_BYTES + MIB)
    make_image(image, IMAGE_BYTES, rng("lost map"))
    daemon.start().create_aio("base0", base)
    daemon.create_ubi("ubi0", "base0", image)
    with daemon.client("ubi0") as client:
        client.write(0, FLUSHED)
        client.flush()
        client.write(STRIPE, WRITTEN)
    status = daemon.call("bdev_ubi_get_status", name="ubi0")
    assert (status["state"], status["acknowledged_by"]) == ("open", "map")
    map_path = Path(status["map_path"])
    assert map_path.parent == folder / "state"
    daemon.kill()
    daemon.start().create_aio("base0", base)
    return image, map_path


def _create(daemon: Daemon, image: Path, **more: object) -> None:
    daemon.call(
        "bdev_ubi_create", name="ubi0", base_bdev="base0", image_path=str(image), stripe_size_kb=STRIPE >> 10, **more
    )


def _read(daemon: Daemon, offset: int) -> bytes:
    daemon.call("nbd_create_export", bdev_name="ubi0")
    with daemon.client("ubi0") as client:
        return bytes(client.read_range(offset, offset + 4096))


def test_with_its_map_an_unflushed_write_is_there(unstarted_daemon: Daemon, folder: Path) -> None:
    image, _ = _killed(unstarted_daemon, folder)
    _create(unstarted_daemon, image)
    assert unstarted_daemon.call("bdev_ubi_get_status", name="ubi0")["recovered"] == "map"
    assert _read(unstarted_daemon, STRIPE) == WRITTEN


@pytest.mark.parametrize("becomes", ["gone", "cut short", "that of another volume"])
def test_without_its_map_it_is_refused_and_nothing_is_written(
    unstarted_daemon: Daemon, folder: Path, becomes: str
) -> None:
    image, map_path = _killed(unstarted_daemon, folder)
    content = map_path.read_bytes()
    if becomes == "gone":
        map_path.unlink()
    elif becomes == "cut short":
        map_path.write_bytes(content[:-1])
    else:
        map_path.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    before = (folder / "base.raw").read_bytes()
    with pytest.raises(RpcError) as refused:
        _create(unstarted_daemon, image)
    assert refused.value.code == -22
    assert "discard_unpublished" in str(refused.value)
    assert (folder / "base.raw").read_bytes() == before

    map_path.write_bytes(content)
    map_path.chmod(0o600)
    _create(unstarted_daemon, image)
    assert _read(unstarted_daemon, STRIPE) == WRITTEN


def test_what_only_the_map_knew_is_given_up_when_asked(unstarted_daemon: Daemon, folder: Path) -> None:
    image, map_path = _killed(unstarted_daemon, folder)
    map_path.unlink()
    _create(unstarted_daemon, image, recover="discard_unpublished")
    assert _read(unstarted_daemon, 0) == FLUSHED
    with unstarted_daemon.client("ubi0") as client:
        lost = bytes(client.read_range(STRIPE, STRIPE + 4096))
    assert lost == image.read_bytes()[STRIPE : STRIPE + 4096]


def test_a_map_that_was_given_up_is_not_believed_when_it_turns_up_again(unstarted_daemon: Daemon, folder: Path) -> None:
    """Its directory was not mounted, say: guests have read the image meanwhile, and no stripe was marked for that."""
    image, map_path = _killed(unstarted_daemon, folder)
    away = map_path.rename(folder / "away.map")
    _create(unstarted_daemon, image, recover="discard_unpublished", copy_on_read=False)
    original = image.read_bytes()[STRIPE : STRIPE + 4096]
    assert _read(unstarted_daemon, STRIPE) == original
    for map_is_back in (False, True):
        unstarted_daemon.kill()
        if map_is_back:
            away.rename(map_path)
        unstarted_daemon.start().create_aio("base0", folder / "base.raw")
        _create(unstarted_daemon, image, copy_on_read=False)
        assert unstarted_daemon.status("ubi0")["recovered"] == "headers"
        assert _read(unstarted_daemon, STRIPE) == original
        with unstarted_daemon.client("ubi0") as client:
            assert client.read(0, len(FLUSHED)) == FLUSHED


def test_a_copy_leaves_the_map_of_its_original(unstarted_daemon: Daemon, folder: Path) -> None:
    """The superblock of a copy names the map that only its original may have."""
    image, map_path = _killed(unstarted_daemon, folder)
    copy = folder / "copy.raw"
    shutil.copyfile(folder / "base.raw", copy)
    unstarted_daemon.create_aio("base1", copy)
    unstarted_daemon.create_ubi("ubi1", "base1", image, recover="discard_unpublished")
    with unstarted_daemon.client("ubi1") as client:
        client.write(2 * STRIPE, WRITTEN)
    unstarted_daemon.call("nbd_delete_export", export_name="ubi1")
    unstarted_daemon.call("bdev_ubi_delete", name="ubi1")
    assert map_path.exists()
    _create(unstarted_daemon, image)
    assert _read(unstarted_daemon, STRIPE) == WRITTEN


def test_maps_of_earlier_boots_are_removed_at_the_start(unstarted_daemon: Daemon, folder: Path) -> None:
    image, map_path = _killed(unstarted_daemon, folder)
    unstarted_daemon.kill()
    content = map_path.read_bytes()
    old = map_path.with_name(f"{uuid.UUID(bytes=bytes(16))}.7.map")
    header = bytearray(content)
    header[16:32] = b"b" * 16
    header[32:48], header[48:56] = bytes(16), (7).to_bytes(8, "little")
    old.write_bytes(header)
    old.chmod(0o600)
    other = map_path.with_name("notes.map")
    other.write_bytes(header)
    unstarted_daemon.start().create_aio("base0", folder / "base.raw")
    assert "had 1 volatile maps of earlier boots" in unstarted_daemon.log_text()
    assert (old.exists(), other.exists(), map_path.exists()) == (False, True, True)
    _create(unstarted_daemon, image)
    assert _read(unstarted_daemon, STRIPE) == WRITTEN
