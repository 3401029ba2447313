"""Which file a path means, and that none leads out of the allowed directories."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MIB, Domain, running_domain
from tests.engine_double import World
from ubi_rpc.errors import ErrorKind, UbiError
from ubi_rpc.files import Files, OutsideError

DENIED = (-13, "Permission denied")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a folder with `in` (allowed), `also` (allowed) and `out`, each with a file named after it."""
    for name in ("in", "also", "out", "in/deep"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(name.encode())
    return tmp_path


@pytest.fixture
def files(tree: Path) -> Iterator[Files]:
    """Allow `in` and `also`."""
    made = Files([tree / "in", tree / "also"])
    yield made
    made.close()


def _content(files: Files, path: Path) -> str:
    found = files.find(str(path))
    try:
        return Path(f"/proc/self/fd/{found.descriptor}").read_text()
    finally:
        os.close(found.descriptor)


def test_what_is_below_an_allowed_directory_is_found_however_it_is_spelled(files: Files, tree: Path) -> None:
    (tree / "in/relative").symlink_to("deep/file")
    (tree / "in/absolute").symlink_to(tree / "also/file")
    (tree / "in/up").symlink_to("../also/file")
    (tree / "entry").symlink_to(tree / "in")
    expected = {
        "in/file": "in",
        "also/file": "also",
        "in/deep/file": "in/deep",
        "in/deep/../file": "in",
        "out/../in/file": "in",
        "in/relative": "in/deep",
        "in/absolute": "also",
        "in/up": "also",
        "entry/file": "in",
    }
    assert {path: _content(files, tree / path) for path in expected} == expected


def test_nothing_leads_out(files: Files, tree: Path) -> None:
    (tree / "in/absolute").symlink_to(tree / "out/file")
    (tree / "in/relative").symlink_to("../out/file")
    (tree / "in/folder").symlink_to(tree / "out")
    (tree / "in/chain").symlink_to("relative")
    (tree / "in/root").symlink_to("/proc/self/root")
    (tree / "inside").mkdir()  # has the name of an allowed one for its beginning
    (tree / "inside/file").touch()
    paths = ["out/file", "in/absolute", "in/relative", "in/folder/file", "in/chain", "in/../out/file", "inside/file"]
    for path in [*paths, f"in/root{tree}/out/file", "out/missing", "in/../missing"]:
        with pytest.raises(OutsideError, match="--allowed-dir"):
            files.find(str(tree / path))
    descriptor = os.open(tree / "out/file", os.O_PATH)
    with pytest.raises(OutsideError):
        files.find(f"/proc/self/fd/{descriptor}")
    os.close(descriptor)


def test_what_is_missing_inside_is_missing(files: Files, tree: Path) -> None:
    for path in ("in/missing", "in/file/deeper"):
        with pytest.raises(OSError, match=r"No such file|Not a directory") as caught:
            files.find(str(tree / path))
        assert caught.value.errno in {errno.ENOENT, errno.ENOTDIR}
    (tree / "in/loop").symlink_to("loop")
    with pytest.raises(OSError, match=r"loop|levels"):
        files.find(str(tree / "in/loop"))


def test_an_allowed_directory_that_moves_stays_the_allowed_one(files: Files, tree: Path) -> None:
    (tree / "in").rename(tree / "moved")
    (tree / "out").rename(tree / "in")
    assert _content(files, tree / "in/file") == "in"


def test_links_that_change_all_the_time_never_lead_out(files: Files, tree: Path) -> None:
    """A link is swapped between a file inside and one outside, and a folder between itself and a link out."""
    stop = threading.Event()
    (tree / "in/real").mkdir()
    (tree / "in/real/file").write_text("real")

    def swap() -> None:
        while not stop.is_set():
            for target in ("deep/file", str(tree / "out/file")):
                (tree / "in/new").symlink_to(target)
                (tree / "in/new").rename(tree / "in/link")
            (tree / "in/real").rename(tree / "in/kept")
            (tree / "in/real").symlink_to(tree / "out")
            (tree / "in/real").unlink()
            (tree / "in/kept").rename(tree / "in/real")

    swapper = threading.Thread(target=swap)
    swapper.start()
    outcomes: dict[str, int] = {}
    try:
        for _ in range(3000):
            for path in ("in/link", "in/real/file"):
                try:
                    outcome = _content(files, tree / path)
                except OSError as error:
                    outcome = type(error).__name__
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
    finally:
        stop.set()
        swapper.join()
    assert "out" not in outcomes
    assert {"in/deep", "real", "OutsideError"} <= set(outcomes), outcomes


def test_an_allowed_directory_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("missing", "file"):
        with pytest.raises(UbiError, match=name) as caught:
            Files([tmp_path / name])
        assert caught.value.kind is ErrorKind.INVALID_PARAMS


async def test_bases_and_images_outside_are_refused_with_eacces(world: World, tree: Path) -> None:
    files = Files([tree / "in"])
    async with running_domain(world, tree / "in", files) as domain:
        await domain.aio("base", 32 * MIB)
        with (tree / "out/file").open("wb") as file:
            file.truncate(MIB)
        outside = str(tree / "out/file")
        assert await domain.error("bdev_aio_create", name="a", filename=outside, block_size=512) == DENIED
        assert await domain.error("bdev_ubi_create", name="u", base_bdev="base", image_path=outside) == DENIED
        await domain.ubi("u", "base")
        assert await domain.names() == ["base", "u"]
    files.close()


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("call", ["create_aio", "create_ubi"])
async def test_a_file_that_is_exchanged_after_it_was_found_is_not_opened(domain: Domain, call: str) -> None:
    """The engine is given what was found; descriptors are closed afterwards."""
    await domain.aio("base", 32 * MIB)
    path, other = domain.file("victim", 4 * MIB), domain.file("other", 8 * MIB)
    before = _descriptors()
    waiting, let_go = domain.world.hold(call)
    if call == "create_aio":
        creation = asyncio.create_task(domain.call("bdev_aio_create", name="x", filename=path, block_size=512))
    else:
        creation = asyncio.create_task(domain.call("bdev_ubi_create", name="x", base_bdev="base", image_path=path))
    await asyncio.to_thread(waiting.wait, 30)
    os.unlink(path)  # noqa: PTH108  what a rival does
    os.symlink(other, path)  # noqa: PTH211
    let_go.set()
    assert await creation == "x"
    if call == "create_aio":
        assert (await domain.bdev("x"))["num_blocks"] * 512 == 4 * MIB
    else:
        assert (await domain.call("bdev_ubi_get_status", name="x"))["image_size_bytes"] == 4 * MIB
    assert _descriptors() == before


async def test_a_create_that_is_refused_leaves_no_descriptor(domain: Domain) -> None:
    before = _descriptors()
    for _ in range(10):
        assert (await domain.error("bdev_aio_create", name="x", filename=str(domain.dir), block_size=512))[0] == -21
        assert (await domain.error("bdev_ubi_create", name="x", base_bdev="no", image_path=domain.file("i")))[0] == -19
    assert _descriptors() == before
