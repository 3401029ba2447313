"""`ubi repair` beside the volatile map of this boot: what the map knows is not in doubt, and not lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.images import METADATA_BYTES, MIB, make_image, make_sparse
from tests.support.seeds import rng
from tests.tools import bases
from ubi_rpc.tools.main import main
from ubi_rpc.tools.report import Exit

pytestmark = pytest.mark.timeout(120)

STRIPE = 65536
WRITTEN = b"w" * 4096
MARKING_DURABLE_AT = 93
PUBLISHED, MAPPED, UNTOUCHED = 1, 2, 3
"""Stripes: with a header, in the map alone, of the image."""

Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def volume(unstarted_daemon: Daemon, folder: Path) -> Path:
    """Return the base of a volume whose daemon was killed, and whose first header sector is damaged since."""
    base, image = make_sparse(folder / "base.raw", METADATA_BYTES + MIB), folder / "image.raw"
    make_image(image, 8 * STRIPE, rng("repair with map"))
    unstarted_daemon.start().create_aio("base0", base)
    unstarted_daemon.create_ubi("ubi0", "base0", image)
    with unstarted_daemon.client("ubi0") as client:
        client.write(PUBLISHED * STRIPE, WRITTEN)
        client.flush()
        client.write(MAPPED * STRIPE, WRITTEN)
    unstarted_daemon.kill()
    bases.flip(base, 14 + 2 * PUBLISHED)
    return base


def _contents(daemon: Daemon, base: Path) -> list[bool]:
    """Open the volume and say of each stripe whether it has what was written to it."""
    daemon.start().create_aio("base0", base)
    daemon.create_ubi("ubi0", "base0", base.with_name("image.raw"))
    with daemon.client("ubi0") as client:
        found = (client.read_range(at * STRIPE, at * STRIPE + 4096) for at in (PUBLISHED, MAPPED, UNTOUCHED))
        return [bytes(one) == WRITTEN for one in found]


def _is_marking_durable(base: Path) -> bool:
    (map_path,) = (base.parent / "state").glob("*.map")
    return map_path.read_bytes()[MARKING_DURABLE_AT] == 1


@pytest.mark.parametrize("choice", [(), ("--keep",), ("--drop",)])
def test_damaged_headers_are_written_again_as_the_map_knows_them(
    unstarted_daemon: Daemon, volume: Path, capsys: Capsys, choice: tuple[str, ...]
) -> None:
    assert main(["check", str(volume)]) == Exit.DAMAGED
    capsys.readouterr()
    assert _is_marking_durable(volume)
    assert main(["repair", str(volume), *choice, "--yes"]) == Exit.OK
    assert not _is_marking_durable(volume), "the superblocks are others now, and the next open waits for the disk"
    said = capsys.readouterr().out
    assert "sector_damaged" in said
    assert "written again as the volatile map knows them" in said
    assert "Nothing is lost." in said
    assert main(["check", str(volume)]) == Exit.UNCLEAN
    assert _contents(unstarted_daemon, volume) == [True, True, False]


def test_without_the_map_a_drop_says_all_that_is_lost(unstarted_daemon: Daemon, volume: Path, capsys: Capsys) -> None:
    (map_path,) = (volume.parent / "state").glob("*.map")
    map_path.unlink()
    assert main(["check", str(volume)]) == Exit.DAMAGED
    said = capsys.readouterr().out
    assert said.index("sector_damaged") < said.index("map_missing")
    assert main(["repair", str(volume), "--drop", "--yes"]) == Exit.OK
    said = capsys.readouterr().out
    assert "whatever was written to the stripes 0-7 is lost" in said
    assert "every stripe without a header is read from the image again" in said
    assert _contents(unstarted_daemon, volume) == [False, False, False]
