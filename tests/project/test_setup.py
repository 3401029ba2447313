"""scripts/setup.sh, seen by someone who is not root."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PLAIN_PROGRAMS = ("sh", "dirname", "mkdir", "date", "sed", "tr", "cat", "grep", "tail", "head", "python3", "rm")


@pytest.fixture
def path_without_tools(tmp_path: Path) -> Path:
    """A PATH with a shell's usual programs, an unprivileged id, and nothing that the project needs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in PLAIN_PROGRAMS:
        found = shutil.which(program)
        assert found is not None
        (folder / program).symlink_to(found)
    (folder / "id").write_text("#!/bin/sh\necho 1000\n")
    (folder / "id").chmod(0o755)
    return folder


def setup(goal: str, path: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run a copy of the script, so that this checkout's own state stays as it is."""
    shutil.copytree(CHECKOUT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "native").mkdir()
    shutil.copy(CHECKOUT / "native/Cargo.toml", tmp_path / "native")
    environment = {"PATH": str(path), "HOME": str(tmp_path), "RUST_FOLDERS": str(path)}
    command = [str(path / "sh"), "scripts/setup.sh", goal]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)


def test_setup_without_root_names_the_missing_packages(path_without_tools: Path, tmp_path: Path) -> None:
    done = setup("demo", path_without_tools, tmp_path)

    assert done.returncode == 1
    line = next(line for line in done.stderr.splitlines() if "apt-get install" in line)
    packages = line.split("--no-install-recommends ")[1].split()
    assert {"gcc", "pkg-config", "qemu-utils", "libnbd-bin"} <= set(packages)
    assert "fio" not in packages  # only the tests need it
    assert not (tmp_path / ".venv").exists()


def test_setup_of_an_unknown_goal_is_a_usage_error(path_without_tools: Path, tmp_path: Path) -> None:
    done = setup("everything", path_without_tools, tmp_path)

    assert done.returncode == 2
    assert "usage:" in done.stderr


def test_rust_too_old_is_told_with_the_version_found(path_without_tools: Path, tmp_path: Path) -> None:
    for program in ("cc", "pkg-config", "qemu-img", "qemu-io", "qemu-nbd", "nbdinfo", "nbdcopy", "cargo"):
        (path_without_tools / program).symlink_to("/bin/true")
    (path_without_tools / "rustc").write_text("#!/bin/sh\necho 'rustc 1.63.0 (4b91a6ea7 2022-08-08)'\n")
    (path_without_tools / "rustc").chmod(0o755)

    done = setup("build", path_without_tools, tmp_path)

    assert done.returncode == 1
    assert "needs Rust 1.95 or newer to build (found: rustc 1.63)" in done.stderr
    assert "rustc-web cargo-web" in done.stderr
