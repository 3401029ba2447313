"""`ubi check` and `ubi inspect`: a name for what is wrong, an exit code that scripts rely on, and nothing written."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.format import vectors
from tests.support.seeds import SEED, rng
from tests.tools import bases
from ubi_rpc.tools.main import main

HOLD = """
import fcntl, sys
with open(sys.argv[1], "r+b") as held:
    fcntl.flock(held, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""

OK, FAILED, DAMAGED, UNCLEAN, NOT_A_VOLUME = 0, 1, 2, 3, 63


@pytest.fixture(autouse=True)
def _seed_of_a_failure() -> None:
    print(f"UBI_TEST_SEED={SEED}")


def _check(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the JSON of `ubi check`; as text it must end alike."""
    said = [str(argument) for argument in arguments]
    code = main(["check", "--json", *said])
    report = json.loads(capsys.readouterr().out)
    assert main(["check", *said]) == code == report["exit_code"]
    text = capsys.readouterr().out
    assert text.startswith(f"{said[0]}: ")
    for problem in report["problems"]:
        assert f"  {problem['name']}: {problem['message']}" in text
    return code, report


def _names(report: dict[str, Any]) -> list[str]:
    return [problem["name"] for problem in report["problems"]]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("clean", (OK, "clean", [])),
        ("open", (UNCLEAN, "unclean", [])),
        ("adopting", (UNCLEAN, "adoptable", [])),
        ("sync_failed", (DAMAGED, "refused", ["sync_failed"])),
    ],
)
def test_each_state_has_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], state: str, expected: tuple[int, str, list[str]]
) -> None:
    base = bases.make(tmp_path / "base", state)
    before = (base.stat().st_mtime_ns, base.read_bytes())
    code, report = _check(capsys, base)
    assert (code, report["verdict"], _names(report)) == expected
    assert report["superblock"]["uuid"] == str(vectors.VOLUME)
    assert (base.stat().st_mtime_ns, base.read_bytes()) == before


def test_a_volume_of_bdev_ubi_is_checked_with_its_stripe_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = bases.make(tmp_path / "base", "plain")
    code, report = _check(capsys, base)
    assert (code, _names(report)) == (FAILED, ["stripe_size_needed"])
    with (tmp_path / "image").open("wb") as image:
        image.truncate(bases.IMAGE_BYTES)
    code, report = _check(capsys, base, "-s", 64, "-i", tmp_path / "image")
    assert (code, report["verdict"]) == (OK, "adoptable")
    assert report["stripes_set"] == len(bases.PRESENT)
    bases.flip(base, 14 + 2 * 700, 3)
    code, report = _check(capsys, base, "-s", 64, "-i", tmp_path / "image")
    assert (code, _names(report)) == (DAMAGED, ["header_damaged"])
    assert any(first <= 700 < end for first, end in report["problems"][0]["stripes"])


@pytest.mark.parametrize("slot", [0, 1])
def test_one_damaged_slot_is_mended_by_the_next_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], slot: int
) -> None:
    base = bases.make(tmp_path / "base", "open")
    bases.flip(base, bases.SLOTS_AT[slot] + 77)
    code, report = _check(capsys, base)
    assert (code, _names(report)) == (UNCLEAN, ["superblock_slot"])


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"BDEV_UBI\0" + bytes([0, 0, 1, 0, 1]), "layout_of_0_1_release"),
        (b"BDEV_UBI\0" + bytes([2, 0, 0, 0, 64]), "ubiblk"),
        (b"BDEV_UBI\0" + bytes([0, 0, 9, 0, 64]), "unknown_version"),
        (b"\xeb\x63\x90" + bytes(10), "foreign_content"),
        (b"QFI\xfb" + bytes(60), "foreign_content"),
    ],
)
def test_what_is_not_ours_is_named_and_is_no_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, name: str
) -> None:
    base = tmp_path / "base"
    base.write_bytes(content)
    os.truncate(base, 16 << 20)
    code, report = _check(capsys, base)
    assert (code, _names(report)[0]) == (NOT_A_VOLUME, name)


def test_an_empty_base_is_no_volume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base").touch()
    os.truncate(tmp_path / "base", 16 << 20)
    code, report = _check(capsys, tmp_path / "base")
    assert (code, report["verdict"]) == (NOT_A_VOLUME, "new")


def test_a_lost_magic_is_damage_when_a_superblock_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = bases.make(tmp_path / "base", "clean")
    bases.put(base, 0, bytes(512))
    code, report = _check(capsys, base)
    assert (code, _names(report)[0]) == (DAMAGED, "zeroed_magic")


def test_what_cannot_be_looked_at_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "absent")]) == FAILED
    assert "absent: No such file" in capsys.readouterr().err
    (tmp_path / "small").write_bytes(bytes(4096))
    assert main(["check", str(tmp_path / "small")]) == FAILED
    assert "the metadata alone takes 8 MiB" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["check"])
    assert ended.value.code == FAILED  # 2 is for damage


def test_a_base_in_use_is_left_alone_and_its_holder_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = bases.make(tmp_path / "base", "open")
    with subprocess.Popen([sys.executable, "-c", HOLD, base], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        for command, *rest in (["check"], ["inspect"], ["export", str(tmp_path / "out"), "-i", str(base)]):
            assert main([command, str(base), *rest]) == FAILED
            said = capsys.readouterr().err
            assert f"pid {holder.pid}" in said
            assert "delete its bdev there first" in said
    assert main(["check", str(base)]) == UNCLEAN


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["check", "inspect"])
def test_output_that_nobody_takes_is_no_verdict(tmp_path: Path, command: str, unbuffered: str) -> None:
    base = bases.make(tmp_path / "base", "open")

    def end(stdout: int) -> tuple[int, str]:
        program = [sys.executable, "-m", "ubi_rpc.tools.main", command, str(base)]
        environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(program, stdout=stdout, stderr=subprocess.PIPE, env=environ, text=True, check=False)
        os.close(stdout)
        return done.returncode, done.stderr

    assert end(os.open("/dev/full", os.O_WRONLY)) == (FAILED, f"ubi {command}: [Errno 28] No space left on device\n")
    reader, writer = os.pipe()
    os.close(reader)
    assert end(writer) == (FAILED, "")


def test_every_damaged_place_of_eight_sectors_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sample; native/engine/tests/ubi_examine.rs takes every bit."""
    chance = rng("check damage")
    for state in ("clean", "open"):
        base = bases.make(tmp_path / state, state)
        for bit in chance.sample(range(14 * 8, 4096 * 8), 40):
            bases.flip(base, bit // 8, bit % 8)
            code, report = _check(capsys, base)
            assert code == DAMAGED
            assert bit // 4096 in report["problems"][0]["sectors"]
            bases.flip(base, bit // 8, bit % 8)
        for _ in range(8):
            _swap(base, *chance.sample(range(1, 8), 2))
            code, report = _check(capsys, base)
            assert code == DAMAGED
            bases.make(base, state)


def _swap(base: Path, first: int, second: int) -> None:
    content = base.read_bytes()[:4096]
    for here, there in ((first, second), (second, first)):
        bases.put(base, here * 512, content[there * 512 : there * 512 + 512])


def test_random_damage_is_never_a_crash_and_never_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chance: random.Random = rng("random damage")
    for _ in range(150):
        base = bases.make(tmp_path / "base", chance.choice(["clean", "open"]))
        before = base.read_bytes()[: bases.DATA_AT]
        for _ in range(chance.randrange(1, 4)):
            at = chance.choice([0, *bases.SLOTS_AT]) + chance.randrange(4000)
            bases.put(base, at, chance.randbytes(chance.randrange(1, 64)))
        assert base.read_bytes()[: bases.DATA_AT] != before
        code, report = _check(capsys, base)
        assert code in {DAMAGED, UNCLEAN, NOT_A_VOLUME}
        assert report["problems"] or report["verdict"] == "unclean"


def test_inspect_shows_every_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = bases.make(tmp_path / "base", "open")
    assert main(["inspect", "--json", str(base)]) == OK
    report = json.loads(capsys.readouterr().out)
    assert main(["inspect", str(base)]) == OK
    text = capsys.readouterr().out
    shown = {"features", "image_kind", "stripes_set", "problems", "recovery", "slots"}
    for name, value in {**report, **report["superblock"]}.items():
        assert name in shown or isinstance(value, dict) or value is None or str(value) in text, name
    assert "state:" in text
    assert f"{bases.STRIPES}, {len(bases.PRESENT)} set" in text
