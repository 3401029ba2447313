"""`ubi export`: the content of a volume in a file, whole and sparse, or no file at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.daemon import CHECKOUT, Daemon
from tests.support.gated_image import DEVICE, GatedImage
from tests.support.images import METADATA_BYTES, MIB, make_image, make_sparse
from tests.support.mounts import tmpfs
from tests.support.programs import run
from tests.support.seeds import rng

pytestmark = pytest.mark.timeout(120)

IMAGE_BYTES = 4 * MIB + 512
DISK_BYTES = 64 * MIB


class Volume:
    """A volume with writes, closed or killed, and what it has to read as."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon = daemon
        self.image, self.base = folder / "image.raw", folder / "base.raw"
        self.content = bytearray(make_image(self.image, IMAGE_BYTES, rng("export"), holes=True))
        self.content += bytes(DISK_BYTES - IMAGE_BYTES)
        make_sparse(self.base, METADATA_BYTES + DISK_BYTES)
        daemon.start().create_aio("base0", self.base)
        daemon.create_ubi("ubi0", "base0", self.image)
        chance = rng("export writes")
        with daemon.client("ubi0") as client:
            for offset in (0, 70 << 10, IMAGE_BYTES + 4096, 33 * MIB):
                data = chance.randbytes(4096)
                client.write(offset, data)
                self.content[offset : offset + len(data)] = data

    def command(self, out: Path, *arguments: str) -> list[str]:
        """Return the command line of an export."""
        known = ["-i", str(self.image), "-s", "64"]
        return [sys.executable, "-m", "ubi_rpc.tools.main", "export", str(self.base), str(out), *known, *arguments]

    def export(self, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Export and return how it ended."""
        command = self.command(out, *arguments)
        return subprocess.run(command, env=_environ(), capture_output=True, text=True, check=False)


def _environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(CHECKOUT)}


@pytest.fixture
def volume(unstarted_daemon: Daemon, folder: Path) -> Volume:
    """Return a volume whose daemon was killed."""
    made = Volume(unstarted_daemon, folder)
    made.daemon.kill()
    return made


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_file_is_what_the_volume_was(unstarted_daemon: Daemon, folder: Path, how: signal.Signals) -> None:
    volume = Volume(unstarted_daemon, folder)
    volume.daemon.end(how)
    out = folder / "out.raw"
    done = volume.export(out)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert out.read_bytes() == volume.content
    assert out.stat().st_blocks * 512 < IMAGE_BYTES + MIB  # zeros take no room
    assert volume.export(folder / "out.qcow2", "-O", "qcow2").returncode == 0
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", out, folder / "out.qcow2")
    assert run("qemu-img", "check", folder / "out.qcow2")
    left = {one.name for one in folder.iterdir() if "out" in one.name}
    assert left == {"out.raw", "out.qcow2"}


def test_an_export_leaves_the_volume_to_the_next_daemon(volume: Volume, folder: Path) -> None:
    assert volume.export(folder / "out.raw").returncode == 0
    volume.daemon.start().create_aio("base0", volume.base)
    volume.daemon.create_ubi("ubi0", "base0", volume.image)
    with volume.daemon.client("ubi0") as client:
        assert client.read_all() == volume.content
    assert volume.daemon.status("ubi0")["stripes_present"] < 70


def test_a_file_that_is_there_is_only_replaced_when_asked(volume: Volume, folder: Path) -> None:
    out = folder / "out.raw"
    out.write_text("mine")
    done = volume.export(out)
    assert done.returncode == 1
    assert "give --force" in done.stderr
    assert out.read_text() == "mine"
    assert volume.export(out, "--force").returncode == 0
    assert out.read_bytes() == volume.content
    for part in (volume.base, volume.image):
        done = volume.export(part, "--force")
        assert done.returncode == 1
        assert "is a part of the volume" in done.stderr


def test_progress_is_shown_when_asked_for(volume: Volume, folder: Path) -> None:
    assert "(100.00/100%)" in volume.export(folder / "out.raw", "-p").stdout


def test_a_volume_in_use_is_not_exported(unstarted_daemon: Daemon, folder: Path) -> None:
    volume = Volume(unstarted_daemon, folder)
    done = volume.export(folder / "out.raw")
    assert done.returncode == 1
    assert f"pid {volume.daemon.pid}" in done.stderr
    assert not (folder / "out.raw").exists()


def test_an_empty_base_is_not_formatted_by_an_export(volume: Volume, folder: Path) -> None:
    make_sparse(volume.base, METADATA_BYTES + DISK_BYTES)
    done = volume.export(folder / "out.raw")
    assert done.returncode == 1
    assert "there is nothing to export" in done.stderr
    assert not any(volume.base.read_bytes())


def test_another_image_is_refused(volume: Volume, folder: Path) -> None:
    volume.image = folder / "absent.raw"
    done = volume.export(folder / "out.raw")
    assert done.returncode == 1
    assert "absent.raw" in done.stderr


@pytest.mark.needs_root
def test_a_full_disk_leaves_no_file(volume: Volume, folder: Path) -> None:
    with tmpfs(folder / "small", MIB) as small:
        done = volume.export(small / "out.raw")
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        assert list(small.iterdir()) == []


@pytest.fixture
def slow(folder: Path) -> Iterator[GatedImage]:
    """Return an image whose reads can be held."""
    if os.geteuid() or not os.access(DEVICE, os.W_OK):
        pytest.skip("needs root and /dev/fuse")
    (folder / "mount").mkdir()
    with GatedImage(folder / "mount", rng("slow export").randbytes(IMAGE_BYTES)) as image:
        yield image


@pytest.mark.needs_fuse
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_in_the_middle_leaves_nothing(
    unstarted_daemon: Daemon, folder: Path, slow: GatedImage, how: signal.Signals
) -> None:
    base = make_sparse(folder / "base.raw", METADATA_BYTES + DISK_BYTES)
    unstarted_daemon.start().create_aio("base0", base)
    unstarted_daemon.create_ubi("ubi0", "base0", slow.path)
    assert unstarted_daemon.end() == 0
    gate = slow.hold(2 * MIB, MIB)
    (folder / "to").mkdir()
    command = [sys.executable, "-m", "ubi_rpc.tools.main", "export", str(base), str(folder / "to/out.raw")]
    with subprocess.Popen(
        [*command, "-i", str(slow.path), "-s", "64"], env=_environ(), stderr=subprocess.PIPE, text=True
    ) as child:
        gate.wait_reached()
        assert [one.name for one in (folder / "to").iterdir()] == [f".out.raw.{child.pid}.partial"]
        child.send_signal(how)
        with suppress(subprocess.TimeoutExpired):
            child.wait(1)  # the volume is closed when the read that is under way has ended
        slow.release(gate)
        assert child.wait(20) == 128 + how
        assert child.stderr is not None
        assert "out.raw was not written" in child.stderr.read()
    assert list((folder / "to").iterdir()) == []
