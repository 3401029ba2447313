"""A file system on a volume, mounted from nbdfuse's file through a loop device: the whole way of a container's root."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.images import METADATA_BYTES, MIB, make_sparse
from tests.support.programs import run
from tests.support.seeds import rng
from tests.support.waiting import until

pytestmark = [pytest.mark.timeout(120), pytest.mark.needs_fuse]

IMAGE_BYTES = 32 * MIB


@contextmanager
def as_file(folder: Path, uri: str) -> Iterator[Path]:
    """Show an export as a file as long as the context lasts."""
    folder.mkdir()
    process = subprocess.Popen(["nbdfuse", folder, uri], stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: (folder / "nbd").exists() or process.poll() is not None, "nbdfuse's file")
        assert process.poll() is None, process.stderr
        yield folder / "nbd"
    finally:
        run("fusermount3", "-u", folder)
        assert process.wait(30) == 0
        assert process.stderr is not None
        process.stderr.close()


@contextmanager
def mounted(file: Path, folder: Path) -> Iterator[Path]:
    """Mount the file system in a file."""
    folder.mkdir()
    run("mount", "-t", "ext4", "-o", "loop", file, folder)
    try:
        yield folder
    finally:
        run("umount", folder)


@pytest.mark.skipif(shutil.which("nbdfuse") is None, reason="nbdfuse is missing")
def test_a_file_system_is_mounted_from_nbdfuse_and_written(daemon: Daemon, folder: Path) -> None:
    image, tree = folder / "image.raw", folder / "tree"
    tree.mkdir()
    data = {f"file{index}": rng("mounted", index).randbytes(100_000 + index * 7919) for index in range(20)}
    for name, content in data.items():
        (tree / name).write_bytes(content)
    make_sparse(image, IMAGE_BYTES)
    run("mke2fs", "-q", "-t", "ext4", "-F", "-d", tree, image)
    before = image.read_bytes()
    daemon.create_aio("base0", make_sparse(folder / "base.raw", METADATA_BYTES + IMAGE_BYTES))
    uri = daemon.create_ubi("ubi0", "base0", image)
    with as_file(folder / "fuse", uri) as file, mounted(file, folder / "mnt") as root:
        for name, content in data.items():
            assert (root / name).read_bytes() == content
        (root / "file3").unlink()
        (root / "new").write_bytes(b"new" * 50_000)
    assert image.read_bytes() == before
    run("e2fsck", "-fn", save(uri, folder / "after.raw"))
    with as_file(folder / "again", uri) as file, mounted(file, folder / "mnt2") as root:
        assert (root / "new").read_bytes() == b"new" * 50_000
        assert not (root / "file3").exists()


def save(uri: str, to: Path) -> Path:
    """Copy an export to a file."""
    run("nbdcopy", uri, to)
    return to
