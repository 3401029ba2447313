"""`--persist FILE`: what was acknowledged is there after any end of the daemon, and clients never meet its absence."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, write_config
from tests.support.images import METADATA_BYTES, MIB, make_image, make_sparse
from tests.support.mounts import tmpfs
from tests.support.nbd_client import NbdClient
from tests.support.programs import run
from tests.support.rpc_client import RpcError
from tests.support.seeds import rng

pytestmark = pytest.mark.timeout(120)

KILLS = 10
VOLUMES = 3
IMAGE_BYTES = MIB
STACK_OF = ("bdev_aio_create", "bdev_ubi_create", "nbd_create_export")

Call = tuple[str, dict[str, Any]]
Objects = frozenset[str]


class Fleet:
    """The objects that were acknowledged, and the one change whose answer may be missing.

    Args:
        daemon: started with --persist.
        folder: where images and bases are.
    """

    def __init__(self, daemon: Daemon, folder: Path, chance: random.Random) -> None:
        self.acknowledged: set[str] = set()
        self.unanswered: tuple[set[str], set[str]] = (set(), set())
        self._daemon = daemon
        self._folder = folder
        self._chance = chance
        self._image = folder / "image.raw"
        make_image(self._image, IMAGE_BYTES, rng("persist"))
        for number in range(VOLUMES):
            make_sparse(folder / f"base{number}.raw", METADATA_BYTES + 2 * MIB)

    def change(self) -> None:
        """Make one change that is possible now and wait for its answer.

        Raises:
            ConnectionError: the daemon died meanwhile.
        """
        (method, params), added, removed = self._choose()
        self.unanswered = (added, removed)
        self._daemon.call(method, **params)
        self.acknowledged = (self.acknowledged | added) - removed
        self.unanswered = (set(), set())

    def _choose(self) -> tuple[Call, set[str], set[str]]:
        number = self._chance.randrange(VOLUMES)
        aio, ubi, export = (f"{kind}{number}" for kind in ("aio", "ubi", "export"))
        has = self.acknowledged
        if aio not in has:
            filename = str(self._folder / f"base{number}.raw")
            params: dict[str, Any] = {"name": aio, "filename": filename, "block_size": 512}
            return ("bdev_aio_create", params), {aio}, set()
        if self._chance.random() < 0.1:
            return ("bdev_aio_delete", {"name": aio}), set(), {aio, ubi, export}
        if ubi not in has:
            params = {"name": ubi, "base_bdev": aio, "image_path": str(self._image), "stripe_size_kb": 64}
            return ("bdev_ubi_create", params), {ubi}, set()
        if export not in has:
            return ("nbd_create_export", {"bdev_name": ubi, "export_name": export}), {export}, set()
        if self._chance.random() < 0.5:
            return ("nbd_delete_export", {"export_name": export}), set(), {export}
        return ("bdev_ubi_delete", {"name": ubi}), set(), {ubi, export}

    def check(self) -> None:
        """Compare what is there with what was acknowledged, with or without the change that was not answered."""
        found = objects(self._daemon)
        added, removed = self.unanswered
        assert found in (self.acknowledged, (self.acknowledged | added) - removed)
        self.acknowledged = found
        self.unanswered = (set(), set())


def objects(daemon: Daemon) -> set[str]:
    """Return the names of all bdevs and exports."""
    exports = {one["export_name"] for one in daemon.call("nbd_get_exports")}
    return {bdev["name"] for bdev in daemon.bdevs()} | exports


def _disks(folder: Path) -> tuple[Call, ...]:
    """Return the calls of a base, a volume and two exports on one socket."""
    make_image(folder / "image.raw", IMAGE_BYTES, rng("persist"))
    base = make_sparse(folder / "base.raw", METADATA_BYTES + 2 * MIB)
    image = str(folder / "image.raw")
    return (
        ("bdev_aio_create", {"name": "aio0", "filename": str(base), "block_size": 512}),
        ("bdev_ubi_create", {"name": "ubi0", "base_bdev": "aio0", "image_path": image, "stripe_size_kb": 64}),
        ("nbd_create_export", {"bdev_name": "ubi0"}),
        ("nbd_create_export", {"bdev_name": "ubi0", "export_name": "second"}),
    )


EVERYTHING = {"aio0", "ubi0", "second"}


def test_kills_between_creates_and_deletes_lose_nothing_that_was_answered(
    unstarted_daemon: Daemon, folder: Path
) -> None:
    chance = rng("persist kills")
    fleet = Fleet(unstarted_daemon, folder, chance)
    for _ in range(KILLS):
        unstarted_daemon.start("--persist", str(folder / "kept.json"))
        fleet.check()
        killer = threading.Timer(chance.uniform(0.001, 0.3), unstarted_daemon.process.kill)
        killer.start()
        with suppress(ConnectionError):
            while True:
                fleet.change()
        killer.join()
        unstarted_daemon.wait()
    unstarted_daemon.start("--persist", str(folder / "kept.json"))
    fleet.check()


def test_kills_at_the_start_lose_nothing(unstarted_daemon: Daemon, folder: Path) -> None:
    chance, kept = rng("persist start"), str(folder / "kept.json")
    unstarted_daemon.start("--persist", kept)
    for method, params in _disks(folder):
        unstarted_daemon.call(method, **params)
    for _ in range(KILLS):
        unstarted_daemon.kill()
        unstarted_daemon.launch("--persist", kept)
        threading.Event().wait(chance.uniform(0.1, 0.6))  # a moment that no event marks is what is wanted
    unstarted_daemon.kill()
    unstarted_daemon.start("--persist", kept)
    assert objects(unstarted_daemon) == EVERYTHING


def test_a_client_that_reconnects_never_meets_an_unknown_export(unstarted_daemon: Daemon, folder: Path) -> None:
    """Both exports are on one socket; the client asks for the one that is made last, as often as it can."""
    kept = str(folder / "kept.json")
    unstarted_daemon.start("--persist", kept)
    for method, params in _disks(folder):
        unstarted_daemon.call(method, **params)
    stop, reached, refused = threading.Event(), [0], []

    def reconnect() -> None:
        while not stop.is_set():
            try:
                NbdClient(str(unstarted_daemon.nbd_socket), "second").close()
                reached[0] += 1
            except (ConnectionError, FileNotFoundError):
                continue  # nobody is there: not yet, or just killed
            except Exception as error:  # noqa: BLE001  told by the test
                refused.append(error)

    client = threading.Thread(target=reconnect, daemon=True)
    client.start()
    for _ in range(5):
        unstarted_daemon.kill()
        before = reached[0]
        unstarted_daemon.start("--persist", kept)
        deadline = time.monotonic() + 30
        while reached[0] == before and not refused and time.monotonic() < deadline:
            time.sleep(0.01)
        assert reached[0] > before, "the client does not reach its export again"
    stop.set()
    client.join(20)
    assert refused == []


def test_a_clean_stop_keeps_the_objects_and_their_uuids(unstarted_daemon: Daemon, folder: Path) -> None:
    kept = folder / "kept.json"
    unstarted_daemon.start("--persist", str(kept))
    for method, params in _disks(folder):
        unstarted_daemon.call(method, **params)
    before = {bdev["name"]: bdev["uuid"] for bdev in unstarted_daemon.bdevs()}
    written = kept.read_bytes()
    assert unstarted_daemon.end() == 0
    assert kept.read_bytes() == written
    unstarted_daemon.start("--persist", str(kept))
    assert {bdev["name"]: bdev["uuid"] for bdev in unstarted_daemon.bdevs()} == before
    assert kept.read_bytes() == written
    assert not kept.with_name("kept.json.before").exists()
    assert kept.read_bytes() == written
    with unstarted_daemon.client("second") as client:
        assert client.read_range(0, 4096) == (folder / "image.raw").read_bytes()[:4096]


def test_a_configuration_is_only_where_the_kept_file_begins(unstarted_daemon: Daemon, folder: Path) -> None:
    calls = _disks(folder)
    arguments = ["--persist", str(folder / "kept.json"), "--json", write_config(folder / "conf.json", *calls[:2])]
    unstarted_daemon.start(*arguments)
    assert objects(unstarted_daemon) == {"aio0", "ubi0"}
    unstarted_daemon.call("bdev_ubi_delete", name="ubi0")
    unstarted_daemon.kill()
    unstarted_daemon.start(*arguments)
    assert objects(unstarted_daemon) == {"aio0"}
    assert "is not applied" in unstarted_daemon.log_text()


@pytest.fixture
def small(folder: Path) -> Iterator[Path]:
    """Return a folder on a small file system of its own."""
    with tmpfs(folder / "small", 64 * 1024) as mounted:
        yield mounted


def _fill(mounted: Path) -> None:
    with suppress(OSError), (mounted / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.needs_root
def test_on_a_full_disk_changes_fail_and_what_was_acknowledged_stays(
    unstarted_daemon: Daemon, folder: Path, small: Path
) -> None:
    arguments = ["--persist", str(small / "kept.json")]
    unstarted_daemon.start(*arguments)
    calls = _disks(folder)
    for method, params in calls[:2]:
        unstarted_daemon.call(method, **params)
    _fill(small)
    for method, params in (calls[2], ("bdev_aio_delete", {"name": "aio0"})):
        with pytest.raises(RpcError, match="nothing was changed") as caught:
            unstarted_daemon.call(method, **params)
        assert caught.value.code == -28
        assert objects(unstarted_daemon) == {"aio0", "ubi0"}
    assert not unstarted_daemon.nbd_socket.exists()
    unstarted_daemon.kill()
    unstarted_daemon.start(*arguments)  # the disk is still full
    assert objects(unstarted_daemon) == {"aio0", "ubi0"}
    (small / "ballast").unlink()
    for method, params in calls[2:]:
        unstarted_daemon.call(method, **params)
    unstarted_daemon.kill()
    unstarted_daemon.start(*arguments)
    assert objects(unstarted_daemon) == EVERYTHING


@pytest.mark.needs_root
def test_in_a_read_only_folder_the_kept_objects_are_served(unstarted_daemon: Daemon, folder: Path, small: Path) -> None:
    kept = small / "kept.json"
    unstarted_daemon.start("--persist", str(kept))
    calls = _disks(folder)
    for method, params in calls[:3]:
        unstarted_daemon.call(method, **params)
    assert unstarted_daemon.end() == 0
    run("mount", "-o", "remount,ro", small)
    unstarted_daemon.start("--persist", str(kept))
    assert objects(unstarted_daemon) == {"aio0", "ubi0"}
    with pytest.raises(RpcError, match="Read-only file system"):
        unstarted_daemon.call(calls[3][0], **calls[3][1])
    with pytest.raises(RpcError, match="Read-only file system"):
        unstarted_daemon.call("bdev_ubi_delete", name="ubi0")
    with unstarted_daemon.client("ubi0") as client:
        assert client.read_range(0, 4096) == (folder / "image.raw").read_bytes()[:4096]
    unstarted_daemon.kill()
    unstarted_daemon.launch("--persist", str(small / "new.json"))  # a first start that could keep nothing
    assert unstarted_daemon.wait() == 1
    assert "Read-only file system" in unstarted_daemon.log_text()


def test_a_second_daemon_is_refused_the_file(unstarted_daemon: Daemon, folder: Path) -> None:
    unstarted_daemon.start("--persist", str(folder / "kept.json"))
    (folder / "other").mkdir()
    other = Daemon(folder / "other", unstarted_daemon.io_engine)
    other.launch("--persist", str(folder / "kept.json"))
    assert other.wait() == 1
    assert "another daemon's" in other.log_text()
    unstarted_daemon.call("spdk_get_version")


def test_a_kept_file_that_is_no_configuration_stops_the_start(unstarted_daemon: Daemon, folder: Path) -> None:
    (folder / "kept.json").write_text('{"subsystems": [{')
    unstarted_daemon.launch("--persist", str(folder / "kept.json"))
    assert unstarted_daemon.wait() == 234
    assert "kept.json:1:" in unstarted_daemon.log_text()


def _fleet_with_a_lost_base(daemon: Daemon, folder: Path, *arguments: str) -> Path:
    """Keep two stacks, take the base of the first away, start again; return the kept file."""
    kept = folder / "kept.json"
    daemon.start("--persist", str(kept))
    for method, params in _disks(folder):
        daemon.call(method, **params)
    make_sparse(folder / "other.raw", METADATA_BYTES + 2 * MIB)
    daemon.create_aio("aio1", folder / "other.raw")
    daemon.create_ubi("ubi1", "aio1", folder / "image.raw")
    with daemon.client("ubi1") as client:
        client.write(0, b"w" * 4096)
    daemon.kill()
    (folder / "base.raw").rename(folder / "elsewhere.raw")
    daemon.start("--persist", str(kept), *arguments)
    return kept


def _kept_calls(kept: Path) -> list[str]:
    """Return the names of the objects that a kept file makes."""
    subsystems = json.loads(kept.read_text())["subsystems"]
    calls = [call for one in subsystems if one["subsystem"] in {"bdev", "nbd"} for call in one["config"]]
    params = [call["params"] for call in calls if "_create" in call["method"]]
    return sorted(one.get("export_name") or one["name"] for one in params)


OTHERS = {"aio1", "ubi1"}
LOST = ["aio0", "second", "ubi0", "ubi0"]
KEPT = sorted(["aio1", "ubi1", "ubi1", *LOST])


@pytest.mark.parametrize("arguments", [(), ("--json-ignore-init-errors",)])
def test_an_entry_that_fails_keeps_no_other_down_and_is_not_forgotten(
    unstarted_daemon: Daemon, folder: Path, arguments: tuple[str, ...]
) -> None:
    kept = _fleet_with_a_lost_base(unstarted_daemon, folder, *arguments)
    assert objects(unstarted_daemon) == OTHERS
    with unstarted_daemon.client("ubi1") as client:
        assert bytes(client.read_range(0, 4096)) == b"w" * 4096
    assert "4 of 7 objects were not restored: aio0, ubi0, ubi0, second;" in unstarted_daemon.log_text()
    reasons = {one["name"]: one["reason"] for one in unstarted_daemon.call("persist_get_unrestored")}
    assert set(reasons) == {"aio0", "ubi0", "second"}
    assert "base.raw" in reasons["aio0"]
    assert not kept.with_name("kept.json.before").exists()
    unstarted_daemon.call("bdev_null_create", name="null0", num_blocks=8, block_size=512)
    assert _kept_calls(kept) == sorted([*KEPT, "null0"])
    unstarted_daemon.call("bdev_null_delete", name="null0")
    assert _kept_calls(kept) == KEPT
    assert unstarted_daemon.end() == 0

    (folder / "elsewhere.raw").rename(folder / "base.raw")
    unstarted_daemon.start("--persist", str(kept))
    assert objects(unstarted_daemon) == EVERYTHING | OTHERS
    assert unstarted_daemon.call("persist_get_unrestored") == []
    assert "not restored" not in unstarted_daemon.log_text()


def test_an_entry_that_failed_is_replaced_by_a_create_and_dropped_by_a_delete(
    unstarted_daemon: Daemon, folder: Path
) -> None:
    kept = _fleet_with_a_lost_base(unstarted_daemon, folder)
    with pytest.raises(RpcError, match="No such device"):
        unstarted_daemon.call("bdev_null_delete", name="aio0")  # not of that kind
    assert unstarted_daemon.call("nbd_delete_export", export_name="second") is True
    with pytest.raises(RpcError):
        unstarted_daemon.call("nbd_delete_export", export_name="second")
    unstarted_daemon.create_aio("aio0", make_sparse(folder / "new.raw", METADATA_BYTES + MIB))
    assert {one["name"] for one in unstarted_daemon.call("persist_get_unrestored")} == {"ubi0"}
    assert unstarted_daemon.call("bdev_ubi_delete", name="ubi0") is True
    assert [one["method"] for one in unstarted_daemon.call("persist_get_unrestored")] == ["nbd_create_export"]
    assert unstarted_daemon.call("nbd_delete_export", export_name="ubi0") is True
    assert _kept_calls(kept) == ["aio0", "aio1", "ubi1", "ubi1"]
    unstarted_daemon.kill()
    unstarted_daemon.start("--persist", str(kept))
    assert objects(unstarted_daemon) == {"aio0", *OTHERS}
    (bdev,) = (bdev for bdev in unstarted_daemon.bdevs() if bdev["name"] == "aio0")
    assert bdev["driver_specific"]["aio"]["filename"] == str(folder / "new.raw")


def test_a_configuration_that_fails_stops_the_start_as_in_spdk(unstarted_daemon: Daemon, folder: Path) -> None:
    calls = _disks(folder)
    (folder / "base.raw").unlink()
    arguments = ["--persist", str(folder / "kept.json"), "--json", write_config(folder / "conf.json", *calls[:1])]
    unstarted_daemon.launch(*arguments)
    assert unstarted_daemon.wait() == 234
    assert not (folder / "kept.json").exists()


def test_a_socket_that_was_never_served_is_not_there(unstarted_daemon: Daemon, folder: Path) -> None:
    """A start that fails after its exports were made leaves no socket of theirs."""
    calls = (*_disks(folder)[:3], ("bdev_null_create", {"name": "bad", "num_blocks": 8, "block_size": 500}))
    unstarted_daemon.launch("--json", write_config(folder / "conf.json", *calls))
    assert unstarted_daemon.wait() != 0
    assert [one for one in folder.iterdir() if one.is_socket()] == []
    with pytest.raises(FileNotFoundError), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(unstarted_daemon.nbd_socket))
