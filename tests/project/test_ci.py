"""The rule of CI mode in conftest.py: what is passed over fails the run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

PASSING = "def test_it():\n    assert True\n"
SKIPPED = "import pytest\n\n\n@pytest.mark.skip(reason='no part')\ndef test_it():\n    assert False\n"
EXPECTED_TO_FAIL = "import pytest\n\n\n@pytest.mark.xfail\ndef test_it():\n    assert False\n"
MODULE_SKIPPED = "import pytest\n\npytest.importorskip('a_module_that_nobody_has')\n"


def run_pytest(folder: Path, source: str, *, ci: bool) -> subprocess.CompletedProcess[str]:
    """Run one test module beside the project's conftest."""
    shutil.copy(CHECKOUT / "conftest.py", folder)
    (folder / "test_it.py").write_text(source)
    (folder / "test_other.py").write_text(PASSING)
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | ({"CI": "true"} if ci else {})
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("source", [SKIPPED, EXPECTED_TO_FAIL, MODULE_SKIPPED])
def test_passed_over_in_ci_fails_and_is_named(source: str, tmp_path: Path) -> None:
    done = run_pytest(tmp_path, source, ci=True)

    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "passed over, and CI allows none" in done.stdout
    assert "test_it.py" in done.stdout


@pytest.mark.parametrize(("source", "ci"), [(PASSING, True), (SKIPPED, False), (EXPECTED_TO_FAIL, False)])
def test_passed_otherwise(source: str, *, ci: bool, tmp_path: Path) -> None:
    assert run_pytest(tmp_path, source, ci=ci).returncode == pytest.ExitCode.OK
