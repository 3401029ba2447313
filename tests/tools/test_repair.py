"""`ubi repair`: says what is lost, asks, does what it said, and leaves a volume that opens."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.format import vectors
from tests.support.daemon import CHECKOUT
from tests.tools import bases
from ubi_rpc.tools.main import main
from ubi_rpc.tools.report import Exit

Capsys = pytest.CaptureFixture[str]


def _damaged(path: Path, how: str) -> Path:
    """Make a base that is refused, or that has only one good slot."""
    if how == "sync_failed":
        return bases.make(path, "sync_failed")
    if how == "map_missing":
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return bases.make(path, "open", boot_id=type(vectors.BOOT)(boot), map_path=b"/nowhere/x.4.map")
    base = bases.make(path, "clean")
    if how == "sector_damaged":
        bases.make(path, "open")
        bases.flip(base, 3 * 512 + 100)
    elif how == "changed_since_close":
        bases.flip(base, 3 * 512 + 100)
    elif how == "superblock_damaged":
        for slot in bases.SLOTS_AT:
            bases.flip(base, slot + 200)
    elif how == "zeroed_magic":
        bases.put(base, 0, bytes(512))
    elif how == "superblock_slot":
        bases.flip(base, bases.SLOTS_AT[0] + 200)
    return base


def _image(folder: Path) -> Path:
    with (folder / "image").open("wb") as image:
        image.truncate(bases.IMAGE_BYTES)
    return folder / "image"


def _run(capsys: Capsys, *arguments: object) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["repair", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out + said.err


def _check(base: Path, *arguments: object) -> int:
    return main(["check", str(base), *map(str, arguments)])


REFUSED = ("sync_failed", "sector_damaged", "changed_since_close", "superblock_damaged", "zeroed_magic", "map_missing")


@pytest.mark.parametrize("how", [how for how in REFUSED if how != "map_missing"])
@pytest.mark.parametrize("choice", ["--keep", "--drop"])
def test_a_refused_volume_is_shown_first_and_mended_when_told_to(
    tmp_path: Path, capsys: Capsys, how: str, choice: str
) -> None:
    base, image = _damaged(tmp_path / "base", how), _image(tmp_path)
    before = base.read_bytes()
    known = ["-i", image, "-s", 64] if how == "superblock_damaged" else []
    assert _check(base, *known) == Exit.DAMAGED

    code, said = _run(capsys, base, choice, *known)  # no terminal: nothing is asked and nothing is done
    assert code == Exit.OK
    assert how in said
    assert "What is lost:" in said
    assert "nothing was written; --yes carries it out" in said
    assert base.read_bytes() == before

    code, said = _run(capsys, base, choice, "--yes", *known)
    assert code == Exit.OK
    assert "the next bdev_ubi_create opens it" in said
    assert _check(base) in {Exit.OK, Exit.UNCLEAN}
    assert base.read_bytes()[bases.DATA_AT :] == before[bases.DATA_AT :]


def test_stripes_in_doubt_are_kept_or_dropped_as_told(tmp_path: Path, capsys: Capsys) -> None:
    """The third sector has headers 505 to 760; every third stripe is on the base."""
    in_doubt = range(505, 761)
    for choice in ("--keep", "--drop"):
        base = _damaged(tmp_path / "base", "sector_damaged")
        bases.flip(base, 3 * 512 + 100)
        bases.flip(base, 2 * 512 + 101, 7)
        _, said = _run(capsys, base, choice, "--yes")
        assert "505-760" in said
        headers = base.read_bytes()[14 : 14 + 2 * bases.STRIPES : 2]
        for stripe, state in enumerate(headers):
            dropped = choice == "--drop" and stripe in in_doubt
            assert state == (stripe in bases.PRESENT and not dropped), stripe


def test_kept_stripes_without_a_header_are_shown_as_lost(tmp_path: Path, capsys: Capsys) -> None:
    """A zeroed sector says of none of its stripes that it is on the base, whatever it said before."""
    _, said = _run(capsys, _damaged(tmp_path / "base", "zeroed_magic"), "--keep")
    assert "the headers of the stripes 0-248 say that they are not on the base" in said


def test_without_a_choice_both_are_shown_and_nothing_is_done(tmp_path: Path, capsys: Capsys) -> None:
    base = _damaged(tmp_path / "base", "sector_damaged")
    before = base.read_bytes()
    for arguments in ([], ["--yes"], ["--dry-run"]):
        code, said = _run(capsys, base, *arguments)
        assert code == Exit.FAILED
        assert "--keep: " in said
        assert "--drop: " in said
        assert "give --keep or --drop" in said
    assert base.read_bytes() == before


def test_what_loses_nothing_needs_no_choice(tmp_path: Path, capsys: Capsys) -> None:
    base = _damaged(tmp_path / "base", "superblock_slot")
    code, said = _run(capsys, base, "--yes")
    assert code == Exit.OK
    assert "Nothing is lost." in said
    assert _check(base) in {Exit.OK, Exit.UNCLEAN}
    assert "superblock_slot" not in capsys.readouterr().out


def test_a_lost_map_can_only_be_given_up(tmp_path: Path, capsys: Capsys) -> None:
    base = _damaged(tmp_path / "base", "map_missing")
    code, said = _run(capsys, base, "--keep", "--yes")
    assert code == Exit.FAILED
    assert "only the map knows" in said
    code, said = _run(capsys, base, "--yes")
    assert code == Exit.OK
    assert "without a header" in said
    assert _check(base) == Exit.UNCLEAN


def test_a_whole_volume_needs_no_repair(tmp_path: Path, capsys: Capsys) -> None:
    base = bases.make(tmp_path / "base", "clean")
    before = base.read_bytes()
    code, said = _run(capsys, base, "--yes")
    assert (code, base.read_bytes()) == (Exit.OK, before)
    assert "nothing is wrong" in said


def test_what_no_repair_helps_against_is_left_alone(tmp_path: Path, capsys: Capsys) -> None:
    base = tmp_path / "base"
    base.write_bytes(b"QFI\xfb" + bytes(60))
    os.truncate(base, 16 << 20)
    before = base.read_bytes()
    code, _ = _run(capsys, base, "--keep", "--yes")
    assert (code, base.read_bytes()) == (Exit.FAILED, before)


@pytest.mark.parametrize(
    ("answers", "done"), [("drop\ny\n", True), ("drop\nn\n", False), ("\n", False), ("\x04", False)]
)
def test_on_a_terminal_it_asks(tmp_path: Path, answers: str, done: bool) -> None:
    base = _damaged(tmp_path / "base", "sector_damaged")
    before = base.read_bytes()
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "ubi_rpc.tools.main", "repair", str(base)]
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, env=environ, text=True) as child:
        os.close(theirs)
        os.write(ours, answers.encode())
        assert child.stdout is not None
        said = child.stdout.read()
    os.close(ours)
    assert "keep, drop, or nothing?" in said
    assert child.returncode == (Exit.OK if done else Exit.FAILED)
    assert (base.read_bytes() != before) is done
