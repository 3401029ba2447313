"""What is published: the wheel has all it needs and runs outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
BUILD_TIMEOUT_S = 600

pytestmark = pytest.mark.timeout(BUILD_TIMEOUT_S)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout; quick, because `make` has built the module already."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "maturin", "build", "--release", "--locked", "--out", str(folder)]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, timeout=BUILD_TIMEOUT_S)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked by pip, its dependencies left to the environment of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(wheel)]
    subprocess.run(command, check=True, capture_output=True, timeout=BUILD_TIMEOUT_S)
    return folder


def run_installed(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program with the installed package first on the path, away from the checkout."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_wheel_fits_every_python_from_3_11_on(wheel: Path) -> None:
    assert "-cp311-abi3-" in wheel.name


def test_wheel_carries_the_licence_and_the_types(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    assert "ubi_rpc/py.typed" in names
    assert "ubi_rpc/_native.pyi" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "demo/", "bench/")) for name in names)


def test_wheel_has_the_same_client_as_the_checkout(wheel: Path) -> None:
    assert zipfile.ZipFile(wheel).read("ubi_rpc/cli_rpc.py") == (CHECKOUT / "scripts/rpc.py").read_bytes()


def test_installed_daemon_and_client_start(installed: Path) -> None:
    daemon = run_installed(installed, sys.executable, str(installed / "bin/ubi_tgt"), "-v")
    client = run_installed(installed, sys.executable, str(installed / "bin/ubi-rpc"), "--dry-run", "spdk_get_version")

    assert daemon.returncode == 0, daemon.stderr
    assert daemon.stdout.strip()
    assert client.returncode == 0, client.stderr
    assert '"spdk_get_version"' in client.stdout
