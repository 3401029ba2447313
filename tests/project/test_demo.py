"""`make demo ONCE=1`: its comparisons hold and it leaves nothing behind; a broken one says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
DEMO_TIMEOUT_S = 300

pytestmark = pytest.mark.timeout(DEMO_TIMEOUT_S)


def run_demo(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the demo to its end in a folder of its own."""
    command = [sys.executable, "-m", "demo", "--once", "--folder", str(folder)]
    return subprocess.run(
        command, cwd=CHECKOUT, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_demo_once_succeeds_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "d"

    done = run_demo(folder)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "sha256 of /srv/data.bin: as it should be" in done.stdout
    assert "/srv/scratch.bin, written parts and the rest: as it should be" in done.stdout
    assert not folder.exists()


def test_demo_without_a_client_fails_and_names_it(tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()

    done = run_demo(tmp_path / "d", PATH=str(bare))

    assert done.returncode == 1
    assert "mke2fs is not installed" in done.stderr


def test_demo_keeps_its_hands_off_other_folders(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")

    done = run_demo(tmp_path)

    assert done.returncode == 1
    assert "not made by a demo" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
